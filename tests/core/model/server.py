"""The real books behind channels, with a journal. The server may be killed between any two decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from mppool.core.books import Books, Command
from mppool.core.decisions import (
    Addressed,
    AskAgain,
    Erase,
    Grant,
    Queued,
    Record,
    RecordPool,
    Refuse,
)
from mppool.core.events import Attach, CallEnded, Checkout, Detached, Died, NotMine, Remembered
from mppool.core.slot import SlotState
from mppool.ids import GrantNumber, ProcessId, Session, Ticket
from tests.core.model.parts import POOL, Channel, Rules, Violation
from tests.core.model.worker import ATTACHED


def told_at_once(
    books: Books, process: ProcessId, session: Session, event: Any, now: float
) -> Refuse | None:
    """What a server answers without applying the event. That changes nothing, and `apply` would answer the same."""
    return books.refuses_at_once(process, session, event, now) if type(event) is Checkout else None


def no_jitter() -> float:
    """Module level, so that books can be copied."""
    return 0.0


class Journal:
    """What survives the server."""

    def __init__(self) -> None:
        self.slots: dict[GrantNumber, Record] = {}
        self.pools: dict[str, RecordPool] = {}

    def write(self, decision: Any) -> None:
        if isinstance(decision, Record):
            self.slots.pop(decision.instead_of, None)
            self.slots[decision.number] = decision
        elif isinstance(decision, Erase):
            if self.slots.pop(decision.number, None) is None:
                raise Violation(f"{decision} of a slot that is not in the journal")
        elif isinstance(decision, RecordPool):
            self.pools[decision.pool] = decision

    def remembered(self) -> list[Remembered]:
        return [
            Remembered(r.pool, r.key, r.number, r.process, r.generation, r.budget)
            for r in self.slots.values()
        ]


class ServerKilled(Exception):
    """Raised in the middle of carrying out decisions."""


class Server:
    """One server after the other; `alive` says whether there is one now."""

    def __init__(self, rules: Rules, jitter: Callable[[], float] = no_jitter) -> None:
        self.rules = rules
        self.jitter = jitter
        self.epoch = 1
        self.alive = True
        self.books = Books(self.epoch, jitter=jitter)
        self.journal = Journal()
        # Every connection that the server has open, in the order in which it was made.
        self.channels: list[Channel] = []
        self.errands: dict[ProcessId, Channel] = {}
        self.sessions = 0
        self.answers: Counter[tuple[ProcessId, Ticket]] = Counter()
        # Killed before so many more decisions are carried out; None: not at all.
        self.dies_after: int | None = None

    # --- steps -------------------------------------------------------------------------------------------------

    def new_session(self) -> Session:
        self.sessions += 1
        return Session(self.epoch << 32 | self.sessions)

    def read(self, channel: Channel, now: float) -> None:
        message = channel.to_server.pop(0)
        refuse = told_at_once(self.books, channel.process, channel.session, message, now)
        decisions = self.books.apply(channel.process, channel.session, message, now)
        assert refuse is None or decisions == [(channel.process, refuse)]
        if isinstance(message, Attach):
            self._attached(channel)
            self.carry_out(decisions)
        elif isinstance(message, Checkout):
            if self.books.session_of(channel.process) != channel.session:
                channel.severed = channel.rejected = True  # attach again
                self.channels.remove(channel)
                return
            channel.ticket = message.ticket
            self.carry_out(decisions, channel, message.ticket)
        else:
            self.carry_out(decisions)

    def see_end(self, channel: Channel, now: float) -> None:
        self.channels.remove(channel)
        event: Any = Detached() if channel.thread is None else None
        if channel.thread is not None:
            if channel.ticket is None:
                return
            event = CallEnded(channel.ticket)
            if not self.rules.end_of_call_asks:
                self._free_what_was_sent(channel, now)
                return
        elif self.errands.get(channel.process) is channel:
            del self.errands[channel.process]
            if not self.rules.end_of_errands_is_no_death:
                self.see_death(channel.process, now)
                return
        else:
            return
        self.carry_out(self.books.apply(channel.process, channel.session, event, now))

    def see_death(self, process: ProcessId, now: float) -> None:
        self.drop(process)
        self.carry_out(self.books.apply(process, Session(0), Died(), now))

    def tick(self, now: float) -> None:
        self.carry_out(self.books.tick(now))

    def command(self, process: ProcessId, event: Command, now: float) -> None:
        if POOL in self.books.pools:
            self.carry_out(self.books.command(process, event, now))

    def be_killed(self) -> None:
        self.alive = False
        for channel in self.channels:
            channel.severed = True
            channel.to_server.clear()
        self.channels.clear()
        self.errands.clear()

    def restart(self, awaited: set[ProcessId] | None, living: set[ProcessId], now: float) -> None:
        """The next epoch. awaited: None continues the journal, else it is torn and these are heard first."""
        self.epoch += 1
        self.alive = True
        self.sessions = 0
        self.answers.clear()
        self.books = Books(self.epoch, jitter=self.jitter)
        if awaited is not None or not self.rules.journal_is_continued:
            self.journal = Journal()
            if not self.rules.torn_journal_awaits:
                awaited = set()
        for record in list(self.journal.slots.values()):
            if record.process not in living:
                self.journal.write(Erase(record.number))
        self.books.restore(
            list(self.journal.pools.values()), self.journal.remembered(), awaited or set(), now
        )

    def drop(self, process: ProcessId) -> None:
        for channel in [c for c in self.channels if c.process == process]:
            channel.severed = True
            self.channels.remove(channel)
        self.errands.pop(process, None)

    # --- carrying out ------------------------------------------------------------------------------------------

    def carry_out(
        self,
        decisions: list[Addressed],
        reply_to: Channel | None = None,
        ticket: Ticket | None = None,
    ) -> None:
        if not self.rules.journal_is_written_first:
            decisions = sorted(decisions, key=lambda item: item[0] is None)
        for process, decision in decisions:
            if self.dies_after is not None:
                if self.dies_after == 0:
                    raise ServerKilled
                self.dies_after -= 1
            if process is None:
                self.journal.write(decision)
                continue
            if isinstance(decision, (Grant, Refuse, AskAgain)):
                self._count_answer(process, decision)
            direct = isinstance(decision, (Grant, Queued, Refuse)) and decision.ticket == ticket
            if reply_to is not None and process == reply_to.process and direct:
                reply_to.send_to_process(decision)
            elif process in self.errands:
                self.errands[process].send_to_process(decision)

    def _count_answer(self, process: ProcessId, decision: Grant | Refuse | AskAgain) -> None:
        unwritten = isinstance(decision, Grant) and decision.number not in self.journal.slots
        if unwritten and self.rules.journal_is_written_first:
            raise Violation(f"{decision} was sent before it was written down")
        self.answers[process, decision.ticket] += 1
        if self.answers[process, decision.ticket] > 1:
            raise Violation(f"ticket {decision.ticket} of {process} is answered twice: {decision}")

    def _attached(self, channel: Channel) -> None:
        before = self.errands.get(channel.process)
        if before is not None and before is not channel:
            before.severed = True
            if before in self.channels:
                self.channels.remove(before)
        self.errands[channel.process] = channel
        channel.send_to_process(ATTACHED)

    def _free_what_was_sent(self, channel: Channel, now: float) -> None:
        """What rule 1 forbids: the end of a connection taken as proof."""
        slots = [slot for pool in self.books.pools.values() for slot in pool.slots]
        for slot in slots:
            mine = slot.process == channel.process and slot.ticket == channel.ticket
            if mine and slot.state is SlotState.OPENING:
                event = NotMine(slot.number)
                self.carry_out(self.books.apply(channel.process, channel.session, event, now))
