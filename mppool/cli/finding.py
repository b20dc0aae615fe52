"""Which managers there are. Only looks: no server is started, no directory made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mppool.cli.failing import NOT_FOUND, CommandFailed
from mppool.errors import ConfigurationError
from mppool.options import checked_name
from mppool.rendezvous.launch import server_pid
from mppool.rendezvous.liveness import lives
from mppool.rendezvous.paths import ManagerPaths, check_trust, manager_paths
from mppool.server.members import process_of

if TYPE_CHECKING:
    from pathlib import Path

    from mppool.manager import PoolManager


def runtime_directory(given: str | None) -> Path:
    """The runtime directory that is meant, whether it exists or not."""
    return manager_paths("any", given).runtime_dir


def managers_in(directory: Path) -> list[ManagerPaths]:
    """Every manager that ever had a server here, by name.

    Raises ConfigurationError for a directory of somebody else's, also for root.
    """
    try:
        check_trust(directory)
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CommandFailed(
            f"the runtime directory {directory} cannot be read: {error.strerror}", NOT_FOUND
        ) from error
    return [paths for name in names if (paths := _paths_of(directory, name)) is not None]


def _paths_of(directory: Path, name: str) -> ManagerPaths | None:
    try:
        paths = ManagerPaths(directory, checked_name("manager", name))
    except ConfigurationError:
        return None  # something else that lies in the directory
    return paths if paths.alive_lock.exists() else None


def running_manager(name: str, runtime_dir: str | None) -> PoolManager:
    """The manager of that name, whose server runs. CommandFailed, which says what there is, otherwise."""
    from mppool.manager import PoolManager

    paths = manager_paths(name, runtime_dir)
    if server_pid(paths) is None:
        directory = paths.runtime_dir
        names = [one.name for one in managers_in(directory)]
        if name in names:
            raise CommandFailed(
                f"manager {name!r}: no server runs in {directory}; the next checkout starts one",
                NOT_FOUND,
            )
        known = f"there are: {', '.join(names)}" if names else "there are none"
        raise CommandFailed(
            f"there is no manager {name!r} in {directory}; {known}. Another directory: --runtime-dir",
            NOT_FOUND,
        )
    return PoolManager(name, runtime_dir=runtime_dir)


def is_in_use(paths: ManagerPaths) -> bool:
    """Whether it has a server, or a living process that has been attached to one."""
    return server_pid(paths) is not None or bool(living_members(paths))


def members_of(paths: ManagerPaths) -> list[str]:
    """Names of the files of all processes that are, or were, attached."""
    try:
        return os.listdir(paths.members)
    except FileNotFoundError:
        return []


def living_members(paths: ManagerPaths) -> list[str]:
    """Of those, the ones whose process lives."""
    return [
        name
        for name in members_of(paths)
        if (process := process_of(name)) is not None and lives(process)
    ]


def stats_of(manager: PoolManager, *, survey: bool = False) -> dict[str, Any] | None:
    """The figures of a manager, or None if its server has just gone. survey: see Manager.stats."""
    stats: Any = manager.stats(survey=survey)
    return None if stats["server_pid"] is None else stats
