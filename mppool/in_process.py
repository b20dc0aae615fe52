"""InProcessManager: pools of one process, with the same core and no server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

from mppool.base_manager import Manager, refuse_initializer
from mppool.errors import ConfigurationError, PoolError
from mppool.link.in_process import LocalLink
from mppool.options import checked_name
from mppool.worker.member import Member
from mppool.worker.pool import CLOSE_PATIENCE_S

if TYPE_CHECKING:
    from types import TracebackType

    from mppool.recipe import Recipe


class InProcessManager(Manager):
    """The same interface and the same core without a server, for a single process and for tests.

    A forked child starts with empty pools of its own: nothing is shared between processes.
    """

    def __init__(self, name: str = "local") -> None:
        self.name = checked_name("manager", name)
        self._member = Member(name, lambda member: LocalLink(member, self._merge))

    def __repr__(self) -> str:
        return f"<InProcessManager {self.name!r}>"

    @property
    def _link(self) -> LocalLink:
        link = self._member.link
        assert isinstance(link, LocalLink)
        return link

    @property
    def address(self) -> None:
        """There is no server, so there is no address."""
        return None

    @property
    def server_pid(self) -> int:
        """Pid of the process that keeps the books: this one."""
        return os.getpid()

    def start(self, initializer: Any = None, initargs: Any = (), *, fill: bool = False) -> None:
        """Nothing to start. fill: as for PoolManager. Raises ConfigurationError for an initializer, as PoolManager does."""
        refuse_initializer(self.name, initializer)
        if fill:
            self._member.fill()

    def get_server(self) -> NoReturn:
        """There is none: raises ConfigurationError."""
        raise ConfigurationError(
            f"the in-process manager {self.name!r} has no server to run; PoolManager has one"
        )

    def connect(self) -> None:
        """Nothing to connect to."""

    def join(self, timeout: float | None = None) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Close what is idle. Leases that are out keep working; their resources are closed when they are released."""
        self._member.leave(CLOSE_PATIENCE_S)

    def shutdown(self) -> None:
        """Close what is idle. Leases that are out keep working, and the pools can be used again."""
        self._member.close_idle()
        self._link.stop()

    def _for_hosts(self, pool: str, recipe: Recipe[Any]) -> NoReturn:
        raise ConfigurationError(
            f"pool {pool!r}: placement='host' is not offered by an in-process manager: a host serves several processes; "
            "use PoolManager, or leave placement out"
        )

    def __enter__(self) -> InProcessManager:  # noqa: PYI034  # typing.Self is newer than Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def __reduce__(self) -> tuple[Any, ...]:
        raise PoolError(
            f"the in-process manager {self.name!r} cannot be pickled: it shares nothing with other "
            "processes; use PoolManager"
        )
