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

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Literal

from mppool.core.events import OpeningFailed
from mppool.core.slot import Slot
from mppool.ids import GrantNumber

FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 10.0
PROBE_PATIENCE_S = 30.0
"""A probe that has no result by then (its process is stopped, its open hook hangs) keeps nobody else."""
FAILURES_IN_A_ROW = 3
MOST_BREAKERS = 1000
"""Of one pool. With one more, what was left alone for longest is forgotten: it may be tried again at once."""

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
        """Somebody was allowed to open; unless the breaker is closed, that is the one probe."""
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


class Breakers(OrderedDict[str, Breaker]):
    """The breakers of one pool, by key. Where opening has not failed there is none.

    In order of their last failure or grant, so that what was left alone for longest is found in front. No
    event looks at all of them: anybody can name thousands of identities whose logins are refused.

    _waiting_for: how many wait for a key; `waiters_changed` is called after every change of it.
    """

    def __init__(self, waiting_for: Callable[[str], int] = lambda key: 0) -> None:
        super().__init__()
        self._waiting_for = waiting_for
        self._states: Counter[BreakerState] = Counter()
        # The keys for which nobody may open, and how many wait for one of them, as of the last `kept_out`.
        self._shut: set[str] = set()
        self._kept_out = 0
        # Heaps: when somebody may try again for a key. What has been overtaken by events is dropped in front.
        self._ends: list[tuple[float, str]] = []
        self._retries: list[tuple[float, str]] = []

    def permit(self, key: str, now: float) -> bool:
        """Whether somebody may open for this key now."""
        breaker = self.get(key)
        return breaker is None or breaker.permits(now)

    def failed(
        self, slot: Slot, event: OpeningFailed, now: float, *, working: bool, jitter: float
    ) -> Breaker:
        """An opening failed, see `Breaker.failed`; returns the breaker of its key."""
        key = slot.key
        breaker = self.get(key)
        if breaker is None:
            breaker = self[key] = Breaker()
            self._states[breaker.state] += 1
        before = breaker.state
        breaker.failed(
            slot.number, slot.granted_at, now, event.error, working=working, jitter=jitter
        )
        self._note(key, breaker, before)
        if len(self) > MOST_BREAKERS:
            self.forget(next(iter(self)))
        return breaker

    def granted(self, key: str, number: GrantNumber, now: float) -> None:
        """Somebody was allowed to open for this key."""
        breaker = self.get(key)
        if breaker:
            before = breaker.state
            breaker.granted(number, now)
            self._note(key, breaker, before)

    def probe_lost(self, key: str, number: GrantNumber) -> None:
        """A slot of this key is free; if it was the probe's, see `Breaker.probe_lost`."""
        breaker = self.get(key)
        if breaker:
            before = breaker.state
            breaker.probe_lost(number)
            self._note(key, breaker, before, touched=False)

    def forget(self, key: str) -> None:
        """Opening for this key succeeded, or nobody needs to know any more that it failed."""
        breaker = self.pop(key, None)
        if breaker is not None:
            self._states[breaker.state] -= 1
            self._open_up(key)

    def clear(self) -> None:
        """Nobody needs to know any more that anything failed."""
        super().clear()
        self._states.clear()
        self._shut.clear()
        self._kept_out = 0
        self._ends.clear()
        self._retries.clear()

    def waiters_changed(self, key: str, change: int) -> None:
        """So many more wait for this key."""
        if key in self._shut:
            self._kept_out += change

    def kept_out(self, now: float) -> int:
        """How many wait for a key for which nobody may open now. Time only ever goes on between calls."""
        ends = self._ends
        while ends and ends[0][0] <= now:
            _, key = heapq.heappop(ends)
            if self.permit(key, now):
                self._open_up(key)
        return self._kept_out

    def next_retry(self, since: float) -> float:
        """When, after `since`, somebody may try again; infinity if nobody is kept from it."""
        retries = self._retries
        while retries and (retries[0][0] <= since or self._is_outdated(*retries[0])):
            heapq.heappop(retries)
        return retries[0][0] if retries else math.inf

    def worst_state(self) -> BreakerState:
        """The worst of the states of all keys."""
        worst: tuple[BreakerState, ...] = ("open", "probing")
        return next((state for state in worst if self._states[state] > 0), "closed")

    def _note(
        self, key: str, breaker: Breaker, before: BreakerState, *, touched: bool = True
    ) -> None:
        """A breaker may have changed."""
        if touched:
            self.move_to_end(key)
        self._states[before] -= 1
        self._states[breaker.state] += 1
        if breaker.state == "closed":
            return
        if key not in self._shut:
            self._shut.add(key)
            self._kept_out += self._waiting_for(key)
        for heap in (self._ends, self._retries):
            heapq.heappush(heap, (breaker.retry_at, key))
            if len(heap) > 4 * len(self) + 64:
                heap[:] = [(each.retry_at, name) for name, each in self.items()]
                heapq.heapify(heap)

    def _open_up(self, key: str) -> None:
        if key in self._shut:
            self._shut.discard(key)
            self._kept_out -= self._waiting_for(key)

    def _is_outdated(self, at: float, key: str) -> bool:
        known = self.get(key)
        return known is None or known.retry_at != at
