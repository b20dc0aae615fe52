"""The inventory: what a process holds is what its books believe, whatever its threads do, and in whatever order."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mppool import InProcessManager
from mppool.core.decisions import NOBODY, Grant
from mppool.core.events import (
    BackendFailed,
    Closed,
    Declined,
    Event,
    IdleTooLong,
    NotMine,
    Opened,
    OpeningFailed,
    Returned,
)
from mppool.ids import GrantNumber, Session
from mppool.worker.inventory import AT_ONCE, MOST_VOIDED, NEVER, Inventory, PoolEntry

NOW = 1000.0
SESSION = Session(7)


def new_inventory(session: Session = SESSION) -> Inventory:
    made = Inventory()
    made.session = session
    return made


def grant_of(number: int, key: str = "k", generation: int = 0) -> Grant:
    return Grant(
        ticket=NOBODY,
        pool="p",
        key=key,
        number=GrantNumber(number),
        fresh=True,
        generation=generation,
        opened_before=number,
        opening_s=0.0,
    )


class Books:
    """What the books believe that the process holds, from what they are told. They bear no nonsense."""

    def __init__(self) -> None:
        self.slots: dict[GrantNumber, str] = {}

    def hear(self, event: Event) -> None:
        if isinstance(event, (NotMine, BackendFailed)):
            return
        assert isinstance(event, (Opened, Returned, IdleTooLong, Closed, Declined, OpeningFailed))
        state = self.slots[event.number]
        if isinstance(event, (Declined, OpeningFailed)):
            assert state == "opening"
            del self.slots[event.number]
        elif isinstance(event, Closed):
            assert state in ("open", "returned"), state
            del self.slots[event.number]
        elif isinstance(event, Opened):
            assert state == "opening"
            self.slots[event.number] = "open"
        else:
            assert state == "open"
            self.slots[event.number] = "returned"


def test_what_is_detached_is_its_users_alone() -> None:
    pool = InProcessManager().pool("p", object)
    inventory = new_inventory()
    pool._local.renew(inventory)
    entries = []
    for number in (1, 2):
        entry = PoolEntry(pool._local, inventory, GrantNumber(number), "k", 0, number)
        assert inventory.register(entry, grant_of(number), SESSION, NOW)
        inventory.opened(entry, 0.1, NOW, NEVER)
        entry.lent_at = NOW
        entries.append(entry)
    one, two = entries
    assert inventory.detach(one)
    assert not inventory.kill(one, NOW)
    assert inventory.end_early(one, "Redis is lost"), "that is for all, see Inventory.detach"
    assert inventory.kill(two, NOW)
    assert not inventory.detach(two), "it was ended by force"
    assert [held.state for held in inventory.held()] == ["open", "open"]


class InventoryMachine(RuleBasedStateMachine):
    """Each rule is a step of some thread. An entry's owner does what only owners do; all else may be done by any."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = InProcessManager().pool("p", object)
        self.local = self.pool._local
        self.inventory = new_inventory()
        self.local.renew(self.inventory)
        self.books = Books()
        self.now = NOW
        self.serial = 0
        self.hung: list[PoolEntry] = []
        self.uses_of_the_gone = 0

    def in_state(self, *states: str) -> list[PoolEntry]:
        return [entry for entry in self.inventory.table.values() if entry.state in states]

    def pick(self, which: int, *states: str) -> PoolEntry | None:
        found = self.in_state(*states)
        if "closing" not in states:  # what has a successor is closed by somebody
            found = [entry for entry in found if entry.number not in self.inventory.successors]
        return found[which % len(found)] if found else None

    def flush(self) -> None:
        while self.inventory.outbox:
            self.books.hear(self.inventory.outbox.popleft())

    # --- coming in -------------------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from("abc"),
        generation=st.integers(0, 2),
        session=st.sampled_from([7, 7, 7, 6]),
    )
    def grant(self, key: str, generation: int, session: int) -> None:
        self.serial += 1
        grant = grant_of(self.serial, key, generation)
        entry = PoolEntry(
            self.local, self.inventory, grant.number, key, generation, grant.opened_before
        )
        taken = self.inventory.register(entry, grant, Session(session), self.now)
        assert taken == (Session(session) == self.inventory.session)
        if taken:
            self.books.slots[grant.number] = "opening"
            newest = max(self.local.retired.get(None, 0), self.local.retired.get(key, 0))
            assert (entry.retire_at == AT_ONCE) == (generation < newest)

    @rule(which=st.integers(0, 99))
    def is_asked_about(self, which: int) -> None:
        number = GrantNumber(which % (self.serial + 3) + 1)
        held = {*self.inventory.table, *(one.number for one in self.inventory.successors.values())}
        assert self.inventory.disown(number) == (number not in held)
        if number not in held and number > self.serial:
            self.serial = number
            late = PoolEntry(self.local, self.inventory, number, "a", 0, 0)
            assert not self.inventory.register(late, grant_of(number), SESSION, self.now)

    @rule(which=st.integers(0, 99), life=st.sampled_from([5.0, NEVER]))
    def opened(self, which: int, life: float) -> None:
        entry = self.pick(which, "opening")
        if entry is not None:
            retired = entry.retire_at == AT_ONCE
            self.inventory.opened(entry, 0.1, self.now, self.now + life)
            assert entry.retire_at == (AT_ONCE if retired else self.now + life)
            assert entry.grant is None

    @rule(which=st.integers(0, 99), error=st.sampled_from([None, "refused"]))
    def not_opened(self, which: int, error: str | None) -> None:
        entry = self.pick(which, "opening")
        if entry is not None:
            assert self.inventory.opening_ended(entry.number, error)
            assert not self.inventory.opening_ended(entry.number, error), "only once"

    # --- its owner -------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 99), killed_first=st.booleans())
    def is_lent_and_ends(self, which: int, killed_first: bool) -> None:
        entry = self.pick(which, "open")
        if entry is None or entry.killed:
            return
        entry.uses += 1
        entry.lent_at = self.now
        if killed_first:
            assert self.inventory.kill(entry, self.now)
            assert not self.inventory.kill(entry, self.now)
            assert not self.inventory.end_lease(entry)
        else:
            assert self.inventory.end_lease(entry)
            assert not self.inventory.kill(entry, self.now)

    @rule(which=st.integers(0, 99), idle=st.booleans())
    def bring_back(self, which: int, idle: bool) -> None:
        entry = self.pick(which, "open")
        if entry is not None:
            number = entry.number
            self.inventory.bring_back(entry, IdleTooLong(number) if idle else Returned(number, 1.0))

    @rule(which=st.integers(0, 99))
    def take_aside(self, which: int) -> None:
        self.flush()  # the books decide about what they have heard of
        number = GrantNumber(which % (self.serial + 1) + 1)
        was = self.inventory.table.get(number)
        expected = was if was is not None and was.state == "returned" else None
        assert self.inventory.take_aside(number) is expected
        if expected is not None:
            self.books.slots[number] = "open"

    @rule(which=st.integers(0, 99))
    def exchange(self, which: int) -> None:
        """What was brought back is closed for another one, and the books know the slot by the new number from then on."""
        self.flush()
        old = self.pick(which, "returned")
        if old is None:
            return
        self.serial += 1
        grant = msgspec.structs.replace(grant_of(self.serial, "b"), instead_of=old.number)
        entry = PoolEntry(self.local, self.inventory, grant.number, "b", 0, 0)
        assert self.inventory.register(entry, grant, SESSION, self.now)
        assert grant.number not in self.inventory.table, "not before the other one is closed"
        del self.books.slots[old.number]
        self.books.slots[grant.number] = "opening"
        assert self.inventory.take_aside(old.number) is old
        assert self.inventory.begin_close(old, self.now)

    @rule(generation=st.integers(0, 3), key=st.sampled_from(["a", "b", None]), hung=st.booleans())
    def retire(self, generation: int, key: str | None, hung: bool) -> None:
        with self.inventory.lock:
            self.local.note_retired(generation, key)
            meant = [
                entry
                for entry in self.inventory.table.values()
                if key in (None, entry.key) and entry.generation < generation
            ]
            self.inventory.retire(meant, hung=hung)
        assert all(entry.retire_at == AT_ONCE for entry in meant)

    @rule(which=st.integers(0, 99))
    def detach(self, which: int) -> None:
        entry = self.pick(which, "open")
        if entry is None:
            return
        entry.lent_at = self.now
        assert self.inventory.detach(entry) == (not entry.killed)
        if not entry.killed:
            assert not self.inventory.detach(entry), "only once"
            assert not self.inventory.kill(entry, self.now)

    @rule(which=st.integers(0, 99))
    def the_machine_loses_its_lease(self, which: int) -> None:
        entry = self.pick(which, "open", "detached")
        if entry is None or entry.killed:
            return
        assert self.inventory.end_early(entry, "Redis is lost")
        assert not self.inventory.end_early(entry, "Redis is lost")
        assert not self.inventory.detach(entry)
        assert self.inventory.begin_close(entry, self.now)

    @rule(which=st.integers(0, 99))
    def what_was_detached_is_closed(self, which: int) -> None:
        entry = self.pick(which, "detached")
        if entry is not None:
            assert self.inventory.begin_close(entry, self.now)
            self.uses_of_the_gone += entry.uses
            assert self.inventory.closed(entry, "discarded") is None

    # --- going out -------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 99))
    def begin_close(self, which: int) -> None:
        found = self.in_state("open")
        if found:
            entry = found[which % len(found)]
            assert self.inventory.begin_close(entry, self.now)
            assert not self.inventory.begin_close(entry, self.now), "one closes it"
            assert not self.inventory.kill(entry, entry.lent_at)

    @rule(which=st.integers(0, 99))
    def closed(self, which: int) -> None:
        entry = self.pick(which, "closing")
        if entry is not None:
            self.uses_of_the_gone += entry.uses
            successor = self.inventory.successors.get(entry.number)
            assert self.inventory.closed(entry, "drained") is successor
            assert successor is None or self.inventory.table[successor.number] is successor

    @rule(which=st.integers(0, 99))
    def its_close_is_interrupted(self, which: int) -> None:
        entry = self.pick(which, "closing")
        if entry is not None:
            with self.inventory.lock:
                self.inventory.reopen_lost(entry)

    @rule(which=st.integers(0, 99), closing=st.booleans())
    def give_up(self, which: int, closing: bool) -> None:
        entry = self.pick(which, "closing" if closing else "open")
        if entry is None:
            return
        entry.resource = object()
        if closing:
            assert not self.inventory.give_up(entry, self.now)
            self.inventory.give_up_closing(entry)
        else:
            assert self.inventory.give_up(entry, self.now)
        self.uses_of_the_gone += entry.uses
        self.hung.append(entry)
        assert entry.number in self.inventory.given_up

    @precondition(lambda self: self.hung)
    @rule(how=st.sampled_from(["check", "close", "both"]))
    def what_hung_returns(self, how: str) -> None:
        entry = self.hung.pop()
        if how != "close":
            assert self.inventory.take_given_up(entry) is not None
            assert self.inventory.take_given_up(entry) is None
        if how != "check":
            self.inventory.closed(entry, "unhealthy")  # its slot is free already
        assert entry.number not in self.inventory.given_up

    # --- the books -------------------------------------------------------------------------------------------

    @rule()
    def send(self) -> None:
        self.flush()

    @rule()
    def another_server(self) -> None:
        self.inventory.tell(BackendFailed("p", "a", 1, False))
        with self.inventory.lock:
            held = self.inventory.held()
            self.inventory.told_as_a_whole(besides=(BackendFailed,))
        self.books = Books()
        self.books.slots = {
            one.number: "open" if one.state == "closing" else one.state for one in held
        }
        assert [type(event) for event in self.inventory.outbox] == [BackendFailed]
        self.flush()

    # --- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def the_books_will_believe_what_is_held(self) -> None:
        told = Books()
        told.slots = dict(self.books.slots)
        for event in self.inventory.outbox:
            told.hear(event)
        held = {number: entry.state for number, entry in self.inventory.table.items()}
        for number, successor in self.inventory.successors.items():
            del held[number]
            held[successor.number] = successor.state
        assert told.slots.keys() == held.keys()
        out = ("closing", "detached")
        assert all(held[number] in (state, *out) for number, state in told.slots.items())

    @invariant()
    def the_side_table_is_what_was_returned(self) -> None:
        assert set(self.inventory.side.values()) == set(self.in_state("returned"))

    @invariant()
    def the_line_knows_what_is_open(self) -> None:
        for key in "abc":
            demand = self.local.idle.line.demands.get(key)
            usable = {one.number for one in self.in_state("open", "returned") if one.key == key}
            opening = [*self.in_state("opening"), *self.inventory.successors.values()]
            coming = {one.number for one in opening if one.key == key}
            reopened = {one.number for one in self.in_state("open", "returned") if one.closing_at}
            if demand is None:
                assert not (usable - reopened) | coming
            else:
                assert usable - reopened <= demand.open <= usable
                assert demand.opening.keys() == coming

    @invariant()
    def uses_are_counted_when_it_is_gone(self) -> None:
        assert self.local.past_uses == self.uses_of_the_gone

    @invariant()
    def of_an_identity_that_is_gone_nothing_is_kept(self) -> None:
        if not self.inventory.table:
            assert set(self.local.idle.line.demands) <= {self.local.default_key}


