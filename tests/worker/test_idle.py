"""Idle resources, waiting threads and contention, with threads as steps: nothing is lost, and nobody sleeps beside it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mppool import InProcessManager
from mppool.core.decisions import NOBODY, Grant
from mppool.core.events import Abandoned, Returned
from mppool.ids import GrantNumber, Session
from mppool.process.waiter import LocalWaiter
from mppool.worker import idle as idle_module
from mppool.worker import line as line_module
from mppool.worker.idle import Idle
from mppool.worker.inventory import Inventory, PoolEntry

NOW = 1000.0
SESSION = Session(1)
KEYS = ("a", "b")


class Scene:
    """The real parts of one pool, without books: what is to be closed is noted."""

    def __init__(self, **options: Any) -> None:
        pool = InProcessManager().pool("p", object, **options)
        self.local = pool._local
        self.inventory = Inventory()
        self.inventory.session = SESSION
        self.closed: list[PoolEntry] = []
        self.forgotten: list[str] = []
        self.local.renew(self.inventory)
        self.idle = self.local.idle = Idle(
            self.local.member,
            self.inventory,
            self.local.options,
            self.local.durations,
            self.local.plain,
            lambda entry, reason: self.closed.append(entry),
            self.forgotten.append,
        )
        self.idle.own_key = "own"
        self.serial = 0

    def opened(self, key: str) -> PoolEntry:
        """A resource, in the hands of the thread that asks."""
        self.serial += 1
        grant = Grant("p", key, GrantNumber(self.serial), NOBODY, 0, fresh=True, opened_before=0)
        entry = PoolEntry(self.local, self.inventory, grant.number, key, 0, 0)
        assert self.inventory.register(entry, grant, SESSION, NOW)
        self.inventory.opened(entry, 0.0, NOW, math.inf)
        self.idle.line.arrived(grant)
        return entry

    def waiting(self, key: str, **how: Any) -> LocalWaiter:
        waiter = LocalWaiter(self.local.member.next_ticket(), key, **how)
        self.idle.line.enqueue(waiter)
        return waiter

    def lying(self) -> list[PoolEntry]:
        return self.idle.shelves.all()


def is_poked(waiter: LocalWaiter) -> bool:
    """Whether its thread would look around now; the poke stays."""
    if not waiter._gate.acquire(blocking=False):
        return False
    waiter._gate.release()
    return True


class IdleMachine(RuleBasedStateMachine):
    """Each rule is a step of one thread, up to where another one may go on."""

    keep = True

    def __init__(self) -> None:
        super().__init__()
        # The clock stands still: a turn that ends in one run and not in the next would make two histories of one.
        self._clock = pytest.MonkeyPatch()
        for module in (idle_module, line_module):
            self._clock.setattr(module, "monotonic", lambda: NOW)
        self.scene = Scene(keep=self.keep)
        self.idle = self.scene.idle
        self.hands: list[PoolEntry] = []
        self.line: list[LocalWaiter] = []

    def teardown(self) -> None:
        self._clock.undo()

    def takes(self, entry: PoolEntry | None) -> None:
        if entry is not None:
            assert entry.state == "open"
            self.hands.append(entry)

    def leaves(self, waiter: LocalWaiter, answer: Any) -> None:
        """What ColdCheckout does at its end."""
        given = waiter.withdraw()
        self.line.remove(waiter)
        if given is not None and given is not answer:
            self.idle.put_back(given)
        self.idle.line.dequeue(waiter, served=isinstance(answer, PoolEntry))
        self.takes(answer)

    # --- threads -------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.scene.inventory.table) < 6)
    @rule(key=st.sampled_from(KEYS))
    def open(self, key: str) -> None:
        self.takes(self.scene.opened(key))

    @rule(key=st.sampled_from(KEYS))
    def check_out(self, key: str) -> None:
        self.takes(self.idle.shelves.take(key))

    @precondition(lambda self: self.hands)
    @rule(which=st.integers(0, 99), later=st.booleans())
    def release(self, which: int, later: bool) -> None:
        entry = self.hands.pop(which % len(self.hands))
        if later:
            entry.handed_at = 0.0  # it is long since it was handed over
        entry.released_at = entry.released_at + 1.0
        self.idle.put_back(entry)

    @precondition(lambda self: len(self.line) < 4)
    @rule(key=st.sampled_from(KEYS), insists=st.booleans())
    def begin_to_wait(self, key: str, insists: bool) -> None:
        waiter = self.scene.waiting(key, insists=insists)
        self.line.append(waiter)
        self.look(waiter)

    def look(self, waiter: LocalWaiter) -> None:
        """Enqueued first, looked at the shelf again."""
        entry = self.idle.shelves.take(waiter.key)
        if entry is not None:
            self.leaves(waiter, entry)

    @precondition(lambda self: self.line)
    @rule(which=st.integers(0, 99))
    def wake_up(self, which: int) -> None:
        waiter = self.line[which % len(self.line)]
        if waiter.calling or not is_poked(waiter):
            return
        waiter._gate.acquire()
        if waiter.is_open:
            self.look(waiter)
        else:
            self.leaves(waiter, waiter.withdraw())

    @precondition(lambda self: self.line)
    @rule(which=st.integers(0, 99))
    def time_is_over(self, which: int) -> None:
        self.leaves(self.line[which % len(self.line)], None)

    @precondition(lambda self: self.line)
    @rule(which=st.integers(0, 99))
    def call_the_books(self, which: int) -> None:
        waiter = self.line[which % len(self.line)]
        if waiter.is_open and not is_poked(waiter):  # who is woken looks at the shelf first
            waiter.calling = True

    @precondition(lambda self: any(waiter.calling for waiter in self.line))
    @rule()
    def the_books_answer(self) -> None:
        waiter = next(waiter for waiter in self.line if waiter.calling)
        waiter.calling = False
        self.look(waiter)

    # --- the books -----------------------------------------------------------------------------------------

    @rule(contended=st.booleans(), most=st.sampled_from([0, 1, 99]))
    def reclaim(self, contended: bool, most: int) -> None:
        self.idle.set_contended(contended)
        self.idle.sweep_all(99 if contended else most, 0.0)

    @precondition(lambda self: self.scene.inventory.side)
    @rule(which=st.integers(0, 99), how=st.sampled_from(["grant", "keep"]))
    def decide(self, which: int, how: str) -> None:
        side = list(self.scene.inventory.side)
        number = side[which % len(side)]
        entry = self.scene.inventory.take_aside(number)
        assert entry is not None
        tickets = [waiter.ticket for waiter in self.line if waiter.key == entry.key]
        if how == "grant" and tickets:
            self.idle.give(entry, tickets[which % len(tickets)])
        elif not self.idle.contended:  # else the books would take it back for ever
            self.idle.put_where_it_lay(entry)
        else:
            self.takes(entry)

    @rule()
    def check_in_the_background(self) -> None:
        for entry in self.idle.borrow(lambda entry: True):
            assert self.idle.borrowed is entry
            assert entry not in self.scene.lying()
            self.idle.put_where_it_lay(entry)
        assert self.idle.borrowed is None

    # --- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def each_resource_is_in_one_place(self) -> None:
        given = [answer for waiter in self.line for answer in waiter._settled.get("answer", ())]
        places = [
            *self.hands,
            *self.scene.lying(),
            *given,
            *self.scene.inventory.side.values(),
            *self.scene.closed,
        ]
        assert len(places) == len(set(places))
        assert set(places) == set(self.scene.inventory.table.values())

    @invariant()
    def nobody_sleeps_beside_what_it_waits_for(self) -> None:
        for key in KEYS:
            ready = [waiter for waiter in self.line if waiter.key == key and waiter.is_ready]
            if ready and self.idle.shelves.get(key):
                assert any(is_poked(waiter) for waiter in ready)

    @invariant()
    def where_others_wait_nothing_lies_idle(self) -> None:
        if self.idle.contended:
            assert not self.scene.lying()

    @invariant()
    def releases_look_where_anybody_waits(self) -> None:
        assert self.idle.attention == (self.idle.contended or bool(self.line))

    @invariant()
    def what_is_not_kept_lies_only_where_somebody_waits(self) -> None:
        if not self.keep:
            wanted = {waiter.key for waiter in self.line}
            assert {entry.key for entry in self.scene.lying()} <= wanted


class NotKept(IdleMachine):
    """With keep=False."""

    keep = False


TestIdle = IdleMachine.TestCase
TestIdle.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestNotKept = NotKept.TestCase
TestNotKept.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)


# --- the turns ------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    clock = [NOW]
    monkeypatch.setattr(idle_module, "monotonic", lambda: clock[0])
    made = Scene()
    made.clock = clock  # type: ignore[attr-defined]
    return made


def test_what_was_just_handed_over_is_left_for_a_moment_to_the_thread_that_gives_it_back(
    scene: Any,
) -> None:
    entry, first, second = scene.opened("a"), scene.waiting("a"), scene.waiting("a")
    scene.idle.put_back(entry)
    assert first.withdraw() is entry
    scene.clock[0] += idle_module.TURN_S / 2
    scene.idle.put_back(entry)
    assert second.is_open
    assert is_poked(second), "it is woken, and may come too late"
    assert scene.idle.shelves.take("a") is entry
    scene.clock[0] += idle_module.TURN_S
    scene.idle.put_back(entry)
    assert second.withdraw() is entry


def test_the_shelf_of_an_identity_goes_with_its_last_resource(scene: Scene) -> None:
    entry = scene.opened("a")
    assert scene.inventory.begin_close(entry, NOW)
    scene.inventory.closed(entry, "drained")
    assert scene.forgotten == ["a"]
    assert "a" not in scene.idle.shelves.by_key
    own = scene.opened("own")
    assert scene.inventory.begin_close(own, NOW)
    scene.inventory.closed(own, "drained")
    assert "own" in scene.idle.shelves.by_key


def test_what_has_been_idle_for_longest_is_brought_back_first_and_only_if_for_long_enough(
    scene: Scene,
) -> None:
    entries = [scene.opened("a") for _ in range(3)]
    for age, entry in zip((30, 20, 10), entries, strict=True):
        entry.released_at = NOW - age
        scene.idle.put_back(entry)
    scene.idle.sweep_all(2, 15.0)
    assert list(scene.inventory.side.values()) == entries[:2]
    told = [event.number for event in scene.inventory.outbox if isinstance(event, Returned)]
    assert told == [entry.number for entry in entries[:2]]
    scene.idle.sweep_all(2, 15.0)
    assert len(scene.inventory.side) == 2


def test_what_has_reached_its_end_on_the_way_to_its_shelf_does_not_stay_there(scene: Scene) -> None:
    """The housekeeper looked at that instant, and did not find it on the shelf: a hook ran."""
    entries = [scene.opened("a") for _ in range(2)]
    for entry in entries:
        entry.retire_at, entry.retire_reason = NOW - 0.01, "retired"
    scene.idle.put_back(entries[0])
    scene.idle.put_where_it_lay(entries[1])
    assert scene.closed == entries
    assert not scene.lying()


def test_what_is_released_at_its_end_is_looked_at_once_more(scene: Scene) -> None:
    """A release may have read the clock before the end, and lays it on the shelf after the housekeeper has looked."""
    entry = scene.opened("a")
    entry.retire_at = NOW
    due = scene.local.member.housekeeper._due
    again = due(scene.local, entry, False, NOW)
    assert NOW < again < NOW + 60.0
    assert due(scene.local, entry, False, again) > NOW + 60.0
    assert due(scene.local, entry, True, again) <= again, "it lies there, and is closed"


# --- lanes ----------------------------------------------------------------------------------------------------


def lent(scene: Scene, lane: str) -> PoolEntry:
    entry = scene.opened("a")
    entry.lane = lane
    return entry


@pytest.fixture
def laned() -> Scene:
    return Scene(max_size=8, lanes={"web": 2})


def test_in_a_settled_lane_a_release_goes_to_its_oldest_waiter_at_home(laned: Scene) -> None:
    batch, web = lent(laned, ""), lent(laned, "web")
    laned.waiting("a", lane="web")
    calling, ready = laned.waiting("a", lane=""), laned.waiting("a", lane="")
    calling.calling = True
    laned.idle.set_contended(True, "")
    laned.idle.put_back(batch)
    assert ready.withdraw() is batch
    assert not laned.inventory.side
    laned.waiting("a", lane="")
    laned.idle.put_back(web)
    assert list(laned.inventory.side.values()) == [web], "of another lane: the books decide"


def test_where_no_lane_is_settled_the_books_see_every_release(laned: Scene) -> None:
    entry, waiter = lent(laned, ""), laned.waiting("a", lane="")
    laned.idle.set_contended(True, "")
    laned.idle.set_contended(True)
    laned.idle.put_back(entry)
    assert waiter.is_open
    assert list(laned.inventory.side.values()) == [entry]


def test_a_lane_is_settled_no_longer_than_somebody_waits(laned: Scene) -> None:
    waiter = laned.waiting("a", lane="")
    laned.idle.set_contended(False, "")
    assert laned.idle.settled == ""
    laned.idle.line.dequeue(waiter, served=False)
    assert laned.idle.settled is None


def test_one_of_those_that_hope_in_a_settled_lane_asks(laned: Scene) -> None:
    lent(laned, "")
    line = laned.idle.line
    laned.local.durations.opened(10.0)
    first = laned.waiting("a", lane="")
    laned.idle.set_contended(False, "")
    first.since -= 1.0
    line.demand_for("a").streak_since -= 1.0
    assert line.must_ask(first, None)
    others = [laned.waiting("a", lane="") for _ in range(3)]
    assert not any(line.must_ask(one, None) for one in others), "one has asked"
    line.dequeue(first, served=True)
    assert Abandoned(first.ticket) in laned.inventory.outbox, "its ticket is for nobody else"
    assert [is_poked(one) for one in others] == [False, False, True]
    assert line.must_ask(others[2], None)
    assert not line.must_ask(others[0], None)
    others[0].since -= 1.0
    assert line.must_ask(others[0], None), "it has hoped for long enough"


def test_when_another_lane_waits_all_that_hoped_ask(laned: Scene) -> None:
    lent(laned, "")
    line = laned.idle.line
    laned.local.durations.opened(10.0)
    waiters = [laned.waiting("a", lane="") for _ in range(3)]
    laned.idle.set_contended(False, "")
    assert not any(line.must_ask(one, None) for one in waiters)
    laned.idle.set_contended(True)
    assert all(is_poked(one) and line.must_ask(one, None) for one in waiters)


class Leaving(LocalWaiter):
    """Its thread leaves in the instant in which it is given something."""

    def give(self, answer: Any) -> bool:
        assert self.withdraw() is None
        return super().give(answer)


def _leaving(scene: Scene, key: str) -> Leaving:
    waiter = Leaving(scene.local.member.next_ticket(), key)
    scene.idle.line.enqueue(waiter)
    return waiter


def test_what_the_oldest_has_left_to_goes_to_the_next_that_waits(scene: Scene) -> None:
    entry = scene.opened("a")
    _leaving(scene, "a")
    _leaving(scene, "a")
    third = scene.waiting("a")
    scene.idle.put_back(entry)
    assert third.withdraw() is entry
    assert scene.lying() == []


def test_what_all_have_left_to_lies_on_its_shelf(scene: Scene) -> None:
    entry = scene.opened("a")
    leaving = [_leaving(scene, "a") for _ in range(3)]
    scene.idle.put_back(entry)
    assert scene.lying() == [entry]
    assert not any(waiter.is_open for waiter in leaving)


def test_a_line_that_changes_while_it_is_looked_at_is_looked_at_again(scene: Scene) -> None:
    entry = scene.opened("a")

    class Changing(LocalWaiter):
        """Somebody comes to wait while it is asked."""

        @property
        def is_ready(self) -> bool:
            if len(scene.idle.line.waiters["a"]) == 1:
                scene.waiting("a")
            return False

    scene.idle.line.enqueue(Changing(scene.local.member.next_ticket(), "a"))
    scene.idle.put_back(entry)
    assert scene.idle.line.waiters["a"][1].withdraw() is entry
