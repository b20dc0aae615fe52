"""Lanes of a pool, in one process: for whom its resources are lent, as far as the books have to know.

A resource that is taken from the shelf says for which lane, and the books are told only while the pool is contended: they
have asked by then. The thread that takes sets the lane first and looks then; the thread that answers the books sets `contended`
first and looks at the resources then. So one of the two tells them.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from mppool.core.events import Lent
from mppool.errors import ConfigurationError

if TYPE_CHECKING:
    from mppool.worker.inventory import PoolEntry
    from mppool.worker.local_pool import LocalPool

COMMON = ""
"""The lane of a checkout that names none."""


def checked_lane(local: LocalPool, lane: str | None) -> str | None:
    """The lane of a checkout; None in a pool without lanes. Raises ConfigurationError for one that there is not."""
    lanes = local.options.lanes
    if lanes is None:
        if lane is None:
            return None
        raise ConfigurationError(
            f"pool {local.name!r}: lane={lane!r:.80} is not allowed: this pool has no lanes; declare it with "
            f"lanes={{...}}, or leave lane out"
        )
    if lane is None:
        return COMMON
    if not isinstance(lane, str) or lane not in lanes:
        known = ", ".join(map(repr, lanes))
        raise ConfigurationError(
            f"pool {local.name!r}: lane={lane!r:.80} is not allowed: its lanes are {known}, and the common one of those "
            "that leave lane out"
        )
    return lane


def lend_in_lane(local: LocalPool, entry: PoolEntry, lane: str) -> None:
    """A resource was taken from the shelf for this lane."""
    entry.lane = lane
    if local.idle.contended:
        local.member.tell(Lent([(entry.number, lane)]))


def take_in_lane(local: LocalPool, lane: str | None) -> PoolEntry | None:
    """What lies here for the pool's own identity, and can be lent as it is; None: there is nothing, or more to do."""
    assert lane is not None
    try:
        entry = local.pop_in_lane()
    except IndexError:
        return None
    now = monotonic()
    if now < entry.retire_at and now - entry.released_at < local.trust_s:
        entry.uses += 1
        entry.lent_at = now
        lend_in_lane(local, entry, lane)
        return entry
    local.idle.put_where_it_lay(entry)
    return None


def tell_what_is_lent(local: LocalPool) -> None:
    """The books have asked: somebody waits."""
    with local.inventory.lock:
        held = [
            (entry.number, entry.used_in_lane())
            for entry in local.inventory.table.values()
            if entry.local is local and entry.counts_as_open
        ]
    if held:
        local.member.tell(Lent(held))


def in_use_by_lane(local: LocalPool, lanes: dict[str, int]) -> dict[str, int]:
    """How many resources of this process each lane has in use."""
    used = dict.fromkeys((*lanes, COMMON), 0)
    for entry in local.entries():
        lane = entry.used_in_lane()
        if entry.counts_as_open and lane in used:
            used[lane] += 1
    return used
