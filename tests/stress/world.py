"""What all processes of a chaos run have in common: the pool, its recipe, and the place of their reports."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mppool import AsyncPool, Budget, Opening, Pool, PoolManager
from tests.processes.async_witness import AsyncSession, AsyncSessionRecipe
from tests.processes.witness import Session, SessionRecipe

MAX_SIZE = 5
LONGEST_WAIT_S = 60.0
"""Longer than any stop; a checkout that takes longer has been forgotten."""


class Injected(Exception):
    """A failure of `open` that the run itself has caused."""


class ChaosRecipe(SessionRecipe):
    """Opens sessions; now and then it fails, or dawdles, or hangs in a close."""

    def __init__(self, path: str, login_s: float) -> None:
        super().__init__(path)
        self.login_s = login_s
        self.chance = random.Random(0)

    def open(self, opening: Opening) -> Session:
        drawn = self.chance.random()
        if drawn < 0.01:
            raise Injected("drawn")
        session = Session(self.path)
        try:
            if self.login_s:
                session.log_in(self.login_s * self.chance.uniform(0.5, 1.5))
            elif drawn < 0.1:
                session.log_in(self.chance.random() * 0.02)
            if drawn < 0.02:
                raise Injected("drawn, after the login")
        except BaseException:
            session.close()
            raise
        return session

    def close(self, resource: Session) -> None:
        if self.chance.random() < 0.05:
            time.sleep(self.chance.uniform(0.05, 1.5))  # its slot is kept meanwhile
        resource.close()


class AsyncChaosRecipe(AsyncSessionRecipe):
    """The same for event loops."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.chance = random.Random(0)

    async def open(self, opening: Opening) -> AsyncSession:
        drawn = self.chance.random()
        if drawn < 0.01:
            raise Injected("drawn")
        if drawn < 0.1:
            await asyncio.sleep(self.chance.random() * 0.02)
        return await super().open(opening)

    async def close(self, session: AsyncSession) -> None:
        if self.chance.random() < 0.05:
            await asyncio.sleep(self.chance.uniform(0.05, 0.5))
        await super().close(session)


@dataclass
class World:
    """One run: drawn from its seed by the first process, and in the same way by each that execs itself."""

    seed: int
    directory: Path
    login_s: float = field(init=False)
    max_opening: int | None = field(init=False)
    fail_fast: bool = field(init=False)
    has_tasks: bool = field(init=False)
    """Whether some workers use asyncio. Their pool and that of the threads have one budget then."""

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        self.login_s = chance.choice([0.0, 0.02, 0.3])
        self.max_opening = chance.choice([None, 1, 2])
        self.fail_fast = chance.random() < 0.5
        self.has_tasks = chance.random() < 0.5

    def __str__(self) -> str:
        return (
            f"seed {self.seed}, logins of {1000 * self.login_s:.0f} ms, "
            f"max_opening {self.max_opening}, fail_fast {self.fail_fast}, "
            f"asyncio {self.has_tasks}"
        )

    @property
    def reports(self) -> Path:
        return self.directory / "reports"

    def manager(self) -> PoolManager:
        return PoolManager("chaos", runtime_dir=self.directory / "r", linger=1.0)

    def declare(self, manager: PoolManager) -> tuple[Pool[Session], ChaosRecipe]:
        recipe = ChaosRecipe(str(self.directory / "w"), self.login_s)
        pool = manager.pool(
            "chaos",
            recipe,
            max_size=MAX_SIZE,
            max_opening=self.max_opening,
            fail_fast=self.fail_fast,
            budget=self._budget(manager),
        )
        return pool, recipe

    def declare_tasks(self, manager: PoolManager) -> AsyncPool[AsyncSession]:
        """The pool of the workers that use asyncio."""
        return manager.apool(
            "tasks",
            AsyncChaosRecipe(str(self.directory / "w")),
            max_size=MAX_SIZE,
            fail_fast=self.fail_fast,
            budget=self._budget(manager),
        )

    def _budget(self, manager: PoolManager) -> Budget | None:
        return manager.budget("all", MAX_SIZE) if self.has_tasks else None

    # --- what is told by processes that are killed before they report ------------------------------------

    def note(self, what: str) -> None:
        """Count something, with one system call that nobody can tear."""
        path = self.reports / f"{what}.count"
        descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        os.write(descriptor, b"x")
        os.close(descriptor)

    def noted(self) -> dict[str, int]:
        return {path.stem: path.stat().st_size for path in self.reports.glob("*.count")}

    def report(self, name: str, counts: Mapping[str, int], problems: list[str]) -> None:
        """What a worker has counted, and found wrong, so far."""
        path = self.reports / f"{name}.json"
        path.with_suffix(".new").write_text(json.dumps([dict(counts), problems]))
        path.with_suffix(".new").rename(path)
