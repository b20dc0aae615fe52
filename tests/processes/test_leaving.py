"""How a process leaves: manager.close(), the end of a `with` block, the end of the interpreter."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from mppool import InProcessManager, PoolManager
from tests.helpers import Fork, wait_until
from tests.processes.witness import Witness

Forks = Callable[..., Fork]


def attached(manager: PoolManager) -> set[int]:
    return {process["pid"] for process in manager.stats()["processes"]}


def test_close_closes_what_is_idle_here_and_detaches(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=4)
    leases = [pool.checkout(timeout=10) for _ in range(3)]
    for lease in leases:
        lease.release()
    server = manager.server_pid
    manager.close()
    assert witness.figures()["held"] == 0
    assert manager._member.inventory.session is None
    assert manager.server_pid == server
    assert fork(lambda: len(attached(manager))).result() == 0
    with pool.checkout(timeout=10) as session:  # it can be used again
        session.ask("again")


def test_close_lets_leases_work_and_detaches_when_the_last_is_released(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    lease = pool.checkout(timeout=10)
    manager.close()
    lease.resource.ask("still mine")
    assert manager._member.inventory.session is not None
    lease.release()
    assert witness.figures()["held"] == 0
    wait_until(lambda: manager._member.inventory.session is None, "it to detach")
    assert fork(_use, pool).result()


def _use(pool: Any) -> bool:
    with pool.checkout(timeout=10) as session:
        return bool(session.ask("mine"))


def test_what_was_closed_is_free_for_others_at_once(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    for _ in range(5):
        assert _use(pool)
        manager.close()
        assert fork(_use, pool).result()
    assert witness.figures()["peak"] == 1


def test_close_of_a_manager_that_was_never_used_costs_nothing(runtime_dir: Path) -> None:
    manager = PoolManager("unused")
    manager.close()
    assert manager.server_pid is None


def test_a_with_block_ends_the_server_where_nobody_else_is_attached(runtime_dir: Path) -> None:
    with PoolManager("alone", linger=60) as manager:
        pool = manager.pool("p", list)
        with pool.checkout(timeout=10):
            assert manager.server_pid is not None
    assert manager.server_pid is None


def test_a_with_block_leaves_the_server_to_those_who_use_it(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    with pool.checkout(timeout=10) as session:

        def work() -> int | None:
            with PoolManager("t", linger=0.0) as mine:
                assert _use(mine.pool("p", witness.recipe(), max_size=2))
            return mine.server_pid

        server = manager.server_pid
        assert {fork(work).result() for _ in range(3)} == {server}
        session.ask("still mine")


def test_blocks_within_blocks_of_one_process_end_with_the_outermost(runtime_dir: Path) -> None:
    with PoolManager("nested", linger=60) as outer:
        with PoolManager("nested", linger=60) as inner:
            inner.pool("p", list).checkout(timeout=10).release()
        assert outer.server_pid is not None
        assert outer.stats()["pools"]["p"]["size"] == 1
    assert outer.server_pid is None


def test_workers_that_each_write_with_do_not_wait_for_each_other(
    runtime_dir: Path, fork: Forks
) -> None:
    """Four of them took 8 s for 0.3 s of work: each ended the server of the others."""

    def work() -> float:
        began = time.monotonic()
        with PoolManager("busy", linger=60) as manager:
            pool = manager.pool("p", list, max_size=8)
            for _ in range(3):
                with pool.checkout(timeout=10):
                    time.sleep(0.05)
        return time.monotonic() - began

    took = []
    for _ in range(4):  # the machine may be busy: the best of a few
        workers = [fork(work) for _ in range(4)]
        took.append(max(worker.result() for worker in workers))
        if took[-1] < 4:
            break
    assert min(took) < 4
    wait_until(lambda: PoolManager("busy").server_pid is None, "the last one to end it")


CODE = """
import sys, threading, time
from mppool import InProcessManager, PoolManager

class Thing:
    def close(self):
        if {slow}:
            time.sleep({slow})
        print("closed", flush=True)

manager = {manager}
pool = manager.pool("p", Thing, max_size=5)
leases = [pool.checkout(timeout=20) for _ in range(3)]
kept = leases.pop()
for lease in leases:
    lease.release()
{end}
"""


@pytest.mark.parametrize("manager", ["PoolManager('end', linger=0.0)", "InProcessManager()"])
@pytest.mark.parametrize("end", ["", "sys.exit(0)", "raise RuntimeError('as it may')"])
def test_a_normal_end_of_the_interpreter_closes_what_is_idle(
    runtime_dir: Path, manager: str, end: str
) -> None:
    code = CODE.format(manager=manager, slow=0, end=end)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "closed\n" * 2, done.stderr
    assert ("Traceback" in done.stderr) == ("Error" in end)


KEPT: list[Any] = []


def _work_in_a_process(path: str) -> None:
    def close(resource: list[int]) -> None:
        with open(path, "a") as file:
            file.write("closed\n")

    pool = PoolManager("end", linger=0.0).pool("p", list, max_size=5, close=close)
    KEPT.extend(pool.checkout(timeout=20) for _ in range(3))
    for lease in KEPT[1:]:
        lease.release()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_of_multiprocessing_closes_what_is_idle_too(
    runtime_dir: Path, tmp_path: Path, method: str
) -> None:
    path = tmp_path / "log"
    process = get_context(method).Process(target=_work_in_a_process, args=(str(path),))  # type: ignore[attr-defined]
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert path.read_text() == "closed\n" * 2


def test_a_close_that_hangs_keeps_no_interpreter_from_ending(runtime_dir: Path) -> None:
    code = CODE.format(manager="PoolManager('end', linger=0.0)", slow=60, end="print('end')")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout == "end\n", done.stderr
    assert time.monotonic() - began < 10


def test_an_in_process_manager_closes_too() -> None:
    closed: list[int] = []
    manager = InProcessManager("closes")
    pool = manager.pool("p", list, close=lambda r: closed.append(1))
    pool.checkout().release()
    manager.close()
    assert closed == [1]
    with pool.checkout():
        pass
    manager.close()
    assert closed == [1, 1]
    wait_until(
        lambda: "mppool-timers-closes" not in {thread.name for thread in threading.enumerate()},
        "its thread to end",
    )
