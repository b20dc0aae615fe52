"""PoolManager and InProcessManager: the only place that knows both wings, the server's and the worker's."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import weakref
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mppool.core.books import Books
from mppool.core.decisions import Draining
from mppool.core.events import Attach, Drain
from mppool.errors import ConfigurationError, PoolError, ServerUnavailable
from mppool.ids import Session, own_process
from mppool.options import checked_name, checked_options, checked_timeout
from mppool.recipe import HOOKS, as_recipe
from mppool.wire.messages import Failed
from mppool.worker.link import CONTROL_DEADLINE_S, ServerLink
from mppool.worker.local import LocalLink
from mppool.worker.member import Member
from mppool.worker.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mppool.azure.shared import SharedCredential
    from mppool.azure.shared_async import AsyncSharedCredential
    from mppool.recipe import Recipe
    from mppool.server.loop import Server
    from mppool.server.runtime import ManagerPaths
    from mppool.wire.messages import Report

T = TypeVar("T")

DEFAULT_LINGER_S = 30.0
_SHUTDOWN_PATIENCE_S = 10.0
_POLL_S = 0.005
_DRAIN_POLL_S = 0.02


def _check_platform() -> None:
    if sys.platform != "linux":
        raise ConfigurationError(
            f"mppool runs on Linux only (this is {sys.platform}): it watches processes by pidfd; on other "
            "systems use InProcessManager, or a pool of one process"
        )


class _Manager:
    """What both managers offer: pools and statistics, over whatever link."""

    _member: Member

    def pool(self, name: str, recipe: Recipe[T] | Callable[..., T], **options: Any) -> Pool[T]:
        """Declare a pool. Costs nothing: no process, no thread, no I/O before the first checkout.

        recipe: a Recipe, or a callable that opens a resource; hooks as keyword arguments go with the
            latter (`configure, on_checkout, reset, check, close, stats, describe`).
        options: see PoolOptions. The same name again with the same options is the same pool.

        Raises ConfigurationError, which names the option, the value and what is allowed, and
        ConfigurationMismatch where this process has declared the pool otherwise.
        """
        checked_name("pool", name)
        hooks = {hook: options[hook] for hook in HOOKS if hook in options}
        given = {option: value for option, value in options.items() if option not in HOOKS}
        checked = checked_options(name, given)
        face = self._member.declare(name, as_recipe(recipe, hooks), checked)
        return Pool(face, self.stats, (_rebuild_pool, (self, name, recipe, options)))

    def credential(self, credential: Any, *, identity: str | None = None) -> SharedCredential:
        """A credential whose tokens are fetched once for all processes, for any Azure SDK client.

        credential: of azure-identity, or any other with `get_token`. Costs nothing before its first use.
        identity: what it stands for, equal in all processes; None: see `mppool.azure.identity_of`. Where
            only a token can tell, tokens are shared by the threads of this process alone.

        Raises ConfigurationError for what is no credential, and where the extra `azure` is missing.
        """
        from mppool.azure.shared import SharedCredential

        return SharedCredential(self, credential, identity=identity)

    def async_credential(
        self, credential: Any, *, identity: str | None = None
    ) -> AsyncSharedCredential:
        """The same for asyncio; a synchronous credential is run in a thread."""
        from mppool.azure.shared_async import AsyncSharedCredential

        return AsyncSharedCredential(self, credential, identity=identity)

    def stats(self) -> dict[str, Any]:
        """Statistics of all pools and processes, JSON-compatible. All durations are seconds.

        Where no server runs, nothing is held: the pools are those that this process has declared.
        """
        stats = self._member.link.stats()
        if not stats:
            stats = self._merge(self._unattached_snapshot(), self._member.report(0))
            stats["processes"], stats["server_pid"], stats["epoch"] = [], None, None
        unknown = [name for name in self._member.faces if name not in stats["pools"]]
        if unknown:  # the server runs, but this process has not attached to it yet
            own = self._merge(self._unattached_snapshot(), self._member.report(0))
            stats["pools"].update({name: own["pools"][name] for name in unknown})
        return stats

    def _unattached_snapshot(self) -> dict[str, Any]:
        """What books would say to which this process has just attached, with nothing in its hands."""
        books = Books(0)
        books.apply(
            own_process(), Session(1), Attach("", self._member.declarations(), []), time.monotonic()
        )
        return books.snapshot()

    def _merge(
        self, snapshot: dict[str, Any], report: Report, uptime: float = 0.0
    ) -> dict[str, Any]:
        from mppool.server.statistics import ProcessFigures, Totals, merged

        pools = {one.pool: one for one in report.pools}
        figures = [ProcessFigures(own_process(), self._member.label, pools, stale=False)]
        return merged(
            snapshot,
            figures,
            Totals(),
            name=self._member.name,
            server_pid=os.getpid(),
            uptime=uptime,
        )


def _rebuild_pool(manager: _Manager, name: str, recipe: Any, options: dict[str, Any]) -> Pool[Any]:
    return manager.pool(name, recipe, **options)


class _Meeting:
    """Where the processes of a manager meet: its files, resolved at first use (rule 12)."""

    def __init__(self, name: str, runtime_dir: str | None, linger: float) -> None:
        self.name = name
        self.runtime_dir = runtime_dir
        self.linger = linger
        self._paths: tuple[int, ManagerPaths] | None = None

    def paths(self) -> ManagerPaths:
        """The files of the manager; resolved again in a child, whose effective user may be another."""
        from mppool.server.runtime import manager_paths

        _check_platform()
        if self._paths is None or self._paths[0] != os.getpid():
            self._paths = (os.getpid(), manager_paths(self.name, self.runtime_dir))
        return self._paths[1]

    def connect(self, deadline: float) -> socket.socket:
        """A connection to the server, which is started if there is none."""
        from mppool.server.launch import find_or_start

        return find_or_start(self.paths(), linger=self.linger, deadline=deadline)

    def look(self) -> socket.socket | None:
        """A connection to the server, if there is one."""
        from mppool.server.launch import connect

        return connect(self.paths())

    def replace(self, ask_to_leave: Callable[[], None], deadline: float) -> None:
        """Have the server that is there leave, and start one of this release in its place."""
        from mppool.server.launch import replace

        replace(self.paths(), ask_to_leave, linger=self.linger, deadline=deadline)


# Managers of one name and directory share what a process holds, so that `PoolManager("shop")` in two modules
# is one manager. Values live as long as some manager uses them.
_members: weakref.WeakValueDictionary[tuple[str, str | None], Member] = (
    weakref.WeakValueDictionary()
)


def members() -> list[Member]:
    """This process as a member of each PoolManager that it has made."""
    return list(_members.values())


class PoolManager(_Manager, BaseManager):
    """The pools that all processes of one application share.

    name: which processes share: same user, same runtime directory, same name. 1 to 64 letters, digits,
        `.`, `_`, `-`.
    runtime_dir: where they meet; else $MPPOOL_RUNTIME_DIR, else `mppool-<effective uid>` in the system's
        temporary directory. Owned by the user, mode 0700.
    linger: seconds that the server stays when no client is connected (the longest that was asked for).

    Making one is cheap: no I/O, no process, no thread. The server is found, or started, by the first
    checkout of any process; `start()` does it at once.
    """

    def __init__(
        self,
        name: str,
        *,
        runtime_dir: str | os.PathLike[str] | None = None,
        linger: float = DEFAULT_LINGER_S,
        budget: str | None = None,
    ) -> None:
        super().__init__()
        self.name = checked_name("manager", name)
        if budget is not None:
            raise ConfigurationError(
                f"manager {name!r}: budget={budget!r:.40} is not allowed: this version shares a cap over one "
                "machine only; leave budget out"
            )
        seconds = checked_timeout("(manager)", linger)
        if seconds is None:
            raise ConfigurationError(
                f"manager {name!r}: linger=None is not allowed: give a number of seconds, 0 or more"
            )
        directory = None if runtime_dir is None else os.fspath(Path(runtime_dir).absolute())
        self._meeting = _Meeting(name, directory, seconds)
        self._member = self._shared_member(directory)

    def _shared_member(self, directory: str | None) -> Member:
        key = (self.name, directory or os.environ.get("MPPOOL_RUNTIME_DIR"))
        member = _members.get(key)
        if member is None:
            meeting = self._meeting
            member = _members.setdefault(
                key, Member(self.name, lambda made: ServerLink(made, meeting))
            )
        return member

    def __reduce__(self) -> tuple[Any, ...]:
        meeting = self._meeting
        # The directory by name: the environment of whoever unpickles may be another. A forkserver keeps
        # the one of its start, and its children would meet elsewhere, with a cap of their own.
        directory = meeting.runtime_dir or os.environ.get("MPPOOL_RUNTIME_DIR")
        return (_rebuild_manager, (self.name, directory, meeting.linger))

    def __repr__(self) -> str:
        return f"<PoolManager {self.name!r}>"

    # --- BaseManager's life cycle ------------------------------------------------------------------------

    @property
    def _link(self) -> ServerLink:
        link = self._member.link
        assert isinstance(link, ServerLink)
        return link

    @property
    def address(self) -> str | None:
        """Path of the server's socket, or None while there is no server."""
        from mppool.server.runtime import read_address

        paths = self._meeting.paths()
        found = read_address(paths)
        return None if found is None else os.fspath(paths.runtime_dir / found.socket)

    @property
    def directory(self) -> Path:
        """Where the files of this manager lie; made if it is missing, owned by the user, mode 0700."""
        paths = self._meeting.paths()
        paths.prepare()
        return paths.directory

    @property
    def server_pid(self) -> int | None:
        """Pid of the server: None if there is none."""
        from mppool.server.launch import server_pid

        return server_pid(self._meeting.paths())

    def start(self, initializer: Any = None, initargs: Any = ()) -> None:
        """Find the server, or start it, now instead of at the first checkout.

        Raises ConfigurationError for an initializer: nothing of the application runs in the server.
        """
        if initializer is not None:
            raise ConfigurationError(
                f"manager {self.name!r}: start(initializer=...) is not offered: the server runs nothing of "
                "the application; do it in the recipe's open or configure hook"
            )
        self._link.ensure_session(time.monotonic() + _SHUTDOWN_PATIENCE_S)

    def connect(self) -> None:
        """Attach to the server that is there. Raises ServerUnavailable if there is none."""
        if not self._link.ensure_session(time.monotonic() + _SHUTDOWN_PATIENCE_S, start=False):
            raise ServerUnavailable(
                f"manager {self.name!r}: no server runs in {self._meeting.paths().runtime_dir}; start() one, "
                "or just check out: the first checkout starts it"
            )

    def get_server(self) -> Server:  # type: ignore[override]
        """A server to run in this process: `manager.get_server().serve_forever()`."""
        from mppool.server.loop import Server as TheServer

        return TheServer(self._meeting.paths(), linger=self._meeting.linger)

    def shutdown(self) -> None:  # type: ignore[override]  # BaseManager has it as an attribute
        """End the server in order, from any process: leases that are out keep working.

        The next cold checkout anywhere starts a new server. Returns when the server has gone.
        """
        from mppool.wire.messages import Leave

        pid = self.server_pid
        if pid is None:
            return
        self._link.control(Leave(), time.monotonic() + _SHUTDOWN_PATIENCE_S)
        if not self._wait_until(lambda: self.server_pid != pid, _SHUTDOWN_PATIENCE_S):
            raise ServerUnavailable(
                f"manager {self.name!r}: the server with pid {pid} was asked to leave and is still there; "
                f"its log is {self._meeting.paths().log}"
            )

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

    def _raise_undrained(self, answer: Any) -> NoReturn:
        if isinstance(answer, Failed):
            raise PoolError(f"manager {self.name!r}: {answer.text}")
        raise ServerUnavailable(
            f"manager {self.name!r}: no server runs in {self._meeting.paths().runtime_dir}, so nothing is "
            "known of what could be drained"
        )

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
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    @classmethod
    def register(cls, *arguments: Any, **keywords: Any) -> None:
        """Not offered: a driver must not share the server's process."""
        raise ConfigurationError(
            "PoolManager.register is not offered: what crashes in the server would take all pools with it; "
            "use multiprocessing.managers.SyncManager for other shared objects"
        )


