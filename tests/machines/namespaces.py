"""Three machines in network namespaces of their own, one PostgreSQL and one Redis outside: run it as root, by hand.

    python -m tests.machines.namespaces [ROUNDS]

It counts the sessions in pg_stat_activity all the time, while load moves, whole machines are killed, the way to Redis
is cut, and Redis is killed and comes back empty. It prints what happened, and the most sessions that were ever seen.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from mppool.machines.settings import LEASE_VARIABLE
from tests.machines.redis_server import RedisServer
from tests.machines.test_machines import CAP, Machine, settled

BRIDGE, OUTSIDE, REDIS = "mppbr", "10.77.0.1", "10.77.0.2"
NAMES = ("mppm1", "mppm2", "mppm3")
SESSIONS = "select count(*) from pg_stat_activity where application_name like 'shop/%'"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        for address in (OUTSIDE, REDIS):
            ip("addr", "add", f"{address}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(NAMES, 10):
            ip("netns", "add", name)
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}v", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], check=False)
        ip("link", "del", BRIDGE)


@contextlib.contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """A PostgreSQL that listens at the bridge; its connection string."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
    data = directory / "data"
    data.mkdir()
    shutil.chown(directory, "postgres")
    shutil.chown(data, "postgres")
    as_user = ["runuser", "-u", "postgres", "--"]
    run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*as_user, str(programs / "initdb"), "-A", "trust", "-D", str(data)], **run)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 10.77.0.0/24 trust\n")
    options = f"-c listen_addresses={OUTSIDE} -c port=54777 -c unix_socket_directories={directory}"
    control = [*as_user, str(programs / "pg_ctl"), "-w", "-D", str(data)]
    subprocess.run([*control, "-l", str(directory / "log"), "-o", options, "start"], **run)
    try:
        yield f"host={OUTSIDE} port=54777 user=postgres dbname=postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)


class Counting(threading.Thread):
    """Counts the sessions again and again."""

    def __init__(self, conninfo: str) -> None:
        super().__init__(daemon=True)
        self._conninfo = conninfo
        self.now = self.peak = self.looks = 0
        self.start()

    def run(self) -> None:
        ended = contextlib.suppress(psycopg.OperationalError)  # with the database
        with ended, psycopg.connect(self._conninfo, autocommit=True) as connection:
            while True:
                row = connection.execute(SESSIONS).fetchone()
                assert row is not None
                self.now = row[0]
                self.peak = max(self.peak, self.now)
                self.looks += 1
                time.sleep(0.005)


def main(rounds: int) -> None:
    os.environ[LEASE_VARIABLE] = "6"
    directory = Path(tempfile.mkdtemp(prefix="mppn-", dir="/tmp"))
    directory.chmod(0o755)
    database = directory / "database"
    database.mkdir()
    with network(), postgresql(database) as conninfo:
        redis = RedisServer(directory, "--bind", REDIS, "127.0.0.1", "--protected-mode", "no")
        machines: dict[str, Machine] = {}

        def machine(name: str) -> None:
            where = Path(tempfile.mkdtemp(prefix="m", dir=directory)) / "d"
            url = f"redis://{REDIS}:{redis.port}/0"
            machines[name] = Machine(where, url, conninfo, within=["ip", "netns", "exec", name])
            machines[name].busy(5)

        def said(what: str, seconds: float) -> None:
            time.sleep(seconds)
            print(f"{what:50} {counting.now} sessions, {counting.peak} at most", flush=True)

        try:
            settled(redis)
            counting = Counting(conninfo)
            for name in NAMES:
                machine(name)
            said("three machines are busy", 8)
            for _ in range(rounds):
                machines[NAMES[0]].busy(0)
                said("one is idle", 5)
                machines[NAMES[1]].kill()
                said("another is killed", 8)
                machine(NAMES[1])
                machines[NAMES[0]].busy(5)
                said("all are busy again", 6)
                ip("-n", NAMES[2], "route", "add", "blackhole", REDIS)
                said("the third cannot reach Redis", 10)
                ip("-n", NAMES[2], "route", "del", "blackhole", REDIS)
                said("it can again", 6)
                redis.kill()
                said("Redis is killed", 6)
                redis.start()
                said("and comes back empty", 14)
            print(f"cap {CAP}, peak {counting.peak}, {counting.looks} looks", flush=True)
        finally:
            for one in machines.values():
                with contextlib.suppress(OSError, ValueError):
                    one.kill()
            redis.kill()
    shutil.rmtree(directory)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