TestInventory = InventoryMachine.TestCase
TestInventory.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


class _Interrupting(dict[Any, Any]):
    """A table out of which nothing is taken before the interrupt."""

    def __delitem__(self, key: Any) -> None:
        raise KeyboardInterrupt


def an_entry(inventory: Inventory, local: Any, number: int = 1) -> PoolEntry:
    grant = grant_of(number)
    entry = PoolEntry(local, inventory, grant.number, "k", 0, 0)
    assert inventory.register(entry, grant, SESSION, NOW)
    return entry


def test_what_ends_is_told_first_so_that_an_interrupt_leaves_it_where_the_audit_finds_it() -> None:
    local, inventory = InProcessManager().pool("p", object)._local, new_inventory()
    local.renew(inventory)
    entry = an_entry(inventory, local)
    inventory.opened(entry, 0.0, NOW, math.inf)
    assert inventory.begin_close(entry, NOW)
    inventory.table = _Interrupting(inventory.table)
    with pytest.raises(KeyboardInterrupt):
        inventory.closed(entry, "drained")
    assert isinstance(inventory.outbox[-1], Closed)
    assert list(inventory.table) == [entry.number]


def an_exchange(inventory: Inventory, local: Any) -> tuple[PoolEntry, PoolEntry]:
    """A resource that is being closed, and what is opened in its slot then."""
    old = an_entry(inventory, local)
    inventory.opened(old, 0.0, NOW, math.inf)
    inventory.bring_back(old, Returned(old.number, 0.0, exchanges=True))
    grant = msgspec.structs.replace(grant_of(2, "other"), instead_of=old.number)
    entry = PoolEntry(local, inventory, grant.number, "other", 0, 0)
    assert inventory.register(entry, grant, SESSION, NOW)
    assert inventory.take_aside(old.number) is old
    assert inventory.begin_close(old, NOW)
    inventory.outbox.clear()
    return old, entry


