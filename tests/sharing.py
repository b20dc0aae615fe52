"""Servers that all xdist workers of a run share, through mppool's own pytest plugin.

    a worker                         the keeper, a process of its own         the real server
    takes a seat (pool "x-seats")
    address there? connects          holds the one lease of pool "x",
    none: starts a keeper ---------> starts the server, says where it is -->  serves
    gives its seat back              nobody has a seat: stops it --------->   ends

A seat is a lease, so a worker that is killed gives it back too, and Ctrl-C cannot keep a server alive: the
keeper is in a session of its own and sees only that nobody sits there any more.

python -m tests.sharing KIND NAME RUNTIME_DIR     is a keeper.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mppool import PoolManager
from tests.helpers import PATIENCE, ROOT, is_alive, wait_until

KINDS = {
    "postgresql": "tests.integrations.postgresql:kept",
    "mariadb": "tests.integrations.mariadb:kept",
    "azurite": "tests.azure.azurite:kept",
}
"""Functions that give a context manager; it starts a server and yields its address, JSON-compatible."""

_LOOK_S = 0.05
# More workers than any machine runs at a time.
_SEATS = 1000


class SharedServerFailed(Exception):
    """The server could not be started; the message holds the keeper's traceback."""


@contextmanager
def shared(manager: PoolManager, kind: str) -> Iterator[dict[str, Any]]:
    """The address of the one server of this kind, started if it is the first time that somebody wants it.

    The one that leaves last waits for its end.
    """
    # Before the look at the address: a keeper that leaves withdraws that, then looks at the seats again.
    seat = manager.pool(f"{kind}-seats", object, max_size=_SEATS).checkout(timeout=PATIENCE)
    try:
        found = _find_or_start(manager, kind)
        yield found
    finally:
        seat.discard()
    if not _taken(manager, kind):
        wait_until(lambda: not is_alive(found["keeper"]), f"the end of the {kind} server")


def _find_or_start(manager: PoolManager, kind: str) -> dict[str, Any]:
    address = _address_file(manager, kind)
    if (found := _read(address)) is not None:
        return found
    command = [sys.executable, "-m", "tests.sharing", kind, manager.name, manager.directory.parent]
    with address.with_suffix(".log").open("ab") as log:
        # It forks and is nobody's child.
        subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
        )
    # Another worker's keeper may come first: then ours waits until that one has gone.
    return wait_until(lambda: _read(address), f"the {kind} server", timeout=50, interval=0.02)


def _read(address: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(address.read_text())
    except FileNotFoundError:
        return None
    if "failed" in found:
        raise SharedServerFailed(found["failed"])
    return found if is_alive(found["keeper"]) else None


def _address_file(manager: PoolManager, kind: str) -> Path:
    directory = manager.directory / "shared"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / f"{kind}.json"


def _taken(manager: PoolManager, kind: str) -> int | None:
    """How many seats are taken; None where the manager has gone."""
    stats = manager.stats()
    seats = stats["pools"].get(f"{kind}-seats")
    return None if stats["server_pid"] is None or seats is None else int(seats["size"])


# --- the keeper ---------------------------------------------------------------------------------------


def keep(kind: str, manager: PoolManager) -> None:
    """Start the server and keep it while anybody has a seat. Beside another keeper: wait for its end first."""
    address = _address_file(manager, kind)
    with manager.pool(kind, object, max_size=1).checkout(timeout=None):
        if not _taken(manager, kind):
            return
        module, _, function = KINDS[kind].partition(":")
        start: Callable[[], AbstractContextManager[dict[str, Any]]]
        start = getattr(importlib.import_module(module), function)
        try:
            with start() as place:
                while _taken(manager, kind):
                    _publish(address, {**place, "keeper": os.getpid()})
                    while _is_needed(manager, kind):
                        time.sleep(_LOOK_S)
                    address.unlink(missing_ok=True)
        except Exception:
            _publish(address, {"failed": traceback.format_exc()})
            raise


def _is_needed(manager: PoolManager, kind: str) -> bool:
    """Whether anybody has a seat. A manager that was killed is back soon: its clients start the next one."""
    for _ in range(20):
        taken = _taken(manager, kind)
        if taken is not None:
            return taken > 0
        time.sleep(_LOOK_S)
    return False


def _publish(path: Path, address: dict[str, Any]) -> None:
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(address))
    beside.replace(path)


def main(kind: str, name: str, runtime_dir: str) -> None:
    """Go on as nobody's child, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        keep(kind, PoolManager(name, runtime_dir=runtime_dir, linger=5.0))


if __name__ == "__main__":
    main(*sys.argv[1:])
