from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mppool import InProcessManager, PoolManager
from mppool.base_manager import Manager


@pytest.fixture(params=["in_process", "server"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Each test runs over books of its own process, and over a server."""
    if request.param == "in_process":
        with InProcessManager() as made:
            yield made
        return
    with PoolManager("aio", runtime_dir=tmp_path / "run", linger=0.2) as shared:
        yield shared
