"""What the demonstration shows while it goes on: live with rich, else a line per second."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mppool.cli import output
from mppool.cli.output import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.live import Live

_LINE_EVERY_S = 1.0
_SHOWN_EVENTS = 8
_FIGURES = ("slots", "in_use", "idle", "waiting")


@dataclass
class View:
    """Figures of one moment. The pool's are None while no server can be asked."""

    elapsed: float
    seconds: float
    rate: float
    answered: int
    failures: int
    open_now: int
    cap: int
    pool: dict[str, Any] | None
    workers: dict[int, int] = field(default_factory=dict)
    """Answers by the pid of the living worker that gave them."""

    def gauge(self, name: str) -> str:
        """A figure of the pool, or a dash."""
        return "-" if self.pool is None else str(self.pool[name])

    def by_worker(self) -> Table:
        """A row per living worker."""
        table = Table("", ("worker", "answers", "slots", "in use", "idle", "waiting"))
        known = {one["pid"]: one for one in (self.pool["processes"] if self.pool else [])}
        for pid, answers in sorted(self.workers.items()):
            one = known.get(pid, {})
            figures = [one.get(name, "-") for name in _FIGURES]
            table.add(pid, answers, *figures)
        for pid, one in sorted(known.items()):
            if pid not in self.workers and one["label"].startswith("host "):
                table.add(f"{pid} (host)", "-", *(one[name] for name in _FIGURES))
        return table

    def summary(self) -> Table:
        """One row with everything else."""
        table = Table(
            "", ("requests/s", "answers", "failed", "open (witness)", "in use", "idle", "waiting")
        )
        gauges = [self.gauge(name) for name in ("in_use", "idle", "waiting")]
        open_now = f"{self.open_now} of {self.cap}"
        table.add(f"{self.rate:.0f}", self.answered, self.failures, open_now, *gauges)
        return table


LEGEND = (
    "open (witness): connections open now, of those allowed, counted by a process that is not mppool's\n"
    "slots: connections that a worker, or the host, may have open; in use, idle: how many it has lent, or kept\n"
    "waiting: requests that wait for a connection"
)


class Screen(Protocol):
    """Where the demonstration is shown."""

    def tell(self, text: str) -> None:
        """Something happened."""

    def show(self, view: View) -> None:
        """How things are now."""


class PlainScreen:
    """Lines, for logs and plain terminals."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._elapsed = 0.0

    def tell(self, text: str) -> None:
        """See Screen."""
        print(f"{self._elapsed:6.1f} s  * {text}", flush=True)

    def show(self, view: View) -> None:
        """See Screen. Not more often than once per second."""
        if not self._elapsed:
            print(f"{LEGEND}\n[worker: in use/idle/waiting]", flush=True)
        self._elapsed = view.elapsed
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + _LINE_EVERY_S
        workers = "  ".join(
            f"{row[0]}: {row[3]}/{row[4]}/{row[5]}"
            for row in view.by_worker().rows
            if row[3] != "-"
        )
        print(
            f"{view.elapsed:6.1f} s  {view.rate:4.0f} requests/s  {view.failures} failed  "
            f"open {view.open_now} of {view.cap}  in use {view.gauge('in_use')}  "
            f"idle {view.gauge('idle')}  waiting {view.gauge('waiting')}   [{workers}]",
            flush=True,
        )


class RichScreen:
    """A progress bar, tables that change in place, and what happened last."""

    def __init__(self, live: Live) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("gunicorn under load"), BarColumn(bar_width=None), TimeElapsedColumn()
        )
        self._task = self._progress.add_task("load", total=1.0)
        self._events: list[str] = []
        self._view: View | None = None
        self._live = live

    def tell(self, text: str) -> None:
        """See Screen."""
        elapsed = self._view.elapsed if self._view else 0.0
        self._events = [*self._events, f"{elapsed:6.1f} s  {text}"][-_SHOWN_EVENTS:]
        self._draw()

    def show(self, view: View) -> None:
        """See Screen."""
        self._view = view
        done = min(1.0, view.elapsed / view.seconds)
        self._progress.update(self._task, completed=done)
        self._draw()

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [self._progress]
        if self._view is not None:
            parts.append(output.as_rich([self._view.summary(), self._view.by_worker()]))
            parts.append(Text(LEGEND, "dim"))
        parts.append(Text("\n".join(self._events)))
        self._live.update(Group(*parts), refresh=True)


@contextmanager
def make_screen(*, rich: bool) -> Iterator[Screen]:
    """The screen for this terminal."""
    if not rich:
        yield PlainScreen()
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield RichScreen(live)
