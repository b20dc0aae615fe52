"""What a machine says to the script, and what it is told."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Peaks:
    """What each pool was found to want: the most of this call and the last one.

    Where other machines want more than there is, only what is wanted now counts: capacity moves at once.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._now: dict[str, int] = {}

    def begin(self) -> None:
        """There is another call."""
        self._last, self._now = self._now, {}

    def note(self, pool: str, found: int, *, contended: bool) -> int:
        """So much was found; how much to say."""
        self._now[pool] = found
        return found if contended else max(found, self._last.get(pool, 0))


class Need(NamedTuple):
    """One pool of a machine.

    cap: None without one. wants: as many would be used. has: as many are open, or may be. starves: somebody waits for
    whom there is no room here. known: False: nobody has declared the pool yet, so nobody knows its cap.
    """

    cap: int | None
    wants: int
    has: int
    starves: bool = False
    known: bool = True


class PoolSaid(msgspec.Struct, frozen=True, array_like=True):
    """One pool in a call. cap: -1 without one, -2: unknown. limit: as many as the machine may open at present by itself."""

    pool: str
    cap: int
    wants: int
    has: int
    limit: int


class Said(msgspec.Struct, frozen=True, array_like=True):
    """One call.

    machine: its identity. epoch, number: count its servers, and the calls of one; an older call is void.
    incarnation, version: of the last answer, while its lease is in force. fresh: the id of a new incarnation, should one begin.
    leaves: the machine holds nothing and is not coming back. epochs: of its servers, in the labels of its sessions.
    """

    machine: str
    epoch: int
    number: int
    lease_ms: int
    incarnation: str
    version: int
    fresh: str
    label: str
    processes: int
    pools: list[PoolSaid]
    leaves: bool = False
    epochs: list[int] = []


class PoolTold(msgspec.Struct, frozen=True, array_like=True):
    """One pool in an answer. share: this machine's; -1: no cap. cap, taken, wanted: of all machines together."""

    pool: str
    share: int
    cap: int
    taken: int
    wanted: int


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """A machine whose lease has run out. label, epochs: in the labels of its sessions. ago_ms: since when."""

    machine: str
    label: str
    epochs: list[int]
    ago_ms: int


class Told(msgspec.Struct, frozen=True, array_like=True):
    """An answer. kept_ms: for so long nobody gets more than it has, for Redis may have forgotten something; why.

    ended: other machines whose leases have run out lately.
    """

    incarnation: str
    version: int
    kept_ms: int
    why: str
    machines: int
    processes: int
    pools: list[PoolTold]
    ended: list[Ended] = []
