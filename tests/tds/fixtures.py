"""Fixtures around the double, imported by the conftest files of the directories that use them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from mppool.errors import ConfigurationError
from mppool.odbc import driver_manager
from tests.helpers import component_is_missing
from tests.secrecy import WATCH
from tests.tds.double import TdsDouble


def find_driver() -> Path:
    """The driver library in the wheel of `mssql-python`, the one for this distribution first."""
    # Old releases of mssql-python have the driver in their own wheel.
    found = importlib.util.find_spec("mssql_python_odbc") or importlib.util.find_spec(
        "mssql_python"
    )
    if found is None or found.origin is None:
        component_is_missing("Microsoft's driver is missing: pip install mssql-python")
    release = Path("/etc/os-release")
    text = release.read_text() if release.exists() else ""
    name = next((one for one in ("alpine", "rhel", "suse") if one in text), "debian_ubuntu")
    folder = Path(found.origin).parent / "libs" / "linux" / name
    if not folder.is_dir():
        component_is_missing(f"the wheel of mssql-python has no driver for this system ({folder})")
    machine = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    library = next(folder.glob(f"{machine}/lib/libmsodbcsql-18*.so*"), None)
    if library is None:
        component_is_missing(f"the wheel of mssql-python has no driver for {platform.machine()}")
    return library


@pytest.fixture(scope="session")
def microsoft_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Microsoft's ODBC Driver 18, which loads."""
    driver = find_driver()
    try:
        driver_manager.load()
        ctypes.CDLL(os.fspath(driver))
    except ConfigurationError as error:
        component_is_missing(str(error))
    except OSError as error:
        component_is_missing(
            f"Microsoft's driver cannot be loaded: {error} (Debian: libltdl7 libgssapi-krb5-2)"
        )
    return driver


@pytest.fixture
def tds(microsoft_driver: Path, tmp_path: Path) -> Iterator[TdsDouble]:
    """A double of this test's own."""
    double = TdsDouble(tmp_path, microsoft_driver)
    yield double
    WATCH.see_objects()
    double.stop()
