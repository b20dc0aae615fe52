"""Checkout and release of a resource that lies on this process's shelf: nobody is asked."""

from __future__ import annotations

from benchmarks.command import command
from benchmarks.measuring import interleaved, nanoseconds, per_second_in_threads, pinned
from benchmarks.peers import (
    FLOOR,
    FOR_CREDENTIAL,
    OURS,
    PROXY_PATTERN_POOL,
    SQLALCHEMY,
    Peer,
    warm_peers,
)
from benchmarks.tables import Table

THREADS = 4


def run(quick: bool) -> list[Table]:
    """One thread on one CPU, then four threads on four resources."""
    return [one_thread(quick), four_threads(quick)]


def one_thread(quick: bool) -> Table:
    """The cost of a checkout with its release."""
    rounds, budget = (2, 0.005) if quick else (21, 0.03)
    with pinned(), warm_peers(1) as (peers, missing):

        def contestant(peer: Peer) -> float:
            return nanoseconds(peer.statement, peer.namespace, _repetitions(peer, budget))

        samples = interleaved({peer.name: lambda p=peer: contestant(p) for peer in peers}, rounds)
    return Table(
        "warm",
        "Warm checkout and release, one thread",
        "ns",
        samples,
        (FLOOR, PROXY_PATTERN_POOL, SQLALCHEMY),
        notes=missing,
        aims=[
            f"{ours}: at most {bar}"
            for ours in (OURS, FOR_CREDENTIAL)
            for bar in (
                f"4 (aim 3) x {FLOOR}",
                f"0.5 (aim 0.35) x {PROXY_PATTERN_POOL}",
                f"0.25 (aim 0.2) x {SQLALCHEMY}",
            )
        ],
    )


def four_threads(quick: bool) -> Table:
    """How many checkouts with their releases four threads do in a second, on four resources."""
    rounds, budget = (2, 0.005) if quick else (11, 0.05)
    with warm_peers(THREADS) as (peers, missing):

        def contestant(peer: Peer) -> float:
            repetitions = _repetitions(peer, budget)
            return per_second_in_threads(peer.statement, peer.namespace, repetitions, THREADS)

        samples = interleaved({peer.name: lambda p=peer: contestant(p) for peer in peers}, rounds)
    return Table(
        "warm_threads",
        "Warm checkout and release, four threads on four resources",
        "per second",
        samples,
        (FLOOR, PROXY_PATTERN_POOL, SQLALCHEMY),
        more_is_better=True,
        notes=missing,
        aims=[f"{OURS}: at least 2 x {SQLALCHEMY}"],
    )


def _repetitions(peer: Peer, budget_s: float) -> int:
    return max(10, int(budget_s * 1e6 / peer.cost))


if __name__ == "__main__":
    command({"warm": run})
