"""PoolManager: the only module that knows both the server and the worker."""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from mppool.alone import Alone, link_alone
from mppool.base_manager import Manager, refuse_initializer
from mppool.core.decisions import Draining
from mppool.core.events import ClosePool, Drain, Reset, Resize, ResizeBudget
from mppool.core.tokens import ForgetTokens
from mppool.errors import ConfigurationError, ConfigurationMismatch, PoolError, ServerUnavailable
from mppool.link.server_link import ServerLink
from mppool.link.session import CONTROL_DEADLINE_S
from mppool.link.troubles import no_answer, pool_errors_only
from mppool.options import (
    checked_label,
    checked_linger,
    checked_name,
    checked_over,
    checked_timeout,
)
from mppool.process.fork import call_in_children, notice_fork
from mppool.rendezvous.alone import is_alone
from mppool.rendezvous.locator import ServerLocator
from mppool.wire.messages import Done, Failed, Leave
from mppool.worker.budget import resize_of as resize_of_budget
from mppool.worker.member import Member, name_process
from mppool.worker.pool import CLOSE_PATIENCE_S
from mppool.worker.resizing import UNCHANGED, resize_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mppool.machines.settings import Settings
    from mppool.server.loop import Server

DEFAULT_LINGER_S = 30.0
_SHUTDOWN_PATIENCE_S = 10.0
_POLL_S = 0.005
_DRAIN_POLL_S = 0.02

# Managers of one name and directory share what a process holds, so that `PoolManager("shop")` in two modules
# is one manager; two members of one process for one server would each take the other's slots for free.
# A member stays as long as some manager uses it. `_finding` guards the look-up together with the making.
_members: weakref.WeakKeyDictionary[Member, ServerLocator] = weakref.WeakKeyDictionary()
_finding = threading.Lock()
# How many `with` blocks of this process have been entered and not left; guarded by `_finding`.
_entered: weakref.WeakKeyDictionary[Member, int] = weakref.WeakKeyDictionary()


def _renew_lock() -> None:
    global _finding
    _finding = threading.Lock()
    _entered.clear()  # a block that the parent has entered is left by the parent


call_in_children(_renew_lock)


def members() -> list[Member]:
    """This process as a member of each PoolManager that it has made."""
    with _finding:
        return list(_members)


def _member_for(locator: ServerLocator) -> Member:
    """The member of whatever managers there are that meet where this one does, by today's user."""
    notice_fork()
    with _finding:
        where = (locator.name, locator.likely_directory())
        for member, other in list(_members.items()):
            if (other.name, other.likely_directory()) == where:
                if locator.machines != other.machines:
                    raise ConfigurationMismatch(
                        f"manager {locator.name!r}: this process has made it with other settings of redis=, "
                        f"on_redis_lost= or end_expired= ({other.machines}, now {locator.machines}); give the same everywhere"
                    )
                return member
        member = Member(
            locator.name,
            link_alone if locator.is_alone else lambda made: ServerLink(made, locator),
        )
        _members[member] = locator
        return member


