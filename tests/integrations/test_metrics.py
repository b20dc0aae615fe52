"""Metrics, as users get them: the real client libraries, a real Prometheus, a real export over HTTP."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import InProcessManager, Pool, PoolManager
from tests.helpers import ROOT, Fork, component_is_missing, free_port, run_python, wait_until

prometheus_client = pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: E402
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (  # noqa: E402
    ExportMetricsServiceRequest,
)
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import (  # noqa: E402
    InMemoryMetricReader,
    PeriodicExportingMetricReader,
)
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from mppool.integrations import instruments  # noqa: E402
from mppool.integrations.opentelemetry import MOST_RECORDS, instrument  # noqa: E402
from mppool.integrations.prometheus import PoolCollector  # noqa: E402
from mppool.stats.names import BOUNDS, SERVER_COUNTERS, WORKER_COUNTERS  # noqa: E402

POOL = {"mppool_manager": "shop", "db_client_connection_pool_name": "orders"}
DASHBOARD = ROOT / "examples" / "grafana" / "mppool.json"


class Thing:
    def close(self) -> None:
        pass


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[PoolManager]:
    manager = PoolManager("shop")
    yield manager
    manager.shutdown()


@pytest.fixture
def orders(manager: PoolManager) -> Pool[Thing]:
    return manager.pool("orders", Thing, max_size=3)


def use(manager: PoolManager, times: int) -> int:
    pool = manager.pool("orders", Thing, max_size=3)
    for _ in range(times):
        with pool.checkout(timeout=20):
            pass
    return os.getpid()


def scraped(registry: Any) -> dict[tuple[str, str], float]:
    """Every sample by its name and its own label (state, le), as the client's parser reads it."""
    text = prometheus_client.generate_latest(registry).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name not in POOL}
            found[sample.name, ",".join(own.values())] = sample.value
    return found


def test_one_scrape_shows_all_processes(manager: PoolManager, orders: Pool[Thing]) -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(PoolCollector(manager))
    used, seen = os.pipe(), os.pipe()

    def use_and_wait() -> None:
        use(manager, 4)
        os.write(used[1], b"x")
        os.read(seen[0], 1)

    child = Fork(use_and_wait)
    os.read(used[0], 1)
    use(manager, 2)
    with orders.checkout():
        found = scraped(registry)
    os.write(seen[1], b"x")
    child.result()
    assert found["mppool_up", ""] == 1
    assert found["db_client_connection_count", "used"] == 1
    assert found["db_client_connection_max", ""] == 3
    assert found["db_client_connection_pending_requests", ""] == 0
    assert found["db_client_connection_timeouts_total", ""] == 0
    assert found["mppool_checkouts_total", ""] == 7
    assert found["mppool_breaker", "closed"] == 1
    assert found["db_client_connection_wait_time_seconds_bucket", "+Inf"] == 7
    assert found["db_client_connection_wait_time_seconds_count", ""] == 7
    assert 0 < found["db_client_connection_create_time_seconds_sum", ""] < 60


def test_registering_asks_nobody_and_a_scrape_starts_no_server(manager: PoolManager) -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(PoolCollector(manager))
    assert scraped(registry)["mppool_up", ""] == 0
    assert manager.server_pid is None


def test_a_server_that_does_not_answer_is_a_figure_and_no_error(
    manager: PoolManager, orders: Pool[Thing]
) -> None:
    use(manager, 1)
    registry = prometheus_client.CollectorRegistry()
    registry.register(PoolCollector(manager))
    pid = manager.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        assert scraped(registry)["mppool_up", ""] == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: scraped(registry)["mppool_up", ""] == 1, "an answer")


def test_a_timeout_is_counted(manager: PoolManager, orders: Pool[Thing]) -> None:
    leases = [orders.checkout() for _ in range(3)]
    with pytest.raises(TimeoutError):
        orders.checkout(timeout=0)
    for lease in leases:
        lease.release()
    registry = prometheus_client.CollectorRegistry()
    registry.register(PoolCollector(manager))
    assert scraped(registry)["db_client_connection_timeouts_total", ""] == 1


def test_every_counter_has_a_metric_and_every_metric_a_place_in_the_page() -> None:
    assert {*instruments.COUNTERS, "timeouts"} == {*SERVER_COUNTERS, *WORKER_COUNTERS}
    page = (ROOT / "docs" / "monitoring.md").read_text()
    names = [one.name for one in (*instruments.INSTRUMENTS, *instruments.DURATIONS)]
    assert not [name for name in names if f"`{name}`" not in page]


# --- the command -----------------------------------------------------------------------------------------


