"""What a simulated worker process does: its threads check out, use, and release."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from tests.simulation.issuer import AsyncCredential, Credential
from tests.simulation.scheduler import current_thread, monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.processes import Process
    from tests.simulation.world import World

GRACE_S = 0.1
"""So much longer than its timeout a checkout may wait, where nothing was wrong with the server."""
TROUBLED_GRACE_S = 3.0
"""Where a server had to be started, or did not answer."""


class Worker:
    """One process: a manager, a pool, and threads."""

    def __init__(self, world: World, process: Process) -> None:
        from tests.simulation.world import DIRECTORY, POOL

        self.world, self.process = world, process
        self.settings, self.chance = world.settings, world.chance
        copy = world.copy
        self.errors = copy.errors
        self.release = world.release.number % 2
        self.options = options = world.release.options
        self.managers = []
        for _ in range(1 + self.settings.two_members):
            # A second copy of the library knows nothing of the first one's members.
            copy.manager._members = weakref.WeakKeyDictionary()
            self.managers.append(
                copy.manager.PoolManager(
                    "simulated", runtime_dir=DIRECTORY, linger=self.settings.linger, label="worker"
                )
            )
        self.pools: list[Any] = [self._declare(one, POOL, options) for one in self.managers]
        self.manager: Any = self.managers[0]
        self.pool = self.pools[0]
        self.credentials: dict[str | None, Any] = {}
        if self.settings.tokens:
            names = [name for name in self.settings.identities if name is not None]
            kind = AsyncCredential if self.settings.async_credentials else Credential
            self.credentials = {name: kind(world.issuer, name) for name in names}
        self.busy = 0
        self.leaves = False

    def _declare(self, manager: Any, name: str, options: dict[str, Any]) -> Any:
        return manager.pool(name, self.world.recipes.made[self.release], **options)

    def _start_actors(self) -> None:
        for number in range(self.settings.threads):
            self.process.start_thread(self._act, f"actor {number}")
            self.busy += 1

    def live(self) -> None:
        """In its main thread."""
        self._start_actors()
        while self._is_busy() or not self.leaves:
            self.world.scheduler.sleep(0.5 if self.leaves or self.world.is_healing else 1.0)
        if self.world.is_healing:
            while not self.leaves:
                self.world.scheduler.sleep(1.0)
        for manager in self.managers:
            manager.close()

    def _is_busy(self) -> bool:
        return bool(self.busy)

    def is_over(self) -> bool:
        return self.leaves or self.world.is_healing

    def _act(self) -> None:
        try:
            while not self.is_over():
                self._pause(self._length_of_pause())
                self._check_out_and_use()
        finally:
            self.busy -= 1

    def _length_of_pause(self) -> float:
        pause = self.chance.expovariate(1.0) * self.settings.pause
        return pause * 100 if self.chance.random() < self.settings.quiet else pause

    def _pause(self, seconds: float) -> None:
        until = monotonic() + seconds
        while not self.is_over() and monotonic() < until:
            self.world.scheduler.sleep(min(5.0, max(0.0, until - monotonic())))

    def _check_out_and_use(self) -> None:
        timeout = self.chance.choice(self.settings.timeouts)
        identity = self.chance.choice(self.settings.identities)
        lease = self.check_out(timeout, identity, self.lane())
        if lease is None:
            return
        session = lease.resource
        database = self.world.database
        database.lend(session, identity, self.release)
        if seconds := self._length_of_use():
            self.world.scheduler.sleep(seconds)
        database.give_back(session)
        # The collector does not run in a world. A frame that some traceback has kept must not keep a lease that leaks.
        held = [lease]
        del lease
        self._give_back(held)

    def lane(self) -> str | None:
        """Of the next checkout."""
        return self.chance.choice((None, "web")) if "lanes" in self.options else None

    def _length_of_use(self) -> float:
        settings = self.settings
        may_be_overdue = settings.overdue and not self.world.is_healing
        if may_be_overdue and self.chance.random() < settings.overdue:
            return float(1.5 * self.options["max_lease_kill"])
        return self.chance.expovariate(1.0) * settings.hold if settings.hold else 0.0

    def _detach(self, lease: Any) -> None:
        """The resource is the caller's, until it has closed it."""
        try:
            session = lease.detach()
        except self.errors.StaleLease:
            return
        self.world.scheduler.sleep(self.settings.hold)
        self.world.database.end(session)
        lease.closed()
        self.world.outcome.done["detached"] += 1

    def _give_back(self, held: list[Any]) -> None:
        lease = held.pop()
        drawn = self.chance.random()
        if self.settings.detached and self.chance.random() < self.settings.detached:
            self._detach(lease)
        elif drawn < 0.02:
            lease.discard()
            self.world.outcome.done["discarded"] += 1
        elif drawn < 0.04:
            del lease  # collected
            self.world.outcome.done["leaked"] += 1
        else:
            lease.release()
            if drawn < 0.06:
                lease.release()  # refused

    def _refused(self, error: Exception) -> bool:
        """A checkout has got nothing: for a reason that there may be? True: who caused it may go on for a while."""
        errors, kinds = self.errors, self.settings.kinds
        expected = (
            errors.CheckoutTimeout, errors.OpenFailed, errors.TooManyWaiting, errors.ServerUnavailable,
        )  # fmt: skip
        is_expected = isinstance(error, expected)
        if "close" in kinds and isinstance(error, errors.PoolClosed):
            self.world.refused(type(error).__name__, str(error))
            return True
        if not is_expected and "visitor" not in kinds:  # whose server may have been the first
            raise error
        self.world.refused(type(error).__name__, str(error))
        return not is_expected

    def check_out(
        self, timeout: float | None, identity: str | None = None, lane: str | None = None
    ) -> Any:
        """A lease; None where it was refused for a reason that there may be."""
        judge, found, pauses = self._waits(timeout), [], False
        try:
            pool = self.chance.choice(self.pools) if self.settings.two_members else self.pool
            credential = self.credentials.get(identity)
            found.append(
                pool.checkout(timeout, identity=identity, credential=credential, lane=lane)
            )
        except self.errors.PoolError as error:
            pauses = self._refused(error)
        else:
            self.world.outcome.done["checkouts"] += 1
        judge()
        if pauses:
            self.world.scheduler.sleep(0.5)
        return found.pop() if found else None

    def _waits(self, timeout: float | None) -> Callable[[], None]:
        """A checkout begins. What it returns is called when it has ended, and judges how long it has waited."""
        world, settings = self.world, self.settings
        began, stopped = monotonic(), self.process.stopped_so_far()
        is_served = world.server is not None and world.server.told is not None
        ill = world.ill_until if is_served else began

        def judge() -> None:
            if timeout is None:
                return
            waited = monotonic() - began - (self.process.stopped_so_far() - stopped)
            is_ill = ill >= began or world.ill_until >= began
            grace = TROUBLED_GRACE_S if is_ill else GRACE_S
            # Hooks are work, and no waiting: checks, and the closes of what fails them.
            grace += (settings.check + 2 * settings.close) * world.largest
            if settings.tokens:  # who fetches one is not hurried
                grace += 3 * settings.issuer + (6.0 if "issuer hangs" in settings.kinds else 0.0)
            if not timeout:  # what is granted at once is opened, however long that takes
                grace += 1.5 * settings.login + (5.0 if "logins hang" in settings.kinds else 0.0)
            if waited > timeout + grace:
                world.trouble(
                    f"{current_thread().name} of {self.process} waited {waited:.3f} s with a timeout of {timeout}"
                    f"{' (ill)' if is_ill else ''}"
                )

        return judge

    # --- commands, in threads of their own -----------------------------------------------------------------

    def resize(self, size: int) -> None:
        self.pool.resize(max_size=size)

    def reset(self, over: float) -> None:
        self.pool.reset(over=over)

    def drain(self, seconds: float) -> None:
        self.pool.drain(seconds)

    def close(self, *, everywhere: bool) -> None:
        self.pool.close(everywhere=everywhere)
        self.world.scheduler.sleep(0.5)
        self.declare_again()

    def declare_again(self) -> None:
        """Where a pool was closed, that opens it."""
        from tests.simulation.world import POOL

        for manager in self.managers:
            self._declare(manager, POOL, self.options)

    def ask(self, which: float) -> None:
        """One of what only looks. which: between 0 and 1."""
        of_pool = ("stats", "health", "advice")
        of_manager = ("stats", "health")
        names = [(self.pool, name) for name in of_pool if hasattr(self.pool, name)]
        names += [(self.manager, name) for name in of_manager]
        whose, name = names[int(which * len(names))]
        self._asks(getattr(whose, name))

    def _asks(self, function: Callable[[], Any]) -> None:
        function()
