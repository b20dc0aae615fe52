"""A process that pools for itself alone: elsewhere than on Linux, and where MPPOOL_ALONE=1 asks for it.

So the same code can be developed on macOS and Windows, and run where no server is wanted: caps, waiting and tokens are then
those of one process.
"""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from mppool.base_manager import merged_alone, refuse_initializer
from mppool.core.decisions import Draining
from mppool.core.events import ClosePool, Drain, Reset, Resize, ResizeBudget
from mppool.errors import ConfigurationError
from mppool.options import checked_timeout

if TYPE_CHECKING:
    from mppool.link.in_process import LocalLink
    from mppool.recipe import Recipe
    from mppool.worker.member import Member

_DRAIN_POLL_S = 0.02


def link_alone(member: Member) -> LocalLink:
    """The way to books of this process alone."""
    from mppool.link.in_process import LocalLink

    return LocalLink(member, partial(merged_alone, member.name))


class Alone:
    """The life cycle of a PoolManager without a server; everything else is as with one."""

    name: str
    _member: Member

    def __repr__(self) -> str:
        return f"<PoolManager {self.name!r}, of this process alone>"

    @property
    def _link(self) -> LocalLink:
        return cast("LocalLink", self._member.link)

    @property
    def address(self) -> None:
        """There is no server, so there is no address."""
        return None

    @property
    def directory(self) -> NoReturn:
        """There is none: raises ConfigurationError."""
        raise ConfigurationError(
            f"manager {self.name!r} has no directory: this process pools for itself alone"
        )

    @property
    def server_pid(self) -> int:
        """Pid of the process that keeps the books: this one."""
        return os.getpid()

    def start(self, initializer: Any = None, initargs: Any = (), *, fill: bool = False) -> None:
        """Nothing to start; fill: as PoolManager's. Raises ConfigurationError for an initializer."""
        refuse_initializer(self.name, initializer)
        if fill:
            self._member.fill()

    def connect(self) -> None:
        """Nothing to connect to."""

    def get_server(self) -> NoReturn:
        """There is none: raises ConfigurationError."""
        raise ConfigurationError(
            f"manager {self.name!r} has no server to run: this process pools for itself alone"
        )

    def shutdown(self) -> None:
        """Close what lies idle. Leases that are out keep working, and the pools go on when they are used."""
        self._member.close_idle()
        self._link.stop()

    def _end_unless_needed(self) -> None:
        self._link.stop()

    def join(self, timeout: float | None = None) -> None:
        """Nothing to wait for."""

    def drain(self, pool: str, timeout: float | None = 30.0) -> int:
        """As PoolManager.drain. Raises PoolError for a pool that this process has not declared."""
        seconds = checked_timeout(pool, timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        generation: int | None = None
        while True:
            answer = self._link.command(Drain(pool, generation))
            assert isinstance(answer, Draining)
            if not answer.left or (deadline is not None and time.monotonic() >= deadline):
                return answer.left
            generation = answer.generation
            threading.Event().wait(_DRAIN_POLL_S)

    def _for_hosts(self, pool: str, recipe: Recipe[Any]) -> Recipe[Any]:
        """Nobody shares with this process, so its resources are opened where they are used."""
        return recipe

    def _control_pool(self, event: Resize | ResizeBudget | Reset | ClosePool) -> None:
        self._link.command(event)
