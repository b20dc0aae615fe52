"""All faults are over: everybody must be served, and all capacity must be there again (promise 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.processes import Process
    from tests.simulation.world import World

PATIENCE_S = 150.0
"""Within this, everybody has been served, and all that was wrong is forgotten."""
COMMANDS_S = 6.0
"""Within this, a command has been done, or given up, whose loop has ended."""
OPENINGS_S = 5.0
"""Within this, what was being opened is open, or has failed."""


class Healing:
    """What is done, and demanded, after the last fault."""

    def __init__(self, world: World) -> None:
        self.world = world
        settings = world.settings
        self.size: int = settings.options["max_size"]
        self.is_resized = bool({"resize", "redeploy"} & set(settings.kinds))
        if self.is_resized:
            # To something else than what was declared, so that a resize that does not hold is seen.
            self.size = max(1 + settings.seed % 6, settings.options.get("min_size", 1))

    def run(self) -> None:
        self._heal()
        steps = (
            self._all_have_ended,
            self._pools_are_open,
            self._bounds_are_back,
            self._all_can_be_had,
            self._all_have_left,
        )
        for step in steps:
            if self.world.outcome.problems:
                return
            step()

    def _heal(self) -> None:
        world, kernel = self.world, self.world.kernel
        world.is_healing = True
        for process in list(kernel.processes.values()):
            process.most_descriptors = 1024
            process.doomed = False
            process.go_on()
            if process.namespace or process.name == "child":
                process.kill()
        kernel.files.is_full, kernel.files.failing = False, 0.0
        kernel.delayed = 0.0
        world.database.fails = world.database.hangs = world.database.hooks_fail = 0.0
        world.issuer.fails = world.issuer.hangs = 0.0
        world.scheduler.stepped = (
            0.0  # who takes an old token for a good one can be refused for ever
        )

    def _demand(self, what: str, is_so: Callable[[], bool]) -> bool:
        """Wait until it is so; a problem where it never is."""
        world = self.world
        if world.scheduler.run(
            lambda: is_so() or world.has_failed(), world.scheduler.now + PATIENCE_S
        ):
            return not world.has_failed()
        world.trouble(f"{PATIENCE_S:g} s after all faults were over: {what}")
        return False

    def _let_pass(self, seconds: float) -> None:
        world, scheduler = self.world, self.world.scheduler
        until = scheduler.now + seconds
        scheduler.call_at(until, lambda: None)  # perhaps nobody else has anything to do
        scheduler.run(lambda: world.has_failed() or scheduler.now >= until, until)

    def _workers(self) -> list[Process]:
        return list(self.world.workers.values())

    def _in_worker(self, process: Process, function: Callable[[Any], None], name: str) -> None:
        process.start_thread(lambda: function(process.told), name)

    def _all_have_ended(self) -> None:
        """Checkouts that waited have got an answer."""
        self._demand(
            "a checkout waits still",
            lambda: all(
                one.told is not None and not one.told.busy and not one.told.leaves
                for one in self._workers()
            ),
        )
        if self.world.settings.tasks == "apool":
            # A command of an AsyncPool is done by a thread, which goes on where its task has ended.
            self._let_pass(COMMANDS_S)

    def _pools_are_open(self) -> None:
        """Who has closed one, and could not declare it again, does so now."""
        done: list[bool] = []

        def declare(worker: Any) -> None:
            worker.declare_again()
            done.append(True)

        workers = self._workers() if "close" in self.world.settings.kinds else []
        for process in workers:
            self._in_worker(process, declare, "declares again")
        self._demand("a pool cannot be declared again", lambda: len(done) == len(workers))

    def _bounds_are_back(self) -> None:
        per_process = self.world.settings.options.get("max_per_process", self.size)
        wanted = max(2, -(-self.size // per_process))
        while len(self.world.workers) < wanted:
            self.world.start_worker()
        self._demand("a worker does not start", lambda: all(one.told for one in self._workers()))
        if not self.is_resized:
            return
        done = []

        def resize(worker: Any) -> None:
            while True:
                try:
                    worker.resize(self.size)
                    break
                except worker.errors.PoolError:
                    self.world.scheduler.sleep(0.5)
            done.append(True)

        # Who has the newest declaration: no newer one says anything else of the bounds.
        newest = self.world.start_worker()
        self._demand("a worker does not start", lambda: bool(newest.told))
        database = self.world.database
        database.most = max(database.most, self.size)  # from when the books hear of it
        self._in_worker(newest, resize, "resize")
        if not self._demand("the pool cannot be resized", lambda: bool(done)):
            return
        # What was granted before is still being opened, and counts when it is open.
        self._let_pass(OPENINGS_S)
        if self._demand("too many are open", lambda: len(database.sessions) <= self.size):
            database.most = self.size
            self._another_server_and_worker()

    def _another_server_and_worker(self) -> None:
        """Neither the next server nor a worker that is born now undoes a resize."""
        world = self.world
        if world.server is not None:
            world.server.kill()
        newest = world.start_worker()
        if not self._demand("a worker does not start", lambda: bool(newest.told)):
            return
        taken = []

        def use_one(worker: Any) -> None:
            while not taken:
                lease = worker.check_out(20.0, world.settings.identities[0])
                if lease is not None:
                    lease.release()
                    taken.append(True)

        self._in_worker(newest, use_one, "newest")
        self._demand("the newest worker gets nothing", lambda: bool(taken))

    def _lanes(self) -> dict[str, int]:
        """What each lane has a right to."""
        return dict(self.world.settings.options.get("lanes", {}))

    def _all_can_be_had(self) -> None:
        """As many as max_size, at one time, over all processes, and not one more."""
        world = self.world
        leases: list[Any] = []
        refused: list[bool] = []
        released: list[bool] = []
        identity = world.settings.identities[0]
        rights = [lane for lane, right in self._lanes().items() for _ in range(right)]

        def take(worker: Any) -> None:
            lease, lane = None, rights.pop() if rights else None
            while lease is None:
                lease = worker.check_out(20.0, identity, lane)
                if lease is None:
                    world.scheduler.sleep(0.5)
            world.database.lend(lease.resource, identity, worker.release)
            leases.append(lease)
            while not refused:
                world.scheduler.sleep(0.1)
            world.database.give_back(lease.resource)
            lease.release()
            released.append(True)

        def one_more(worker: Any) -> None:
            lease = worker.check_out(0.2, identity)
            if lease is not None:
                world.trouble(f"one more than {self.size} can be had")
            refused.append(True)

        workers = self._workers()
        for number in range(self.size):
            self._in_worker(workers[number % len(workers)], take, f"demand {number}")
        if not self._demand(f"of {self.size} not all can be had", lambda: len(leases) == self.size):
            world.trouble(f"{len(leases)} can be had; open are {list(world.database.sessions)}")
            return
        self._in_worker(workers[0], one_more, "one more")
        if self._demand("leases do not end", lambda: len(released) == self.size):
            self._counters_add_up()

    def _counters_add_up(self) -> None:
        world = self.world
        wrong: list[str] = ["nobody has answered"]

        def look(worker: Any) -> None:
            from tests.simulation.world import POOL

            found = worker.manager.stats()
            if (
                found["server_pid"] is None
            ):  # it was told to end; this process alone does not know all
                worker.reset(0.0)
                return
            stats, sessions = found["pools"][POOL], world.database.sessions
            here = {
                "size": len(sessions), "in_use": 0, "waiting": 0,
                "opening": sum(one.is_opening for one in sessions),  # a short max_lifetime has no end of them
            }  # fmt: skip
            wrong[:] = [
                f"{key} is {stats[key]}, not {here[key]}" for key in here if stats[key] != here[key]
            ]

        def look_until_right(worker: Any) -> None:
            while wrong:
                look(worker)
                world.scheduler.sleep(0.2)

        self._in_worker(self._workers()[0], look_until_right, "statistics")
        if not self._demand("statistics", lambda: not wrong):
            world.trouble(f"statistics: {wrong}")

    def _all_have_left(self) -> None:
        """Workers leave in order, and then the server does."""
        for process in self._workers():
            process.told.leaves = True
        if not self._demand("a worker does not end", lambda: not self.world.workers):
            return
        linger = self.world.settings.linger
        if self._demand("the server does not leave", lambda: self.world.server is None):
            return
        self.world.trouble(f"its linger was {linger:g} s")
