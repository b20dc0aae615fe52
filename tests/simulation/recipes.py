"""How simulated processes open sessions of the simulated database: with hooks that block, or with coroutines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.simulation.issuer import LoginRefused

if TYPE_CHECKING:
    from tests.simulation.database import Database, Session
    from tests.simulation.modules import Copy


class Recipes:
    """Makes recipes for the copy of mppool. asynchronous: with coroutines for hooks."""

    def __init__(self, copy: Copy, database: Database) -> None:
        kind = _recipe_class(copy, has_more=database.world.settings.all_hooks)
        self.made = [kind(database, release) for release in range(2)]
        kind = _async_recipe_class(copy, has_more=database.world.settings.more_hooks)
        self.asynchronous = [kind(database, release) for release in range(2)]


class Hooks:
    """What both kinds have in common."""

    def __init__(self, database: Database, release: int) -> None:
        self._database = database
        self._release = release
        self.token_scope = "database" if database.world.settings.tokens else None

    def fingerprint(self) -> str:
        return f"simulated {self._release}"

    def refuses_login(self, error: Exception) -> bool:
        return isinstance(error, LoginRefused)

    def _begins(self, opening: Any) -> tuple[Session, float]:
        """A login begins, and takes so many seconds."""
        database, world = self._database, self._database.world
        if opening.token is not None:
            world.issuer.admit(opening.identity, opening.token.token_struct)
        session = database.begin(opening.identity, self._release)
        chance, settings = world.chance, world.settings
        seconds = settings.login * chance.uniform(0.5, 1.5)
        if database.hangs and chance.random() < database.hangs:
            world.outcome.faults["hung login"] += 1
            seconds += chance.uniform(1.0, 5.0)
        return session, seconds

    def _is_in(self, session: Session) -> None:
        """Or is refused."""
        database, world = self._database, self._database.world
        if database.fails and world.chance.random() < database.fails:
            world.outcome.faults["failed login"] += 1
            database.end(session)
            raise ConnectionError("the database refuses")
        session.is_opening = False

    def _may_raise(self, hook: str) -> None:
        """What a hook raises that is not about the database."""
        database = self._database
        if database.hooks_fail and database.world.chance.random() < database.hooks_fail:
            database.world.outcome.faults["failed hook"] += 1
            raise ValueError(f"the hook {hook} fails")

    def stats(self, resource: Session) -> dict[str, int]:
        self._may_raise("stats")
        return {"number": resource.number}

    def describe(self, resource: Session) -> str:
        self._may_raise("describe")
        return f"session {resource.number}"

    def _is_sound(self, session: Session) -> bool:
        if session.is_gone:
            raise ConnectionError("the backend is gone")
        self._may_raise("check")
        return True

    def _closes_in(self) -> float:
        world = self._database.world
        return float(world.settings.close * world.chance.random() * 2)


def _recipe_class(copy: Copy, *, has_more: bool) -> Any:
    base: Any = copy.recipe.Recipe

    class Simulated(Hooks, base):  # type: ignore[misc]
        """Opens sessions of the simulated database."""

        def open(self, opening: Any) -> Session:
            session, seconds = self._begins(opening)
            self._blocks(seconds)
            self._is_in(session)
            return session

        def check(self, resource: Session) -> bool:
            self._blocks(self._database.world.settings.check)
            return self._is_sound(resource)

        def close(self, resource: Session) -> None:
            self._blocks(self._closes_in())
            self._database.end(resource)
            self._may_raise("close")

        def _blocks(self, seconds: float) -> None:
            world = self._database.world
            if asyncio._get_running_loop() is not None:
                world.trouble("a hook that blocks is called in an event loop")
            world.scheduler.sleep(seconds)

    if not has_more:
        return Simulated

    class WithMoreHooks(Simulated):
        """No checkout, and no release, is warm without a hook then."""

        def configure(self, resource: Session) -> None:
            if self._database.fails and self._database.world.chance.random() < 0.2:
                self._database.world.outcome.faults["failed login"] += 1
                raise ConnectionError("it cannot be configured")

        def on_checkout(self, resource: Session) -> None:
            self._blocks(self._database.world.settings.check / 2)
            self._may_raise("on_checkout")

        def reset(self, resource: Session) -> None:
            self._blocks(self._database.world.settings.check / 2)
            self._may_raise("reset")

        def cancel(self, resource: Session) -> None:
            self._may_raise("cancel")

    return WithMoreHooks


def _async_recipe_class(copy: Copy, *, has_more: bool) -> Any:
    base: Any = copy.aio__recipe.AsyncRecipe

    class Simulated(Hooks, base):  # type: ignore[misc]
        """The same in an event loop: in the one that has opened it, or in none."""

        async def open(self, opening: Any) -> Session:
            session, seconds = self._begins(opening)
            try:
                await asyncio.sleep(seconds)
            except BaseException:
                self._database.end(session)
                raise
            self._is_in(session)
            return session

        async def check(self, resource: Session) -> bool:
            self._database.is_in_its_loop(resource)
            await asyncio.sleep(self._database.world.settings.check)
            return self._is_sound(resource)

        async def close(self, resource: Session) -> None:
            self._database.is_in_its_loop(resource)
            await asyncio.sleep(self._closes_in())
            self._database.end(resource)
            self._may_raise("close")

        def abandon(self, resource: Session) -> None:
            if not resource.has_ended:
                self._database.end(resource)

    if not has_more:
        return Simulated

    class WithMoreHooks(Simulated):
        """No checkout is warm without an await then."""

        async def on_checkout(self, resource: Session) -> None:
            self._database.is_in_its_loop(resource)
            await asyncio.sleep(self._database.world.settings.check / 2)
            self._may_raise("on_checkout")

        async def reset(self, resource: Session) -> None:
            self._database.is_in_its_loop(resource)
            await asyncio.sleep(self._database.world.settings.check / 2)
            self._may_raise("reset")

        async def cancel(self, resource: Session) -> None:
            self._database.is_in_its_loop(resource)
            self._may_raise("cancel")

    return WithMoreHooks
