"""Further witnesses, which ask the database's side. They sample, so they see no more than there is.

For SQLite every open connection is one open descriptor of the database file. For PostgreSQL every
connection is a row of pg_stat_activity; one whose client's end is held by no living process is not
counted: a backend inside a statement outlives its killed client by seconds.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mppool.cli.demo.stage import Link, links_of
from mppool.recipe import Opening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mppool.recipe import Recipe

log = logging.getLogger("mppool.demo")


class Observer(ABC):
    """Samples until it is stopped. `peak` and `looks` belong to its thread until then."""

    what = ""
    interval_s = 0.02

    def __init__(self) -> None:
        self.peak = 0
        self.looks = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self.interval_s):
                self.peak = max(self.peak, self.look())
                self.looks += 1
        except Exception:
            log.exception("%s: looks no more", self.what)

    @abstractmethod
    def look(self) -> int:
        """How many are open at this instant."""


class Descriptors(Observer):
    """Counts who has the database file open.

    Processes are looked at one after another, and meanwhile a connection may be closed here and another
    opened there. So it looks twice, and counts what was there both times: that was open at one instant,
    the one between the two looks.
    """

    what = "open descriptors of the database file"

    def __init__(self, path: Path, pids: Callable[[], Iterable[int]]) -> None:
        super().__init__()
        self._path = str(path)
        self._pids = pids

    def look(self) -> int:
        pids = list(self._pids())
        return len(self._links(pids) & self._links(pids))

    def _links(self, pids: Iterable[int]) -> set[Link]:
        return {link for pid in pids for link in links_of(pid) if link.path == self._path}


class Activity(Observer):
    """Counts PostgreSQL's sessions that carry the demonstration's name, over a connection of its own."""

    what = "rows of pg_stat_activity with a living client"

    def __init__(self, recipe: Recipe[Any], application_name: str) -> None:
        super().__init__()
        self._recipe = recipe
        self._name = application_name
        self._connection: Any = None

    def look(self) -> int:
        if self._connection is None:
            self._connection = self._recipe.open(Opening(0))
            self._connection.autocommit = True
        rows = self._connection.execute(
            "SELECT client_port FROM pg_stat_activity WHERE application_name = ? "
            "AND pid <> pg_backend_pid() AND client_port > 0",
            (self._name,),
        ).fetchall()
        living = _held_ports()
        return sum(int(row[0]) in living for row in rows)

    def stop(self) -> None:
        """Look no more, and disconnect."""
        super().stop()
        if self._connection is not None:
            self._recipe.close(self._connection)


_ESTABLISHED = "01"


def _held_ports() -> set[int]:
    """Local ports of established TCP connections whose socket some process holds. Source: proc_net_tcp."""
    held = set()
    for name in ("tcp", "tcp6"):
        path = Path("/proc/net", name)
        if not path.exists():
            continue
        for line in path.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _ESTABLISHED and fields[9] != "0":
                held.add(int(fields[1].rpartition(":")[2], 16))
    return held
