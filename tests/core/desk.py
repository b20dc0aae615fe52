"""Books on a desk, with a manual clock: tests that use it read like a conversation."""

from __future__ import annotations

from typing import Any, TypeVar

from mppool.core.books import Books
from mppool.core.decisions import Decision, Grant, Queued, Refuse
from mppool.core.events import Attach, Checkout, Declaration, Died, Held, Opened, Returned
from mppool.ids import GrantNumber, ProcessId, Session, Ticket
from mppool.options import PoolOptions
from tests.core.clock import ManualClock
from tests.core.model.fingerprint import fingerprint
from tests.core.model.parts import POOL, declaration
from tests.core.model.server import told_at_once

P, Q, R, S = (ProcessId(pid, 7) for pid in (101, 102, 103, 104))

D = TypeVar("D", bound=Decision)


class Desk:
    """One pool. All that is decided is kept in `told`, by process, and in `journal`, until it is taken."""

    def __init__(
        self, *processes: ProcessId, epoch: int = 1, jitter: float = 0.0, **options: Any
    ) -> None:
        self.clock = ManualClock()
        self.books = Books(epoch, jitter=lambda: jitter)
        self.options = PoolOptions(**options)
        self.told: dict[ProcessId, list[Decision]] = {}
        self.journal: list[Decision] = []
        # The last decisions, journal and all, in order.
        self.last: list[Decision] = []
        self._sessions = 0
        self._tickets = 0
        for process in processes:
            self.attach(process)

    @property
    def pool(self) -> Any:
        return self.books.pools[POOL]

    # --- saying ------------------------------------------------------------------------------------------------

    def say(self, process: ProcessId, event: Any, session: int | None = None) -> list[Decision]:
        """Say something under the current session (or another one), and return all that is decided."""
        current = self.books.session_of(process) or Session(0)
        under = current if session is None else Session(session)
        refuse = told_at_once(self.books, process, under, event, self.clock())
        decisions = self.books.apply(process, under, event, self.clock())
        assert refuse is None or decisions == [(process, refuse)]
        return self.note(decisions)

    def note(self, decisions: Any) -> list[Decision]:
        self.last = []
        for process, decision in decisions:
            self.last.append(decision)
            if process is None:
                self.journal.append(decision)
            else:
                self.told.setdefault(process, []).append(decision)
        return self.last

    def attach(
        self,
        process: ProcessId,
        held: list[Held] | None = None,
        *,
        options: PoolOptions | None = None,
        age: float = 0.0,
        declare: bool = True,
    ) -> list[Decision]:
        self._sessions += 1
        declared = [declaration(options or self.options, age)] if declare else []
        return self.say(process, Attach("", declared, held or []), self._sessions)

    def command(self, command: Any, process: ProcessId = P) -> list[Decision]:
        return self.note(self.books.command(process, command, self.clock()))

    def ask(self, process: ProcessId, key: str = "k", timeout: float | None = None) -> Any:
        """Check out; returns the direct answer: Grant, Queued or Refuse."""
        self._tickets += 1
        ticket = Ticket(self._tickets)
        decisions = self.say(process, Checkout(POOL, key, ticket, timeout))
        (answer,) = (
            d for d in decisions if isinstance(d, (Grant, Queued, Refuse)) and d.ticket == ticket
        )
        self.told[process].remove(answer)
        return answer

    def queue(self, process: ProcessId, key: str = "k", timeout: float | None = None) -> Ticket:
        """Check out, and have to wait."""
        answer = self.ask(process, key, timeout)
        assert isinstance(answer, Queued), answer
        return answer.ticket

    def granted(self, process: ProcessId, key: str = "k") -> GrantNumber:
        """Check out, and be granted the right to open."""
        answer = self.ask(process, key)
        assert isinstance(answer, Grant), answer
        assert answer.fresh
        return answer.number

    def opened(self, process: ProcessId, key: str = "k", seconds: float = 0.0) -> GrantNumber:
        """Check out and open. What costs nothing has earned its opening at once."""
        number = self.granted(process, key)
        self.say(process, Opened(number, seconds))
        return number

    def brings_back(self, process: ProcessId, number: GrantNumber, idle_s: float = 0.0) -> Any:
        """A contended return; the answer to it."""
        decisions = self.say(process, Returned(number, idle_s))
        (answer,) = (d for d in decisions if getattr(d, "number", None) == number)
        return answer

    def dies(self, process: ProcessId) -> list[Decision]:
        return self.say(process, Died())

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick at every deadline on the way."""
        end = self.clock() + seconds
        for _ in range(1000):
            due = self.books.next_deadline(self.clock())
            if due is None or due > end:
                break
            assert due > self.clock(), "a tick that wants another one at once"
            self.clock.now = due
            self.note(self.books.tick(due))
        else:
            raise AssertionError("a thousand deadlines")
        self.clock.now = end

    # --- hearing -----------------------------------------------------------------------------------------------

    def hears(self, process: ProcessId, kind: type[D]) -> list[D]:
        """Take what a process was told, and return what is of this kind."""
        return [d for d in self.told.pop(process, []) if isinstance(d, kind)]

    def forget(self) -> None:
        """Nobody has been told anything."""
        self.told.clear()
        self.journal.clear()

    # --- seeing ------------------------------------------------------------------------------------------------

    def state(self) -> Any:
        """All of the books, to be compared."""
        return fingerprint(self.books)

    def size(self) -> int:
        return len(self.pool.slots)


def held(
    number: GrantNumber, state: Any = "open", key: str = "k", generation: int = 0, before: int = 0
) -> Held:
    """One line of an inventory."""
    return Held(POOL, key, number, state, generation, before)


def declared(options: PoolOptions, age: float = 0.0, pool: str = POOL) -> Declaration:
    return declaration(options, age, pool)
