"""The screen and the keys of `mppool top`, on textual."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import App
from textual.binding import Binding
from textual.widgets import Static

from mppool.cli.top.drawing import SORTS, Choices, draw
from mppool.cli.top.watch import Watch
from mppool.errors import PoolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult
    from textual.events import Resize

MOST_S, LEAST_S = 60.0, 0.1


class Top(App[None]):
    """Looks at the statistics again and again, in a thread, and draws them.

    ask: the statistics, or None where no server runs. looks: leave after so many; None: when told to.
    """

    CSS = "Screen { overflow: hidden; background: black; } Static { width: 100%; height: 100%; }"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[Any]] = [
        Binding("q,ctrl+c", "quit", "leave"),
        Binding("p,space", "pause", "pause"),
        Binding("s", "sort", "sort"),
        Binding("question_mark,h", "help", "help"),
        Binding("enter", "into", "look into"),
        Binding("escape,backspace", "leave", "back"),
        Binding("up,k", "move(-1)", "up"),
        Binding("down,j", "move(1)", "down"),
        Binding("plus,equals_sign", "faster", "more often"),
        Binding("minus", "slower", "less often"),
    ]

    def __init__(
        self,
        ask: Callable[[], dict[str, Any] | None],
        name: str,
        interval: float,
        looks: int | None = None,
    ) -> None:
        super().__init__()
        self._ask = ask
        self._looks = looks
        self.seen = Watch()
        self.choices = Choices(name, interval)
        self._due = 0.0
        self._asking = False

    def compose(self) -> ComposeResult:
        """One widget: the lines are drawn for the size that there is."""
        yield Static("looking ...", id="all", markup=False)

    def on_mount(self) -> None:
        """Begin to look."""
        self.set_interval(0.05, self._look)

    def on_resize(self, _: Resize) -> None:
        """Draw for the new size."""
        self.redraw()

    def redraw(self) -> None:
        """Show what is known."""
        size = self.size
        if self.seen.stats is not None or self.seen.events:
            self.query_one("#all", Static).update(
                draw(self.seen, self.choices, size.width, size.height)
            )

    def _look(self) -> None:
        if self._asking or self.choices.is_paused or time.monotonic() < self._due:
            return
        self._asking = True
        self._due = time.monotonic() + self.choices.interval
        self.run_worker(self._ask_once, thread=True, exit_on_error=True)

    def _ask_once(self) -> None:
        """In a thread: the server may take its time."""
        try:
            stats = self._ask()
        except (PoolError, TimeoutError):
            stats = None
        self.call_from_thread(self._take, stats)

    def _take(self, stats: dict[str, Any] | None) -> None:
        self._asking = False
        self.seen.take(stats, time.time())
        self.redraw()
        if self._looks is not None:
            self._looks -= 1
            if self._looks <= 0:
                self.exit()

    # --- keys --------------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        """Keep what is shown, or go on."""
        self.choices.is_paused = not self.choices.is_paused
        self.redraw()

    def action_sort(self) -> None:
        """By the next of SORTS."""
        after = SORTS.index(self.choices.sort) + 1
        self.choices.sort = SORTS[after % len(SORTS)]
        self.redraw()

    def action_help(self) -> None:
        """Show the help, or what was there before."""
        self.choices.has_help = not self.choices.has_help
        self.redraw()

    def action_into(self) -> None:
        """From all pools into one, from there into a process."""
        choices = self.choices
        if choices.rows and choices.pid is None:
            chosen = choices.rows[choices.cursor]
            if choices.pool is None:
                choices.pool = chosen
            else:
                choices.pid = chosen
            choices.cursor = 0
        self.redraw()

    def action_leave(self) -> None:
        """One level up."""
        choices = self.choices
        if choices.has_help:
            choices.has_help = False
        elif choices.pid is not None:
            choices.pid = None
        else:
            choices.pool = None
        choices.cursor = 0
        self.redraw()

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.choices.cursor += by
        self.redraw()

    def action_faster(self) -> None:
        """Look twice as often."""
        self.choices.interval = max(LEAST_S, self.choices.interval / 2)
        self._due = 0.0
        self.redraw()

    def action_slower(self) -> None:
        """Look half as often."""
        self.choices.interval = min(MOST_S, self.choices.interval * 2)
        self.redraw()