def renewed() -> tuple[Any, Inventory]:
    local, inventory = InProcessManager().pool("p", object)._local, new_inventory()
    local.renew(inventory)
    return local, inventory


def test_a_successor_is_in_the_table_when_the_other_one_is_closed_and_nothing_is_said() -> None:
    local, inventory = renewed()
    old, entry = an_exchange(inventory, local)
    assert [one.number for one in inventory.held()] == [old.number]
    assert not inventory.disown(entry.number), "it is as good as held"
    assert inventory.closed(old, "moved") is entry
    assert [(one.number, one.state) for one in inventory.held()] == [(entry.number, "opening")]
    assert not inventory.outbox
    assert not inventory.successors


def test_a_new_session_begins_without_successors() -> None:
    local, inventory = renewed()
    old, entry = an_exchange(inventory, local)
    with inventory.lock:
        inventory.told_as_a_whole(besides=())
        assert [one.state for one in inventory.held()] == ["closing"]
    assert inventory.closed(old, "moved") is None
    assert list(inventory.outbox) == [Closed(old.number, "moved")]
    assert entry.number not in inventory.table
    assert local.idle.line.is_void("other")


def test_where_a_close_is_given_up_its_successor_is_declined() -> None:
    local, inventory = renewed()
    old, entry = an_exchange(inventory, local)
    inventory.give_up_closing(old)
    assert list(inventory.outbox) == [Declined(entry.number)], "the books know this number alone"
    assert not inventory.table
    assert local.idle.line.is_void("other")
    assert inventory.closed(old, "moved") is None


