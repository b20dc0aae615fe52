"""A machine that is suspended beyond its lease: its sessions are ended at PostgreSQL by those that get its share."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from mppool.machines.settings import LEASE_VARIABLE
from mppool.rendezvous.paths import manager_paths, read_address
from tests.helpers import wait_until
from tests.integrations.postgresql import Database
from tests.machines.redis_server import RedisServer
from tests.machines.test_machines import CAP, Machine, settled


def sessions(database: Database) -> Counter[str]:
    """By machine and number of its server, as the labels say."""
    rows = database.server.query(
        "select application_name from pg_stat_activity where datname = ?", database.name
    )
    return Counter(row[0].split("/")[2] for row in rows if row[0].startswith("shop/"))


def test_what_a_stopped_machine_has_open_is_ended_when_its_lease_has_run_out(
    postgresql: Database, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "4")
    redis = RedisServer(tmp_path)
    machines: list[Machine] = []
    where = f"host=127.0.0.1 port={postgresql.server.port} user=postgres dbname={postgresql.name}"
    try:
        settled(redis)
        machines.append(Machine(runtime_dir / "a", redis.url, where, more=["end_expired"]))
        first = machines[0]
        first.busy(4)
        (of_first,) = wait_until(lambda: sessions(postgresql), "the first machine has some")
        # Both have this host's name, and the number of a server is counted from the second of its start.
        second_of_start = int(time.time())
        wait_until(lambda: int(time.time()) > second_of_start + 1, "another second")
        machines.append(Machine(runtime_dir / "b", redis.url, where, more=["end_expired"]))
        second = machines[1]
        second.busy(6)
        wait_until(lambda: len(sessions(postgresql)) == 2, "both machines have some")
        server = read_address(manager_paths("shop", first.directory))
        assert server is not None
        stopped = [first.pid, server.server.pid]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not sessions(postgresql)[of_first], "its sessions are ended")
        wait_until(lambda: sum(sessions(postgresql).values()) == CAP, "the second has all")
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: sessions(postgresql)[of_first], "it has a share again")
    finally:
        for machine in machines:
            machine.kill()
        redis.kill()
