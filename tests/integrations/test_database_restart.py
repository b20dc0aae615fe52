"""A PostgreSQL that is restarted under load from three processes; logins are counted by a proxy before it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import OpenFailed, Pool, PoolManager
from mppool.core.breaker import FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S
from mppool.odbc import OdbcRecipe, driver_manager
from tests.helpers import Fork, component_is_missing, wait_until
from tests.integrations.postgresql import Database, PostgresqlServer, what_is_missing

CAP = 4
PROCESSES = 3
THREADS = 2


class Proxy:
    """Passes connections on to the database while there is one, and notes when each was asked for."""

    def __init__(self) -> None:
        self.target: int | None = None
        self.logins: list[float] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.logins.append(time.monotonic())
            target = self.target
            if target is None:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pump, args=pair)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


@pytest.fixture
def server(odbc_drivers: list[str]) -> Iterator[PostgresqlServer]:
    """A PostgreSQL of this test alone: it is stopped in the middle."""
    missing = what_is_missing()
    if missing:
        component_is_missing(missing)
    server = PostgresqlServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def proxy(server: PostgresqlServer) -> Iterator[Proxy]:
    """The way to it."""
    proxy = Proxy()
    proxy.target = server.port
    yield proxy
    proxy.end()


def most_logins(seconds: float) -> int:
    """Probes in so many seconds, if there is one per step of the back-off, and its jitter is as short as can be."""
    probes, pause = 0, FIRST_BACK_OFF_S
    while seconds > 0:
        seconds -= pause / 2
        pause = min(2 * pause, LONGEST_BACK_OFF_S)
        probes += 1
    return probes


def work(pool: Pool[Any], halt: Path) -> list[tuple[str, float, float, str]]:
    """Use the pool in several threads until the file is there. What failed: where, from when to when, why."""
    module = driver_manager.load()
    failures: list[tuple[str, float, float, str]] = []
    right: list[int] = []

    def turn(number: int) -> None:
        began = time.monotonic()
        what = "checkout"
        try:
            with pool.checkout(timeout=50) as connection:
                what, began = "statement", time.monotonic()
                row = connection.execute("select ?::int, pg_sleep(0.003)", number).fetchone()
                assert row[0] == number
                right.append(number)
        except (module.Error, OpenFailed) as error:
            failures.append((what, began, time.monotonic(), str(error)[:200]))

    def loop(thread: int) -> None:
        number = thread
        while not halt.exists():
            turn(number)
            number += THREADS
            time.sleep(0.001)

    threads = [threading.Thread(target=loop, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures.append(("right", 0.0, 0.0, str(len(right))))
    return failures


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_only_statements_in_flight_fail_and_everything_heals(
    server: PostgresqlServer, proxy: Proxy, runtime_dir: Path, tmp_path: Path, mode: str
) -> None:
    # SSLmode=disable: one connection of TCP is one login.
    text = server.connection_string("postgres").replace(str(server.port), str(proxy.port))
    manager = PoolManager("test")
    pool = manager.pool(
        "shop",
        OdbcRecipe(f"{text};SSLmode=disable"),
        max_size=CAP,
        check_idle_for=0.0,
        fail_fast=False,
        max_idle=None,
    )
    halt = tmp_path / "halt"
    children = [Fork(work, pool, halt) for _ in range(PROCESSES)]

    def checkouts() -> int:
        return int(pool.stats()["counters"]["checkouts"])

    wait_until(lambda: pool.stats()["size"] == CAP and checkouts() > 200, "some load")
    before = len(proxy.logins)
    going_down = time.monotonic()
    server.halt(mode)
    down = time.monotonic()
    proxy.target = None
    wait_until(lambda: len(proxy.logins) > before, "somebody to find out")
    time.sleep(1.5)  # an outage
    at_the_end = checkouts()
    coming_up = time.monotonic()
    tried = len([at for at in proxy.logins if going_down <= at < coming_up])
    server.start()
    proxy.target = server.port
    up = time.monotonic()
    wait_until(lambda: checkouts() > at_the_end + 300, "the load to go on")
    healed = time.monotonic()
    halt.touch()
    outcomes = [item for child in children for item in child.result(timeout=40)]
    failures = [item for item in outcomes if item[0] != "right"]
    # Only statements failed that were under way while the database went down, each at most once.
    assert [item for item in failures if item[0] != "statement"] == []
    assert all(began <= down and ended >= going_down for _, began, ended, _ in failures), failures
    assert len(failures) <= CAP
    assert sum(int(text) for what, _, _, text in outcomes if what == "right") > 400
    # One probe at a time over all processes: beside what was in flight, one per step of the back-off.
    print(
        f"{mode}: {len(failures)} statements failed; {tried} logins in {coming_up - going_down:.2f} s "
        f"without a database; full load again {healed - up:.2f} s after it was back"
    )
    assert tried <= most_logins(coming_up - going_down) + CAP
    stats = pool.stats()
    assert (stats["breaker"], stats["size"] <= CAP) == ("closed", True)
    manager.shutdown()


def test_one_dead_session_found_replaces_those_of_all_processes(
    postgresql: Database, runtime_dir: Path
) -> None:
    manager = PoolManager("test")
    recipe = OdbcRecipe(postgresql.connection_string)
    pool = manager.pool("shop", recipe, max_size=CAP, check_idle_for=0.0)

    def in_child() -> int:
        with pool.checkout():
            pass
        # Its own session lies idle here while somebody else finds out.
        wait_until(lambda: pool.stats()["counters"]["unhealthy"] == 1, "the detection")
        wait_until(lambda: pool.stats()["size"] == 1, "what is stale to be closed here")
        with pool.checkout(timeout=20) as connection:
            return int(connection.execute("select 42").fetchone()[0])

    with pool.checkout():
        child = Fork(in_child)
        wait_until(lambda: len(postgresql.session_pids()) == 2, "its session")
        wait_until(lambda: pool.stats()["idle"] == 1, "it to lie idle")
    postgresql.end_sessions()
    with pool.checkout(timeout=20) as connection:
        assert connection.execute("select 1").fetchone()[0] == 1
        assert child.result() == 42
    counters = pool.stats()["counters"]
    assert (counters["checks"], counters["unhealthy"]) == (1, 1)
    manager.shutdown()
