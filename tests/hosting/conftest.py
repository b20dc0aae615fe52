"""Fixtures for pools with hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mppool import PoolManager
from tests.integrations.conftest import (
    mariadb_server,
    odbc_drivers,
    postgresql,
    postgresql_server,
    sqlite_odbc,
)
from tests.tds.fixtures import microsoft_driver, tds

__all__ = [
    "mariadb_server", "microsoft_driver", "odbc_drivers", "postgresql", "postgresql_server", "sqlite_odbc", "tds",
]  # fmt: skip


@pytest.fixture
def manager(runtime_dir: Path) -> PoolManager:
    """A manager of this test alone. Its server and its hosts leave as soon as nobody is connected."""
    return PoolManager("t", linger=0.0)
