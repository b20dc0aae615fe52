"""python -m tests.stress.deaths [--kills N]: how long until the next grant, when somebody has died?

Of a worker: another process holds the only slot and is killed by SIGKILL while we wait in the line.
Of the server: it is killed by SIGKILL while two processes hold what they have, and a checkout that finds
nothing idle asks its successor, which must be started first. From the kill to the lease in our hands;
what the pool holds costs nothing to open. Beside it what the kernel alone takes, from the SIGKILL of such a
process until its pidfd says that it is dead: nobody can know of a death earlier.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import shutil
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

from mppool import Pool, PoolManager
from tests.helpers import Fork, is_alive, wait_until


def _holder(pool: Pool[object]) -> Fork:
    """Another process that holds a slot until it is killed."""
    reading, writing = os.pipe()

    def hold() -> None:
        with pool.checkout(timeout=20):
            os.write(writing, b"x")
            signal.pause()

    child = Fork(hold)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read(1) == b"x", "no slot for the holder"
    return child


def known_to_the_kernel(manager: PoolManager) -> float:
    """Seconds from the SIGKILL of a holder until its death can be known."""
    child = _holder(manager.pool("worker", object, max_size=1))
    pidfd = os.pidfd_open(child.pid)
    killed_at = time.monotonic()
    os.kill(child.pid, signal.SIGKILL)
    select.select([pidfd], [], [])
    dead_at = time.monotonic()
    os.close(pidfd)
    child.kill()
    return dead_at - killed_at


def of_a_worker(manager: PoolManager) -> float:
    """Seconds from the SIGKILL of the only holder to the lease of a waiter in this process."""
    pool = manager.pool("worker", object, max_size=1)
    child = _holder(pool)
    killed_at: list[float] = []

    def kill() -> None:
        wait_until(lambda: manager.stats()["pools"]["worker"]["waiting"] == 1, "a waiter")
        killed_at.append(time.monotonic())
        os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    lease = pool.checkout(timeout=20)
    served_at = time.monotonic()
    killer.join()
    lease.discard()
    child.kill()
    return served_at - killed_at[0]


def of_the_server(manager: PoolManager, pool: Pool[object]) -> float:
    """Seconds from the SIGKILL of the server to a lease that only its successor can grant."""
    pid = manager.server_pid
    assert pid is not None
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    lease = pool.checkout(timeout=20)
    served_at = time.monotonic()
    assert not is_alive(pid)
    lease.discard()
    return served_at - killed_at


def _line(what: str, seconds: list[float]) -> str:
    ordered = sorted(1000 * one for one in seconds)
    p95 = ordered[int(0.95 * (len(ordered) - 1))]
    return (
        f"{what}, {len(ordered)} kills: median {statistics.median(ordered):.2f} ms, "
        f"p95 {p95:.2f} ms, worst {ordered[-1]:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.deaths", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each kind")
    kills = parser.parse_args().kills
    logging.disable(logging.CRITICAL)
    directory = Path(tempfile.mkdtemp(prefix="mppd-", dir="/tmp"))
    manager = PoolManager("deaths", runtime_dir=directory, linger=0.0)
    try:
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        kernel = [known_to_the_kernel(manager) for _ in range(kills)]
        print(_line("death of a worker to what the kernel says of it", kernel), flush=True)
        worker = [of_a_worker(manager) for _ in range(kills)]
        print(_line("death of a worker to the next grant", worker), flush=True)
        pool = manager.pool("server", object, max_size=3)
        kept, other = pool.checkout(timeout=20), _holder(pool)
        server = [of_the_server(manager, pool) for _ in range(kills)]
        print(_line("death of the server to the next grant", server), flush=True)
        print(f"load {os.getloadavg()[0]:.1f}")
        other.kill()
        kept.release()
    finally:
        manager.shutdown()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