class PoolManager(Manager, BaseManager):
    """The pools that all processes of one application share.

    name: which processes share: same user, same runtime directory, same name. 1 to 64 letters, digits,
        `.`, `_`, `-`.
    runtime_dir: the directory where they meet. None: $MPPOOL_RUNTIME_DIR, or else /tmp/mppool-<effective uid>.
        Owned by the user, mode 0700.
    linger: seconds that the server stays when no client is connected. Where processes differ, the longest counts.
    label: what this process is called in statistics, `mppool top`, `mppool leases` and the error of a
        `checkout(timeout=0)`, from its next attachment on; a forked child keeps it until it is given its own. None: as before.
    redis: "redis://host:port/db", "rediss://..." or "unix://...". The caps of all pools then hold over all machines that
        use this Redis under this manager's name. Give the same to all processes of a machine. See docs/machines.md.
    on_redis_lost: what this machine may have while Redis gives no lease. "hold": what it has until its lease ends, then
        nothing. A number: that many resources of each pool.
    end_expired: whether sessions that a machine has left open beyond its lease are ended at the database, if the recipe
        can do that (PostgreSQL). Machines need host names that differ.

    Making one is cheap: no I/O, no process, no thread. The server is found, or started, by the first
    checkout of any process; `start()` does it at once.
    """

    def __new__(cls, *_: Any, **__: Any) -> PoolManager:  # noqa: PYI034
        """Where this process pools for itself alone, one that has no server; see mppool.alone."""
        return super().__new__(_alone(cls) if is_alone() else cls)  # type: ignore[arg-type]

    def __init__(
        self,
        name: str,
        *,
        runtime_dir: str | os.PathLike[str] | None = None,
        linger: float = DEFAULT_LINGER_S,
        label: str | None = None,
        redis: str | None = None,
        on_redis_lost: Literal["hold"] | int = "hold",
        end_expired: bool = False,
    ) -> None:
        super().__init__()
        self.name = checked_name("manager", name)
        seconds = checked_linger(name, linger)
        directory = None if runtime_dir is None else _checked_directory(name, runtime_dir)
        machines = None
        if redis is not None or on_redis_lost != "hold" or end_expired is not False:
            from mppool.machines.settings import checked_settings

            machines = checked_settings(name, redis, on_redis_lost, end_expired)
        self._locator = ServerLocator(name, directory, seconds, machines)
        if label is not None:
            name_process(checked_label(name, label))
        self._member = _member_for(self._locator)

    def __reduce__(self) -> tuple[Any, ...]:
        locator = self._locator
        # The directory by name: the process that unpickles it may have another environment. A forkserver keeps
        # the one of its start, and its children would meet elsewhere, with a cap of their own.
        directory = locator.runtime_dir or os.environ.get("MPPOOL_RUNTIME_DIR") or None
        return (_rebuild_manager, (self.name, directory, locator.linger, locator.machines))

    def __repr__(self) -> str:
        return f"<PoolManager {self.name!r}>"

    # --- BaseManager's life cycle ------------------------------------------------------------------------

    @property
    def _link(self) -> ServerLink:
        link = self._member.link
        assert isinstance(link, ServerLink)
        return link

    @property
    @pool_errors_only
    def address(self) -> str | None:
        """The path of the server's socket, or None while there is no server."""
        from mppool.rendezvous.liveness import lives
        from mppool.rendezvous.paths import read_address

        paths = self._locator.paths()
        found = read_address(paths)
        if found is None or not lives(found.server):
            return None
        return os.fspath(paths.runtime_dir / found.socket)

    @property
    def directory(self) -> Path:
        """The directory with this manager's files; made if it is missing, owned by the user, mode 0700."""
        paths = self._locator.paths()
        paths.prepare()
        return paths.directory

    @property
    @pool_errors_only
    def server_pid(self) -> int | None:
        """Pid of the server that this process is connected to, else of the one that is there, else None."""
        from mppool.rendezvous.launch import server_pid
        from mppool.rendezvous.liveness import lives

        connected = self._link.connected_server()
        if connected is not None and lives(connected):
            return connected.pid
        return server_pid(self._locator.paths())

    def start(self, initializer: Any = None, initargs: Any = (), *, fill: bool = False) -> None:
        """Find the server, or start it, now instead of at the first checkout.

        fill: open `min_size` resources of each pool that this process has declared, in the background;
            `pool.wait_ready` waits for them. `max_opening` bounds how many at a time.

        Raises ConfigurationError for an initializer: nothing of the application runs in the server.
        """
        refuse_initializer(self.name, initializer)
        self._attach(start=True)
        if fill:
            self._member.fill()

    def connect(self) -> None:
        """Attach to the server that is there. Raises ServerUnavailable if there is none."""
        if not self._attach(start=False):
            raise ServerUnavailable(
                f"manager {self.name!r}: no server runs in {self._locator.paths().runtime_dir}; start() one, "
                "or just check out: the first checkout starts it"
            )

    @property
    def manager_name(self) -> str:
        """The name of the manager."""
        return self.name

    @pool_errors_only
    def _attach(self, *, start: bool) -> bool:
        try:
            return self._link.ensure_session(time.monotonic() + _SHUTDOWN_PATIENCE_S, start=start)
        except TimeoutError as error:
            raise no_answer(self.name) from error

    def get_server(self) -> Server:  # type: ignore[override]
        """A server to run in this process: `manager.get_server().serve_forever()`."""
        from mppool.server.loop import Server as TheServer

        locator = self._locator
        return TheServer(locator.paths(), linger=locator.linger, machines=locator.machines)

    def shutdown(self) -> None:  # type: ignore[override]  # BaseManager has it as an attribute
        """End the server cleanly, from any process. Leases that are out keep working.

        The next cold checkout anywhere starts a new server. Returns when the server has gone.
        """
        pid = self.server_pid
        if pid is None:
            return
        if self._link.control(Leave(), time.monotonic() + _SHUTDOWN_PATIENCE_S) is None:
            self._link.session.outgoing.send_message(
                Leave()
            )  # its address has vanished, but we are connected to it
        if not self._wait_until(lambda: self.server_pid != pid, _SHUTDOWN_PATIENCE_S):
            raise ServerUnavailable(
                f"manager {self.name!r}: the server with pid {pid} was asked to leave and is still there; "
                f"its log is {self._locator.paths().log}"
            )

    def close(self) -> None:
        """Close what is idle in this process, and detach from the server. Other processes go on.

        Leases that are out keep working; their resources are closed when they are released. The manager can be
        used again: the next checkout attaches it. At a normal end of the interpreter this happens by itself,
        within a second.
        """
        for face in self._hosted():
            from mppool.hosting.pool import close_streams

            close_streams(face)
        self._member.leave(CLOSE_PATIENCE_S)

    def _leave_hosts(self) -> None:
        """Hosts that no other process uses end."""
        for face in self._hosted():
            from mppool.hosting.pool import leave_hosts

            leave_hosts(face)

    def _end_unless_needed(self) -> None:
        """End the server, where no other process is attached to it."""
        pid = self.server_pid
        if pid is None:
            return
        deadline = time.monotonic() + CONTROL_DEADLINE_S
        if isinstance(self._link.control(Leave(unless_needed=True), deadline), Done):
            self._wait_until(lambda: self.server_pid != pid, _SHUTDOWN_PATIENCE_S)

    def drain(self, pool: str, timeout: float | None = 30.0) -> int:
        """`Pool.drain` for a pool that this process need not have declared; starts no server.

        timeout: seconds to wait for leases to come back; None: for ever.
        Returns how many resources that were open before this call are still out.
        Raises ServerUnavailable where no server runs, PoolError for a pool that no process has declared.
        """
        seconds = checked_timeout(pool, timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        generation: int | None = None
        while True:
            control_deadline = time.monotonic() + CONTROL_DEADLINE_S
            answer = self._link.control(Drain(pool, generation), control_deadline)
            over = deadline is not None and time.monotonic() >= deadline
            if isinstance(answer, Draining):
                generation = answer.generation
                if over or not answer.left:
                    return answer.left
            elif generation is None or over:
                # Later: a server that has just died; its successor goes on with the same generation.
                self._raise_undrained(answer)
            threading.Event().wait(_DRAIN_POLL_S)

    def resize(
        self, pool: str, *, max_size: int | None = UNCHANGED, min_size: int = UNCHANGED
    ) -> None:
        """`Pool.resize` for a pool that this process need not have declared; starts no server.

        Raises ConfigurationError for bounds that are not allowed, ServerUnavailable where no server runs, PoolError
        for a pool that no process has declared.
        """
        self._control_pool(resize_of(pool, max_size, min_size))

    def resize_budget(self, budget: str, max_size: int) -> None:
        """`Budget.resize` for a budget that this process need not have declared; starts no server.

        Raises ConfigurationError for a cap that is not allowed, ServerUnavailable where no server runs, PoolError for a
        budget that no process has declared.
        """
        self._control_pool(resize_of_budget(budget, max_size))

    def reset(self, pool: str, *, over: float = 0.0) -> None:
        """`Pool.reset` for a pool that this process need not have declared; starts no server.

        Raises ServerUnavailable where no server runs, PoolError for a pool that no process has declared.
        """
        self._control_pool(Reset(pool, checked_over(pool, over)))

    def reopen(self, pool: str) -> None:
        """Undo `Pool.close(everywhere=True)`, in all processes; starts no server.

        A process that closed the pool for itself alone keeps it closed. Raises what `reset` raises.
        """
        self._control_pool(ClosePool(pool, reopened=True))

    def _control_pool(self, event: Resize | ResizeBudget | Reset | ClosePool) -> None:
        answer = self._link.control(event, time.monotonic() + CONTROL_DEADLINE_S)
        if not isinstance(answer, Done):
            self._raise_undrained(answer)

    def _raise_undrained(self, answer: Any) -> NoReturn:
        if isinstance(answer, Failed):
            raise PoolError(f"manager {self.name!r}: {answer.text}")
        raise ServerUnavailable(
            f"manager {self.name!r}: no server runs in {self._locator.paths().runtime_dir}, so nothing is "
            "known of its pools"
        )

    def _command_tokens(self, event: ForgetTokens) -> None:
        """Without a server nothing is shared, so none is started."""
        self._link.control(event, time.monotonic() + CONTROL_DEADLINE_S)

    def join(self, timeout: float | None = None) -> None:
        """Wait until there is no server, for at most `timeout` seconds (None: for ever)."""
        self._wait_until(lambda: self.server_pid is None, timeout)

    def _wait_until(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        deadline = None if seconds is None else time.monotonic() + seconds
        while not condition():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            threading.Event().wait(_POLL_S)
        return True

    def __enter__(self) -> PoolManager:  # noqa: PYI034  # typing.Self is newer than Python 3.10
        with _finding:
            _entered[self._member] = _entered.get(self._member, 0) + 1
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, and end the server where no other process is attached to it, as BaseManager does."""
        with _finding:
            _entered[self._member] = left = max(0, _entered.get(self._member, 0) - 1)
            is_last = not left
        if (
            is_last
        ):  # else another thread, or a block around this one, still uses what this process has
            self._leave_hosts()
            self.close()
            self._end_unless_needed()


# So that `help` and editors show the arguments of `__init__`.
functools.update_wrapper(PoolManager.__new__, PoolManager.__init__, assigned=(), updated=())


@functools.cache
def _alone(cls: type[PoolManager]) -> type[PoolManager]:
    """The same class with the life cycle of a manager without a server."""
    return cls if Alone in cls.__mro__ else type(cls.__name__, (Alone, cls), {})


def _rebuild_manager(
    name: str, runtime_dir: str | None, linger: float, machines: Settings | None = None
) -> PoolManager:
    if machines is None:
        return PoolManager(name, runtime_dir=runtime_dir, linger=linger)
    return PoolManager(
        name,
        runtime_dir=runtime_dir,
        linger=linger,
        redis=machines.url,
        on_redis_lost=machines.fallback if machines.fallback is not None else "hold",
        end_expired=machines.ends_expired,
    )


def _checked_directory(manager: str, runtime_dir: object) -> str:
    path = os.fspath(runtime_dir) if isinstance(runtime_dir, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigurationError(
            f"manager {manager!r}: runtime_dir={runtime_dir!r:.80} is not allowed: give the path of a "
            "directory, as text or a Path, or leave it out"
        )
    return os.fspath(Path(path).absolute())
