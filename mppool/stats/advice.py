"""What to do about a pool, from what was measured. Pure.

Little's law says how many resources are in use on average: checkouts per second x seconds of use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

from mppool.stats import words

Pool = Mapping[str, Any]

ENOUGH = 200
"""So many checkouts say something about a load."""

LONG_WAIT_S = 0.1
FEW = 0.01
MANY = 0.1
RESERVE = 4 / 3
"""For bursts, beyond the average."""


class Advice(TypedDict):
    """about: the option or counter that it is about. text: what was measured, and what to do."""

    about: str
    text: str


def advise(pool: Pool, now: float) -> list[Advice]:
    """Advice on one pool, from its statistics; empty where nothing is to be done. now: seconds since 1970."""
    rules: tuple[Callable[[Pool, float], Iterator[tuple[str, str]]], ...] = (
        _faults,
        _cap,
        _greed,
        _database,
        _moves,
        _openings,
    )
    return [{"about": about, "text": text} for rule in rules for about, text in rule(pool, now)]


_FAULTS = {
    "leaked": (
        ("lease was", "leases were"),
        "garbage-collected without a release: use `with`; track_leaks=True says where",
    ),
    "killed": (
        ("lease was", "leases were"),
        "ended by max_lease_kill: find who keeps leases (track_leaks=True), or raise it",
    ),
    "double_releases": (
        ("lease was", "leases were"),
        "released twice: a bug in the application; the log has where",
    ),
    "hung_checks": (
        ("check", "checks"),
        "hung: a firewall forgets idle connections; lower max_idle below its limit",
    ),
    "hook_errors": (("hook", "hooks"), "raised: the log has the errors"),
    "died_with_process": (
        ("resource", "resources"),
        "ended with their process: workers crash or are killed; if that is no deployment, look at their exit statuses",
    ),
}
"""Counters that should be 0: what they count, of one and of more, and what to do."""


def _faults(pool: Pool, now: float) -> Iterator[tuple[str, str]]:
    for counter, (what, text) in _FAULTS.items():
        count = pool["counters"].get(counter, 0)
        if count:
            yield counter, f"{words.counted(count, *what)} {text}"
    if pool["breaker"] != "closed":
        yield (
            "breaker",
            "opening fails at present: OpenFailed has the error of the driver as its cause",
        )


def mean_in_use(pool: Pool, now: float) -> float | None:
    """How many were in use on average, by Little's law; None where too little is known."""
    checkouts, began = pool["counters"].get("checkouts", 0), pool["counters_began"]
    if checkouts < ENOUGH or began is None or now - began < 1.0:
        return None
    seconds: float = now - began
    return float(checkouts / seconds * mean(pool["histograms"]["use"]))


def mean(histogram: Mapping[str, Sequence[float]]) -> float:
    """The mean of the durations, each as the middle of its bucket."""
    counts, bounds = histogram["counts"], histogram["bounds"]
    lower = [0.0, *bounds]
    middles = [(low + high) / 2 for low, high in zip(lower, bounds, strict=False)] + [bounds[-1]]
    return sum(n * one for n, one in zip(counts, middles, strict=True)) / max(1, sum(counts))


def share_above(histogram: Mapping[str, Sequence[float]], seconds: float) -> float:
    """Which share of the durations is longer."""
    counts, bounds = histogram["counts"], histogram["bounds"]
    long = sum(n for n, low in zip(counts, [0.0, *bounds], strict=True) if low >= seconds)
    return long / max(1, sum(counts))


