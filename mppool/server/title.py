"""What `ps` and `top` show of the server: `mppool: shop (12 processes, 3 pools)` instead of a long command line."""

from __future__ import annotations

import logging

from mppool.stats import words

log = logging.getLogger(__name__)

_BEGIN, _END = 48, 49
"""Where they lie in memory: fields of /proc/self/stat, see proc(5)."""


class Title:
    """Writes over the arguments that this process was started with. Only for a process of mppool's own.

    They lie in its own memory, which is opened as a file: nothing but the standard library is needed. Where that is not
    allowed, the command line stays as it is.
    """

    def __init__(self, manager: str) -> None:
        self._manager = manager
        self._shown = b""
        self._room = 0
        try:
            with open("/proc/self/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()  # without pid and name
            self._begin, end = int(fields[_BEGIN - 3]), int(fields[_END - 3])
            self._memory = open("/proc/self/mem", "r+b", buffering=0)  # noqa: SIM115  # for as long as the process
            self._room = end - self._begin
        except (OSError, ValueError, IndexError) as error:
            log.info("the server keeps the title of its command: %s", error)

    def show(self, processes: int, pools: int) -> None:
        """So many processes are attached, and so many pools declared."""
        text = f"mppool: {self._manager} ({words.processes(processes)}, {words.counted(pools, 'pool', 'pools')})"
        title = text.encode()[: max(0, self._room - 1)]
        if not title or title == self._shown:
            return
        self._shown = title
        try:
            self._memory.seek(self._begin)
            # Zeros to the end: with another last byte the kernel would read on, in the environment.
            self._memory.write(title.ljust(self._room, b"\0"))
        except OSError as error:
            self._room = 0
            log.info("the title of the server cannot be written: %s", error)
