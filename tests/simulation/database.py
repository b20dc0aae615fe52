"""The database of a simulated world: it counts sessions, from the begin of their login to the end of their close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.scheduler import current_thread

if TYPE_CHECKING:
    from tests.simulation.modules import Copy
    from tests.simulation.processes import Process
    from tests.simulation.world import World


class Session:
    """What a pool lends here. user: the lease that it is lent to. is_opening: its login is not over. release: of what was opened."""

    def __init__(self, number: int, process: Process, identity: str | None, release: int) -> None:
        self.number, self.process, self.identity = number, process, identity
        self.release = release
        self.user: Any = None
        self.is_gone = self.has_ended = False
        self.is_opening = True

    def __repr__(self) -> str:
        return f"session {self.number} of {self.process}"


class Database:
    """Judges promises 1 and 3.

    most: sessions that there may be; it shrinks only when all is quiet. fails, hangs: what happens to logins now.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.most: int = world.settings.options["max_size"]
        self.sessions: dict[Session, None] = {}
        self._numbers = 0
        self.peak = 0
        self.fails = 0.0
        self.hangs = 0.0

    def begin(self, identity: str | None, release: int) -> Session:
        self._numbers += 1
        session = Session(self._numbers, current_thread().process, identity, release)
        self.sessions[session] = None
        self.peak = max(self.peak, len(self.sessions))
        if len(self.sessions) > self.most:
            self.world.trouble(f"over the cap of {self.most}: {list(self.sessions)}")
        return session

    def end(self, session: Session) -> None:
        if session.user is not None:
            self.world.trouble(f"{session} is closed while {session.user} uses it")
        if session.has_ended:
            self.world.trouble(f"{session} is closed twice")
        session.has_ended = True
        self.sessions.pop(session, None)

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
        session.user = me

    def give_back(self, session: Session) -> None:
        session.user = None

    def backend_gone(self) -> None:
        """All sessions are dead: checks find that."""
        for session in self.sessions:
            session.is_gone = True


class Recipes:
    """Makes recipes for the copy of mppool."""

    def __init__(self, copy: Copy, database: Database) -> None:
        kind = _recipe_class(copy)
        self.made = [kind(database, release) for release in range(2)]


def _recipe_class(copy: Copy) -> Any:
    base: Any = copy.recipe.Recipe

    class Simulated(base):  # type: ignore[misc]
        """Opens sessions of the simulated database."""

        def __init__(self, database: Database, release: int) -> None:
            self._database = database
            self._release = release

        def fingerprint(self) -> str:
            return f"simulated {self._release}"

        def open(self, opening: Any) -> Session:
            database, world = self._database, self._database.world
            session = database.begin(opening.identity, self._release)
            chance, settings = world.chance, world.settings
            seconds = settings.login * chance.uniform(0.5, 1.5)
            if database.hangs and chance.random() < database.hangs:
                world.outcome.faults["hung login"] += 1
                seconds += chance.uniform(1.0, 5.0)
            world.scheduler.sleep(seconds)
            if database.fails and chance.random() < database.fails:
                world.outcome.faults["failed login"] += 1
                database.end(session)
                raise ConnectionError("the database refuses")
            session.is_opening = False
            return session

        def check(self, resource: Session) -> bool:
            world = self._database.world
            world.scheduler.sleep(world.settings.check)
            if resource.is_gone:
                raise ConnectionError("the backend is gone")
            return True

        def close(self, resource: Session) -> None:
            world = self._database.world
            world.scheduler.sleep(world.settings.close * world.chance.random() * 2)
            self._database.end(resource)

    return Simulated
