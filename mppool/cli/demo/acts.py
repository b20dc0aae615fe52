"""What is done to the application while it is under load, and how long it takes to recover."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

from mppool.cli.demo.load import Death
from mppool.cli.demo.stage import end_process
from mppool.cli.looking import duration
from mppool.errors import PoolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.cli.demo.result import Result
    from mppool.cli.demo.screen import Screen
    from mppool.cli.demo.web_server import WebServer
    from mppool.cli.demo.witness import Seen, Witness
    from mppool.manager import PoolManager

_PATIENCE_S = 15.0
_REUSE_PATIENCE_S = 45.0  # a worker that takes the place of the dead one has to start first
_POLL_S = 0.002
_TICK_S = 0.1


def pool_figures(manager: PoolManager, result: Result) -> Any:
    """The pool's figures; None while no server can be asked, or it does not know the pool yet."""
    try:
        stats = manager.stats()
    except (PoolError, TimeoutError):
        return None  # it was killed in this very moment: that is what we are here for
    pool: Any = stats["pools"].get("database")
    if pool is not None:  # each server goes on counting where the one before it ended
        result.moved = max(result.moved, pool["counters"]["moved"])
    return pool


def kill_worker(
    screen: Screen, manager: PoolManager, web: WebServer, witness: Witness, result: Result
) -> Death | None:
    """SIGKILL for the worker that has the most connections open."""
    workers = web.workers()
    held = witness.seen().by_pid
    victim = max(workers, key=lambda pid: held.get(pid, 0))
    result.killed_held = held.get(victim, 0)
    has = "none of its own" if result.hosted else f"{result.killed_held} connections open"
    screen.tell(f"SIGKILL for worker {victim}, which has {has}")
    killed_at = time.monotonic()
    gone_at = end_process(victim, signal.SIGKILL)
    if gone_at is None:
        return None
    if result.hosted:
        return Death(killed_at, gone_at)  # what it had lent was in the host, and stays open
    # Times count from the signal: of the death itself we hear later than others do.
    result.free_after_s = _wait(lambda: _has_no_slots(manager, victim, result), killed_at)
    if result.free_after_s is not None:
        screen.tell(f"its slots are free after {duration(result.free_after_s)}")
    until = time.monotonic() + _REUSE_PATIENCE_S
    while result.reused_after_s is None and time.monotonic() < until:
        result.reused_after_s = _reused_after(witness.seen(), victim, killed_at, result.killed_held)
        time.sleep(_POLL_S)
    return Death(killed_at, gone_at)


def _has_no_slots(manager: PoolManager, pid: int, result: Result) -> bool:
    pool = pool_figures(manager, result)
    return pool is not None and all(one["pid"] != pid for one in pool["resources"])


def _reused_after(seen: Seen, dead: int, killed_at: float, held: int) -> float | None:
    """When the other processes had opened as many more connections as the dead one had had."""
    events = [(at, 1) for at, pid in seen.opened if pid != dead and at >= killed_at]
    events += [(at, -1) for at, pid in seen.ended if pid != dead and at >= killed_at]
    more = 0
    for at, change in sorted(events):
        more += change
        if more >= held:
            return at - killed_at
    return None


def kill_server(screen: Screen, manager: PoolManager, result: Result) -> None:
    """SIGKILL for the server that keeps the books."""
    pid = manager.server_pid
    if pid is None:
        screen.tell("no server runs")
        return
    screen.tell(f"SIGKILL for the server, {pid}")
    killed_at = time.monotonic()
    if end_process(pid, signal.SIGKILL) is None:
        return

    def is_replaced() -> bool:
        return manager.server_pid not in (None, pid) and pool_figures(manager, result) is not None

    result.server_after_s = _wait(is_replaced, killed_at)
    if result.server_after_s is not None:
        screen.tell(f"server {manager.server_pid} serves after {duration(result.server_after_s)}")


def reload(screen: Screen, web: WebServer, result: Result, tick: Callable[[], None]) -> None:
    """HUP: all workers are replaced, under load."""
    before = web.workers()
    screen.tell("HUP for gunicorn: new workers take the place of the old")
    sent_at = time.monotonic()
    web.reload()

    def is_reloaded() -> bool:
        tick()
        now = web.workers()
        return not now & before and len(now) >= len(before)

    result.reload_s = _wait(is_reloaded, sent_at, _TICK_S)
    result.reloaded_workers = len(before)
    if result.reload_s is not None:
        screen.tell(f"{len(before)} workers replaced after {duration(result.reload_s)}")


def _wait(condition: Callable[[], bool], since: float, interval_s: float = _POLL_S) -> float | None:
    """Seconds from `since` until the condition held; None if it did not for too long."""
    while not condition():
        if time.monotonic() > since + _PATIENCE_S:
            return None
        time.sleep(interval_s)
    return time.monotonic() - since
