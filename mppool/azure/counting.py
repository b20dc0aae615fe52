"""Counters and histograms of client pools: the names that pools of connections have."""

from __future__ import annotations

from bisect import bisect_left

from mppool.stats.names import BOUNDS, HISTOGRAMS, SERVER_COUNTERS, WORKER_COUNTERS


def no_counters() -> dict[str, int]:
    """Every counter of a pool, at zero."""
    return dict.fromkeys((*SERVER_COUNTERS, *WORKER_COUNTERS), 0)


def no_histograms() -> dict[str, list[int]]:
    """Every histogram of a pool, empty."""
    return {kind: [0] * (len(BOUNDS) + 1) for kind in HISTOGRAMS}


def observe(histograms: dict[str, list[int]], kind: str, seconds: float) -> None:
    """Enter a duration."""
    histograms[kind][bisect_left(BOUNDS, seconds)] += 1