def _cap(pool: Pool, now: float) -> Iterator[tuple[str, str]]:
    cap, used = pool["max_size"], mean_in_use(pool, now)
    if cap is None or used is None:
        return
    waited = share_above(pool["histograms"]["wait"], LONG_WAIT_S)
    seconds = mean(pool["histograms"]["use"])
    measured = (
        f"{used:.2g} of {cap} were in use on average, for {seconds:.2g} s each, and {waited:.1%} of the "
        f"checkouts waited for more than {LONG_WAIT_S:g} s"
    )
    if waited > FEW:
        wanted = max(math.ceil(used * RESERVE), cap + math.ceil(cap / 4))
        yield (
            "max_size",
            f"{measured}: try max_size={wanted}, or hold leases for less long",
        )
    elif cap > 4 and used * RESERVE < cap / 4 and pool["in_use"] <= cap / 2:
        wanted = max(2, len(pool["processes"]), math.ceil(used * RESERVE * 2))
        if wanted < cap:
            yield (
                "max_size",
                f"{measured}: max_size={wanted} would do, unless there are bursts",
            )


def _greed(pool: Pool, now: float) -> Iterator[tuple[str, str]]:
    """One process has most of it, and uses it for long, while others wait."""
    cap, processes = pool["max_size"], pool["processes"]
    if (
        cap is None
        or len(processes) < 2
        or share_above(pool["histograms"]["wait"], LONG_WAIT_S) <= FEW
    ):
        return
    most = max(processes, key=lambda process: process["in_use"])
    waiting = sum(process["waiting"] for process in processes if process is not most)
    if waiting and most["in_use"] > cap / 2:
        text = (
            f"process {most['pid']} ({most['label'] or 'no label'}) uses {most['in_use']} of {cap}, and {waiting} checkouts "
            f"of other processes wait: max_per_process={math.ceil(cap / 2)} leaves the others room"
        )
        yield "max_per_process", text


def _database(pool: Pool, now: float) -> Iterator[tuple[str, str]]:
    """What the database said, where it was asked (`pool.advice()` and `mppool doctor` do)."""
    said = pool.get("database")
    if not said or said["limit"] is None:
        return
    limit, sessions, ours = said["limit"], said["sessions"], said["ours"]
    cap = pool["max_size"]
    if cap is None or cap > limit:
        bound = "without a bound" if cap is None else cap
        text = (
            f"the database lets in {limit} sessions, and max_size is {bound}: lower it, or raise the limit of the "
            "database"
        )
        yield "max_size", text
        return
    others = sessions - (pool["size"] if ours is None else ours)
    if others > 0 and limit - others < cap:
        text = (
            f"{others} of the {sessions} sessions at the database are not this pool's; it lets in {limit}, so "
            f"max_size={cap} cannot be reached now"
        )
        yield "max_size", text
    if ours is not None and ours > max(cap, pool["size"]):
        text = (
            f"{ours} sessions at the database bear this pool's label, more than max_size={cap}: another manager of the "
            "same name runs (on another machine, as another user, in another runtime directory)"
        )
        yield "max_size", text


def _moves(pool: Pool, now: float) -> Iterator[tuple[str, str]]:
    counters = pool["counters"]
    checkouts, moved = counters.get("checkouts", 0), counters.get("moved", 0)
    if checkouts < ENOUGH or moved < MANY * checkouts:
        return
    processes, cap = len(pool["processes"]), pool["max_size"]
    login = mean(pool["histograms"]["open"])
    text = (
        f"{moved} moves between processes for {checkouts} checkouts, each a login of about {login:.2g} s; "
        f"{processes} processes share max_size={cap}: use fewer processes with more threads, raise max_size, or try "
        "placement='host', where nothing moves"
    )
    yield "moved", text


_EXPIRIES = {
    "expired_idle": ("max_idle", "were closed because they were idle for max_idle"),
    "expired_lifetime": ("max_lifetime", "reached max_lifetime"),
    "worn_out": ("max_uses", "reached max_uses"),
}


def _openings(pool: Pool, now: float) -> Iterator[tuple[str, str]]:
    counters = pool["counters"]
    checkouts = counters.get("checkouts", 0)
    if checkouts < ENOUGH:
        return
    for counter, (option, what) in _EXPIRIES.items():
        count = counters.get(counter, 0)
        if count > MANY * checkouts:
            yield option, f"{count} resources {what}, for {checkouts} checkouts: raise {option}"
