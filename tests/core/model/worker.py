"""One process of the model: what its threads and its errand thread do, one atomic step per method."""

from __future__ import annotations

import copy
from typing import Any

from mppool.core.decisions import (
    Ask,
    AskAgain,
    Close,
    Grant,
    Keep,
    PoolChanged,
    Queued,
    Reclaim,
    Refuse,
)
from mppool.core.events import (
    Abandoned,
    Attach,
    Checkout,
    Closed,
    CloseReason,
    Declined,
    Held,
    NotMine,
    Opened,
    OpeningFailed,
    Returned,
    Starves,
)
from mppool.ids import GrantNumber, ProcessId, Session, Ticket
from mppool.options import PoolOptions
from tests.core.model.parts import POOL, Channel, Entry, Rules, Thread, Violation, declaration

ATTACHED = "Attached"
"""The server's word that an inventory was taken over."""


class Worker:
    """A process. Mutable state: the table, the shelf, the side table, the session, its threads."""

    def __init__(
        self,
        process: ProcessId,
        threads: int,
        options: PoolOptions,
        rules: Rules,
        declared_age: float = 0.0,
    ) -> None:
        self.process = process
        self.options = options
        self.rules = rules
        self.declared_age = declared_age
        self.threads = [Thread(name) for name in range(threads)]
        self.table: dict[GrantNumber, Entry] = {}
        self.shelf: list[GrantNumber] = []
        self.side: list[GrantNumber] = []
        self.waiters: list[int] = []
        self.voided: set[GrantNumber] = set()
        self.contended = False
        self.generation = 0
        self.closed = False
        # What its openings take, as it says.
        self.opening_s = 0.0
        self.session: Session | None = None
        self.attached = False
        self.errand: Channel | None = None
        self.sweeping: Reclaim | None = None
        self.tickets = 0
        self.now = 0.0
        self.alive = True
        self.stopped = False
        # Every other process does not know how: it opens in its caller, or is of an older release.
        self.exchanges = process.pid % 2 == 0
        # Whether it attaches although it needs nothing: at the beginning, and after a session was lost.
        self.unheard = True
        # The server has it on file (members.py).
        self.is_member = False
        # A forked child: its parent's connections of which it still has copies.
        self.inherited: list[Channel] = []

    def be_forked_from(self, parent: Worker, channels: list[Channel]) -> None:
        """Start with nothing but copies of the parent's connections, and attach when it asks."""
        self.unheard = False
        self.inherited = [channel for channel in channels if not channel.severed]
        for channel in self.inherited:
            channel.copies += 1
        if not self.rules.children_start_empty:
            self.table = {number: copy.copy(entry) for number, entry in parent.table.items()}
            self.shelf = list(parent.shelf)

    def close_inherited(self) -> None:
        """What the fork hook does first, or the death of the child."""
        for channel in self.inherited:
            channel.close_copy()
        self.inherited = []

    def wants_session(self) -> bool:
        """Whether it attaches to the server that is there."""
        busy = any(thread.phase != "idle" for thread in self.threads)
        return self.unheard or busy or bool(self.table)

    # --- a thread checks out -------------------------------------------------------------------------------

    def look_at_shelf(self, thread: Thread, key: str, timeout: float | None) -> None:
        thread.key, thread.timeout = key, timeout
        thread.checkouts_left -= 1
        if not self._take(thread):
            thread.phase = "missed"

    def enqueue(self, thread: Thread) -> None:
        self.tickets += 1
        thread.ticket = Ticket(self.tickets)
        thread.given = thread.refused = None
        thread.cancelled = False
        self.waiters.append(thread.name)
        thread.phase = "enqueued"

    def look_again_and_ask(self, thread: Thread) -> None:
        if self.rules.waiter_looks_again and self._take(thread):
            self.waiters.remove(thread.name)
            return
        assert self.session is not None
        thread.call = Channel(self.process, self.session, thread.name)
        thread.call.send_to_server(Checkout(POOL, thread.key, thread.ticket, thread.timeout))
        thread.phase = "asked"

    def read_reply(self, thread: Thread) -> None:
        assert thread.call is not None
        reply = thread.call.to_process.pop(0)
        if isinstance(reply, Queued):
            thread.phase = "queued"
            if thread.given is not None:
                self._use_given(thread)
            elif thread.call.session != self.session:
                self.call_fails(
                    thread
                )  # the session was lost meanwhile, and the place in the queue
            elif thread.cancelled:
                self.call_fails(thread)
            elif thread.refused is not None:
                self.waiters.remove(thread.name)
                self._answered(thread, thread.refused)
            return
        self.waiters.remove(thread.name)
        if thread.given is not None:
            self._hand_on(thread)
        if isinstance(reply, Grant):
            thread.grant, thread.phase = reply, "have"
        else:
            self._answered(thread, reply)

    def call_fails(self, thread: Thread) -> None:
        """The connection ended without a reply: ask again, with a new ticket."""
        if thread.call is not None and thread.call.rejected:
            thread.rejected_under = thread.call.session
        self._stop_waiting(thread)
        thread.phase = "missed"

    def register(self, thread: Thread) -> None:
        """Under the lock that also guards the inventory (rule 2)."""
        assert thread.grant is not None
        assert thread.call is not None
        grant, thread.grant = thread.grant, None
        old = thread.call.session != self.session and self.rules.old_grants_are_discarded
        if old or (grant.number in self.voided and self.rules.not_mine_voids):
            thread.phase = "missed"
            return
        self._enter(grant)
        thread.entry, thread.phase = grant.number, "opening"

    def open_succeeds(self, thread: Thread) -> None:
        entry = self._entry_of(thread)
        entry.state = "open"
        thread.phase = "using"
        self.tell(Opened(entry.number, self.opening_s))

    def open_fails(self, thread: Thread) -> None:
        entry = self._entry_of(thread)
        del self.table[entry.number]
        thread.entry = None
        self.tell(OpeningFailed(entry.number, "no route to database"))
        self._answered(thread, "failed")

    def starve(self, thread: Thread) -> None:
        """Nothing has been given back for long."""
        self.tell(Starves(thread.ticket))

    def give_up(self, thread: Thread) -> None:
        """Time-out or interruption. During a call its connection is dropped."""
        if thread.phase == "queued":
            self.tell(Abandoned(thread.ticket))
        elif thread.phase == "asked":
            assert thread.call is not None
            thread.call.end()
        elif thread.phase == "have":
            assert thread.call is not None
            thread.grant = None
            thread.call.end()
        self._stop_waiting(thread)
        self._answered(thread, "gave up")

    # --- a thread gives back -------------------------------------------------------------------------------

    def append_to_shelf(self, thread: Thread) -> None:
        assert thread.entry is not None
        if self.rules.release_looks_after_append:
            self._shelve(thread.entry)
        else:
            thread.flag_seen = self.contended  # looked first, and appends only in its next step
        thread.phase = "appended"

    def look_who_waits(self, thread: Thread) -> None:
        flag = self.contended
        if not self.rules.release_looks_after_append:
            assert thread.entry is not None
            flag = thread.flag_seen
            self._shelve(thread.entry)
        self._rest(thread)
        self.attend(thread.key, flag)

    def discard(self, thread: Thread) -> None:
        entry = self._entry_of(thread)
        self._rest(thread)
        self._begin_close(entry, "discarded")

    def attend(self, key: str, contended: bool) -> None:
        """A resource on the shelf goes to the server, or to the oldest waiter here."""
        for number in [n for n in self.shelf if self.table[n].key == key]:
            if contended:
                self._bring_back(number)
                continue
            waiter = self._oldest_waiter(key)
            if waiter is None:
                return
            self.shelf.remove(number)
            self._give(waiter, number)

    def expire_idle(self, number: GrantNumber) -> None:
        self.shelf.remove(number)
        self._begin_close(self.table[number], "expired_idle")

    def finish_close(self, number: GrantNumber) -> None:
        entry = self.table.pop(number)
        if entry.successor is None:
            self.tell(Closed(number, entry.reason))
        else:
            self._use_fresh(entry.successor)

    # --- the errand thread ---------------------------------------------------------------------------------

    def attach(self, session: Session) -> Channel:
        """Under the lock that also guards registering (rule 2): new session and inventory at once."""
        self.session = session
        self.attached = self.unheard = False
        self.voided.clear()
        self.sweeping = None
        if self.rules.successors_end_with_session:
            for entry in self.table.values():
                entry.successor = None
        held = [
            Held(POOL, e.key, e.number, e.state, e.generation, e.opened_before)
            for e in self.table.values()
            if e.state != "opening" or self.rules.inventory_has_opening
        ]
        self.errand = Channel(self.process, session, None)
        declared = declaration(self.options, self.declared_age)
        self.errand.send_to_server(Attach("worker", [declared], held))
        return self.errand

    def lose_session(self) -> None:
        """Nobody can be told anything: those who wait ask again under the next session."""
        self.session = None
        self.attached = False
        self.unheard = self.rules.unheard_attach
        self.errand = None
        self.sweeping = None
        if self.rules.contended_ends_with_session:
            self.contended = False
        for thread in self.threads:
            if thread.phase == "queued":
                self._stop_waiting(thread)
                thread.phase = "missed"

    def tell(self, event: Any) -> None:
        if self.errand is not None:
            self.errand.send_to_server(event)

    def read_errand(self) -> None:
        assert self.errand is not None
        decision = self.errand.to_process.pop(0)
        if decision == ATTACHED:
            self.attached = True
        elif isinstance(decision, Grant):
            self._errand_grant(decision)
        elif isinstance(decision, Refuse):
            for thread in self.threads:
                if thread.ticket != decision.ticket or thread.given is not None:
                    continue
                if thread.phase == "queued":
                    self.waiters.remove(thread.name)
                    self._answered(thread, decision)
                elif thread.phase == "asked":  # it came before the word that the ticket is queued
                    thread.refused = decision
        elif isinstance(decision, AskAgain) and self.rules.cancelled_ask_again:
            for thread in self.threads:
                if thread.ticket == decision.ticket and thread.phase == "queued":
                    self.call_fails(thread)
                elif thread.ticket == decision.ticket and thread.phase == "asked":
                    thread.cancelled = True  # it came before the word that the ticket is queued
        elif isinstance(decision, Keep):
            if self._take_aside(decision.number):
                self._shelve(decision.number)
                self.table[decision.number].spared = True
                self.attend(self.table[decision.number].key, self.contended)
        elif isinstance(decision, Close):
            if self._take_aside(decision.number):
                self._begin_close(self.table[decision.number], decision.reason)
        elif isinstance(decision, Reclaim):
            self.sweeping = decision
            if self.rules.flag_before_sweep:
                self.contended = decision.contended
            else:
                self._sweep_shelf(decision)
        elif isinstance(decision, Ask):
            self._asked(decision.number)
        elif isinstance(decision, PoolChanged):
            self._pool_changed(decision)

    def sweep(self) -> None:
        """The second half of a Reclaim: the flag was set before."""
        assert self.sweeping is not None
        reclaim, self.sweeping = self.sweeping, None
        if self.rules.flag_before_sweep:
            self._sweep_shelf(reclaim)
        else:
            self.contended = reclaim.contended

    def _sweep_shelf(self, reclaim: Reclaim) -> None:
        oldest_first = sorted(self.shelf, key=lambda number: self.table[number].idle_since)
        ready = [n for n in oldest_first if self.now - self.table[n].idle_since >= reclaim.idle_for]
        for number in ready[: reclaim.sweep]:
            self._bring_back(number, self.now - self.table[number].idle_since)
        for number in self.shelf:
            self.table[number].spared = True

    def _errand_grant(self, grant: Grant) -> None:
        if not grant.fresh:
            if not self._take_aside(grant.number):
                return
            if self.table[grant.number].key != grant.key:
                raise Violation(
                    f"{grant} hands out a resource of key {self.table[grant.number].key!r}"
                )
        elif grant.number in self.voided:
            return
        elif grant.instead_of:
            self._exchange(grant)
            return
        else:
            self._use_fresh(grant)
            return
        waiter = self._waiter_for(grant)
        if waiter is not None:
            self._give(waiter, grant.number)
        else:
            self._shelve(grant.number)
            self.attend(grant.key, self.contended)

    def _exchange(self, grant: Grant) -> None:
        """One resource is closed, and another one opened in its slot then."""
        if not self._take_aside(grant.instead_of):
            raise Violation(f"{grant} ends what was not brought back")
        self._begin_close(self.table[grant.instead_of], "moved")
        if self.rules.successors_open_late:
            self.table[grant.instead_of].successor = grant
        else:
            self._use_fresh(grant)

    def _use_fresh(self, grant: Grant) -> None:
        self._enter(grant)
        waiter = self._waiter_for(grant)
        if waiter is not None:
            self._give(waiter, grant.number)
        elif self.rules.late_grants_are_declined:
            del self.table[grant.number]
            self.tell(Declined(grant.number))
        else:
            del self.table[grant.number]  # forgotten without a word

    def _asked(self, number: GrantNumber) -> None:
        mine = number in self.table if self.rules.asks_by_number else bool(self.table)
        if self.rules.successors_are_held:
            successors = [entry.successor for entry in self.table.values()]
            mine = mine or any(one is not None and one.number == number for one in successors)
        if not mine:
            self.voided.add(number)
            self.tell(NotMine(number))

    def _pool_changed(self, changed: PoolChanged) -> None:
        self.generation = max(self.generation, changed.generation)
        self.closed = self.closed or changed.closed
        for number in list(self.shelf):
            entry = self.table[number]
            if self.closed or entry.generation < self.generation:
                self.shelf.remove(number)
                self._begin_close(entry, "retired")

    # --- helpers ---------------------------------------------------------------------------------------------

    def is_retired(self, number: GrantNumber) -> bool:
        return self.closed or self.table[number].generation < self.generation

    def _take(self, thread: Thread) -> bool:
        for number in reversed(self.shelf):
            if self.table[number].key == thread.key and not self.is_retired(number):
                self.shelf.remove(number)
                self.table[number].spared = False
                thread.entry, thread.phase = number, "using"
                return True
        return False

    def _entry_of(self, thread: Thread) -> Entry:
        assert thread.entry is not None
        return self.table[thread.entry]

    def _enter(self, grant: Grant) -> None:
        if grant.number in self.table:
            raise Violation(f"#{grant.number} was granted twice")
        self.table[grant.number] = Entry(
            grant.number, grant.key, grant.generation, grant.opened_before
        )

    def _shelve(self, number: GrantNumber) -> None:
        """On the shelf, or away with it if it belongs to an older generation or a closed pool."""
        if self.is_retired(number):
            self._begin_close(self.table[number], "retired")
        else:
            self.table[number].idle_since = self.now
            self.shelf.append(number)

    def _bring_back(self, number: GrantNumber, idle_s: float = 0.0) -> None:
        if self.rules.returned_lies_aside:
            self.shelf.remove(number)
        self.side.append(number)
        self.table[number].state = "returned"
        self.tell(Returned(number, idle_s, self.exchanges))

    def _take_aside(self, number: GrantNumber) -> bool:
        if number not in self.side:
            return False
        self.side.remove(number)
        if number not in self.table:
            return False
        if number in self.shelf:
            self.shelf.remove(number)
        self.table[number].state = "open"
        return True

    def _begin_close(self, entry: Entry, reason: CloseReason) -> None:
        entry.state, entry.reason = "closing", reason

    def _oldest_waiter(self, key: str) -> Thread | None:
        for name in self.waiters:
            if self.threads[name].key == key and self.threads[name].given is None:
                return self.threads[name]
        return None

    def _waiter_for(self, grant: Grant) -> Thread | None:
        for name in self.waiters:
            thread = self.threads[name]
            if thread.ticket == grant.ticket and thread.given is None:
                return thread
        return self._oldest_waiter(grant.key)

    def _give(self, thread: Thread, number: GrantNumber) -> None:
        thread.given = number
        if thread.phase != "asked":  # else it is noticed when the reply has been read
            self._use_given(thread)

    def _use_given(self, thread: Thread) -> None:
        assert thread.given is not None
        number, thread.given = thread.given, None
        if thread.phase == "queued":
            self.tell(Abandoned(thread.ticket))  # answered already, or served by somebody else
        self.waiters.remove(thread.name)
        thread.entry = number
        thread.phase = "opening" if self.table[number].state == "opening" else "using"

    def _hand_on(self, thread: Thread) -> None:
        assert thread.given is not None
        number, thread.given = thread.given, None
        entry = self.table[number]
        if entry.state == "opening":
            del self.table[number]
            self.tell(Declined(number))
        else:
            self._shelve(number)
            self.attend(entry.key, self.contended)

    def _stop_waiting(self, thread: Thread) -> None:
        if thread.name in self.waiters:
            self.waiters.remove(thread.name)
        if thread.given is not None:
            self._hand_on(thread)

    def _answered(self, thread: Thread, answer: Any) -> None:
        thread.last = answer
        self._rest(thread)

    def _rest(self, thread: Thread) -> None:
        """Nothing of the last checkout is left."""
        thread.phase = "idle"
        thread.entry = thread.call = thread.given = thread.refused = thread.grant = None
        thread.timeout = None
        thread.flag_seen = False
