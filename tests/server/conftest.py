"""Fixtures for tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mppool.rendezvous.paths import ManagerPaths, manager_paths
from tests.server.clients import close_all


@pytest.fixture
def paths(runtime_dir: Path) -> Iterator[ManagerPaths]:
    """The paths of a manager in a directory of this test's own; servers and clients end with the test."""
    yield manager_paths("shop", runtime_dir)
    close_all()
