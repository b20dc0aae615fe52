"""What the demonstration has shown, and whether every promise was kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mppool.cli.looking import duration
from mppool.cli.output import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mppool.cli.demo.load import Failure
    from mppool.cli.demo.observers import Observer
    from mppool.cli.demo.witness import Seen

_SHOWN_FAILURES = 5


@dataclass
class Result:
    """Filled in as the demonstration goes on. None: it did not come to that."""

    cap: int
    hosted: bool = False
    seconds: float = 0.0
    answered: int = 0
    longest_s: float = 0.0
    failures: Sequence[Failure] = ()
    inside_killed: Sequence[Failure] = ()
    witness: Seen | None = None
    observers: list[Observer] = field(default_factory=list)
    killed_held: int = 0
    free_after_s: float | None = None
    reused_after_s: float | None = None
    server_after_s: float | None = None
    reload_s: float | None = None
    reloaded_workers: int = 0
    moved: int = 0
    capacity: int | None = None
    left_behind: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """The table at the end; it also fills `broken`."""
        table = Table("What happened", ("", "", "promised", "", "meaning"))
        rate = self.answered / self.seconds if self.seconds else 0.0
        self._row(
            table,
            "requests",
            f"{self.answered} ({rate:.0f}/s)",
            "some",
            self.answered > 0,
            "correct answers, from all workers",
        )
        self._row(
            table,
            "failures",
            len(self.failures),
            "0",
            not self.failures,
            "wrong or missing answers, without the next line",
        )
        self._row(
            table,
            "in flight inside the killed worker",
            len(self.inside_killed),
            "-",
            True,
            "lost with their process, as anywhere",
        )
        peak = self.witness.peak if self.witness else 0
        self._row(
            table,
            "peak of open connections, by the witness",
            peak,
            f"<= {self.cap}",
            0 < peak <= self.cap,
            "counted by a process of its own, not by mppool",
        )
        for one in self.observers:
            seen = f"{one.peak} (in {one.looks} looks)"
            self._row(
                table, f"peak of {one.what}", seen, f"<= {self.cap}", self._is_kept(one),
                "counted by looking again and again",
            )  # fmt: skip
        self._times(table)
        self._ends(table)
        return table

    def _ends(self, table: Table) -> None:
        opened = self.witness.total if self.witness else 0
        self._row(
            table,
            "connections opened",
            opened,
            "-",
            True,
            "logins of the host; workers come and go"
            if self.hosted
            else "logins: first ones, after kills and reload, and by moves",
        )
        self._row(
            table,
            "slots moved between workers",
            self.moved,
            "<= opened",
            self.moved <= opened,
            "closed in one worker so that another could open one",
        )
        self._row(
            table,
            "longest request",
            duration(self.longest_s),
            "-",
            True,
            "with its wait for a connection",
        )
        capacity = "not tried" if self.capacity is None else self.capacity
        self._row(
            table,
            "leases available at the end",
            capacity,
            self.cap,
            self.capacity == self.cap,
            "capacity was neither lost nor gained",
        )
        left = ", ".join(self.left_behind) or "nothing"
        self._row(
            table, "left behind", left, "nothing", not self.left_behind, "processes and files",
        )  # fmt: skip

    def _is_kept(self, observer: Observer) -> bool:
        return observer.looks > 0 and 0 < observer.peak <= self.cap

    def _times(self, table: Table) -> None:
        rows = (
            (
                f"worker's death to its {self.killed_held} slots being free", self.free_after_s,
                "when the statistics, asked now and then, first said so",
            ),
            (
                "worker's death to its slots in use elsewhere", self.reused_after_s,
                "when the witness had seen as many opened; may come first",
            ),
            (
                "server's death to its successor serving", self.server_after_s,
                "meanwhile leases go on; only new connections wait",
            ),
            (
                f"HUP to {self.reloaded_workers} new workers in place of the old", self.reload_s,
                "as gunicorn does it",
            ),
        )  # fmt: skip
        # Of a worker that has no connections nothing becomes free.
        for what, seconds, meaning in rows[2:] if self.hosted else rows:
            happened = seconds is not None
            text = duration(seconds) if seconds is not None else "did not happen"
            self._row(table, what, text, "happens", happened, meaning)

    def _row(
        self, table: Table, what: str, found: Any, promised: Any, kept: bool, meaning: str = ""
    ) -> None:
        table.add(what, found, promised, "" if kept else "BROKEN", meaning)
        if not kept:
            self.broken.append(f"{what}: {found}")

    def explanation(self) -> str:
        """The first failures, for people who must find the cause."""
        lines = [
            f"  failed after {duration(one.ended - one.started)}: {one.text}"
            for one in self.failures[:_SHOWN_FAILURES]
        ]
        if len(self.failures) > _SHOWN_FAILURES:
            lines.append(f"  and {len(self.failures) - _SHOWN_FAILURES} more")
        return "\n".join(lines)
