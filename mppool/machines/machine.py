"""What a machine makes of a reply, of an error and of the time. Pure: it is told the time, and calls nobody.

    waiting --- answered ---> leased --- `renew` ---> fading --- `close` ---> lost
                                 ^                       |                      |
                                 +------ answered -------+------- answered -----+

One call is under way at a time, and only its own answer counts. What an answer says holds from before the call was
sent, so that a machine stops before Redis does. A share that an answer lowers is lowered at once; that it was lowered
is said in the next call, and only then is it another's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from mppool.machines.needs import Need, PoolSaid, PoolTold, Said, Told
from mppool.machines.timing import Timing

Phase = Literal["waiting", "leased", "fading", "lost"]

NO_CAP, UNKNOWN_CAP = -1, -2


class Part(NamedTuple):
    """What is this machine's of a pool. size: None: all. opens, ends, why: as in `mppool.core.events.Share`."""

    size: int | None
    opens: bool = True
    ends: bool = False
    why: str = ""


class _Call(NamedTuple):
    """The call that is under way. committed: what it says may be used here, by pool. unknown: pools without a known cap."""

    number: int
    sent_at: float
    committed: dict[str, int]
    unknown: frozenset[str] = frozenset()


class Machine:
    """One machine's leases of all pools of a manager.

    since: when the call was sent whose answer is in force; None: there is none.
    limits: of each pool, how many this machine may have by itself; None: an earlier server of this machine knew.
    told: the last answer. epochs: of this server, and of earlier ones of this machine. trouble: why the last call was not answered; "" where it was.
    """

    def __init__(
        self,
        name: str,
        label: str,
        epoch: int,
        timing: Timing,
        fallback: int | None,
        *,
        now: float,
        since: float | None = None,
        jitter: Callable[[], float],
        fresh: Callable[[], str],
    ) -> None:
        """fallback: the share where Redis is lost; None: nothing.

        since: what an earlier server of this machine has left of it. jitter: gives floats within [0, 1). fresh: gives
        identities that nobody else has.
        """
        self.name, self.label, self.epoch, self.timing = name, label, epoch, timing
        self.since = since
        self.epochs = [epoch]
        self.limits: dict[str, int] | None = None if since is not None else {}
        self.told: Told | None = None
        self.trouble = ""
        self._fallback = fallback
        self._jitter, self._fresh = jitter, fresh
        self._call: _Call | None = None
        self._number = 0
        self._next_at = self._answered_at = now
        self._failing = False
        # What Redis takes to be in use here, of each pool, since the last call that was answered.
        self._committed: dict[str, int] = {}
        # Of which pools it was not told the cap then.
        self._unknown: frozenset[str] = frozenset()

    # --- calls -------------------------------------------------------------------------------------------

    def next_call(self) -> float:
        """When the next call is due by itself; infinity while one is under way."""
        return math.inf if self._call is not None else self._next_at

    def is_due(self, now: float, needs: Mapping[str, Need]) -> bool:
        """Whether to call now."""
        if self._call is not None:
            return False
        return now >= min(self._next_at, self._pressing_at(needs))

    def due_at(self, needs: Mapping[str, Need]) -> float:
        """When to call next, if nothing happens until then."""
        if self._call is not None:
            return math.inf
        return min(self._next_at, self._pressing_at(needs))

    def _pressing_at(self, needs: Mapping[str, Need]) -> float:
        """When to call before it is due by itself: there is a new pool, something to give back, or somebody starves."""
        at = math.inf
        limits = self.limits
        if self._failing or limits is None:
            return at
        for pool, need in needs.items():
            limit = limits.get(pool)
            is_new = limit is None or (need.known and pool in self._unknown)
            if limit is None or is_new or self._committed.get(pool, 0) > max(limit, need.has):
                return self._answered_at + self.timing.least_s
            if need.starves and limit != NO_CAP:
                at = self._answered_at + self.timing.hurry_s
        return at

    def call(self, now: float, needs: Mapping[str, Need], processes: int) -> Said:
        """What to say now. Until this is answered or has failed there is no other call."""
        self._number += 1
        pools = [
            PoolSaid(
                pool,
                _cap_of(need),
                need.wants,
                need.has,
                self._limit(pool, need, now),
            )
            for pool, need in needs.items()
        ]
        committed = {one.pool: max(one.limit, one.has) for one in pools}
        unknown = frozenset(one.pool for one in pools if one.cap == UNKNOWN_CAP)
        self._call = _Call(self._number, now, committed, unknown)
        return self._said(now, processes, pools)

    def goodbye(self, now: float) -> Said:
        """What to say where nothing is held, and nobody comes back soon."""
        self._number += 1
        self._call = _Call(self._number, now, {})
        return self._said(now, 0, [], leaves=True)

    def _said(
        self, now: float, processes: int, pools: list[PoolSaid], *, leaves: bool = False
    ) -> Said:
        told = self.told if self.phase(now) in ("leased", "fading") else None
        return Said(
            self.name,
            self.epoch,
            self._number,
            round(self.timing.lease_s * 1000),
            told.incarnation if told else "",
            told.version if told else 0,
            self._fresh(),
            self.label,
            processes,
            pools,
            leaves,
            self.epochs,
        )

    def _limit(self, pool: str, need: Need, now: float) -> int:
        """As many as this machine may have of the pool by itself, until the call is answered."""
        if self.phase(now) in ("leased", "fading"):
            limit = need.has if self.limits is None else self.limits.get(pool, 0)
            return need.has if limit == NO_CAP else limit
        return self._fallback or 0

    def answered(self, number: int, told: Told, now: float) -> None:
        """The call with this number was answered."""
        call = self._call
        if call is None or call.number != number:
            return
        if now >= call.sent_at + self.timing.close_s:
            self.failed(number, "the answer came too late to be of use", now)
            return
        self._call = None
        self.since, self.told = call.sent_at, told
        self.limits = {one.pool: one.share for one in told.pools}
        self._committed = {
            pool: max(share, call.committed.get(pool, 0)) for pool, share in self.limits.items()
        }
        self._unknown = call.unknown
        self.trouble, self._failing = "", False
        self._answered_at = now
        self._next_at = now + self.timing.next_refresh_s(self._jitter())
        if told.kept_ms:  # what is kept until then is to be had then
            until = now + told.kept_ms / 1000 + self.timing.least_s
            self._next_at = min(self._next_at, until)

    def failed(self, number: int, trouble: str, now: float) -> None:
        """The call with this number was not answered; perhaps it was carried out all the same."""
        call = self._call
        if call is None or call.number != number:
            return
        self._call = None
        self.trouble, self._failing = trouble, True
        self._next_at = now + self.timing.hurry_s * (0.5 + self._jitter())

    # --- what is this machine's --------------------------------------------------------------------------

    def phase(self, now: float) -> Phase:
        """How far the lease has run down."""
        if self.since is None:
            return "waiting"
        age = now - self.since
        if age < self.timing.renew_s:
            return "leased"
        return "fading" if age < self.timing.close_s else "lost"

    def next_phase(self, now: float) -> float:
        """When the phase changes by itself; infinity if it does not."""
        phase = self.phase(now)
        if self.since is None or phase == "lost":
            return math.inf
        return self.since + (self.timing.renew_s if phase == "leased" else self.timing.close_s)

    def part(self, pool: str, now: float) -> Part:
        """What is this machine's of a pool, now."""
        phase = self.phase(now)
        if phase in ("waiting", "lost"):
            return self._without_lease()
        if self.limits is None:
            return Part(None, opens=False, why=self.why())
        limit = self.limits.get(pool, 0)
        size = None if limit == NO_CAP else limit
        return Part(size, opens=phase == "leased", why=self._why_of(pool))

    def _without_lease(self) -> Part:
        why = self.why()
        if self._fallback is None or not self.trouble:
            return Part(0, ends=True, why=why)
        return Part(self._fallback, ends=True, why=f"{why}; on_redis_lost={self._fallback} applies")

    def is_contended(self, pool: str) -> bool:
        """Whether other machines want more of the pool than there is beside what this one wants."""
        told = self.told_of(pool)
        return told is not None and 0 <= told.cap < told.wanted

    def told_of(self, pool: str) -> PoolTold | None:
        """What the last answer said of a pool."""
        pools = self.told.pools if self.told else []
        return next((one for one in pools if one.pool == pool), None)

    def _why_of(self, pool: str) -> str:
        told = self.told_of(pool)
        if self.trouble or self.told is None or told is None:
            return self.why()
        if self.told.kept_ms:
            return (
                f"for one lease of {self.timing.lease_s:g} s no machine gets more than it has, for Redis may "
                f"have forgotten leases: {self.told.why}"
            )
        others = self.told.machines - 1
        return f"{others} other machine{'s' * (others != 1)} share{'s' * (others == 1)} the cap of {told.cap}"

    def why(self) -> str:
        """What stands in the way of a lease, for people; "" where nothing does."""
        if self.trouble:
            return f"Redis gives no lease at present: {self.trouble}"
        return "its share is being asked for"


def _cap_of(need: Need) -> int:
    if not need.known:
        return UNKNOWN_CAP
    return NO_CAP if need.cap is None else need.cap
