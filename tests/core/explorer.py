"""All interleavings of a small world, breadth first; the shortest way to a violation is the trace.

A small world is the model with a budget: so many checkouts, kills, ended connections, moments that pass.
Every state is reached once; what can be done in it is done in a copy of it.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

from mppool.options import PoolOptions
from tests.core.model.fingerprint import fingerprint
from tests.core.model.parts import Rules, Violation
from tests.core.model.worker import Worker
from tests.core.model.world import Step, World

# Options and rules never change: copies of a world share them.
_shared: list[Any] = []


def _share(thing: Any) -> tuple[Any, tuple[int]]:
    for index, other in enumerate(_shared):
        if other is thing:
            return _shared_at, (index,)
    _shared.append(thing)
    return _shared_at, (len(_shared) - 1,)


def _shared_at(index: int) -> Any:
    return _shared[index]


class _Freezer(pickle.Pickler):
    dispatch_table: ClassVar[dict[type, Any]] = {
        **copyreg.dispatch_table,
        Rules: _share,
        PoolOptions: _share,
    }


def freeze(world: SmallWorld) -> bytes:
    """A copy of a world, to be thawed by pickle.loads."""
    buffer = io.BytesIO()
    _Freezer(buffer, protocol=5).dump(world)
    return buffer.getvalue()


class Budget:
    """How often may happen what need not happen."""

    def __init__(
        self,
        *,
        server_kills: int = 0,
        torn: bool = False,
        call_ends: int = 0,
        errand_ends: int = 0,
        gives_up: int = 0,
        deaths: int = 0,
        forks: int = 0,
        discards: int = 0,
        starves: int = 0,
        moments: int = 0,
    ) -> None:
        self.server_kills = server_kills
        self.torn = torn
        self.call_ends = call_ends
        self.errand_ends = errand_ends
        self.gives_up = gives_up
        self.deaths = deaths
        self.forks = forks
        self.discards = discards
        self.starves = starves
        self.moments = moments


class SmallWorld(World):
    """A world with a budget.

    checkouts: how many the first thread of every process makes; other threads make none, but for those of
    using: (process, thread) that have a resource at the beginning.
    waiting: processes whose first thread then waits in the queue already.
    asking: processes whose first thread is just about to ask.
    keeping: no thread ever gives back what it has.
    opening_s: what everybody says that an opening took.
    A forked child makes one checkout.
    """

    def __init__(
        self,
        *,
        budget: Budget,
        max_size: int = 1,
        processes: int = 2,
        threads: int = 1,
        checkouts: tuple[int, ...] = (1, 1),
        using: tuple[tuple[int, int], ...] = (),
        waiting: tuple[int, ...] = (),
        asking: tuple[int, ...] = (),
        keeping: bool = False,
        keys: tuple[str, ...] = ("k",),
        rules: Rules | None = None,
        opening_s: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(
            PoolOptions(max_size=max_size, **options),
            processes=processes,
            threads=threads,
            keys=keys,
            rules=rules,
            opening_s=opening_s,
        )
        self.budget = budget
        self.holding = True
        for process, name in using:
            worker = self.workers[process]
            worker.look_at_shelf(worker.threads[name], keys[0], None)
        self.drain()  # everybody is attached
        for process in waiting:
            worker = self.workers[process]
            worker.look_at_shelf(worker.threads[0], keys[0], None)
            self.drain()
        self.holding = keeping
        for process in asking:
            worker = self.workers[process]
            worker.look_at_shelf(worker.threads[0], keys[0], None)
            worker.enqueue(worker.threads[0])
        for worker, most in zip(self.workers, checkouts, strict=True):
            for thread in worker.threads:
                thread.checkouts_left = most if thread.name == 0 else 0

    def steps(self) -> Iterator[Step]:
        """Everything that can happen now."""
        quiet = True
        ordinary = list(self.ordinary_steps())
        for step in ordinary:
            if self._matters_to_nobody_else(step):
                yield step
                return
        for step in ordinary:
            quiet = False
            yield step
            if step[0].startswith("server reads") and self.budget.server_kills:
                # Killed after the first decision was carried out, or the second.
                for after in range(1, 3):
                    label = f"{step[0]}, carries out {after} decisions and is killed"
                    yield label, self.read_and_be_killed, (step, after)
        if not self.server.alive:
            yield "a new server starts", self.start_server, ()
            if self.budget.torn:
                yield "a new server starts, its journal is torn", self.start_torn, ()
        for step in self.optional_steps():
            if " wants " in step[0]:
                yield step
            elif " discards " in step[0] and self.budget.discards:
                yield step[0], self.spend, ("discards", step)
            elif step[0].endswith(" starves") and self.budget.starves:
                yield step[0], self.spend, ("starves", step)
        for step in self.disturbances():
            kind = _kind_of(step[0])
            if getattr(self.budget, kind):
                yield step[0], self.spend, (kind, step)
        if quiet and self.server.alive and self.budget.moments:
            due = self.server.books.next_deadline(self.now)
            if due is not None:
                yield "time passes", self.pass_moment, (due,)

    def _matters_to_nobody_else(self, step: Step) -> bool:
        """Whether it makes no difference when this step is done, so that only one order must be looked at."""
        if step[0].endswith((" reads Attached", " enqueues itself")):
            return self.threads == 1
        if step[0].endswith(" reads PoolChanged"):
            return all(
                pool.generations.current == 0 and not pool.generations.closed
                for pool in self.server.books.pools.values()
            )
        return False

    def spend(self, kind: str, step: Step) -> None:
        setattr(self.budget, kind, getattr(self.budget, kind) - 1)
        step[1](*step[2])

    def read_and_be_killed(self, step: Step, after: int) -> None:
        self.budget.server_kills -= 1
        self.server.dies_after = after
        step[1](*step[2])
        if self.server.alive:  # it had no more decisions to carry out
            self.kill_server()

    def fork(self, parent: Worker) -> Worker:
        child = super().fork(parent)
        for thread in child.threads:
            thread.checkouts_left = 1 if thread.name == 0 else 0
        return child

    def start_torn(self) -> None:
        self.budget.torn = False
        self.start_server(torn=True)

    def pass_moment(self, due: float) -> None:
        self.budget.moments -= 1
        self.let_time_pass(due - self.now)

    def check_end(self) -> None:
        """Nothing is left to do by itself: nobody may be stuck, nothing may be lost."""
        if not self.server.alive:
            return
        self.check_quiet()
        waiting = [
            f"{self.name(worker.process)}{thread.name}"
            for worker in self.living()
            for thread in worker.threads
            if thread.phase not in ("idle", "using")
        ]
        idle = [number for worker in self.living() for number in worker.shelf]
        if (
            waiting
            and not self.budget.moments
            and self.server.books.next_deadline(self.now) is None
        ):
            raise Violation(f"LOST WAKE-UP: {waiting} wait, {idle} idle, nothing will ever happen")


def _kind_of(label: str) -> str:
    if label == "server is killed":
        return "server_kills"
    if label.endswith("is killed"):
        return "deaths"
    if label.endswith("forks"):
        return "forks"
    if label.endswith("gives up"):
        return "gives_up"
    return "errand_ends" if "errands ends" in label else "call_ends"


class Found:
    """What an exploration has found: the violation with the shortest trace, or None."""

    def __init__(
        self, states: int, violation: str | None, trace: list[str], complete: bool
    ) -> None:
        self.states = states
        self.violation = violation
        self.trace = trace
        self.complete = complete

    def __str__(self) -> str:
        if self.violation is None:
            return (
                f"{self.states} states, {'all' if self.complete else 'not all'}: nothing is wrong"
            )
        return "\n    ".join([f"{self.states} states: {self.violation}", *self.trace])


def explore(world: SmallWorld, limit: int = 1_000_000) -> Found:
    """Visit all states that can be reached, the nearest first, until one is wrong."""
    start = fingerprint_of(world)
    came_from: dict[int, tuple[int, str]] = {start: (start, "")}
    queue: deque[tuple[int, bytes]] = deque([(start, freeze(world))])
    visited = 0
    while queue:
        key, frozen = queue.popleft()
        visited += 1
        if visited > limit:
            return Found(visited, None, [], complete=False)
        index, more = 0, True
        while more:
            copy: SmallWorld = pickle.loads(frozen)
            steps = list(copy.steps())
            if index == 0 and not any(True for _ in copy.ordinary_steps()):
                try:
                    copy.check_end()
                except Violation as violation:
                    return Found(visited, str(violation), _trace(came_from, key), complete=False)
            more = index + 1 < len(steps)
            if index >= len(steps):
                break
            step = steps[index]
            index += 1
            try:
                copy.do(step)
            except Violation as violation:
                trace = [*_trace(came_from, key), step[0]]
                return Found(visited, str(violation), trace, complete=False)
            reached = fingerprint_of(copy)
            if reached not in came_from:
                came_from[reached] = (key, step[0])
                queue.append((reached, freeze(copy)))
    return Found(visited, None, [], complete=True)


def fingerprint_of(world: SmallWorld) -> int:
    """All that decides what can happen from here on."""
    server = world.server
    return hash(
        fingerprint(
            (
                world.now,
                world.workers,
                world.deaths,
                world.ceiling,
                world.budget,
                server.alive,
                server.epoch,
                server.books,
                server.channels,
                server.journal,
                server.sessions,
                server.answers,
            )
        )
    )


def _trace(came_from: dict[int, tuple[int, str]], key: int) -> list[str]:
    trace: list[str] = []
    while came_from[key][0] != key:
        key, label = came_from[key]
        trace.append(label)
    return trace[::-1]
