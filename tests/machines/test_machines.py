"""Real servers that share a cap over a real Redis. Each "machine" is a runtime directory with its own server.

The outside witness counts sessions: there are never more than the cap, whoever is killed.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mppool import ConfigurationError, ConfigurationMismatch, PoolManager
from mppool.errors import CheckoutTimeout, StaleLease
from mppool.machines.calling import key_of
from mppool.machines.settings import LEASE_VARIABLE
from mppool.rendezvous.paths import manager_paths, read_address
from tests.helpers import ROOT, run_python, wait_until
from tests.machines.redis_server import RedisServer
from tests.processes.witness import Witness

CAP = 6


class Thing:
    def close(self) -> None:
        pass


def settled(server: RedisServer, manager: str = "shop") -> None:
    """As if this Redis had been used before: the first lease of its incarnation has passed."""
    client = server.client()
    info = client.info()
    about = {
        "id": "earlier", "v": 1, "u": 0, "y": "",
        "i": info["run_id"] + info["master_replid"],
    }  # fmt: skip
    client.hset(key_of(manager), "about", msgspec.json.encode(about))
    client.close()


# --- what is allowed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"redis": "http://secret@host"}, "does not begin with redis://"),
        ({"redis": "redis://"}, "names no host"),
        ({"redis": "redis://host:port"}, "cannot be read"),
        ({"redis": 6379}, "it is a int"),
        ({"redis": "redis://host", "on_redis_lost": "go on"}, "on_redis_lost='go on' is not allowed"),
        ({"redis": "redis://host", "on_redis_lost": True}, "on_redis_lost=True is not allowed"),
        ({"redis": "redis://host", "on_redis_lost": -1}, "on_redis_lost=-1 is not allowed"),
        ({"on_redis_lost": 2}, "means nothing without redis="),
        ({"end_expired": True}, "end_expired=True means nothing without redis="),
        ({"redis": "redis://host", "end_expired": 1}, "end_expired=1 is not allowed"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused_at_once_without_the_url(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match="manager 'shop'") as caught:
        PoolManager("shop", **options)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_lease_that_is_no_duration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "long")
    with pytest.raises(ConfigurationError, match="MPPOOL_MACHINE_LEASE='long'"):
        PoolManager("shop", redis="redis://host")


def test_within_a_process_a_manager_has_one_redis(runtime_dir: Path) -> None:
    first = PoolManager("shop", redis="redis://:hidden@host/1")
    with pytest.raises(ConfigurationMismatch, match="redis://host/1") as caught:
        PoolManager("shop", redis="redis://:hidden@host/2")
    assert "hidden" not in str(caught.value)
    again = pickle.loads(pickle.dumps(first))
    assert again._locator.machines == first._locator.machines


# --- one machine -------------------------------------------------------------------------------------


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "6")


def test_a_wrong_password_is_said_to_who_waits_and_never_shown(
    runtime_dir: Path, redis_server: RedisServer, short_lease: None
) -> None:
    redis_server.client().config_set("requirepass", "right")
    url = redis_server.url.replace("//", "//:wr0ng-pw@")
    manager = PoolManager("shop", redis=url, linger=0.1)
    pool = manager.pool("orders", Thing, max_size=CAP)
    manager.start()
    wait_until(lambda: manager.stats()["machines"]["trouble"], "the server has tried")
    with pytest.raises(CheckoutTimeout, match=r"gives no lease at present: redis://127.*password"):
        pool.checkout(timeout=0)
    assert "wr0ng" not in repr(manager.stats())
    assert manager.health()["status"] != "ok"
    log = manager_paths("shop", runtime_dir).log.read_text()
    assert "Redis gives no lease" in log
    assert "wr0ng" not in log
    manager.close()


def test_a_fallback_serves_without_redis(
    runtime_dir: Path, redis_server: RedisServer, short_lease: None
) -> None:
    redis_server.kill()
    with PoolManager("shop", redis=redis_server.url, on_redis_lost=1, linger=0.1) as manager:
        pool = manager.pool("orders", Thing, max_size=CAP)
        lease = pool.checkout()
        with pytest.raises(CheckoutTimeout, match=r"share of this machine is 1 .*on_redis_lost=1"):
            pool.checkout(timeout=0)
        assert pool.stats()["share"] == 1
        lease.release()


def test_processes_of_a_machine_with_another_redis_are_refused(
    runtime_dir: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    with PoolManager("shop", linger=0.1):
        done = subprocess.run(
            [
                sys.executable, "-c",
                "import sys, mppool; mppool.PoolManager('shop', redis=sys.argv[1]).start()",
                "redis://:hidden@host/1",
            ],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
    assert "ConfigurationError: manager 'shop': the server of this machine" in done.stderr
    assert "mppool shutdown" in done.stderr
    assert "hidden" not in done.stderr


def test_a_successor_goes_on_with_the_lease(
    runtime_dir: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "600")  # on a busy machine a server takes its time to start
    settled(redis_server)
    manager = PoolManager("shop", redis=redis_server.url, linger=0.1)
    pool = manager.pool("orders", Thing, max_size=CAP)
    lease = pool.checkout()
    first = manager.server_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: manager.server_pid not in (None, first), "a successor")

    def machines() -> Any:
        return manager.stats()["machines"] or {"pools": {}}

    wait_until(lambda: machines()["pools"].get("orders", {}).get("share") == CAP, "its lease")
    assert machines()["machines"] == 1
    assert isinstance(lease.resource, Thing)
    lease.release()
    manager.close()


def test_what_no_lease_covers_any_more_is_closed_although_it_is_lent(
    runtime_dir: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "2")
    settled(redis_server)
    manager = PoolManager("shop", redis=redis_server.url, linger=0.1)
    pool = manager.pool("orders", Thing, max_size=CAP)
    lease = pool.checkout()
    redis_server.kill()
    wait_until(lambda: not pool.stats()["resources"], "it is closed")
    with pytest.raises(StaleLease, match="because Redis gives no lease at present"):
        lease.resource  # noqa: B018
    lease.release()
    with pytest.raises(CheckoutTimeout, match="share of this machine is 0 at present"):
        pool.checkout(timeout=0)
    manager.close()


def test_what_was_detached_is_closed_by_a_machine_that_loses_its_lease(
    runtime_dir: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "2")
    settled(redis_server)
    closed: list[Thing] = []
    manager = PoolManager("shop", redis=redis_server.url, linger=0.1)
    pool = manager.pool("orders", Thing, close=closed.append, max_size=CAP)
    lease = pool.checkout()
    thing = lease.detach()
    redis_server.kill()
    wait_until(lambda: closed, "it to be closed")
    assert closed == [thing]
    lease.closed()  # it has been said already
    wait_until(lambda: not pool.stats()["resources"], "its slot")
    manager.close()


def test_the_example_of_the_page(
    runtime_dir: Path,
    redis_server: RedisServer,
    short_lease: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settled(redis_server)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    page = (ROOT / "docs" / "machines.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    said = run_python(example + "manager.close()").stdout
    assert said == "".join(re.findall(r"^    (leased .*\n)", page, re.MULTILINE))


# --- three machines ----------------------------------------------------------------------------------


class Machine:
    """A runtime directory, the server there, and one process that uses the pool."""

    def __init__(
        self,
        directory: Path,
        url: str,
        sessions: str,
        within: Sequence[str] = (),
        more: Sequence[str] = (),
    ) -> None:
        """sessions: where they are opened: the path of a witness, or a PostgreSQL. within: what runs it elsewhere.

        more: further words for `tests.machines.worker`.
        """
        directory.mkdir(0o700)
        self.directory = directory
        self._process = subprocess.Popen(
            [
                *within, sys.executable, "-m", "tests.machines.worker", str(directory), url, sessions, str(CAP), *more,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        self.pid = self._process.pid
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def busy(self, threads: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % threads)
        self._process.stdin.flush()

    def kill(self) -> None:
        """Everything of it at once, as a power cut does."""
        self._process.kill()
        address = read_address(manager_paths("shop", self.directory))
        if address is not None:
            try:
                os.kill(address.server.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has left
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def witness(runtime_dir: Path) -> Iterator[Witness]:
    one = Witness(runtime_dir / "sessions", cap=CAP)
    yield one
    one.end()


def test_the_cap_holds_over_machines_whoever_is_killed(
    runtime_dir: Path, redis_server: RedisServer, witness: Witness, short_lease: None
) -> None:
    settled(redis_server)
    machines: list[Machine] = []
    try:
        machines += [
            Machine(runtime_dir / f"m{number}", redis_server.url, witness.path)
            for number in range(3)
        ]
        first, second, third = machines

        def held_by(*those: Machine) -> list[int]:
            pids = witness.figures()["pids"]
            return [pids.count(machine.pid) for machine in those]

        for machine in machines:
            machine.busy(4)
        wait_until(lambda: all(held_by(*machines)), "each machine has some")
        second.busy(0)
        third.busy(0)
        first.busy(6)
        wait_until(lambda: held_by(first)[0] >= 5, "the load has moved the cap")
        second.busy(6)
        wait_until(lambda: held_by(second)[0] >= 2, "another load has moved some back")
        first.kill()
        third.busy(6)
        wait_until(lambda: sum(held_by(second, third)) == CAP, "the share of the dead is back")
        redis_server.kill()
        wait_until(lambda: not witness.figures()["held"], "without a lease all is closed")
        redis_server.start()  # empty
        wait_until(lambda: sum(held_by(second, third)) == CAP, "all is well again")
        figures = witness.figures()
        assert figures["over"] == []
        assert figures["peak"] == CAP
    finally:
        for machine in machines:
            if machine.directory.exists():
                machine.kill()


def test_a_budget_of_two_pools_holds_over_machines(
    runtime_dir: Path, redis_server: RedisServer, witness: Witness, short_lease: None
) -> None:
    settled(redis_server)
    machines: list[Machine] = []
    try:
        machines += [
            Machine(runtime_dir / f"m{number}", redis_server.url, witness.path, more=["budget"])
            for number in range(2)
        ]

        def held() -> list[int]:
            pids = witness.figures()["pids"]
            return [pids.count(machine.pid) for machine in machines]

        for machine in machines:
            machine.busy(6)
        wait_until(lambda: held() == [CAP // 2, CAP // 2], "each machine has half of it")
        machines[0].kill()
        wait_until(lambda: held() == [0, CAP], "the share of the dead is back")
        figures = witness.figures()
        assert figures["over"] == []
        assert figures["peak"] == CAP
    finally:
        for machine in machines:
            machine.kill()
