"""Writes what the books decide to the journal: later, where that is impossible now."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mppool.core.decisions import Erase, JournalDecision, Record, RecordBudget, RecordPool
from mppool.ids import GrantNumber, ProcessId
from mppool.server.journal import Journal

log = logging.getLogger(__name__)


class JournalWriter:
    """It belongs to the loop's thread.

    _awaited: after a torn journal, living processes that have not said yet what they hold.
    _owed: what could not be written down, or erased, although it is so; it is tried again at every look around. A record
        that stays counts for its process until that attaches, which one that holds nothing may never do.
    While there is any of either, a torn journal stays torn.
    """

    def __init__(self, journal: Journal) -> None:
        self._awaited: set[ProcessId] = set()
        self._journal = journal
        self._owed: dict[GrantNumber | str, JournalDecision] = {}

    def awaits(self, processes: set[ProcessId]) -> None:
        """The journal is torn, and these live: until each was heard, it stays torn."""
        self._awaited = set(processes)

    def write_down(self, decision: object, adopted: Iterable[GrantNumber] = ()) -> str | None:
        """Carry out a decision for the journal. The reason, if a grant could not be written down.

        A fact that does not depend on the journal (an inventory, the state of a pool) is owed instead, and written later.
        """
        assert isinstance(decision, (Record, Erase, RecordPool, RecordBudget))
        try:
            self._journal.write(decision)
        except OSError as error:
            log.error("%s", error)
            if isinstance(decision, Record) and decision.number not in adopted:
                return str(error)
            self._owed[_debt(decision)] = decision
        else:
            if self._owed:
                self._owed.pop(_debt(decision), None)
                if isinstance(decision, Record):
                    self._owed.pop(decision.instead_of, None)
        return None

    def pay(self) -> None:
        """Write what could not be written at the time."""
        for identity, decision in list(self._owed.items()):
            try:
                self._journal.write(decision)
            except OSError as error:
                log.error("the journal still cannot be written: %s", error)
                return
            self._owed.pop(identity, None)
        self.settle_journal()

    def heard(self, process: ProcessId) -> None:
        """What a process holds is known now."""
        if process in self._awaited:
            self._awaited.discard(process)
            self.settle_journal()

    def settle_journal(self) -> None:
        """Declare the journal whole, once all processes have been heard and nothing is owed."""
        if not self._journal.torn or self._awaited or self._owed:
            return
        try:
            self._journal.settled()
            log.info("journal: whole again, everybody has been heard")
        except OSError as error:
            log.error("the journal stays torn for now: %s", error)


def _debt(decision: JournalDecision) -> GrantNumber | str:
    if isinstance(decision, RecordBudget):
        return f"budget {decision.budget}"
    return decision.pool if isinstance(decision, RecordPool) else decision.number
