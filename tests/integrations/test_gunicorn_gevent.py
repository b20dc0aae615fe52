"""Greenlets: patched threads, checkouts that wait cooperatively, time-outs that strike while waiting (hazard 13)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import run_python, wait_until
from tests.integrations.witness import Witness

pytest.importorskip("gevent")

CAP = 2

# Patched first, as `python -m gevent.monkey` and gunicorn without --preload do it.
PATCHED = """
from gevent import monkey
monkey.patch_all()
import json, os, sys, time, threading
import gevent
from tests.integrations.witness_app import pool, manager
"""

# Imported first, then forked, then patched: gunicorn with --preload.
PRELOADED = """
import json, os, sys, time, threading
from tests.integrations.witness_app import pool, manager
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
from gevent import monkey
monkey.patch_all()
import gevent
"""

USE = """
gaps, done = [], []

def tick():
    last = time.monotonic()
    while not done:
        gevent.sleep(0.005)
        gaps.append(time.monotonic() - last)
        last += gaps[-1]

def use(number):
    right = 0
    for turn in range(10):
        with pool.checkout(timeout=15) as session:
            session.ask()
            gevent.sleep(0.003)
            session.ask()
            right += 1
    return right

ticker = gevent.spawn(tick)
workers = [gevent.spawn(use, number) for number in range(8)]
gevent.joinall(workers, raise_error=True)
done.append(True)
ticker.join()
threads = len(os.listdir("/proc/self/task"))
stats = manager.stats()
print(json.dumps({
    "right": sum(one.value for one in workers),
    "gap": max(gaps),
    "threads": threads,
    "errands": [thread.name for thread in threading.enumerate()],
    "epoch": stats["epoch"],
    "counters": stats["pools"]["orders"]["counters"],
}))
"""

INTERRUPTED = """
from mppool import CheckoutTimeout
hits = 0

def wait_too_long():
    global hits
    try:
        with gevent.Timeout(0.05):
            with pool.checkout(timeout=15) as session:
                session.ask()
                gevent.sleep(1.0)
    except gevent.Timeout:
        hits += 1

for turn in range(3):
    gevent.joinall([gevent.spawn(wait_too_long) for number in range(6)], raise_error=True)
    one = gevent.spawn(wait_too_long)
    gevent.sleep(0.01)
    one.kill()
try:
    leases = [pool.checkout(timeout=20) for number in range(2)]
    assert pool.stats()["in_use"] == 2
    try:
        pool.checkout(timeout=0.05)
    except CheckoutTimeout:
        timed_out = True
finally:
    for lease in leases:
        lease.resource.ask()
        lease.release()
print(json.dumps({"hits": hits, "timed_out": timed_out, "in_use": pool.stats()["in_use"]}))
"""


@pytest.fixture
def witness(runtime_dir: Path) -> Iterator[Witness]:
    with Witness(runtime_dir / "db") as witness:
        yield witness


def run(witness: Witness, code: str) -> dict[str, Any]:
    environment = {"WITNESS": str(witness.path), "APP_CAP": str(CAP)}
    said = run_python(code, environment=environment).stdout
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    return answer


@pytest.mark.timeout(300)
@pytest.mark.parametrize("beginning", [PATCHED, PRELOADED], ids=["patched first", "forked first"])
def test_greenlets_wait_cooperatively_under_one_cap(beginning: str, witness: Witness) -> None:
    for _ in range(3):  # a busy machine keeps them waiting, too: the best of a few
        with ThreadPoolExecutor(2) as two:
            answers = list(two.map(lambda _: run(witness, beginning + USE), range(2)))
        if all(answer["gap"] < 1.0 for answer in answers):
            break
    for answer in answers:
        assert answer["right"] == 80
        assert answer["gap"] < 1.0  # nothing blocked the others for as long as a wait lasts
        assert any(name.startswith("mppool-errands") for name in answer["errands"])
        assert answer["threads"] == 1  # they are greenlets, too
        assert answer["counters"]["timeouts"] == answer["counters"]["leaked"] == 0
    assert len({answer["epoch"] for answer in answers}) == 1
    assert witness.peak == CAP


@pytest.mark.parametrize("beginning", [PATCHED, PRELOADED], ids=["patched first", "forked first"])
def test_a_gevent_timeout_while_waiting_or_using_loses_nothing(
    beginning: str, witness: Witness
) -> None:
    answer = run(witness, beginning + INTERRUPTED)
    assert 18 <= answer["hits"] <= 21  # those that are killed may have timed out before
    assert (answer["timed_out"], answer["in_use"]) == (True, 0)
    assert witness.peak <= CAP
    wait_until(lambda: not witness.sessions(), "the end of all sessions")
