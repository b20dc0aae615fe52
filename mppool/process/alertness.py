"""Whether it pays to wait awake for what comes next, instead of sleeping until it is there.

Waking a thread takes 20 to 100 µs where its CPU has stopped meanwhile: longer than many an answer. Whoever waits awake
for a moment spends that time too, and it is wasted if nothing comes. So it is tried only where sleeps were short, and less
often the more often it was in vain.
"""

from __future__ import annotations

from typing import final

BRISK = 8
"""After so many short sleeps in a row the next wait begins awake."""
MOST_BRISK = 1024
"""Each wait that was in vain doubles how many it takes, up to so many. So what comes at another pace costs next to nothing."""


@final
class Alertness:
    """Counts sleeps and waits; time, and what a short sleep is, are the caller's.

    Threads may share it: at worst a wait begins the wrong way.
    is_awake: how the next wait begins. _brisk: how many sleeps in a row were short; _enough: how many it takes.
    """

    __slots__ = ("_brisk", "_enough", "is_awake")

    def __init__(self) -> None:
        self._brisk, self._enough, self.is_awake = 0, BRISK, False

    def has_slept(self, *, briefly: bool) -> None:
        """A sleep is over."""
        self._brisk = self._brisk + 1 if briefly else 0
        self.is_awake = self._brisk >= self._enough

    def has_paid(self) -> None:
        """What was waited for awake has come."""
        self._enough = BRISK

    def was_in_vain(self) -> None:
        """Nothing has come while it was waited for awake."""
        self.begin_again()
        self._enough = min(2 * self._enough, MOST_BRISK)

    def others_had_the_cpu(self) -> None:
        """The machine is busy. To give the CPU away costs so much more than a sleep that it is not tried again for long."""
        self.begin_again()
        self._enough = MOST_BRISK

    def begin_again(self) -> None:
        """Something else has come: the next waits are sleeps, and counted."""
        self._brisk, self.is_awake = 0, False
