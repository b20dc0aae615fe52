"""`mppool clean`: removes what dead managers have left in the runtime directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

import filelock

from mppool.cli.failing import OK
from mppool.cli.finding import is_in_use, managers_in, members_of, runtime_directory

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from mppool.rendezvous.paths import ManagerPaths


def clean(options: argparse.Namespace) -> int:
    """`mppool clean`: of managers that nobody uses. Lock files stay: somebody may be waiting for one."""
    directory = runtime_directory(options.runtime_dir)
    cleaned = [paths.name for paths in managers_in(directory) if _clean(paths)]
    if cleaned:
        print(f"{directory}: removed what was left of {', '.join(cleaned)}")
    else:
        print(f"{directory}: nothing to remove")
    return OK


def _clean(paths: ManagerPaths) -> bool:
    """True if something was removed. Nothing is, while a process lives or a server is being started."""
    lock = filelock.FileLock(paths.start_lock, timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        return False
    try:
        if is_in_use(paths) or _is_held(paths.alive_lock) or _is_held(paths.living):
            return False
        removed = False
        for path in _left(paths):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                removed = True
        return removed
    finally:
        lock.release()


def _left(paths: ManagerPaths) -> Iterator[Path]:
    names = ("journal", "address", "address.spare", "log", "log.1", "hosts.log", "machine")
    yield from (paths.directory / name for name in names)
    yield from (paths.members / name for name in members_of(paths))
    for name in os.listdir(paths.runtime_dir):
        if name.startswith(paths.socket_prefix):
            yield paths.runtime_dir / name


def _is_held(path: Path) -> bool:
    """Whether a process, of any pid namespace, has a lock on the file, of either kind."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
