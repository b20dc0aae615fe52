"""The server's log: its standard error, a file of bounded size that may vanish and come back."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

MAX_BYTES = 1024 * 1024
FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


class BoundedLog(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error, which is the log file; what would be too large moves to `log.1`.

    `worrying` tells whether it holds anything that somebody should read, also of earlier servers.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.worrying = _says_something(path)
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, within bounds."""
        self.worrying = self.worrying or record.levelno >= logging.WARNING
        super().emit(record)
        try:
            if os.fstat(2).st_size > MAX_BYTES:
                self._turn_over()
        except OSError:
            self.handleError(record)

    def _turn_over(self) -> None:
        # Copied, not renamed: the descriptors 1 and 2 stay what they are, also for a traceback that the
        # interpreter writes while dying.
        shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        os.ftruncate(2, 0)

    def put_back(self) -> None:
        """Open the file again if it vanished."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            pass
        else:
            mine = os.fstat(2)
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return
        descriptor = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)

    def tidy(self) -> None:
        """Remove the file, unless it says something that somebody should read."""
        if not self.worrying:
            self.path.unlink(missing_ok=True)


def _says_something(path: Path) -> bool:
    """Whether an earlier server left a warning, an error or a crash in the log."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return any(
        word in content for word in (b" WARNING ", b" ERROR ", b"Traceback", b"Fatal Python")
    )
