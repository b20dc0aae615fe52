"""Where the processes of a manager meet, and how a process gets there."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from mppool.logs import Log
from mppool.process.greenlets import check_no_eventlet
from mppool.rendezvous.alone import is_alone

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.machines.settings import Settings
    from mppool.rendezvous.paths import ManagerPaths
    from mppool.rendezvous.world import SignOfLife

log = Log("mppool")


class ServerLocator:
    """Where the processes of a manager meet: its files, resolved at first use (rule 12)."""

    def __init__(
        self,
        name: str,
        runtime_dir: str | None,
        linger: float,
        machines: Settings | None = None,
    ) -> None:
        """is_alone: this process keeps books of its own, and meets no other.

        machines: where this machine shares caps with others; for the server, should this process start it.
        """
        from mppool.rendezvous.paths import named_by_environment

        self.name = name
        self.is_alone = is_alone()
        self.runtime_dir = runtime_dir
        self.linger = linger
        self.machines = machines
        self._machines_fingerprint: str | None = None if machines is not None else ""
        self._named_by_environment = named_by_environment()
        self._paths: tuple[int, ManagerPaths] | None = None
        self._resolved_for = -1  # the effective user for whom `_paths` are
        self._sign: SignOfLife | None = None
        if not self.is_alone:
            # It has hooks for forks. Imported while another thread forks, it would be told of the end of a fork whose
            # beginning it has not seen. A manager is made before there are threads, or where this has been done.
            import filelock  # noqa: F401

    def likely_directory(self) -> str:
        """Where the processes of this manager meet, or would meet if it were used now; one directory, however it is named."""
        from mppool.rendezvous.paths import likely_runtime_dir

        if self.is_alone:
            return ""
        # A forked child resolves it again at its first use. Until then it is taken to meet where its parent does.
        if self._paths is not None and self._resolved_for == os.geteuid():
            return os.path.realpath(self._paths[1].runtime_dir)
        return os.path.realpath(likely_runtime_dir(self.runtime_dir or self._named_by_environment))

    def paths(self) -> ManagerPaths:
        """The files of the manager; resolved again in a child, whose effective user may be another."""
        from mppool.rendezvous.liveness import check_watching
        from mppool.rendezvous.paths import manager_paths

        if self._paths is None or self._paths[0] != os.getpid():
            check_no_eventlet(self.name)
            check_watching()
            paths = manager_paths(self.name, self.runtime_dir)
            self._resolved_for = os.geteuid()
            self._paths = (os.getpid(), paths)
        return self._paths[1]

    def prepare(self) -> None:
        """Import what the others of these need, however long it takes."""
        import mppool.rendezvous.launch
        import mppool.rendezvous.world  # noqa: F401

    def connect(self, deadline: float) -> socket.socket:
        """A connection to the server, which is started if there is none."""
        from mppool.rendezvous.launch import find_or_start

        return find_or_start(
            self.paths(), linger=self.linger, deadline=deadline, machines=self.machines
        )

    def machines_fingerprint(self) -> str:
        """Of where this machine shares caps with others; "" where it does not."""
        if self._machines_fingerprint is None:
            assert self.machines is not None
            self._machines_fingerprint = self.machines.fingerprint(self.fingerprint_secret())
        return self._machines_fingerprint

    def look(self, deadline: float | None = None) -> socket.socket | None:
        """A connection to the server, if there is one; while it is too busy to listen, until the deadline."""
        from mppool.rendezvous.launch import connect

        return connect(self.paths(), deadline)

    def fingerprint_secret(self) -> bytes:
        """The secret of the runtime directory."""
        from mppool.rendezvous.paths import fingerprint_secret

        return fingerprint_secret(self.paths())

    def show_life(self) -> None:
        """Be seen by processes of other pid namespaces, which cannot look this one up."""
        from mppool.rendezvous.world import SignOfLife

        if self._sign is None or not self._sign.is_seen():
            try:
                self._sign = SignOfLife(self.paths())
            except OSError as error:
                log.debug("manager %r: no lock can be had: %s", self.name, error)

    def hide_life(self) -> None:
        """In a forked child, which has the descriptor and not the lock."""
        self._sign = None

    def pid(self) -> int | None:
        """Pid of the server that the address file names, dead or alive."""
        from mppool.rendezvous.paths import read_address

        found = read_address(self.paths())
        return None if found is None else found.server.pid

    def replace(self, ask_to_leave: Callable[[], None], deadline: float) -> None:
        """Have the server that is there leave, and start one of this release in its place."""
        from mppool.rendezvous.launch import replace

        replace(
            self.paths(),
            ask_to_leave,
            linger=self.linger,
            deadline=deadline,
            machines=self.machines,
        )
