"""Real components, started where they are first needed; a missing one skips, or fails where CI=true."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from mppool.errors import ConfigurationError
from mppool.odbc import driver_manager
from mppool.worker import demand
from tests.helpers import component_is_missing
from tests.integrations import mariadb as maria
from tests.integrations.postgresql import Database, Postgresql, what_is_missing
from tests.sharing import shared
from tests.tds.fixtures import microsoft_driver, tds

__all__ = ["microsoft_driver", "tds"]


@pytest.fixture(autouse=True)
def a_slow_login_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a login takes seconds. The pool would open one more, and tests count them."""
    monkeypatch.setattr(demand, "SHORTEST_LATE_S", 20.0)


@pytest.fixture(scope="session")
def odbc_drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The drivers that the driver manager knows."""
    system = Path(os.environ.get("ODBCSYSINI", "/etc"), "odbcinst.ini")
    with pytest.MonkeyPatch.context() as patch:
        if system.exists():
            # Debian turns PostgreSQL's communication log on: a file in /tmp for each process that connects.
            # Only the ini can turn it off.
            quiet = tmp_path_factory.mktemp("odbc")
            text = re.sub(r"(?im)^\s*CommLog\s*=.*$", "CommLog=0", system.read_text())
            (quiet / "odbcinst.ini").write_text(text)
            patch.setenv("ODBCSYSINI", str(quiet))
        try:
            drivers = list(driver_manager.load().drivers())
        except ConfigurationError as error:
            component_is_missing(str(error))
        yield drivers


@pytest.fixture
def sqlite_odbc(odbc_drivers: list[str], tmp_path: Path) -> str:
    """The connection string of a new SQLite database."""
    if "SQLite3" not in odbc_drivers:
        component_is_missing("the ODBC driver 'SQLite3' is not installed (Debian: libsqliteodbc)")
    return f"Driver=SQLite3;Database={tmp_path / 'test.db'};Timeout=5000"


@pytest.fixture(scope="session")
def postgresql_server(odbc_drivers: list[str], mppool_manager: PoolManager) -> Iterator[Postgresql]:
    """A PostgreSQL server that all xdist workers of this run share."""
    missing = what_is_missing()
    if missing:
        component_is_missing(missing)
    with shared(mppool_manager, "postgresql") as address:
        server = Postgresql(address["port"])
        yield server
        server.disconnect()


@pytest.fixture(scope="session")
def mariadb_server(mppool_manager: PoolManager) -> Iterator[dict[str, Any]]:
    """A MariaDB server that all xdist workers of this run share: port, user, password."""
    missing = maria.what_is_missing()
    if missing:
        component_is_missing(missing)
    with shared(mppool_manager, "mariadb") as address:
        yield address


@pytest.fixture
def postgresql(postgresql_server: Postgresql) -> Iterator[Database]:
    """A new PostgreSQL database."""
    database = postgresql_server.create_database()
    yield database
    database.drop()
