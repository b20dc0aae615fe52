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
        """Within two of these capacity moves to where it is wanted, whatever else a call waits for."""
        return self.lease_s / 5

    def next_refresh_s(self, chance: float) -> float:
        """So long after an answer a machine calls again, where nothing presses. chance: within [0, 1).

        Two of these, and one hurried call of the machine that wants, are less than two refreshes.
        """
        return self.refresh_s * (0.65 + 0.2 * chance)

    @property
    def lately_s(self) -> float:
        """What has not been used for so long is not wanted, where other machines want it: two looks are further apart."""
        return self.next_refresh_s(0) - self.hurry_s / 2

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