def mppool(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mppool", *arguments]


def test_the_command_prints_what_a_parser_reads(manager: PoolManager, orders: Pool[Thing]) -> None:
    use(manager, 3)
    done = subprocess.run(
        mppool("metrics", "shop"), capture_output=True, text=True, timeout=40, check=True
    )
    families = {family.name: family for family in text_string_to_metric_families(done.stdout)}
    (checkouts,) = families["mppool_checkouts"].samples
    assert (checkouts.labels, checkouts.value) == (POOL, 3)


@pytest.fixture
def served(manager: PoolManager, orders: Pool[Thing]) -> Iterator[int]:
    """The port at which `mppool metrics --serve` serves."""
    command = mppool("metrics", "shop", "--serve", "127.0.0.1:0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            said = serving.stdout.readline()
            yield int(re.findall(r":(\d+)/metrics", said)[0])
            serving.send_signal(signal.SIGINT)
            assert serving.wait(20) == 0
        finally:
            serving.kill()


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_it_serves_while_servers_come_and_go(manager: PoolManager, served: int) -> None:
    assert b'mppool_up{mppool_manager="shop"} 0.0' in get(served, "/metrics")
    use(manager, 1)
    assert b'mppool_up{mppool_manager="shop"} 1.0' in get(served, "/metrics")
    manager.shutdown()
    assert b'mppool_up{mppool_manager="shop"} 0.0' in get(served, "/metrics")


def test_an_address_that_is_taken_is_said(served: int) -> None:
    done = subprocess.run(
        mppool("metrics", "shop", "--serve", f"127.0.0.1:{served}"),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, "cannot be served" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


# --- Prometheus itself, and the dashboard ------------------------------------------------------------------


@pytest.fixture
def prometheus(served: int, tmp_path: Path) -> Iterator[Callable[[str], list[Any]]]:
    """Answers queries; a real server that scrapes the command."""
    program = shutil.which("prometheus")
    if program is None:
        component_is_missing("there is no prometheus (Debian: apt-get install prometheus)")
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        f"scrape_configs: [{{job_name: mppool, static_configs: [{{targets: ['127.0.0.1:{served}']}}]}}]\n"
    )
    command = [
        program,
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = (tmp_path / "log").open("w")
    with log, subprocess.Popen(command, stderr=log, stdout=log) as server:

        def query(expression: str) -> list[Any]:
            try:
                answer = json.loads(
                    get(port, "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
                )
            except (OSError, ValueError):
                return []  # it is starting
            assert answer["status"] == "success", answer
            result: list[Any] = answer["data"]["result"]
            return result

        try:
            wait_until(lambda: query("mppool_up == 1"), "a scrape")
            yield query
        finally:
            server.terminate()
            server.wait(20)


@pytest.mark.timeout(120)
def test_every_query_of_the_dashboard_has_an_answer(
    manager: PoolManager, orders: Pool[Thing], request: pytest.FixtureRequest
) -> None:
    use(manager, 1)
    query = request.getfixturevalue("prometheus")
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 15

    def answered(expression: str) -> list[Any]:
        use(manager, 1)  # a rate needs a counter that grows
        for name, value in {
            "$manager": ".*", "$pool": ".*", "$__rate_interval": "1m",
        }.items():  # fmt: skip
            expression = expression.replace(name, value)
        found: list[Any] = query(expression)
        return found

    for expression in expressions:
        result = wait_until(lambda e=expression: answered(e), f"an answer to {expression}")
        assert all(one["metric"]["mppool_manager"] == "shop" for one in result)
    (most,) = query('max(mppool_checkouts_total{db_client_connection_pool_name="orders"})')
    assert float(most["value"][1]) >= 1


# --- OpenTelemetry ---------------------------------------------------------------------------------------


def collected(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_instruments_have_their_standard_names(manager: PoolManager, orders: Pool[Thing]) -> None:
    from opentelemetry.semconv._incubating.metrics import db_metrics

    standard = {value for value in vars(db_metrics).values() if isinstance(value, str)}
    own = [one.name for one in (*instruments.INSTRUMENTS, *instruments.DURATIONS)]
    assert {name for name in own if name.startswith("db.")} <= standard
    reader = InMemoryMetricReader()
    with_provider = MeterProvider([reader], shutdown_on_exit=False)
    stop = instrument(manager, meter_provider=with_provider)
    use(manager, 5)
    with orders.checkout():
        found = collected(reader)
    attributes = {"mppool.manager": "shop", "db.client.connection.pool.name": "orders"}
    states = {
        point.attributes["db.client.connection.state"]: point.value
        for point in found["db.client.connection.count"]
    }
    assert states == {"used": 1, "idle": 0}
    assert found["db.client.connection.max"][0].value == 3
    assert dict(found["db.client.connection.max"][0].attributes) == attributes
    assert found["mppool.checkouts"][0].value == 6
    (waits,) = found["db.client.connection.wait_time"]
    assert waits.count == 6
    assert tuple(waits.explicit_bounds) == BOUNDS
    stop()
    with_provider.shutdown()


def test_durations_of_many_checkouts_are_a_sample(
    manager: PoolManager, orders: Pool[Thing]
) -> None:
    reader = InMemoryMetricReader()
    with_provider = MeterProvider([reader], shutdown_on_exit=False)
    instrument(manager, meter_provider=with_provider)
    use(manager, 3 * MOST_RECORDS)
    found = collected(reader)
    assert found["mppool.checkouts"][0].value == 3 * MOST_RECORDS
    (waits,) = found["db.client.connection.wait_time"]
    assert 0 < waits.count <= MOST_RECORDS + len(BOUNDS) + 1
    with_provider.shutdown()


def test_one_process_reports_at_a_time(manager: PoolManager, orders: Pool[Thing]) -> None:
    use(manager, 1)

    def reports() -> bool:
        reader = InMemoryMetricReader()
        with_provider = MeterProvider([reader], shutdown_on_exit=False)
        stop = instrument(PoolManager("shop"), meter_provider=with_provider)
        found = "mppool.checkouts" in collected(reader)
        stop()
        return found

    reader = InMemoryMetricReader()
    with_provider = MeterProvider([reader], shutdown_on_exit=False)
    stop = instrument(manager, meter_provider=with_provider)
    assert "mppool.checkouts" in collected(reader)
    assert Fork(reports).result() is False
    stop()
    assert Fork(reports).result() is True
    with_provider.shutdown()


def test_a_manager_of_one_process_is_reported_too() -> None:
    manager = InProcessManager()
    reader = InMemoryMetricReader()
    with_provider = MeterProvider([reader], shutdown_on_exit=False)
    instrument(manager, meter_provider=with_provider)
    with manager.pool("things", Thing).checkout():
        found = collected(reader)
    assert found["mppool.checkouts"][0].value == 1
    with_provider.shutdown()
    manager.shutdown()


def test_lanes_are_reported_by_name() -> None:
    manager = InProcessManager()
    registry = prometheus_client.CollectorRegistry()
    registry.register(PoolCollector(manager))
    jobs = manager.pool("jobs", Thing, max_size=3, lanes={"web": 2})
    with jobs.checkout(lane="web"), jobs.checkout():
        text = prometheus_client.generate_latest(registry).decode()
    lanes = {
        (sample.name, sample.labels["mppool_lane_name"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "mppool_lane_name" in sample.labels
    }
    assert lanes == {
        ("mppool_lane_reserved", "web"): 2,
        ("mppool_lane_reserved", ""): 1,
        ("mppool_lane_in_use", "web"): 1,
        ("mppool_lane_in_use", ""): 1,
        ("mppool_lane_pending_requests", "web"): 0,
        ("mppool_lane_pending_requests", ""): 0,
    }
    manager.shutdown()


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    received: list[ExportMetricsServiceRequest]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.received.append(ExportMetricsServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportMetricsServiceRequest]]]:
    """Its address, and what it has received."""
    received: list[ExportMetricsServiceRequest] = []
    handler = type("Handler", (Collector,), {"received": received})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


def metrics_in(received: list[ExportMetricsServiceRequest]) -> dict[str, Any]:
    return {
        metric.name: metric
        for export in received
        for resource in export.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_an_export_over_http_arrives(
    manager: PoolManager, orders: Pool[Thing], collector: tuple[str, list[Any]]
) -> None:
    address, received = collector
    exporter = OTLPMetricExporter(f"{address}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    with_provider = MeterProvider([reader], shutdown_on_exit=False)
    instrument(manager, meter_provider=with_provider)
    use(manager, 2)
    assert with_provider.force_flush()
    with_provider.shutdown()
    found = metrics_in(received)
    assert found["mppool.checkouts"].sum.is_monotonic
    assert found["mppool.checkouts"].sum.data_points[0].as_int == 2
    assert found["db.client.connection.wait_time"].histogram.data_points[0].count == 2


# --- the page --------------------------------------------------------------------------------------------


def block(title: str) -> str:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    found = re.search(rf"```python title={title}\n(.*?)```", page, re.DOTALL)
    assert found, title
    return found[1]


USE = """
with manager.pool("orders", object).checkout():
    pass
"""


def test_the_page_on_prometheus(runtime_dir: Path) -> None:
    port = free_port()
    look = f"""
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:{port}/metrics").read().decode())
"""
    done = run_python(block("prometheus").replace("9464", str(port)) + USE + look)
    assert 'mppool_checkouts_total{db_client_connection_pool_name="orders"' in done.stdout


def test_the_page_on_opentelemetry(runtime_dir: Path, collector: tuple[str, list[Any]]) -> None:
    address, received = collector
    manager = "manager = PoolManager('shop')\n"
    run_python(
        block("opentelemetry") + manager + USE,  # exported at the end of the interpreter
        environment={"OTEL_EXPORTER_OTLP_ENDPOINT": address},
    )
    assert metrics_in(received)["mppool.checkouts"].sum.data_points[0].as_int == 1
