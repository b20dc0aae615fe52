"""Members that have lost their channel, and may be gone although their process lives.

A process that execs another program keeps its pid, its birth and its pidfd, but none of what it held. So does one
whose interpreter, or whose copy of mppool, has ended. The end of a channel alone proves nothing (rule 1). What
proves it is that the member's own descriptor is not open any more: see `ids.witness_name`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from mppool.ids import ProcessId
from mppool.rendezvous import liveness

DOUBT_S = 0.3
"""How long a member may be without its descriptor before it counts as gone, twice: a program that closes all
descriptors closes this one, too, and then attaches again."""
_LOOKS = 2


class Absentees:
    """Which members are looked at, and when. It belongs to the loop's thread."""

    def __init__(self) -> None:
        self._due: dict[ProcessId, float] = {}
        self._missed: dict[ProcessId, int] = {}

    def lost_channel(self, process: ProcessId, now: float) -> None:
        """Its channel has ended: look soon whether it is still there."""
        if liveness.can_be_witnessed(process):
            self._due[process] = now + DOUBT_S
            self._missed[process] = 0

    def look_at_all(self, without_channel: Iterable[ProcessId], now: float) -> None:
        """Every few seconds: also those of whom only the journal tells, and those that left later."""
        for process in without_channel:
            if process not in self._due:
                self.lost_channel(process, now)

    def gone(self, without_channel: Collection[ProcessId], now: float) -> list[ProcessId]:
        """Those that were found gone just now."""
        gone = []
        for process in [process for process, due in self._due.items() if due <= now]:
            if process not in without_channel or liveness.is_witnessed(process):
                self._forget(process)
                continue
            self._missed[process] += 1
            self._due[process] = now + DOUBT_S
            if self._missed[process] >= _LOOKS:
                self._forget(process)
                gone.append(process)
        return gone

    def deadline(self) -> float:
        """When to look next; infinity if none is in doubt."""
        return min(self._due.values()) if self._due else math.inf

    def _forget(self, process: ProcessId) -> None:
        self._due.pop(process, None)
        self._missed.pop(process, None)
