"""The database of a simulated world: it counts sessions, from the begin of their login to the end of their close."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.simulation.scheduler import current_thread, monotonic

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World


SLACK_S = 5.0


class Session:
    """What a pool lends here. user: the lease that it is lent to. is_opening: its login is not over. release: of what was opened.

    loop: in which it was opened, and is used; None: it blocks.
    """

    def __init__(self, number: int, process: Process, identity: str | None, release: int) -> None:
        self.number, self.process, self.identity = number, process, identity
        self.release = release
        self.loop: Any = asyncio._get_running_loop()
        self.user: Any = None
        self.is_gone = self.has_ended = False
        self.is_opening = True
        self.lent_at = 0.0

    def __repr__(self) -> str:
        return f"session {self.number} of {self.process}"


class Database:
    """Judges promises 1 and 3.

    most: sessions that there may be; it shrinks only when all is quiet. fails, hangs: what happens to logins now.
        hooks_fail: how likely any other hook raises now.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.most: int = world.settings.options["max_size"]
        self.sessions: dict[Session, None] = {}
        self._numbers = 0
        self.peak = 0
        self.fails = 0.0
        self.hangs = 0.0
        self.hooks_fail = 0.0
        self._longest_use: float | None = world.settings.options.get("max_lease_kill")

    def begin(self, identity: str | None, release: int) -> Session:
        self._numbers += 1
        session = Session(self._numbers, current_thread().process, identity, release)
        self.sessions[session] = None
        self.peak = max(self.peak, len(self.sessions))
        if len(self.sessions) > self.most:
            self.world.trouble(f"over the cap of {self.most}: {list(self.sessions)}")
        return session

    def end(self, session: Session) -> None:
        if session.user is not None and not self._is_overdue(session):
            self.world.trouble(f"{session} is closed while {session.user} uses it")
        if session.has_ended:
            self.world.trouble(f"{session} is closed twice")
        session.has_ended = True
        self.sessions.pop(session, None)

    def _is_overdue(self, session: Session) -> bool:
        """Whether its lease may be ended by force."""
        longest = self._longest_use
        # Between the begin of the lease and `lend` its process may have been stopped.
        return longest is not None and monotonic() >= session.lent_at + longest - SLACK_S

    def forget(self, process: Process) -> None:
        """It is dead."""
        self.sessions = {one: None for one in self.sessions if one.process is not process}

    def lend(self, session: Session, identity: str | None, release: int) -> None:
        """A checkout got this one."""
        me = current_thread()
        if session.user is not None:
            self.world.trouble(f"{session} is lent to {me.name} while {session.user.name} has it")
        if session.has_ended:
            self.world.trouble(f"{session} is lent after it was closed")
        if session.process is not me.process:
            self.world.trouble(f"{session} is lent in {me.process}")
        if session.identity != identity:
            self.world.trouble(f"{session} of {session.identity} is lent for {identity}")
        if session.release != release:
            self.world.trouble(f"{session} is lent to who would open something else")
        if session.loop is not None and asyncio._get_running_loop() is not None:
            self.is_in_its_loop(session)
        session.user, session.lent_at = me, monotonic()

    def is_in_its_loop(self, session: Session) -> None:
        if asyncio._get_running_loop() is not session.loop:
            self.world.trouble(f"{session} is used in another event loop")

    def leave(self, loop: Any) -> None:
        """It was closed: nobody uses what belongs to it. What it has half open nobody knows; the collector ends that."""
        for session in list(self.sessions):
            if session.loop is loop:
                session.user = None
                if session.is_opening:
                    del self.sessions[session]

    def give_back(self, session: Session) -> None:
        session.user = None

    def backend_gone(self) -> None:
        """All sessions are dead: checks find that."""
        for session in self.sessions:
            session.is_gone = True