def test_an_interrupt_between_the_two_leaves_one_too_many_for_the_audit() -> None:
    local, inventory = renewed()
    old, entry = an_exchange(inventory, local)
    table, inventory.table = inventory.table, _Interrupting(inventory.table)
    with pytest.raises(KeyboardInterrupt):
        inventory.closed(old, "moved")
    inventory.table = {**table, **inventory.table}
    assert set(inventory.table) == {old.number, entry.number}
    assert inventory.closed(old, "moved") is entry
    assert set(inventory.table) == {entry.number}


def test_what_is_brought_back_is_told_first() -> None:
    local, inventory = InProcessManager().pool("p", object)._local, new_inventory()
    local.renew(inventory)
    entry = an_entry(inventory, local)
    inventory.opened(entry, 0.0, NOW, math.inf)

    class Full(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            raise KeyboardInterrupt

    inventory.side = Full()
    with pytest.raises(KeyboardInterrupt):
        inventory.bring_back(entry, Returned(entry.number, 0.0))
    assert isinstance(inventory.outbox[-1], Returned)


def test_grants_that_are_never_used_are_remembered_for_a_while() -> None:
    inventory = new_inventory()
    for number in range(MOST_VOIDED + 10):
        assert inventory.disown(GrantNumber(number))
    assert len(inventory.voided) == MOST_VOIDED
    assert 0 not in inventory.voided
    assert MOST_VOIDED in inventory.voided
