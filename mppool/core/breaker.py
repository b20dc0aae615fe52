"""The circuit breaker of one key of one pool: when opening fails, everybody stops trying together.

    closed --- first failure with nothing working, or the third in a row ---> open
    open ----- the back-off has passed, and somebody wants a resource -----> probing
    probing -- the probe fails --> open (the back-off doubles)
    probing -- it has no result after `PROBE_PATIENCE_S` --> probing, with another probe
    any ------ an opening succeeds --> closed

An opening that was granted before the last step says nothing new, so eight
openings that fail together count as one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from mppool.ids import GrantNumber

FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 10.0
PROBE_PATIENCE_S = 30.0
"""A probe that has no result by then (its process is stopped, its open hook hangs) keeps nobody else."""
FAILURES_IN_A_ROW = 3

BreakerState = Literal["closed", "open", "probing"]


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


Jitter = Callable[[], float]
