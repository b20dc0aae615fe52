"""What of odbcinst.ini lets the driver manager pool, and the private copy that does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mppool.errors import ConfigurationError
from mppool.odbc import driver_manager
from mppool.odbc.driver_manager import PrivateIni, keeps_sessions, says_pooling, without_pooling
from mppool.options import checked_name

DRIVER = "[X]\nDriver=x.so\nCPTimeout=60\n"


@pytest.mark.parametrize("value", ["Yes", "yes", "1", "on", "On", "Y"])
def test_what_turns_pooling_on(value: str) -> None:
    assert says_pooling(f"[X]\nDriver=x.so\n[odbc]\nTrace=No\n pooling = {value} \n")


@pytest.mark.parametrize(
    "text", ["", "[ODBC]\nPooling=No\nPooling=Yes", "[X]\nPooling=Yes", "[ODBC]\n#Pooling=Yes"]
)
def test_what_does_not(text: str) -> None:
    assert not says_pooling(text)


def test_pooling_also_needs_a_driver_that_keeps_sessions() -> None:
    assert keeps_sessions(DRIVER)
    for value in ("0", "", "000", "no"):
        assert not keeps_sessions(f"[X]\nCPTimeout={value}")


def test_the_private_copy_differs_in_pooling_alone() -> None:
    text = without_pooling(
        "; drivers\n" + DRIVER + "[ODBC]\nTrace=Yes\n Pooling = Yes\nTraceFile=/x\n[Y]\nDriver=y.so"
    )
    assert not says_pooling(text)
    assert text.splitlines() == [
        "[ODBC]", "Pooling=No", "Trace=Yes", "TraceFile=/x",
        "; drivers", "[X]", "Driver=x.so", "CPTimeout=60", "[Y]", "Driver=y.so",
    ]  # fmt: skip


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PrivateIni:
    original = tmp_path / "original"
    original.mkdir()
    (original / "odbc.ini").write_text("[shop]\nDriver=X\n")
    ini = PrivateIni(original, DRIVER)
    monkeypatch.setattr(ini, "_parent", tmp_path / "private")
    monkeypatch.setattr(ini, "directory", tmp_path / "private" / "abc")
    return ini


def test_a_private_copy_that_a_cleaner_took_is_put_back(private: PrivateIni) -> None:
    private.put_back()
    (private.directory / "odbcinst.ini").unlink()
    private.put_back()
    assert (private.directory / "odbcinst.ini").read_text() == DRIVER
    assert (private.directory / "odbc.ini").read_text() == "[shop]\nDriver=X\n"
    assert sorted(path.name for path in private.directory.iterdir()) == [
        "ODBCDataSources",
        "odbc.ini",
        "odbcinst.ini",
    ]


def test_a_directory_that_others_may_enter_is_refused(private: PrivateIni, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        private.put_back()


def test_a_link_in_the_place_of_the_directory_is_refused(
    private: PrivateIni, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "private").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="symbolic link"):
        private.put_back()


def test_it_lies_in_the_runtime_directory(runtime_dir: Path) -> None:
    ini = PrivateIni(Path("/etc"), DRIVER)
    assert ini.directory.parent == runtime_dir
    with pytest.raises(ConfigurationError):  # so that no manager's files lie there
        checked_name("manager", ini.directory.name)


@pytest.mark.parametrize("how", ["content", "same length", "mode", "link", "names", "owner"])
def test_what_somebody_else_has_put_there_is_replaced_at_the_next_use(
    private: PrivateIni, tmp_path: Path, how: str
) -> None:
    private.put_back()
    target, evil = private.directory / "odbcinst.ini", DRIVER.replace("x.so", "y.so")
    if how == "content":
        target.write_text(evil + evil)
    elif how == "same length":
        target.write_text(evil)
    elif how == "mode":
        target.chmod(0o666)
    elif how == "link":
        (tmp_path / "evil").write_text(DRIVER)
        target.unlink()
        target.symlink_to(tmp_path / "evil")
    elif how == "names":
        names = private.directory / "odbc.ini"
        names.unlink()
        names.write_text("[shop]\nDriver=y.so\n")
    elif os.geteuid() == 0:
        os.chown(target, 65534, 65534)
    private.put_back()
    assert not target.is_symlink()
    assert target.read_text() == DRIVER
    assert (target.stat().st_uid, target.stat().st_mode & 0o777) == (os.geteuid(), 0o600)
    assert (private.directory / "odbc.ini").read_text() == "[shop]\nDriver=X\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("which", ["_parent", "directory"])
def test_a_directory_of_another_user_is_refused_at_every_use(
    private: PrivateIni, which: str
) -> None:
    private.put_back()
    os.chown(getattr(private, which), 65534, 65534)
    with pytest.raises(ConfigurationError, match=r"belongs to user 65534.*MPPOOL_RUNTIME_DIR"):
        private.put_back()


def test_loading_is_done_once() -> None:
    assert driver_manager.load() is driver_manager.load()
