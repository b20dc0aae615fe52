"""The runtime directory: where it is, and when it is refused."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import msgspec
import pytest

from mppool import PoolManager
from mppool.errors import ConfigurationError
from mppool.ids import own_process
from mppool.rendezvous import launch
from mppool.rendezvous.paths import (
    SUN_PATH_BYTES,
    Address,
    ManagerPaths,
    manager_paths,
    read_address,
)
from mppool.server.loop import Server
from tests.helpers import Fork
from tests.server.clients import Background


def test_the_argument_goes_before_the_variable_and_that_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", "/somewhere/else")
    monkeypatch.delenv("MPPOOL_RUNTIME_DIR", raising=False)
    assert manager_paths("shop").runtime_dir == Path(f"/tmp/mppool-{os.geteuid()}")
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", "/run/shop")
    assert manager_paths("shop").runtime_dir == Path("/run/shop")
    assert manager_paths("shop", "/run/other").runtime_dir == Path("/run/other")


def test_naming_paths_touches_nothing(runtime_dir: Path) -> None:
    manager_paths("shop", runtime_dir / "deeper")
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o177])
def test_directories_are_made_private_whatever_the_umask(runtime_dir: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        paths = manager_paths("shop", runtime_dir / "a")
        paths.prepare()
    finally:
        os.umask(before)
    for directory in (paths.runtime_dir, paths.directory, paths.members):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_missing_parents_are_made(runtime_dir: Path) -> None:
    manager_paths("shop", runtime_dir / "a" / "b").prepare()
    assert (runtime_dir / "a" / "b" / "shop").is_dir()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a" * 65, "a b"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="manager name"):
        manager_paths(name, "/tmp/x")


def test_hazard_14_a_directory_too_long_for_sockets_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"too long.*107.*MPPOOL_RUNTIME_DIR"):
        manager_paths("shop", "/tmp/" + "x" * 90)


def test_the_longest_directory_and_name_that_are_allowed_work(runtime_dir: Path) -> None:
    room = SUN_PATH_BYTES - len(str(runtime_dir)) - 2 - len("s-") - 12 - len("-") - 8
    paths = manager_paths("n" * 64, runtime_dir / ("x" * room))
    connection = launch.find_or_start(paths, linger=0.1, deadline=time.monotonic() + 20)
    connection.close()
    with pytest.raises(ConfigurationError):
        manager_paths("n", runtime_dir / ("x" * (room + 1)))


def test_a_directory_that_others_can_enter_is_refused(runtime_dir: Path) -> None:
    runtime_dir.chmod(0o750)
    with pytest.raises(ConfigurationError, match=r"mode is 0750.*chmod 700"):
        launch.find_or_start(
            manager_paths("shop", runtime_dir), linger=1, deadline=time.monotonic()
        )
    runtime_dir.chmod(0o700)


def test_nobody_is_told_to_close_a_directory_that_others_use_as_well(runtime_dir: Path) -> None:
    shared = runtime_dir / "run"
    shared.mkdir()
    (shared / "somebody.sock").touch()
    shared.chmod(0o1777)
    with pytest.raises(ConfigurationError, match="own, such as") as refused:
        manager_paths("shop", shared).prepare()
    assert "chmod" not in str(refused.value)
    assert "MPPOOL_RUNTIME_DIR" in str(refused.value)


def test_a_directory_that_anybody_may_take_away_is_refused(runtime_dir: Path) -> None:
    open_to_all = runtime_dir / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"anybody may remove it.*open is 0777"):
        manager_paths("shop", open_to_all / "own").prepare()


@pytest.mark.parametrize("mask", [0, 0o022])
def test_directories_above_are_made_private_as_well(runtime_dir: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        manager_paths("shop", runtime_dir / "a" / "b" / "c").prepare()
    finally:
        os.umask(before)
    for made in ("a", "a/b", "a/b/c"):
        assert (runtime_dir / made).stat().st_mode & 0o777 == 0o700


def test_a_relative_directory_is_absolute_once_it_is_named(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runtime_dir / "here").mkdir()
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", "r")
    monkeypatch.chdir(runtime_dir)
    first = PoolManager("shop")
    monkeypatch.chdir(runtime_dir / "here")  # as daemons do
    assert first.directory == PoolManager("shop").directory == runtime_dir / "r" / "shop"
    assert os.environ["MPPOOL_RUNTIME_DIR"] == str(runtime_dir / "r")  # what its children get


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("whose", ["runtime_dir", "directory", "address"])
def test_root_follows_no_address_of_another_user(paths: ManagerPaths, whose: str) -> None:
    Background(paths)
    launch.server_is_there(paths)
    os.chown(getattr(paths, whose), 65534, 65534)
    try:
        with pytest.raises(ConfigurationError, match=r"MPPOOL_RUNTIME_DIR") as refused:
            launch.connect(paths)
        with pytest.raises(ConfigurationError):
            launch.server_pid(paths)
    finally:
        os.chown(getattr(paths, whose), 0, 0)
    assert "chmod" not in str(refused.value)


@pytest.mark.parametrize("socket_name", ["../s", "/tmp/s", "", "s-\x1b[31m", "x" * 5000])
def test_an_address_that_leads_elsewhere_is_not_followed(
    paths: ManagerPaths, socket_name: str
) -> None:
    paths.prepare()
    address = Address(own_process(), 1, socket_name, "1")
    paths.address.write_bytes(msgspec.json.encode(address))
    assert read_address(paths) is None


def test_what_is_no_file_at_the_place_of_the_address_is_refused_and_not_waited_for(
    paths: ManagerPaths,
) -> None:
    paths.prepare()
    os.mkfifo(paths.address)
    with pytest.raises(ConfigurationError, match="is not a file of user"):
        read_address(paths)


def test_a_symbolic_link_is_refused(runtime_dir: Path) -> None:
    real, link = runtime_dir / "real", runtime_dir / "link"
    real.mkdir(0o700)
    link.symlink_to(real)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        manager_paths("shop", link).prepare()
    (runtime_dir / "shop").symlink_to(real)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        Server(manager_paths("shop", runtime_dir), linger=1).open()


def test_a_file_is_refused(runtime_dir: Path) -> None:
    (runtime_dir / "file").write_text("")
    with pytest.raises(ConfigurationError, match="not a directory"):
        manager_paths("shop", runtime_dir / "file").prepare()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        manager_paths("shop", runtime_dir / "file" / "within").prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(runtime_dir: Path) -> None:
    theirs = runtime_dir / "theirs"
    theirs.mkdir(0o700)
    os.chown(theirs, 65534, 65534)
    with pytest.raises(
        ConfigurationError, match="belongs to user 65534, and this process runs as user 0"
    ):
        manager_paths("shop", theirs).prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_default_follows_the_effective_user() -> None:
    def as_nobody() -> str:
        os.environ.pop("MPPOOL_RUNTIME_DIR", None)
        os.seteuid(65534)
        return str(manager_paths("shop").runtime_dir)

    assert Fork(as_nobody).result() == "/tmp/mppool-65534"


def test_hazard_14_a_naive_listener_in_a_long_directory_cannot_be_bound(runtime_dir: Path) -> None:
    path = str(runtime_dir / "s")
    path += "x" * (SUN_PATH_BYTES - len(path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(path + "xx")
