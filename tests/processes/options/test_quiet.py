"""A process that holds idle resources sleeps; one that uses nothing has not even a thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mppool import Pool, PoolManager
from tests.helpers import wait_until
from tests.processes.options.scene import Scene

Declare = Callable[..., Pool[Any]]
Hire = Callable[..., Any]


def context_switches(pid: int) -> int:
    """Voluntary and involuntary ones of all threads of a process."""
    switches = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if "ctxt_switches" in line:
                switches += int(line.split()[1])
    return switches


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_an_idle_worker_sleeps(
    declare: Declare, hire: Hire, manager: PoolManager, scene: Scene
) -> None:
    pool = declare()
    worker = hire(pool)
    for name in "abc":
        worker.do("checkout", name)
    for name in "abc":
        worker.do("release", name)
    server = manager.server_pid
    assert server is not None
    # What it has just done is over: threads for chores have ended.
    wait_until(lambda: threads(worker.pid) == 2, "its chores to end")
    began = context_switches(worker.pid), context_switches(server)
    time.sleep(3.0)
    assert context_switches(worker.pid) - began[0] <= 2
    assert context_switches(server) - began[1] <= 20  # it looks around every few seconds
    assert pool.stats()["idle"] == 3


def test_who_uses_nothing_has_no_thread(declare: Declare, manager: PoolManager) -> None:
    before = threading.active_count()
    pool = declare(min_size=2, check_interval=0.01, max_idle=0.01, max_lease_warn=0.01)
    pool.stats()
    assert threading.active_count() <= before
    assert threads(os.getpid()) >= before
    assert manager.server_pid is None
