from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines.redis_server import RedisServer


@pytest.fixture(scope="module")
def any_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for a whole module: each test uses a key of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of one test, which may kill it and start it again."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()
