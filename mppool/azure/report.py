"""Figures of a client pool, in the shape of `Pool.stats()`."""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.stats.names import BOUNDS
from mppool.worker.member import process_name

if TYPE_CHECKING:
    from mppool.azure.client_table import Clients
    from mppool.azure.entries import ClientEntry


def stats(name: str, clients: Clients) -> dict[str, Any]:
    """Of this process. `in_use`: clients that the pool has let go of and that somebody still holds.

    How many threads use a shared client, nobody knows: those of the pool count as idle.
    """
    entries, opened, opening, waiting = clients.figures()
    idle = len(entries)
    in_use = max(0, opened - idle)
    counters = {**clients.counters}
    counters["checkouts"] = clients.past_uses + sum(entry.uses for entry in entries)
    now = monotonic()
    process = {
        "pid": os.getpid(),
        "label": process_name(),
        "in_use": in_use,
        "idle": idle,
        "waiting": waiting,
        "checkouts": counters["checkouts"],
        "slots": idle + in_use + opening,
        "stale": False,
    }
    return {
        "name": name,
        "placement": "worker",
        "max_size": None,
        "min_size": 0,
        "size": idle + in_use + opening,
        "opening": opening,
        "in_use": in_use,
        "idle": idle,
        "waiting": waiting,
        "breaker": "closed",
        "identities": len({entry.owner for entry in entries}),
        "counters": counters,
        "histograms": {
            kind: {"bounds": list(BOUNDS), "counts": list(counts)}
            for kind, counts in clients.histograms.items()
        },
        "processes": [process],
        "resources": [_resource(number, entry, now) for number, entry in enumerate(entries, 1)],
    }


def _resource(number: int, entry: ClientEntry, now: float) -> dict[str, Any]:
    return {
        "id": number,
        "pid": os.getpid(),
        "state": "idle",
        "identity_key": entry.owner,
        "uses": entry.uses,
        "age": now - entry.made_at,
        "idle_for": now - entry.used_at,
        "held_for": None,
        "description": entry.description,
    }
