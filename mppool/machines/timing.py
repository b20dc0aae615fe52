"""The deadlines of a lease. A machine counts them on its own clock, from before it sent the call that was answered.

    0 --- refresh, refresh, ... --- renew ------------ close ----------------------- lease
          it calls again            opens nothing more  closes all that it has        Redis gives the share away

Between `close` and `lease` lies what closing takes, and what clocks differ. With the shares below a machine whose clock
runs at 0.9 of the right pace and a Redis whose clock runs at 1.1 of it leave a quarter of a lease for closing.
"""

from __future__ import annotations

from typing import NamedTuple

LEASE_S = 15.0
LEAST_LEASE_S, LONGEST_LEASE_S = 1.0, 3600.0

TOLERATED_RATIO = 1.1 / 0.9
"""Between the fastest and the slowest clock of Redis and the machines, as far as the deadlines are concerned."""


class Timing(NamedTuple):
    """In seconds. All machines of a manager use the same."""

    lease_s: float = LEASE_S

    @property
    def refresh_s(self) -> float:
        """So often a machine calls, where nothing presses."""
        return self.lease_s / 5

    @property
    def hurry_s(self) -> float:
        """So often where somebody waits, or after a call that failed."""
        return self.lease_s / 25

    @property
    def least_s(self) -> float:
        """Never sooner after an answer than this."""
        return self.lease_s / 150

    @property
    def answer_s(self) -> float:
        """How long one call may take."""
        return self.lease_s / 8

    @property
    def renew_s(self) -> float:
        """Without an answer for so long, a machine opens nothing more."""
        return self.lease_s * 0.5

    @property
    def close_s(self) -> float:
        """Without an answer for so long, a machine closes all that it has."""
        return self.lease_s * 0.6
