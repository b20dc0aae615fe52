"""How long waiting, opening and using lately took in this process."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from mppool.stats.names import BOUNDS, HISTOGRAMS

if TYPE_CHECKING:
    from mppool.core.decisions import Grant

_WEIGHT = 0.3


class Durations:
    """The histograms of a pool, and what its opening and its use are expected to take.

    Guarded by nothing: of two durations that are entered together one may be lost. A lock would cost more than
    the figure is worth.

    opening_s, use_s: seconds, or 0 while nothing is known. What comes later counts for more.
    """

    def __init__(self) -> None:
        self.histograms = {name: [0] * (len(BOUNDS) + 1) for name in HISTOGRAMS}
        self.opening_s = 0.0
        self.use_s = 0.0

    def waited(self, seconds: float) -> None:
        """A caller has waited for so long."""
        self.histograms["wait"][bisect_left(BOUNDS, seconds)] += 1

    def told(self, grant: Grant) -> None:
        """A grant says what the books know, which have seen the openings of all processes."""
        if grant.opening_s > 0:
            self.opening_s = grant.opening_s

    def opened(self, seconds: float) -> None:
        """An opening took so long."""
        self.histograms["open"][bisect_left(BOUNDS, seconds)] += 1
        last = self.opening_s
        self.opening_s = last + _WEIGHT * (seconds - last) if last else seconds

    def used(self, seconds: float) -> None:
        """A use took so long."""
        self.histograms["use"][bisect_left(BOUNDS, seconds)] += 1
        last = self.use_s
        self.use_s = last + _WEIGHT * (seconds - last) if last else seconds
