"""What the journal still owes: decisions that could not be written down, and processes not heard yet.

While there are any of either, a torn journal stays torn.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mppool.core.decisions import Erase, Record, RecordPool
from mppool.ids import GrantNumber, ProcessId
from mppool.server.journal import Journal

log = logging.getLogger(__name__)


class Debts:
    """Writes to the journal, and remembers what it owes. It belongs to the loop's thread.

    awaited: after a torn journal, living processes that have not said yet what they hold.
    """

    def __init__(self, journal: Journal) -> None:
        self.awaited: set[ProcessId] = set()
        self._journal = journal
        # What could not be written down although it is so; tried again at every look around.
        self._owed: dict[GrantNumber | str, Record | RecordPool] = {}

    def write_down(self, decision: object, adopted: Iterable[GrantNumber] = ()) -> str | None:
        """Carry out a decision for the journal. The reason, if a grant could not be written down.

        What is so in any case (an inventory, the state of a pool) is owed instead, and written later.
        """
        assert isinstance(decision, (Record, Erase, RecordPool))
        try:
            self._journal.write(decision)
        except OSError as error:
            log.error("%s", error)
            if isinstance(decision, Record) and decision.number not in adopted:
                return str(error)
            if not isinstance(decision, Erase):
                self._owed[_debt(decision)] = decision
        else:
            if self._owed:
                self._owed.pop(_debt(decision), None)
        if isinstance(decision, Erase):
            self._owed.pop(decision.number, None)
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
        if process in self.awaited:
            self.awaited.discard(process)
            self.settle_journal()

    def settle_journal(self) -> None:
        """Declare the journal whole, once everybody has been heard and nothing is owed."""
        if not self._journal.torn or self.awaited or self._owed:
            return
        try:
            self._journal.settled()
            log.info("journal: whole again, everybody has been heard")
        except OSError as error:
            log.error("the journal stays torn for now: %s", error)


def _debt(decision: Record | RecordPool | Erase) -> GrantNumber | str:
    return decision.pool if isinstance(decision, RecordPool) else decision.number
