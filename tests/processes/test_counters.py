"""Counters never go backwards while any process lives that saw them, no matter which one counts them by now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from tests.helpers import PATIENCE, Fork, is_alive, wait_until

Forks = Callable[..., Fork]


def counted(manager: PoolManager) -> dict[str, int]:
    pool = manager.stats()["pools"]["p"]
    return {
        **pool["counters"],
        **{
            f"{name} {i}": n
            for name in pool["histograms"]
            for i, n in enumerate(_counts(pool, name))
        },
    }


def _counts(pool: Any, name: str) -> list[int]:
    counts: list[int] = pool["histograms"][name]["counts"]
    return counts


def use(pool: Any, times: int = 5) -> None:
    for number in range(times):
        lease = pool.checkout(timeout=15)
        if number % 2:
            lease.discard()
        else:
            lease.release()


def _use_and_look(manager: PoolManager, pool: Any) -> None:
    """What a process has counted is known once somebody has asked for it."""
    use(pool)
    manager.stats()


def fell(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {name: (n, after[name]) for name, n in before.items() if after[name] < n}


def replace_server(manager: PoolManager, how: str) -> None:
    server = wait_until(lambda: manager.server_pid, "a server")
    if how == "killed":
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not is_alive(server), "its death")
    else:
        manager.shutdown()


@pytest.mark.parametrize("how", ["killed", "ended in order"])
@pytest.mark.parametrize("dead", ["before", "with the server", "nobody"])
def test_counters_go_on_under_the_next_server(
    manager: PoolManager, fork: Forks, how: str, dead: str
) -> None:
    pool = manager.pool("p", list, max_size=3)

    def work() -> None:
        use(pool)
        os.write(writing, b"x")
        signal.pause()

    reading, writing = os.pipe()
    child = fork(work)
    assert os.read(reading, 1) == b"x"
    use(pool)
    assert counted(manager)["checkouts"] == 10
    if dead == "before":
        child.kill()
        wait_until(lambda: len(manager.stats()["processes"]) == 1, "its death to be noticed")
    seen = counted(manager)
    assert seen["checkouts"] == 10
    began = manager.stats()["pools"]["p"]["counters_began"]
    if dead == "with the server":
        child.kill()
    for _ in range(3):
        replace_server(manager, how)
        assert not fell(
            seen, counted(manager)
        )  # with no server, or just one that has heard of nobody
        use(pool, 1)
        after = counted(manager)
        assert not fell(seen, after)
        seen = after
        assert manager.stats()["pools"]["p"]["counters_began"] == began
    wait_until(lambda: counted(manager)["checkouts"] == 13, "exactly what was done")
    assert counted(manager)["closed"] >= 4


def test_who_only_looks_on_carries_them_too(runtime_dir: Path, fork: Forks) -> None:
    """A monitor is attached to nothing; the workers that counted are gone with their server.

    The server lingers until the monitor has looked: what nobody has seen that lives, nobody carries.
    """
    manager = PoolManager("t", linger=PATIENCE)
    pool = manager.pool("p", list, max_size=3)
    fork(_use_and_look, manager, pool).result()
    wait_until(lambda: not manager.stats()["processes"], "the end of who worked")
    seen = counted(manager)
    assert (seen["checkouts"], seen["opened"] > 0) == (5, True)
    replace_server(manager, "killed")
    # The next server, which nobody has told anything yet.
    fork(_use_and_look, manager, pool).result()
    after = counted(manager)
    manager.shutdown()
    assert not fell(seen, after)
    assert after["checkouts"] == 10
    assert after["opened"] >= seen["opened"] + 3


def test_creation_numbers_and_counters_agree(manager: PoolManager) -> None:
    numbers: list[int] = []

    def opener(opening: Any) -> list[int]:
        numbers.append(opening.number)
        return []

    pool = manager.pool("p", opener, max_size=2)
    for _ in range(3):
        for _ in range(2):
            pool.checkout(timeout=15).discard()
        assert manager.stats()["pools"]["p"]["counters"]["opened"] == len(numbers)
        replace_server(manager, "killed")
    assert numbers == sorted(numbers)


def test_they_say_when_they_began(manager: PoolManager) -> None:
    before = time.time()
    pool = manager.pool("p", list)
    pool.checkout(timeout=15).release()
    began = pool.stats()["counters_began"]
    assert before - 1 <= began <= time.time()
    time.sleep(0.05)
    assert pool.stats()["counters_began"] == began


def test_nonsense_is_no_word_of_an_earlier_server(manager: PoolManager) -> None:
    pool = manager.pool("p", list)
    use(pool)
    link: Any = manager._link
    link.seen = b"\xc1 nonsense"
    assert counted(manager)["checkouts"] == 5


def test_an_in_process_manager_says_when_they_began() -> None:
    code = (
        "from mppool import InProcessManager; p = InProcessManager().pool('p', list); "
        "p.checkout().release(); print(p.stats()['counters_began'] > 1e9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
