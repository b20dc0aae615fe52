"""The model driven by hypothesis: several processes and identities, and everything that can go wrong.

`MPPOOL_HYPOTHESIS=long` runs for minutes (MPPOOL_EXAMPLES histories, of which hypothesis remembers every one:
some hundred kilobytes each); otherwise a run takes seconds.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mppool.core.decisions import Refuse
from mppool.core.events import (
    Attach,
    Checkout,
    Closed,
    ClosePool,
    Declined,
    NotMine,
    Opened,
    OpeningFailed,
    Reset,
    Resize,
    Returned,
)
from mppool.core.slot import SlotState
from mppool.ids import GrantNumber, ProcessId, Session
from mppool.options import PoolOptions
from tests.core.model.fingerprint import fingerprint
from tests.core.model.parts import POOL, Violation
from tests.core.model.world import Step, World

LONG = os.environ.get("MPPOOL_HYPOTHESIS") == "long"
ANY = st.integers(0, 10**6)
KEYS = ("alice", "bob")
PATIENT_S = 30.0
"""Nobody may have to wait for longer where everybody gives back at once."""


def small(least: int, most: int) -> Any:
    return st.one_of(st.none(), st.integers(least, most))


class BooksMachine(RuleBasedStateMachine):
    """Any step of anybody in any order. What must never be is in `World.check`."""

    @initialize(
        max_size=st.integers(1, 4),
        per_identity=small(1, 3),
        per_process=small(1, 3),
        max_waiting=st.sampled_from([None, None, 0, 2]),
        fail_fast=st.booleans(),
        max_opening=small(1, 2),
        opening_s=st.sampled_from([0.0, 0.01, 0.3]),
        processes=st.integers(2, 3),
        threads=st.integers(1, 2),
    )
    def begin(
        self,
        max_size: int,
        per_identity: int | None,
        per_process: int | None,
        max_waiting: int | None,
        fail_fast: bool,
        max_opening: int | None,
        opening_s: float,
        processes: int,
        threads: int,
    ) -> None:
        options = PoolOptions(
            max_size=max_size,
            max_per_identity=per_identity,
            max_per_process=per_process,
            max_waiting=max_waiting,
            fail_fast=fail_fast,
            max_opening=max_opening,
        )
        self.world = World(
            options, processes=processes, threads=threads, keys=KEYS, opening_s=opening_s
        )

    # --- steps -------------------------------------------------------------------------------------------------

    def one_of(self, steps: list[Step], choice: int) -> None:
        if steps:
            step = steps[choice % len(steps)]
            note(step[0])
            self.world.do(step)

    @rule(choices=st.lists(ANY, min_size=1, max_size=12))
    def something_happens(self, choices: list[int]) -> None:
        for choice in choices:
            self.one_of(list(self.world.ordinary_steps()), choice)

    @rule(
        choice=ANY, key=st.sampled_from(KEYS), timeout=st.sampled_from([None, None, 0.0, 0.05, 1.0])
    )
    def somebody_checks_out(self, choice: int, key: str, timeout: float | None) -> None:
        idle = [
            (worker, thread)
            for worker in self.world.living()
            for thread in worker.threads
            if thread.phase == "idle" and not worker.stopped and not worker.closed
        ]
        if idle:
            worker, thread = idle[choice % len(idle)]
            worker.look_at_shelf(thread, key, timeout)
            self.world.check()

    @rule(choice=ANY)
    def the_application_does_something(self, choice: int) -> None:
        words = (" wants ", " starves")
        steps = [s for s in self.world.optional_steps() if not any(w in s[0] for w in words)]
        idle = [
            (f"#{number} expires", worker.expire_idle, (number,))
            for worker in self.world.living()
            if not worker.stopped
            for number in worker.shelf
        ]
        self.one_of(steps + idle, choice)

    @rule(choice=ANY, seconds=st.sampled_from([0.0, 0.01, 0.3, 3.0]))
    def openings_take_longer_or_shorter(self, choice: int, seconds: float) -> None:
        workers = self.world.living()
        workers[choice % len(workers)].opening_s = seconds

    @rule(choice=ANY)
    def somebody_starves(self, choice: int) -> None:
        steps = [s for s in self.world.optional_steps() if s[0].endswith(" starves")]
        self.one_of(steps, choice)

    @rule(choice=ANY)
    def something_goes_wrong(self, choice: int) -> None:
        many = len(self.world.living()) > 1
        steps = [
            s
            for s in self.world.disturbances()
            if many or not s[0].endswith("is killed") or s[0].startswith("server")
        ]
        self.one_of(steps, choice)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.1, 0.5, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.let_time_pass(seconds)
        self.world.check()

    @rule()
    def the_next_deadline_comes(self) -> None:
        if self.world.server.alive:
            due = self.world.server.books.next_deadline(self.world.now)
            if due is not None:
                self.world.let_time_pass(due - self.world.now)
                self.world.check()

    @rule()
    def everything_settles(self) -> None:
        self.world.drain()
        self.world.check_quiet()

    @precondition(lambda self: not self.world.server.alive)
    @rule(torn=st.sampled_from([False, False, True]))
    def the_next_server_starts(self, torn: bool) -> None:
        self.world.start_server(torn=torn)
        self.world.check()

    @precondition(lambda self: self.world.server.alive)
    @rule(choice=ANY, after=st.integers(0, 4))
    def the_server_is_killed_in_the_middle(self, choice: int, after: int) -> None:
        reads = [s for s in self.world.ordinary_steps() if s[0].startswith("server reads")]
        if reads:
            self.world.server.dies_after = after
            self.one_of(reads, choice)

    @rule(choice=ANY)
    def a_process_is_stopped_or_goes_on(self, choice: int) -> None:
        workers = self.world.living()
        worker = workers[choice % len(workers)]
        worker.stopped = not worker.stopped and len(workers) > 1

    # --- commands ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.server.alive)
    @rule(cap=small(1, 5))
    def the_pool_is_resized(self, cap: int | None) -> None:
        if POOL in self.world.server.books.pools:
            self.world.resized(cap)
            command = Resize(POOL, cap, True, None)
            self.world.server.command(ProcessId(1, 1), command, self.world.now)
            self.world.check()

    @precondition(lambda self: self.world.server.alive)
    @rule()
    def the_pool_is_reset(self) -> None:
        self.world.server.command(ProcessId(1, 1), Reset(POOL), self.world.now)
        self.world.check()

    @precondition(lambda self: self.world.server.alive)
    @rule(sure=st.integers(0, 20))
    def the_pool_is_closed(self, sure: int) -> None:
        if sure == 7:
            self.world.server.command(ProcessId(1, 1), ClosePool(POOL), self.world.now)
            self.world.check()

    # --- nonsense ------------------------------------------------------------------------------------------------

    def refused(self, process: ProcessId, session: Session, event: Any) -> None:
        """Say something that is not legal now: nothing may change, and nobody is told anything else."""
        books = self.world.server.books
        before = fingerprint(books)
        decisions = books.apply(process, session, event, self.world.now)
        assert not decisions, (event, decisions)
        assert fingerprint(books) == before, event

    def events_about(self, number: GrantNumber) -> list[Any]:
        return [
            Opened(number, 0.1),
            OpeningFailed(number, "late"),
            Declined(number),
            NotMine(number),
            Closed(number, "discarded"),
            Returned(number),
        ]

    @precondition(lambda self: self.world.server.alive)
    @rule(choice=ANY, number=st.integers(0, 2**34))
    def somebody_talks_of_what_never_was(self, choice: int, number: int) -> None:
        if number in self.world.server.books._slots:
            return  # hypothesis knows how numbers are made
        for worker in self.world.living():
            session = self.world.server.books.session_of(worker.process)
            if session is not None:
                for event in self.events_about(GrantNumber(number))[:-1]:
                    self.refused(worker.process, session, event)

    @precondition(lambda self: self.world.server.alive)
    @rule(choice=ANY)
    def somebody_repeats_himself(self, choice: int) -> None:
        """Events about slots of others, in the wrong state, or under an old session."""
        books = self.world.server.books
        for pool in books.pools.values():
            for slot in list(pool.slots):
                self._talk_nonsense_about(slot)
            for waiter in list(pool.waiting):
                session = books.session_of(waiter.process)
                assert session is not None
                again = Checkout(POOL, waiter.key, waiter.ticket, None)
                self.refused(waiter.process, session, again)

    def _talk_nonsense_about(self, slot: Any) -> None:
        books = self.world.server.books
        events = self.events_about(slot.number)
        for worker in self.world.living():
            session = books.session_of(worker.process)
            old = Session((session or 1) - 1)
            for event in [*events, Attach("late", [], [])]:
                if not (session is None and isinstance(event, Attach)):
                    self.refused(worker.process, old, event)
            if session is not None and worker.process != slot.process:
                for event in events[:-1]:
                    self.refused(worker.process, session, event)
        session = books.session_of(slot.process)
        if session is not None:
            legal = {
                SlotState.OPENING: (Opened, OpeningFailed, Declined, NotMine, Closed),
                SlotState.OPEN: (Returned, Closed),
                SlotState.CLOSING: (Closed,),
            }[slot.state]
            for event in events:
                if not isinstance(event, legal):
                    self.refused(slot.process, session, event)
            if slot.ticket is not None and slot.state is SlotState.OPENING:
                self.refused(slot.process, session, Checkout(POOL, slot.key, slot.ticket, None))

    # --- the end -------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for worker in world.workers:
            worker.stopped = False
        if not world.server.alive:
            world.start_server()
        self._until(lambda: not self._waiting(), "STARVED: threads still wait")
        # Children may not know yet that the pool was closed; or only the journal does, if all others are dead.
        books = world.server.books
        closed = any(pool.generations.closed for pool in books.pools.values())
        closed = closed or any(record.closed for record in books._memory._pools.values())
        if closed or any(worker.closed for worker in world.living()):
            return
        self._take_everything()

    def _waiting(self) -> list[str]:
        return [
            f"{worker.process}/{thread.name} {thread.phase}"
            for worker in self.world.living()
            for thread in worker.threads
            if thread.phase != "idle"
        ]

    def _until(self, done: Any, complaint: str) -> None:
        world = self.world
        end = world.now + PATIENT_S
        world.drain()
        world.check_quiet()
        while not done():
            if world.now > end:
                raise Violation(f"{complaint}: {self._waiting()}")
            due = world.server.books.next_deadline(world.now)
            if due is None:
                raise Violation(f"{complaint}, and no deadline will change that: {self._waiting()}")
            world.let_time_pass(due - world.now)
            world.drain()
            world.check_quiet()

    def _take_everything(self) -> None:
        """No capacity is lost: any process can have as many at once as the cap allows."""
        world = self.world
        world.holding = True
        threads = []
        for index in range(world.cap or 4):
            worker = world.new_worker()
            worker.look_at_shelf(worker.threads[0], f"new{index}", None)
            threads.append(worker.threads[0])
        refused = [t.last for t in threads if isinstance(t.last, Refuse)]
        assert not refused, refused
        self._until(
            lambda: all(t.phase == "using" or self._refused_fairly(t) for t in threads),
            "CAPACITY is lost",
        )

    def _refused_fairly(self, thread: Any) -> bool:
        last = thread.last
        return isinstance(last, Refuse) and last.reason == "too_many_waiting"


BooksMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("MPPOOL_EXAMPLES", "3000")) if LONG else 80,
    stateful_step_count=120 if LONG else 60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestBooks = BooksMachine.TestCase
