"""Which processes have ever attached: one small file each, named by pid, birth and member.

Written before the first grant and removed at death. Read only when the journal is torn: then the living
among them are those that might hold something.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mppool.ids import ProcessId
from mppool.rendezvous import liveness
from mppool.rendezvous.world import may_be_one_boot

log = logging.getLogger(__name__)


class Members:
    """The member files of one manager. `world` is boot and pid namespace: elsewhere a pid means nothing."""

    def __init__(self, directory: Path, world: str) -> None:
        self._directory = directory
        self._world = world

    def add(self, process: ProcessId) -> None:
        """Write the file of a process. OSError if that is impossible."""
        path = self._path(process)
        if path.exists():
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, self._world.encode("ascii"))
        except OSError as error:
            # Its name is what counts, and needs no block of a full disk.
            log.warning("member file %s is empty: %s", path.name, error.strerror)
        finally:
            os.close(descriptor)

    def remove(self, process: ProcessId) -> None:
        """Remove the file of a dead process."""
        self._path(process).unlink(missing_ok=True)

    def living(self) -> set[ProcessId]:
        """All members that live; the files of all others are removed."""
        found = set()
        for path in self._files():
            process = process_of(path.name)
            if process is not None and self._is_of_this_world(path) and liveness.lives(process):
                found.add(process)
            else:
                path.unlink(missing_ok=True)
        return found

    def clear(self) -> None:
        """Remove all files: nobody holds anything."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        try:
            return sorted(self._directory.iterdir())
        except FileNotFoundError:
            return []

    def _path(self, process: ProcessId) -> Path:
        member = f"-{process.member}" if process.member else ""
        return self._directory / f"{process.pid}-{process.birth}{member}"

    def _is_of_this_world(self, path: Path) -> bool:
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            log.warning("member file %s cannot be read: %s", path.name, error)
            return False
        boot, _, namespace = text.rpartition(" ")
        own_boot, _, own_namespace = self._world.rpartition(" ")
        # "": written in the last moment, or on a full disk.
        return not text or (namespace == own_namespace and may_be_one_boot(boot, own_boot))


def process_of(name: str) -> ProcessId | None:
    """The process whose member file has this name; None: the file is something else."""
    parts = name.split("-")
    if not 2 <= len(parts) <= 3 or not all(part.isdecimal() for part in parts):
        return None
    return ProcessId(*map(int, parts))
