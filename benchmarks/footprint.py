"""What mppool costs beside the work: memory, threads, imports, the start of the server, wake-ups when idle."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.command import command
from benchmarks.load import fork, in_processes, private_manager
from benchmarks.measuring import interleaved
from benchmarks.tables import Table

ROOT = Path(__file__).parent.parent


def run(quick: bool) -> list[Table]:
    """One table per quantity."""
    return [imports(quick), start(quick), server_memory(quick), worker(quick), idle(quick)]


# --- import and start -----------------------------------------------------------------------------------------

ASYNCIO = "import asyncio"
IMPORTS = {
    "nothing": "",
    ASYNCIO: "import asyncio",
    "import multiprocessing.managers, msgspec": "import multiprocessing.managers, msgspec",
    "import mppool": "import mppool",
    "mppool: import and PoolManager": "import mppool; mppool.PoolManager('x')",
    "import sqlalchemy": "import sqlalchemy",
}


def imports(quick: bool) -> Table:
    """A fresh interpreter that imports something."""
    rounds = 1 if quick else 15
    known = dict([*IMPORTS.items()][:4]) if quick else IMPORTS
    names = [name for name, code in known.items() if _python(code, check=False).returncode == 0]
    samples = interleaved({name: lambda n=name: _import_ms(IMPORTS[n]) for name in names}, rounds)
    return Table(
        "footprint_import",
        "Importing, in a fresh interpreter",
        "ms of CPU",
        samples,
        (ASYNCIO,),
        notes=[
            "as the interpreter itself measures it, without its own start, from compiled modules"
        ],
        aims=[f"mppool: at most 60 ms on the hardware of the issue, beside {ASYNCIO}"],
    )


def _import_ms(code: str) -> float:
    told = f"import time; t = time.process_time(); {code}\nprint(time.process_time() - t)"
    return float(_python(told).stdout) * 1000


def _python(code: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=check,
        cwd=ROOT,
        env=_with_byte_code(),
    )


@functools.cache
def _with_byte_code() -> dict[str, str]:
    """The environment, with a place for compiled modules: else what is measured is the compiler."""
    place = tempfile.mkdtemp(prefix="mppool-bench-pyc-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    left_out = "PYTHONDONTWRITEBYTECODE"
    environment = {name: value for name, value in os.environ.items() if name != left_out}
    return {**environment, "PYTHONPYCACHEPREFIX": place}


def start(quick: bool) -> Table:
    """From nothing to the first lease: find no server, start one, attach, be granted a slot."""
    rounds = 1 if quick else 9

    def mppool() -> float:
        with private_manager(linger=0.1) as manager:
            pool = manager.pool("p", object)
            began = time.perf_counter()
            pool.checkout().release()
            return (time.perf_counter() - began) * 1000

    def interpreter() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import msgspec, selectors, logging"], check=True)
        return (time.perf_counter() - began) * 1000

    floor = "an interpreter with msgspec, selectors, logging"
    samples = interleaved({floor: interpreter, "mppool, server and first lease": mppool}, rounds)
    return Table("footprint_start", "Starting the server", "ms", samples, (floor,))


# --- memory ---------------------------------------------------------------------------------------------------


def server_memory(quick: bool) -> Table:
    """Resident memory of the server, with nobody's slots and with many."""
    clients, slots = (4, 5) if quick else (100, 10)
    samples: dict[str, list[float]] = {}
    with private_manager() as manager:
        manager.start()
        server = manager.server_pid
        assert server is not None
        samples["one client, no slot"] = [_resident_mb(server)]
        pool = manager.pool("p", object, max_size=clients * slots)

        barrier = fork.Barrier(clients)

        def hold(_: int) -> float:
            leases = [pool.checkout() for _ in range(slots)]
            barrier.wait()
            measured = _resident_mb(server)
            barrier.wait()
            for lease in leases:
                lease.release()
            return measured

        name = f"{clients} clients with {clients * slots} slots"
        samples[name] = [max(in_processes(clients, hold))]
    return Table(
        "footprint_server",
        "Resident memory of the server",
        "MB",
        samples,
        aims=["at most 40 MB with 100 clients and 1,000 slots"],
    )


WORKER = """
import sys
sys.path.insert(0, {root!r})
def resident_kb():
    return int(open("/proc/self/statm").read().split()[1]) * {page} // 1024
import multiprocessing.managers, msgspec, threading
before = resident_kb()
import mppool
manager = mppool.PoolManager("x", runtime_dir={directory!r}, linger=0.1)
pool = manager.pool("p", object)
imported = resident_kb()
pool.checkout().release()
print(before, imported, resident_kb(), threading.active_count() - 1)
"""


def worker(quick: bool) -> Table:
    """What one process has more than one that has imported what mppool needs."""
    rounds = 1 if quick else 5
    threads: list[int] = []
    samples: dict[str, list[float]] = {"mppool, imported": [], "mppool, with one pool in use": []}
    for _ in range(rounds):
        with private_manager(linger=0.1) as manager:
            manager.start()
            code = WORKER.format(
                root=str(ROOT),
                page=os.sysconf("SC_PAGE_SIZE"),
                directory=manager._locator.runtime_dir,
            ).replace('"x"', repr(manager.name))
            before, imported, used, extra = map(int, _python(code).stdout.split())
        samples["mppool, imported"].append((imported - before) / 1024)
        samples["mppool, with one pool in use"].append((used - before) / 1024)
        threads.append(extra)
    return Table(
        "footprint_worker",
        "Memory of a worker, beyond importing multiprocessing.managers and msgspec",
        "MB",
        samples,
        details={"mppool, with one pool in use": {"threads": max(threads)}},
        aims=["at most 3 MB and one thread"],
    )


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- idleness -------------------------------------------------------------------------------------------------


def idle(quick: bool) -> Table:
    """How often somebody wakes up while nothing happens."""
    seconds = 0.5 if quick else 10.0
    with private_manager() as manager:
        pool = manager.pool("p", object)
        pool.checkout().release()
        time.sleep(1.0)
        server = manager.server_pid
        assert server is not None
        counts: dict[str, Callable[[], int]] = {
            "mppool, server": lambda: _switches(server),
            "mppool, threads of a worker": lambda: (
                _switches(os.getpid()) - _switches(os.getpid(), 0)
            ),
        }
        before = {name: count() for name, count in counts.items()}
        time.sleep(seconds)
        samples = {name: [(count() - before[name]) / seconds] for name, count in counts.items()}
    return Table("footprint_idle", "Waking up while nothing happens", "times per second", samples)


def _switches(pid: int, first: int | None = None) -> int:
    """Voluntary context switches of all threads of a process; with `first=0` of its main thread alone."""
    threads: list[Any] = sorted(
        Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)
    )
    texts = [(path / "status").read_text() for path in (threads[:1] if first == 0 else threads)]
    return sum(int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for text in texts)


if __name__ == "__main__":
    command({"footprint": run})
