"""A manager, things, and colleagues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import Pool, PoolManager
from tests.processes.options.scene import Colleague, Scene, Things


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Where things write down what happens to them."""
    return Scene(tmp_path)


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[PoolManager]:
    """A manager of this test alone."""
    manager = PoolManager("test")
    yield manager
    manager.shutdown()


@pytest.fixture
def declare(manager: PoolManager, scene: Scene) -> Callable[..., Pool[Any]]:
    """Declares a pool of things: of the kind given, with the options given."""

    def make(kind: type[Things] = Things, **options: Any) -> Pool[Any]:
        return manager.pool("things", kind(scene.directory), **options)

    return make


@pytest.fixture
def hire() -> Iterator[Callable[..., Any]]:
    """Hires colleagues for a pool: one, or so many."""
    hired: list[Colleague] = []

    def make(pool: Pool[Any], count: int | None = None) -> Any:
        new = [Colleague(pool) for _ in range(count or 1)]
        hired.extend(new)
        return new[0] if count is None else new

    yield make
    for colleague in hired:
        colleague.kill()
