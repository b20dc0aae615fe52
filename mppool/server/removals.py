"""Notices at once that files of the server are removed: inotify, on its two directories."""

from __future__ import annotations

import logging
import os
from time import monotonic

from mppool.rendezvous.libc import add_directory, watch_removals
from mppool.rendezvous.paths import ManagerPaths

log = logging.getLogger(__name__)

SETTLE_S = 0.02
"""After the last removal, so long nothing is put back: `rm -rf` would find its directories filled again."""
LONGEST_SETTLE_S = 0.25


class Removals:
    """It belongs to the loop's thread.

    descriptor: readable when something was removed; None where the system has none to give (the number of a user's
        inotify instances is limited). Then what vanished is only noticed at the next look around.
    """

    def __init__(self) -> None:
        self.descriptor = watch_removals()
        self._began: float | None = None
        if self.descriptor is None:
            log.info("there is no inotify to be had: files that vanish are noticed later")

    def watch(self, paths: ManagerPaths) -> None:
        """Watch the directories that are there now."""
        self._began = None
        if self.descriptor is not None:
            for directory in (paths.runtime_dir, paths.directory):
                add_directory(self.descriptor, os.fsencode(directory))

    def noticed(self) -> float:
        """Something was removed: when to look around."""
        assert self.descriptor is not None
        try:
            while os.read(self.descriptor, 65536):
                continue
        except BlockingIOError:
            pass  # that was all
        now = monotonic()
        if self._began is None:
            self._began = now
        return min(now + SETTLE_S, self._began + LONGEST_SETTLE_S)

    def close(self) -> None:
        """Watch no more."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
