"""The parameters of a pool, and what they are called in the core."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

HEALTH_DELAY_S = 60.0


@dataclass(frozen=True)
class Settings:
    """Numbers as they were given. All durations are seconds; 0 means none, or no bound."""

    max_size: int | None
    min_size: int
    timeout: float | None
    max_use: int
    max_avail_delay: float
    max_using_delay: float
    max_using_delay_kill: float
    health_freq: int
    delay: float
    checks_health: bool

    @property
    def warn_delay(self) -> float:
        """After how long an object in use is warned of: by default when it is killed."""
        return self.max_using_delay or self.max_using_delay_kill

    @property
    def round_delay(self) -> float:
        """Time between two rounds of housekeeping; 0: there are none."""
        if self.delay:
            return self.delay
        delays = [delay for delay in (self.max_avail_delay, self.warn_delay) if delay]
        if delays:
            return min(delays) / 2
        return HEALTH_DELAY_S if self.checks_health else 0.0

    @property
    def floor(self) -> int:
        """How many objects are kept: `min_size`, under the cap."""
        return min(self.min_size, self.max_size) if self.max_size else self.min_size

    def core_options(self) -> dict[str, Any]:
        """The same as options of `manager.pool`. Whatever else the core would do is turned off."""
        return {
            "max_size": self.max_size or None,
            "min_size": self.floor,
            "timeout": self.timeout,
            "max_uses": self.max_use or None,
            "max_idle": self.max_avail_delay or None,
            "max_lifetime": None,
            "max_lease_warn": self.warn_delay or None,
            "max_lease_kill": self.max_using_delay_kill or None,
            "check_interval": None,
            "check_idle_for": None,
            "check_timeout": None,
        }


def is_reloaders_parent() -> bool:
    """Whether this process only watches files for werkzeug's reloader, as far as one can tell."""
    return "PPP_WERKZEUG_WORKAROUND" in os.environ and os.environ.get("WERKZEUG_RUN_MAIN") != "true"
