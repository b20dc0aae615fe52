"""Decisions that nobody has taken out yet, and the processes that can be told anything.

All pools of a server and its token books write into one outbox, so that their decisions keep their order.
"""

from __future__ import annotations

from mppool.core.decisions import Addressed, AskAgain, Decision, JournalDecision
from mppool.ids import ProcessId, Ticket


class Outbox:
    """Decisions, in the order in which they must be carried out.

    attached: the processes that can be told anything. One that is not attached hears at its next Attach.
    labels: what attached processes call themselves, for people.
    """

    def __init__(self) -> None:
        self.attached: set[ProcessId] = set()
        self.labels: dict[ProcessId, str] = {}
        self._out: list[Addressed] = []

    def attach(self, process: ProcessId, label: str = "") -> None:
        """The process can be told things from now on."""
        self.attached.add(process)
        self.labels[process] = label

    def detach(self, process: ProcessId) -> None:
        """The process cannot be told anything, but may live."""
        self.attached.discard(process)

    def forget(self, process: ProcessId) -> None:
        """The process is dead."""
        self.attached.discard(process)
        self.labels.pop(process, None)

    def tell(self, process: ProcessId, decision: Decision) -> None:
        """Address a decision to a process, if it is attached."""
        if process in self.attached:
            self._out.append((process, decision))

    def tell_all(self, decision: Decision) -> None:
        """Address a decision to every process that is attached."""
        for (
            process
        ) in self.labels:  # in the order in which they came: a set has another one each time
            if process in self.attached:
                self._out.append((process, decision))

    def answer(self, process: ProcessId, decision: Decision) -> None:
        """Address an answer to a process that has just asked, whether it is attached or not."""
        self._out.append((process, decision))

    def ask_again(self, process: ProcessId, ticket: Ticket) -> None:
        """The place of this ticket in its queue is gone, which its process may not know."""
        self.tell(process, AskAgain(ticket))

    def write_down(self, decision: JournalDecision) -> None:
        """Address a decision to the journal."""
        self._out.append((None, decision))

    def take_out(self) -> list[Addressed]:
        """All that was decided since the last time."""
        out, self._out = self._out, []
        return out
