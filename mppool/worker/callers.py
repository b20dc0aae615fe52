"""Who has checked out: noted with the resource, for people who look for what is held."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mppool.worker.inventory import PoolEntry


def caller_name() -> str:
    """The thread that runs this, and its task where it is in one."""
    thread = threading.current_thread().name
    asyncio = sys.modules.get("asyncio")
    loop = None if asyncio is None else asyncio._get_running_loop()
    task = None if asyncio is None or loop is None else asyncio.current_task(loop)
    return thread if task is None else f"{thread}, {task.get_name()}"


def note_caller(entry: PoolEntry, label: str = "", caller: str = "") -> None:
    """The calling thread has this resource from now on, or this caller in another process.

    It is noted for this lease only, and a checkout that notes nothing has nothing to wipe out: see `noted`.
    """
    entry.label = label
    entry.thread = caller or caller_name()
    entry.noted_at = entry.lent_at


def noted(entry: PoolEntry) -> tuple[str, str]:
    """The label and the thread of the lease that a resource is in; empty where they were not noted."""
    if entry.noted_at != entry.lent_at:
        return "", ""
    return entry.label, entry.thread
