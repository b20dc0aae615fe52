"""Metrics for Prometheus: `REGISTRY.register(PoolCollector(manager))`. Needs the extra `prometheus`.

The figures cover all processes of the manager, so one scrape of any process shows all workers. Names are those
of OpenTelemetry's semantic conventions, as Prometheus spells them: `db_client_connection_count`.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from mppool.errors import ConfigurationError, PoolError
from mppool.integrations.instruments import (
    DURATIONS,
    INSTRUMENTS,
    OF_POOL,
    Durations,
    Instrument,
    Stats,
    estimated_sum,
    of_pool,
)
from mppool.logs import Log

if importlib.util.find_spec("prometheus_client") is None:
    raise ConfigurationError(
        "prometheus_client is not installed; it comes with: pip install 'mppool[prometheus]'"
    )

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mppool.base_manager import Manager

__all__ = ["PoolCollector"]

log = Log("mppool")


class PoolCollector(Collector):
    """A collector for prometheus_client, for one manager and all its pools and processes.

    manager: a PoolManager, or an InProcessManager.

    Each scrape asks the server once. It starts no server and opens nothing. `mppool_up` is 1 where a server
    answered, else 0; the other metrics are absent then, unless this process has declared pools.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def describe(self) -> Iterable[Metric]:
        """The metrics without values, so that registering the collector asks nobody."""
        yield _up()
        for instrument in INSTRUMENTS:
            yield _family(instrument)
        for durations in DURATIONS:
            yield _histogram(durations)

    def collect(self) -> Iterator[Metric]:
        """The metrics with today's values."""
        up = _up()
        try:
            stats: Stats | None = self._manager.stats()
        except (PoolError, TimeoutError) as error:
            log.warning("%r has no figures for this scrape: %s", self._manager, error)
            stats = None
        name = self._manager._member.name
        answered = stats is not None and stats["server_pid"] is not None
        up.add_metric([name], float(answered))
        yield up
        if stats is None:
            return
        for instrument in INSTRUMENTS:
            family = _family(instrument)
            for attributes, value in instrument.read(stats):
                family.add_metric([attributes[one] for one in instrument.attributes], value)
            yield family
        for durations in DURATIONS:
            yield _filled(_histogram(durations), durations, stats)


def _up() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "mppool_up", "Whether the server of this manager answers", labels=["mppool_manager"]
    )


def metric_name(name: str, unit: str) -> str:
    """As Prometheus spells a name of OpenTelemetry, without the ending of counters."""
    spelt = name.replace(".", "_")
    return f"{spelt}_seconds" if unit == "s" else spelt


def _family(instrument: Instrument) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if instrument.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(
        metric_name(instrument.name, instrument.unit),
        instrument.description,
        labels=_names(instrument.attributes),
    )
    return family


def _histogram(durations: Durations) -> HistogramMetricFamily:
    return HistogramMetricFamily(
        metric_name(durations.name, "s"), durations.description, labels=_names(OF_POOL)
    )


def _filled(
    family: HistogramMetricFamily, durations: Durations, stats: Stats
) -> HistogramMetricFamily:
    for pool in stats["pools"].values():
        histogram = pool["histograms"][durations.key]
        total, buckets = 0, []
        for bound, count in zip(
            [*map(str, histogram["bounds"]), "+Inf"], histogram["counts"], strict=True
        ):
            total += count
            buckets.append((bound, total))
        attributes = of_pool(stats, pool)
        labels = [attributes[one] for one in OF_POOL]
        family.add_metric(labels, buckets, estimated_sum(histogram))
    return family


def _names(attributes: Sequence[str]) -> list[str]:
    return [name.replace(".", "_") for name in attributes]
