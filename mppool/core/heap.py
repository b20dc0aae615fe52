"""Heaps of `heapq` that are read without being taken apart."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any


def ascending(heap: list[Any]) -> Iterator[Any]:
    """The entries of a heap in order: the first k of them in O(k log k), and nothing for the rest."""
    frontier = [(heap[0], 0)] if heap else []
    while frontier:
        entry, place = heapq.heappop(frontier)
        yield entry
        for child in (2 * place + 1, 2 * place + 2):
            if child < len(heap):
                heapq.heappush(frontier, (heap[child], child))
