"""Pool: get and ret over checkout and release."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from mppool.compat.proxypatternpool import report
from mppool.compat.proxypatternpool.box import Box
from mppool.compat.proxypatternpool.errors import PoolException, TimeOut
from mppool.compat.proxypatternpool.housekeeper import Housekeeper
from mppool.compat.proxypatternpool.recipe import (
    BoxRecipe,
    FunHook,
    HealthHook,
    Hooks,
    PoolHook,
    StatsHook,
    TraceHook,
    log,
)
from mppool.compat.proxypatternpool.register import Register
from mppool.compat.proxypatternpool.settings import Settings, is_reloaders_parent
from mppool.core.events import WantReady
from mppool.errors import CheckoutTimeout, OpenFailed, PoolClosed, StaleLease
from mppool.in_process import InProcessManager
from mppool.worker.lease import Lease

_numbers = itertools.count(1)


class Pool:
    """Objects that are expensive to make, lent to the threads of one process.

    fun: makes an object; called with the number of those made before.
    max_size: most objects at once; 0 or None: no cap. min_size: how many are kept, under the cap.
    timeout: seconds that `get` waits where there is a cap; 0: not at all; None: for ever.
    max_use: uses after which an object is replaced; 0: never.
    max_avail_delay: seconds unused after which an object goes, but for `min_size`; 0: never.
    max_using_delay: seconds in use after which a warning is logged; by default `max_using_delay_kill`.
    max_using_delay_kill: seconds in use after which the object is closed, also while a caller has it; 0: never.
    health_freq: `health` is called for what is available in every so-many-th round.
    delay: seconds between rounds; 0: half the shortest of the delays above, 60 s with only `health`, no
        rounds and no thread with neither.
    opener, getter, retter, closer: called with the object when it is made, lent, returned, destroyed. What
        they raise is logged.
    health: whether an available object still works; what it raises is logged, and the object stays.
    stats, tracer: what `stats()` shows of an object: a JSON-compatible value, or else a text.
    log_level: of the logger "ppp".

    The constructor makes `min_size` objects, in its thread; failures are logged, and made good later.
    A forked child starts with no objects and makes its own. Raises mppool.ConfigurationError for values
    that are not allowed.
    """

    def __init__(
        self,
        fun: FunHook,
        max_size: int | None = 0,
        min_size: int = 1,
        timeout: float | None = None,
        max_use: int = 0,
        max_avail_delay: float = 0.0,
        max_using_delay: float = 0.0,
        max_using_delay_kill: float = 0.0,
        health_freq: int = 1,
        delay: float = 0.0,
        opener: PoolHook | None = None,
        getter: PoolHook | None = None,
        retter: PoolHook | None = None,
        closer: PoolHook | None = None,
        health: HealthHook | None = None,
        stats: StatsHook | None = None,
        tracer: TraceHook | None = None,
        log_level: int | None = None,
    ) -> None:
        if log_level is not None:
            log.setLevel(log_level)
        self._id = next(_numbers)
        self._settings = Settings(
            max_size, min_size, timeout, max_use, max_avail_delay, max_using_delay,
            max_using_delay_kill, health_freq, delay, health is not None,
        )  # fmt: skip
        self._hooks = Hooks(fun, opener, getter, retter, closer, health, stats, tracer or str)
        self._started = report.now_text()
        self._register = Register()
        self._recipe = BoxRecipe(self._hooks, self._register)
        self._keeper: Housekeeper | None = None
        self._last_counters: Counter[str] | None = None
        name = f"ppp-{self._id}"
        self._manager = InProcessManager(name)
        self._manager._link.by_hand = True
        self._core = self._manager.pool(name, self._recipe, **self._settings.core_options())
        self._warn_of_settings()
        if not is_reloaders_parent():
            self._begin()

    def _warn_of_settings(self) -> None:
        if 0 < self._settings.max_using_delay_kill < self._settings.max_using_delay:
            log.warning(
                "max_using_delay=%g is longer than max_using_delay_kill=%g: objects are killed unwarned",
                self._settings.max_using_delay,
                self._settings.max_using_delay_kill,
            )
        if is_reloaders_parent():
            log.warning(
                "PPP_WERKZEUG_WORKAROUND is set and WERKZEUG_RUN_MAIN is not 'true': filling and "
                "housekeeping start with the first get"
            )

    # --- get and ret -------------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> Any:
        """An object, made now if none is available and the cap allows.

        timeout: seconds to wait; 0: not at all; None: the pool's own.
        Raises TimeOut, PoolException after `shutdown`, and whatever `fun` raises.
        """
        content, _ = self.lend(timeout, to_proxy=False)
        return content

    def ret(self, obj: Any) -> None:
        """Give an object back. One that is not in use (any more) is refused with a warning."""
        self.give_back(obj, None)

    @contextmanager
    def obj(self, timeout: float | None = None) -> Iterator[Any]:
        """An object for the length of a `with` block; see `get`."""
        content = self.get(timeout)
        try:
            yield content
        finally:
            self.ret(content)

    def lend(self, timeout: float | None, *, to_proxy: bool) -> tuple[Any, Lease[Box]]:
        """`get`, with the lease. to_proxy: the caller keeps the lease for as long as the object."""
        lease = self._checkout(self._settings.timeout if timeout is None else timeout)
        content = self._register.lend(lease.resource, lease, to_proxy=to_proxy)
        try:
            self._hooks.call("getter", content)
        except BaseException:  # interrupted: the caller does not get it
            self._register.find_lent(content, lease)
            lease.discard()
            raise
        return content, lease

    def give_back(self, obj: Any, lease: Lease[Box] | None) -> None:
        """`ret`. lease: which one, where several have one and the same object."""
        found = self._register.find_lent(obj, lease)
        if found is None:
            log.warning("unexpected object returned: %s", self._hooks.trace(obj))
            return
        box, lease = found
        try:
            lease.resource  # noqa: B018  # raises where it was killed
            self._hooks.call("retter", obj)
        except StaleLease:
            log.warning("an object was returned after it had been killed")
        except BaseException:  # interrupted: nobody knows in which state it is
            lease.discard()
            raise
        else:
            box.take_back(obj)
        lease.release()

    def _checkout(self, seconds: float | None) -> Lease[Box]:
        if self._recipe.is_shut_down:
            raise PoolException("the pool was shut down; it hands out nothing any more")
        if self._register.must_begin():
            self._begin()
        if self._manager._member.inventory.leaked:
            self._manager._member.collect_leaked()
        try:
            return self._checkout_or_raise_as_factory(seconds)
        except CheckoutTimeout as error:
            raise TimeOut(f"no object became available, timeout after {seconds} s") from error
        except PoolClosed as error:
            raise PoolException("the pool was shut down while an object was waited for") from error

    def _checkout_or_raise_as_factory(self, seconds: float | None) -> Lease[Box]:
        """The core's circuit breaker paces the filling, but every `get` tries for itself."""
        began = monotonic()
        left = seconds
        for _ in range(2):
            try:
                return self._core.checkout(left)
            except OpenFailed as error:
                failed = error
            self._manager._link.forgive(self._core.name)
            if failed.__cause__ is not None:
                raise failed.__cause__
            # Refused, because filling has just failed; now it may be tried.
            left = None if seconds is None else max(0.0, seconds - (monotonic() - began))
        raise self._register.last_error or failed

    # --- start and end -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Fill up to `min_size`, in this thread, and start the housekeeper."""
        self._register.begun = True
        with self._manager._member.chores.done_here():
            self._core.resize(min_size=self._settings.floor)
            self._manager._link.command(WantReady(self._core.name))
        if self._settings.round_delay and self._housekeeper is None:
            self._keeper = Housekeeper(
                self._register,
                self._settings.round_delay,
                self._manager._link.look_around,
                self._check_health if self._settings.checks_health else None,
                self._settings.health_freq,
            )
            self._keeper.thread.start()

    def _check_health(self) -> None:
        """Check what is available, one after the other, while nobody waits for one."""
        local, began = self._core._local, monotonic()
        for entry in local.idle.borrow(lambda entry: not local.closed and entry.checked_at < began):
            if local.is_healthy(entry):
                local.idle.put_where_it_lay(entry)

    def shutdown(self, delay: float = 0.0) -> None:
        """Hand out nothing any more, and close everything, also what is in use.

        delay: seconds to wait for the housekeeper's present round.
        """
        if self._recipe.is_shut_down:
            return
        self._recipe.is_shut_down = True
        with self._manager._member.chores.done_here():
            self._core.close()
        keeper, self._keeper = self._keeper, None
        if keeper is not None and not keeper.stop(delay):
            log.warning("shutting down a pool whose housekeeper is still at work")
        self._close_all()
        self._last_counters = self._core_counters()
        self._manager.shutdown()

    def __delete__(self, instance: Any = None) -> None:
        """Close everything, also what is in use. The next `get` begins with nothing."""
        self._core.resize(min_size=0)
        self._register.begun = False
        self._close_all()

    def _close_all(self) -> None:
        leases = self._register.all_lent()
        if leases:
            log.warning("closing %d objects that are in use", len(leases))
        for lease in leases:
            if not lease.released:
                lease.discard()
        member = self._manager._member
        with member.chores.done_here():
            member.collect_leaked()
        member.close_idle()

    # --- figures -----------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Configuration, state, objects and counts, JSON-compatible. Durations are in seconds; times are
        relative to `now`, which is the time of day.
        """
        counters = self._last_counters or self._core_counters()
        told = report.of_pool(self._settings, self._hooks, self._register, counters)
        return {
            "id": self._id,
            "started": self._started,
            "shutdown": self._recipe.is_shut_down,
            **told,
        }

    def _core_counters(self) -> Counter[str]:
        return Counter(self._core.stats()["counters"])

    def __str__(self) -> str:
        return json.dumps(self.stats(), default=str)

    # Not part of the interface, but applications' tests look at them.

    @property
    def _housekeeper(self) -> threading.Thread | None:
        thread = None if self._keeper is None else self._keeper.thread
        return thread if thread is not None and thread.is_alive() else None

    @property
    def _avail(self) -> list[Any]:
        return [content for _, content in self._register.objects()[0]]

    @property
    def _using(self) -> list[Any]:
        return [content for _, content in self._register.objects()[1]]

    @property
    def _nobjs(self) -> int:
        return len(self._avail) + len(self._using)

    @property
    def _ncreated(self) -> int:
        return self._register.counts["ncreated"]

    @property
    def _nuses(self) -> int:
        return self._register.counts["nuses"]
