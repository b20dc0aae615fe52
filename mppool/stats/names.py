"""Names of counters and bounds of histograms: one list, for worker, server and exporters."""

from __future__ import annotations

BOUNDS: tuple[float, ...] = (
    0.0001,
    0.001,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
"""Upper bounds of the histogram buckets, in seconds; one more bucket holds whatever is longer."""

BRIEF_S = BOUNDS[0]
"""Uses and waits shorter than this are not entered one by one: they are what is missing to the checkouts."""

HISTOGRAMS = ("wait", "use", "open")

SERVER_COUNTERS = (
    "opened",
    "open_failed",
    "closed",
    "expired_idle",
    "expired_lifetime",
    "worn_out",
    "unhealthy",
    "killed",
    "leaked",
    "moved",
    "evicted_identities",
    "died_with_process",
    "refused",
)
"""Counted by the books, exact."""

WORKER_COUNTERS = (
    "checkouts",
    "timeouts",
    "double_releases",
    "recovered",
    "checks",
    "check_errors",
    "hung_checks",
    "hook_errors",
    "long_closes",
    "reopened",
)
"""Counted by each process and reported when asked."""
