"""The thread of a pool: rounds at a fixed interval."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic

from mppool.compat.proxypatternpool.register import Register
from mppool.process.fork import thread_ends

log = logging.getLogger("ppp")


class Housekeeper:
    """Calls `look_around` at every round, and `check_health` at every `health_freq`-th.

    Both belong to the pool. Time and errors are entered into the register.
    """

    def __init__(
        self,
        register: Register,
        delay: float,
        look_around: Callable[[], None],
        check_health: Callable[[], None] | None,
        health_freq: int,
    ) -> None:
        self._register = register
        self._delay = delay
        self._look_around = look_around
        self._check_health = check_health
        self._health_freq = max(1, health_freq)
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="ppp-housekeeper", daemon=True)

    def stop(self, delay: float) -> bool:
        """No more rounds. Waits up to `delay` seconds for the end of the present one; whether it has ended."""
        self._over.set()
        if self.thread is threading.current_thread():
            return True  # a hook that shuts the pool down
        self.thread.join(delay)
        return not self.thread.is_alive()

    def _run(self) -> None:
        log.info("housekeeping every %g s", self._delay)
        while not self._over.wait(self._delay):
            self._round()
        thread_ends()

    def _round(self) -> None:
        register = self._register
        began = register.round_at = monotonic()
        register.count("hk_rounds")
        try:
            self._look_around()
            if self._check_health and register.counts["hk_rounds"] % self._health_freq == 0:
                register.count("hc_rounds")
                self._check_health()
        except Exception:
            register.count("hk_errors")
            log.exception("housekeeper round error")
        finally:
            register.round_time += monotonic() - began
