"""Where the disk is full: a start writes nothing that has not got its blocks already."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mppool.core.decisions import Grant
from mppool.rendezvous import launch
from mppool.rendezvous.paths import ManagerPaths, manager_paths
from tests.helpers import wait_until
from tests.server.clients import Client, Member, in_children, kill_server


@pytest.fixture
def small(runtime_dir: Path) -> Iterator[ManagerPaths]:
    """A manager on a file system of its own, of half a megabyte."""
    place = runtime_dir / "small"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=512k,mode=0755"]
    mounted = subprocess.run(["mount", *options, "none", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"only who may mount can fill a disk: {mounted.stderr.decode()}")
    paths = manager_paths("shop", place / "r")
    try:
        yield paths
        # What is still there when the file system goes leaves by itself: its directory is away.
        if pid := launch.server_pid(paths):
            kill_server(paths)
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the server")
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(paths: ManagerPaths) -> None:
    descriptor = os.open(paths.runtime_dir.parent / "fill", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        while True:
            os.write(descriptor, b"x" * 4096)
    except OSError:
        os.close(descriptor)


def end_in_order(paths: ManagerPaths) -> None:
    wait_until(lambda: launch.server_pid(paths) is None, "the end of the server")


@pytest.mark.parametrize("end", [kill_server, end_in_order])
def test_a_server_starts_and_serves_new_processes_on_a_full_disk(
    small: ManagerPaths, end: Callable[[ManagerPaths], object]
) -> None:
    with Member(small, max_size=8, linger=0.1) as member:
        assert isinstance(member.checkout(), Grant)
        if end is kill_server:
            fill(small)
            end(small)
    if end is not kill_server:
        in_children(1, leave, small)
        fill(small)

    def check_out() -> bool:
        with Member(small, max_size=8, linger=0.1) as member:
            return isinstance(member.checkout(), Grant)

    assert in_children(3, check_out) == [True] * 3
    assert check_out()


def leave(paths: ManagerPaths) -> None:
    from mppool.wire.messages import Leave

    client = Client(paths)
    client.hello("control")
    client.call(Leave())
    wait_until(lambda: launch.server_pid(paths) is None, "the end of the server")
