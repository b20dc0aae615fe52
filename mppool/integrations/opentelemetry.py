"""Metrics for OpenTelemetry: `instrument(manager)`. Needs the extra `opentelemetry`.

Each process of an application may call it. The figures cover all processes, so one of them reports at a time: the
one that holds a lock file. When that process ends, another one goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import time
from typing import TYPE_CHECKING

from mppool import __version__
from mppool.errors import ConfigurationError, PoolError
from mppool.integrations.instruments import DURATIONS, INSTRUMENTS, Durations, middles, of_pool
from mppool.logs import Log

if importlib.util.find_spec("opentelemetry") is None:
    raise ConfigurationError(
        "opentelemetry is not installed; it comes with: pip install 'mppool[opentelemetry]'"
    )

from opentelemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mppool.base_manager import Manager
    from mppool.integrations.instruments import Instrument, Stats

__all__ = ["instrument"]

log = Log("mppool")

FRESH_S = 0.5
"""All instruments of one collection read the same statistics; so old may they be."""

MOST_RECORDS = 5_000
"""So many durations are recorded for each histogram of a pool in one collection; of more, a sample."""

_LOCK_FILE = "opentelemetry.lock"


def instrument(
    manager: Manager, *, meter_provider: metrics.MeterProvider | None = None
) -> Callable[[], None]:
    """Report the pools of a manager as OpenTelemetry metrics, for all processes.

    manager: a PoolManager, or an InProcessManager.
    meter_provider: None: the global one.

    Returns a function that ends it. Nothing is asked before the first collection, which starts no server and
    opens nothing. Where no server answers, a collection has no figures.

    Durations are taken from the histograms of the pool: each is recorded as the middle of its bucket. Beyond 5000
    in one collection a proportional sample is recorded; the exact number is that of `mppool.checkouts`.
    """
    reporter = _Reporter(manager)
    meter = metrics.get_meter("mppool", __version__, meter_provider)
    for one in INSTRUMENTS:
        make = {
            "counter": meter.create_observable_counter,
            "sum": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }[one.kind]
        make(one.name, [reporter.observer(one)], unit=one.unit, description=one.description)
    for durations in DURATIONS:
        reporter.recorders.append(
            _Recorder(
                durations,
                meter.create_histogram(
                    durations.name,
                    unit="s",
                    description=durations.description,
                    explicit_bucket_boundaries_advisory=list(_bounds()),
                ),
            )
        )
    return reporter.stop


def _bounds() -> tuple[float, ...]:
    from mppool.stats.names import BOUNDS

    return BOUNDS


class _Reporter:
    """Reads the statistics once for all instruments of a collection.

    _lock guards `_stats`, `_until` and the recorders, and is held while the server is asked: several readers may
    collect at a time, and one question is enough for them.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._turn = _Turn(manager)
        self._began = time.time()
        self._stopped = False
        self.recorders: list[_Recorder] = []
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._stats: Stats | None = None
        self._until = 0.0

    def stop(self) -> None:
        """Report nothing any more, and let another process go on."""
        self._stopped = True
        self._turn.give_up()

    def observer(
        self, one: Instrument
    ) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
        """What an observable instrument calls."""

        def observe(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            stats = self._figures()
            if stats is None:
                return []
            return [metrics.Observation(value, attributes) for attributes, value in one.read(stats)]

        return observe

    def _figures(self) -> Stats | None:
        if self._pid != os.getpid():  # the lock of a parent may be held for ever
            self._renew()
        with self._lock:
            if time.monotonic() >= self._until:
                self._stats = self._ask()
                self._until = time.monotonic() + FRESH_S
                for recorder in self.recorders:
                    recorder.record(self._stats, self._began)
            return self._stats

    def _ask(self) -> Stats | None:
        if self._stopped or not self._turn.is_ours():
            return None
        try:
            return self._manager.stats()
        except (PoolError, TimeoutError) as error:
            log.warning("%r has no figures for this collection: %s", self._manager, error)
            return None


class _Turn:
    """Whether this process reports. The lock ends with the process that holds it."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._descriptor: int | None = None
        self._pid = os.getpid()

    def is_ours(self) -> bool:
        """True in one process at a time; always where processes share nothing."""
        if self._pid != os.getpid():
            self.give_up()  # a fork shares the lock of its parent: the parent goes on
            self._pid = os.getpid()
        if self._descriptor is not None and os.fstat(self._descriptor).st_nlink:
            return True
        self.give_up()
        try:
            directory = getattr(self._manager, "directory", None)
        except ConfigurationError:  # a PoolManager that pools for its own process
            directory = None
        if directory is None:
            return True
        import fcntl  # where there is a directory, there is this

        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(directory / _LOCK_FILE, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def give_up(self) -> None:
        """Close the file; the lock is free when nobody has it open."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


class _Recorder:
    """Brings a histogram of the statistics into one of OpenTelemetry: what was counted since the last look."""

    def __init__(self, durations: Durations, histogram: metrics.Histogram) -> None:
        self._durations = durations
        self._histogram = histogram
        self._before: dict[str, list[int]] = {}

    def record(self, stats: Stats | None, began: float) -> None:
        """began: when this process began to report. What was counted before belongs to another reporter."""
        if stats is None:
            self._before.clear()
            return
        for name, pool in stats["pools"].items():
            found = pool["histograms"][self._durations.key]
            counts = found["counts"]
            before = self._before.get(name)
            if before is None:
                is_new = (pool["counters_began"] or 0.0) >= began
                before = [0] * len(counts) if is_new else counts
            self._before[name] = counts
            more = [max(0, now - then) for now, then in zip(counts, before, strict=True)]
            share = min(1.0, MOST_RECORDS / max(1, sum(more)))
            for count, middle in zip(more, middles(found["bounds"]), strict=True):
                for _ in range(max(round(count * share), min(count, 1))):
                    self._histogram.record(middle, of_pool(stats, pool))
