"""What the books of all pools, and those of tokens, share within one server.

`Books` owns it, and takes the decisions out; where there are no pools, whoever owns the `TokenBooks` does.
"""

from __future__ import annotations

from collections.abc import Callable

from mppool.core.breaker import Jitter
from mppool.core.decisions import Addressed
from mppool.ids import GrantNumber, ProcessId


class Surroundings:
    """What a pool's books share with those of the other pools of the same server."""

    def __init__(self, next_number: Callable[[], GrantNumber], jitter: Jitter) -> None:
        self.next_number = next_number
        self.jitter = jitter
        self.out: list[Addressed] = []
        self.attached: set[ProcessId] = set()
        # After a torn journal: living processes whose inventories are still missing. While there are
        # any, nobody knows what they hold, so nothing new may be opened.
        self.awaited: set[ProcessId] = set()