def _rebuild_manager(name: str, runtime_dir: str | None, linger: float) -> PoolManager:
    return PoolManager(name, runtime_dir=runtime_dir, linger=linger)


class InProcessManager(_Manager):
    """The same interface and the same core without a server, for a single process and for tests.

    A forked child starts with empty pools of its own: nothing is shared between processes.
    """

    def __init__(self, name: str = "local") -> None:
        self.name = checked_name("manager", name)
        self._member = Member(name, lambda member: LocalLink(member, self._merge))

    @property
    def _link(self) -> LocalLink:
        link = self._member.link
        assert isinstance(link, LocalLink)
        return link

    @property
    def address(self) -> None:
        """There is no server, so there is no address."""
        return None

    @property
    def server_pid(self) -> int:
        """Pid of the process that keeps the books: this one."""
        return os.getpid()

    def start(self) -> None:
        """Nothing to start."""

    def connect(self) -> None:
        """Nothing to connect to."""

    def join(self, timeout: float | None = None) -> None:
        """Nothing to wait for."""

    def shutdown(self) -> None:
        """Close what lies idle. Leases that are out keep working, and the pools go on when they are used."""
        self._member.close_idle()
        self._link.stop()

    def __enter__(self) -> InProcessManager:  # noqa: PYI034  # typing.Self is newer than Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def __reduce__(self) -> tuple[Any, ...]:
        raise PoolError(
            f"the in-process manager {self.name!r} cannot be pickled: it shares nothing with other "
            "processes; use PoolManager"
        )
