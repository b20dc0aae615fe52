"""Hooks for gunicorn.conf.py. All are optional: nothing of mppool's correctness depends on them.

    from mppool.integrations.gunicorn import *  # noqa: F403

or one by one; to add your own code to a hook, call ours from yours:

    from mppool.integrations import gunicorn as pools

    def post_worker_init(worker):
        pools.post_worker_init(worker)
        ...

What they do: workers have the name that they have in gunicorn (without the hooks, one that is found out); a worker opens
a resource of each pool before it accepts, so that its first request finds one (where there are fewer slots than
workers, some find none), and has `min_size` opened in the background, `max_opening` at a time; a worker that exits in order closes what it holds idle, so that the database sees a farewell and not a broken connection.

gunicorn may call `worker_exit` in the master (when a worker vanished before its signal arrived), and calls
only `child_exit` for a worker that was killed: see `_is_of_this_process`.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool import manager as managers
from mppool.errors import PoolError
from mppool.logs import Log
from mppool.worker import member as members

if TYPE_CHECKING:
    from mppool.worker.member import Member

__all__ = ["child_exit", "on_exit", "post_fork", "post_worker_init", "when_ready", "worker_exit"]

log = Log("mppool")

WARM_UP_S = 5.0
"""How long opening before the first request may take altogether; gunicorn kills who does not boot in time."""


def when_ready(server: Any) -> None:
    """In the master, when it listens: name it in the statistics, in case that it uses a pool itself."""
    members.name_process(f"{server.cfg.proc_name} master")


def post_fork(server: Any, worker: Any) -> None:
    """In a new worker: name it in the statistics, by its age (gunicorn's running number of workers)."""
    members.name_process(f"{server.cfg.proc_name} worker {worker.age}")


def post_worker_init(worker: Any) -> None:
    """In a worker that has loaded the application: open one resource of each pool that it declares, and begin to fill.

    A database that is down does not keep the worker from starting: the pool heals by itself. Nor do databases
    that do not answer: after WARM_UP_S seconds the remaining pools are left to their first checkout.
    """
    deadline = monotonic() + WARM_UP_S
    for member in managers.members():
        for name, local in list(member.local_pools.items()):
            left = deadline - monotonic()
            if left > 0 and not local.recipe.belongs_to_loop:  # which does not run yet
                _warm_up(member, name, left)
        _fill(member)


def worker_exit(server: Any, worker: Any) -> None:
    """In a worker that leaves: close what lies idle. What is still in use goes with the process."""
    if _is_of_this_process(worker):
        _close_idle()


def child_exit(server: Any, worker: Any) -> None:
    """In the master, after a worker has gone. Its slots are free already: the server watches processes."""
    log.debug("worker %s has gone", worker.pid)


def on_exit(server: Any) -> None:
    """In the master, before it exits: close what it holds idle, if it has used a pool itself."""
    _close_idle()


def _is_of_this_process(worker: Any) -> bool:
    return bool(worker.pid == os.getpid())


def _warm_up(member: Member, name: str, seconds: float) -> None:
    try:
        member.warm_up(name, seconds)
    except (PoolError, OSError) as error:
        log.warning("pool %r: nothing could be opened before the first request: %s", name, error)


def _fill(member: Member) -> None:
    try:
        member.fill()
    except (PoolError, OSError) as error:
        log.warning("manager %r: min_size could not be asked for: %s", member.name, error)


def _close_idle() -> None:
    for member in managers.members():
        member.close_idle()
