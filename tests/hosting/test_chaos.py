"""Chaos over hosts: workers that keep leases, while hosts, workers and the server are killed and stopped.

Judged by PostgreSQL and by the workers themselves:

- at no instant do living processes have more sessions than max_size (promise 1);
- afterwards max_size leases can be taken, and not one more (promise 2);
- nobody gets an answer of somebody else's (promise 3);
- what was committed is there, and what an error said to be rolled back is not.

`MPPOOL_CHAOS_SECONDS=60 MPPOOL_CHAOS_SEED=7 pytest tests/hosting/test_chaos.py -s` runs for longer.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mppool import PoolManager
from mppool.dbapi import DbApiRecipe
from mppool.errors import CheckoutTimeout, OpenFailed, StaleLease
from tests.helpers import PATIENCE, is_alive, wait_until
from tests.integrations.postgresql import Database

CAP = 2
WORKERS = 4


class Worker:
    """A forked process that uses the pool until the end, and notes what happened in a file."""

    def __init__(self, pool: Any, seed: int, ends_at: float, notes: Path) -> None:
        self.pool = pool
        self.chance = random.Random(seed)
        self.ends_at = ends_at
        self.notes = notes
        self.pid = os.fork()
        if not self.pid:
            try:
                self._live()
            finally:
                os._exit(0)

    def _live(self) -> None:
        with self.notes.open("a", buffering=1) as self.file:
            number = 0
            while time.monotonic() < self.ends_at:
                number += 1
                self._use(f"{os.getpid()}-{number}")
                # So that leases are kept, called in because others wait, and called in because of their age.
                time.sleep(self.chance.choice((0.0, 0.0, 0.002, 0.02, 0.3)))

    def _note(self, what: str, text: str) -> None:
        print(what, text.replace("\n", " "), file=self.file)

    def _use(self, token: str) -> None:
        drawn = self.chance.random()
        doing = ""
        try:
            with self.pool.checkout(timeout=2 * PATIENCE) as connection:
                for _ in range(self.chance.randrange(1, 4)):
                    found = connection.execute("select %s::text", (token,)).fetchone()
                    if found != (token,):
                        self._note("problem", f"asked for {token}, and got {found}")
                if drawn < 0.5:
                    doing = "insert"
                    connection.execute("insert into used values (%s)", (token,))
                    if drawn < 0.4:
                        doing = "commit"
                        connection.commit()
                        self._note("there", token)
                        doing = ""
        except StaleLease as error:
            if doing and "rolled back" in str(error):
                self._note("gone", token)
            self._note("stale", str(error))
        except OpenFailed as error:
            if "times while this checkout waited" not in str(error):
                self._note("problem", repr(error))
        except Exception as error:  # whatever it is: it was not injected
            self._note("problem", f"{doing}: {error!r}")
        else:
            if doing == "insert":
                self._note("gone", token)  # its end has rolled it back
            self._note("used", token)


class Chaos:
    """One run."""

    def __init__(self, manager: PoolManager, pool: Any, database: Database, notes: Path) -> None:
        self.chance = random.Random(int(os.environ.get("MPPOOL_CHAOS_SEED", "1")))
        self.seconds = float(os.environ.get("MPPOOL_CHAOS_SECONDS", "3"))
        self.manager, self.pool, self.database, self.notes = manager, pool, database, notes
        self.done: Counter[str] = Counter()
        self.workers: dict[int, Worker] = {}
        self.stopped: dict[int, float] = {}
        self.peak = 0

    def run(self) -> None:
        ends_at = time.monotonic() + self.seconds
        try:
            while time.monotonic() < ends_at:
                while len(self.workers) < WORKERS:
                    worker = Worker(self.pool, self.chance.randrange(1 << 30), ends_at, self.notes)
                    self.workers[worker.pid] = worker
                until = time.monotonic() + self.chance.uniform(0.05, 0.4)
                while time.monotonic() < until:
                    self._look()
                self._torment()
        finally:
            for pid in list(self.stopped):
                self._wake(pid)
        wait_until(lambda: self._reap() or not self.workers, "the end of the workers")

    def _look(self) -> None:
        rows = self.database.server.query(
            "select application_name from pg_stat_activity where datname = ?", self.database.name
        )
        owners = [int(row[0].rpartition(" ")[2].rpartition("/")[2]) for row in rows if row[0]]
        self.peak = max(self.peak, sum(map(is_alive, owners)))
        self._reap()
        for pid, due in list(self.stopped.items()):
            if time.monotonic() >= due:
                self._wake(pid)

    def _reap(self) -> None:
        for pid in list(self.workers):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self.workers[pid]

    def _wake(self, pid: int) -> None:
        self.stopped.pop(pid, None)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _torment(self) -> None:
        drawn = self.chance.random()
        if drawn < 0.6:
            whom, victims = "hosts", self._hosts()
        elif drawn < 0.9:
            whom, victims = "workers", sorted(self.workers)
        else:
            server = self.manager.server_pid
            whom, victims = "servers", [] if server is None else [server]
        if not victims:
            return
        pid, kills = self.chance.choice(victims), self.chance.random() < 0.7
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kills else signal.SIGSTOP)
            self.done[f"{whom} {'killed' if kills else 'stopped'}"] += 1
            if not kills:
                self.stopped[pid] = time.monotonic() + self.chance.uniform(0.05, 0.5)

    def _hosts(self) -> list[int]:
        processes = self.pool.stats()["processes"]
        return [one["pid"] for one in processes if one["label"].startswith("host")]


@pytest.mark.stress
def test_chaos_with_kept_leases_breaks_no_promise(
    manager: PoolManager, postgresql: Database, tmp_path: Path
) -> None:
    recipe = DbApiRecipe(
        psycopg.connect, host="127.0.0.1", port=postgresql.port, user="postgres", dbname=postgresql.name,
    )  # fmt: skip
    pool = manager.pool("p", recipe, max_size=CAP, placement="host", hosts=2, timeout=2 * PATIENCE)
    with pool.checkout() as connection:
        connection.execute("create table used (token text primary key)")
        connection.commit()
    notes = tmp_path / "notes"
    notes.touch()
    chaos = Chaos(manager, pool, postgresql, notes)
    chaos.run()
    said = [line.partition(" ")[::2] for line in notes.read_text().splitlines()]
    counts = Counter(what for what, _ in said)
    print(f"{chaos.seconds:g} s: {dict(chaos.done)}; {dict(counts)}; peak {chaos.peak} of {CAP}")
    assert [text for what, text in said if what == "problem"] == []
    assert 1 <= chaos.peak <= CAP
    leases = [pool.checkout() for _ in range(CAP)]
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0.1)
    rows = {row[0] for row in leases[0].resource.execute("select token from used").fetchall()}
    for lease in leases:
        lease.release()
    assert {text for what, text in said if what == "there"} <= rows
    assert not {text for what, text in said if what == "gone"} & rows
    assert counts["used"]
