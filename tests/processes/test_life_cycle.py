"""BaseManager's documented life cycle, and what nobody uses: adapted from what CPython checks of its managers.

Source: Lib/test/_test_multiprocessing.py, the tests of managers (start, connect, shutdown, `with`, address,
get_server), by what they assert; no code was copied.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import pytest

from mppool import ConfigurationError, PoolManager, ServerUnavailable
from tests.helpers import Fork, is_alive, processes_using, run_python, wait_until


def test_start_and_shutdown(manager: PoolManager) -> None:
    assert isinstance(manager, BaseManager)
    assert manager.address is None
    assert manager.server_pid is None
    manager.start()
    pid = manager.server_pid
    assert pid is not None
    assert is_alive(pid)
    assert manager.address is not None
    assert os.path.exists(manager.address)
    manager.start()
    assert manager.server_pid == pid
    manager.shutdown()
    wait_until(lambda: not is_alive(pid), "its leaving")
    assert manager.server_pid is None
    manager.shutdown()
    manager.join(1.0)
    manager.pool("p", list).checkout(timeout=10).release()
    assert manager.server_pid != pid


def test_connect_wants_a_server(manager: PoolManager) -> None:
    with pytest.raises(ServerUnavailable, match="start"):
        manager.connect()
    other = PoolManager("t", linger=5.0)
    other.start()
    manager.connect()
    assert manager.server_pid == other.server_pid


def test_with_starts_and_ends(manager: PoolManager) -> None:
    with manager as entered:
        assert entered is manager
        pid = manager.server_pid
        assert pid is not None
        assert is_alive(pid)
        lease = manager.pool("p", list, max_size=1).checkout(timeout=20)
    wait_until(lambda: not is_alive(pid), "its leaving")
    assert lease.resource == []
    lease.release()


def test_nothing_is_registered(manager: PoolManager) -> None:
    with pytest.raises(ConfigurationError, match="SyncManager"):
        PoolManager.register("queue", list)
    with pytest.raises(ConfigurationError, match="configure"):
        manager.start(initializer=print)


def test_a_server_in_the_foreground_serves_other_processes(
    manager: PoolManager, python: Callable[..., Any], fork: Callable[..., Fork]
) -> None:
    process = python(
        "from mppool import PoolManager\n"
        "server = PoolManager('t', linger=0.0).get_server()\n"
        "print('made', flush=True)\n"
        "server.serve_forever()\n"
        "print('left', flush=True)\n"
    )
    assert process.stdout.readline() == "made\n"
    wait_until(lambda: manager.server_pid == process.pid, "it serves")

    def use() -> int | None:
        manager.pool("p", list, max_size=1).checkout(timeout=10).release()
        return manager.server_pid

    assert fork(use).result() == process.pid
    assert process.wait(20) == 0
    assert process.stdout.read() == "left\n"


def test_a_killed_server_whose_exit_status_nobody_takes_is_no_server(
    manager: PoolManager, python: Callable[[str], Any]
) -> None:
    process = python(
        "from mppool import PoolManager; PoolManager('t').get_server().serve_forever()\n"
    )
    wait_until(lambda: manager.server_pid == process.pid, "it serves")
    manager.connect()
    assert manager.address is not None
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie from now on
    assert manager.address is None
    assert manager.server_pid is None
    process.wait(20)


def test_join_waits_for_the_server_to_end(manager: PoolManager) -> None:
    manager.start()
    ended = threading.Event()

    def join() -> None:
        manager.join()
        ended.set()

    thread = threading.Thread(target=join)
    thread.start()
    assert not ended.wait(0.1)
    manager.shutdown()
    thread.join(10)
    assert ended.is_set()


def test_what_is_only_declared_costs_nothing(runtime_dir: Path) -> None:
    """Promise 6: no thread, no connection, no server. In an interpreter where no other test has left a thread."""
    code = """
import os, threading
from mppool import PoolManager

def in_use():
    return threading.active_count(), len(os.listdir("/proc/self/fd"))

before = in_use()
manager = PoolManager("t")
pools = [manager.pool(f"p{number}", list, min_size=1) for number in range(10)]
assert [pool.name for pool in pools]
assert in_use() == before, (before, in_use())
"""
    run_python(code)
    assert processes_using(runtime_dir) == {}
    assert list(runtime_dir.iterdir()) == []


def _switches(pid: int) -> int:
    """Context switches of all threads of a process, so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def test_an_idle_worker_hardly_ever_wakes_up(
    manager: PoolManager, fork: Callable[..., Fork]
) -> None:
    pool = manager.pool("p", list, max_size=2)
    reading, writing = os.pipe()

    def idle() -> None:
        pool.checkout(timeout=10).release()
        os.write(writing, b"x")
        threading.Event().wait(60)

    child = fork(idle)
    os.read(reading, 1)
    before = _switches(child.pid)
    threading.Event().wait(2.0)
    assert _switches(child.pid) - before <= 4
    os.close(reading)
    os.close(writing)
