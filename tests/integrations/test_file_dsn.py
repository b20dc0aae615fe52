"""FILEDSN: a connection string that names a file with the rest of it. The driver manager reads it, or does not."""

from __future__ import annotations

from pathlib import Path

import pyodbc
import pytest

from mppool import InProcessManager, OpenFailed
from mppool.odbc import OdbcRecipe, driver_manager


def test_it_is_left_to_the_driver_manager(odbc_drivers: list[str], tmp_path: Path) -> None:
    """unixODBC 2.3.11 does not read it for pyodbc; what can be opened without a pool can be opened with one."""
    assert "SQLite3" in odbc_drivers
    path = tmp_path / "shop.dsn"
    path.write_text(f"[ODBC]\nDRIVER=SQLite3\nDatabase={tmp_path / 'shop.db'}\n")
    driver_manager.load()
    try:
        pyodbc.connect(f"FILEDSN={path}").close()
        is_read = True
    except pyodbc.Error:
        is_read = False
    recipe = OdbcRecipe(f"FILEDSN={path};PWD=hunter2")
    manager = InProcessManager()
    pool = manager.pool("orders", recipe)
    if is_read:
        with pool.checkout() as connection:
            assert connection.execute("select 1").fetchone()[0] == 1
            assert recipe.describe(connection) == str(path)
    else:
        with pytest.raises(
            OpenFailed, match="the driver manager cannot load what 'FILEDSN="
        ) as failed:
            pool.checkout()
        assert "hunter2" not in str(failed.value)
    manager.close()
