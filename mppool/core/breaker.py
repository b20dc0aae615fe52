"""The circuit breakers of one pool, one per key: when opening fails, everybody stops trying together.

    closed --- first failure with nothing working, or the third in a row ---> open
    open ----- the back-off has passed, and somebody wants a resource -----> probing
    probing -- the probe fails --> open (the back-off doubles)
    probing -- it has no result after `PROBE_PATIENCE_S` --> probing, with another probe
    any ------ an opening succeeds --> closed

An opening that was granted before the last step says nothing new, so eight
openings that fail together count as one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

from mppool.core.events import OpenFailed
from mppool.core.slot import Slot
from mppool.ids import GrantNumber

FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 10.0
PROBE_PATIENCE_S = 30.0
"""A probe that has no result by then (its process is stopped, its open hook hangs) keeps nobody else."""
FAILURES_IN_A_ROW = 3

BreakerState = Literal["closed", "open", "probing"]
Jitter = Callable[[], float]


class Breaker:
    """Exists from the first failure on; a success throws it away."""

    def __init__(self) -> None:
        self.state: BreakerState = "closed"
        self.error = ""
        self.retry_at = 0.0
        self.probe: GrantNumber | None = None
        self._failures = 0
        self._steps = 0
        self._stepped_at = float("-inf")

    def failed(
        self,
        number: GrantNumber,
        granted_at: float,
        now: float,
        error: str,
        *,
        working: bool,
        jitter: float,
    ) -> None:
        """An opening failed. `working`: some resource of this key is open. `jitter`: within [0, 1)."""
        self.error = error
        if self.probe == number:
            self.probe = None
        elif granted_at <= self._stepped_at:
            return
        self._failures += 1
        if self.state == "closed" and working and self._failures < FAILURES_IN_A_ROW:
            return
        pause = min(FIRST_BACK_OFF_S * 2**self._steps, LONGEST_BACK_OFF_S)
        self._steps = min(self._steps + 1, 30)
        self._stepped_at = now
        self.state = "open"
        # Full back-off at most, half of it at least: many pools that failed together spread out.
        self.retry_at = now + pause * (1 - jitter / 2)

    def permits(self, now: float) -> bool:
        """Whether somebody may open now."""
        return self.state == "closed" or now >= self.retry_at

    def granted(self, number: GrantNumber, now: float) -> None:
        """Somebody was allowed to open; unless the breaker is closed, he is the one probe."""
        if self.state != "closed":
            self.state = "probing"
            self.probe = number
            self.retry_at = now + PROBE_PATIENCE_S

    def probe_lost(self, number: GrantNumber) -> None:
        """The probe ended without a result (declined, or its process died): the next may try at once."""
        if self.probe == number:
            self.state = "open"
            self.probe = None
            self.retry_at = self._stepped_at


class Breakers(dict[str, Breaker]):
    """The breakers of one pool, by key; `PoolBooks` owns them. Where opening has not failed there is none."""

    def permit(self, key: str, now: float) -> bool:
        """Whether somebody may open for this key now."""
        breaker = self.get(key)
        return breaker is None or breaker.permits(now)

    def failed(
        self, slot: Slot, event: OpenFailed, now: float, *, working: bool, jitter: float
    ) -> Breaker:
        """An opening failed, see `Breaker.failed`; returns the breaker of its key."""
        breaker = self.setdefault(slot.key, Breaker())
        breaker.failed(
            slot.number, slot.granted_at, now, event.error, working=working, jitter=jitter
        )
        return breaker

    def granted(self, key: str, number: GrantNumber, now: float) -> None:
        """Somebody was allowed to open for this key."""
        breaker = self.get(key)
        if breaker:
            breaker.granted(number, now)

    def probe_lost(self, key: str, number: GrantNumber) -> None:
        """A slot of this key is free; if it was the probe's, see `Breaker.probe_lost`."""
        breaker = self.get(key)
        if breaker:
            breaker.probe_lost(number)

    def forget(self, key: str) -> None:
        """Opening for this key succeeded, or nobody needs to know any more that it failed."""
        self.pop(key, None)

    def shut(self, now: float) -> Iterator[str]:
        """The keys for which nobody may open now."""
        return (key for key, breaker in self.items() if not breaker.permits(now))

    def next_retry(self, since: float) -> float:
        """When, after `since`, somebody may try again; infinity if nobody is kept from it."""
        times = (breaker.retry_at for breaker in self.values())
        return min((at for at in times if at > since), default=math.inf)

    def worst_state(self) -> BreakerState:
        """The worst of the states of all keys."""
        states = {breaker.state for breaker in self.values()}
        worst: tuple[BreakerState, ...] = ("open", "probing")
        return next((state for state in worst if state in states), "closed")
