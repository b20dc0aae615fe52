"""What proves that a process is dead."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import final

import pytest

from mppool.ids import ProcessId, birth_of, own_process
from mppool.rendezvous import liveness
from mppool.server.members import Members
from tests.helpers import wait_until


@final
class Sleeper:
    """A process that does nothing until it is killed."""

    def __init__(self) -> None:
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        birth = birth_of(self.child.pid)
        assert birth is not None
        self.process = ProcessId(self.child.pid, birth)

    def __enter__(self) -> Sleeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()


def test_a_pidfd_tells_of_death_even_before_the_zombie_is_reaped() -> None:
    with Sleeper() as sleeper:
        pidfd = liveness.watch_process(sleeper.process)
        assert pidfd is not None
        assert not liveness.is_dead(pidfd)
        sleeper.child.kill()
        wait_until(lambda: liveness.is_dead(pidfd), "the death")
        assert not liveness.lives(sleeper.process)
        os.close(pidfd)


def test_a_stopped_process_lives() -> None:
    with Sleeper() as sleeper:
        sleeper.child.send_signal(signal.SIGSTOP)
        assert liveness.lives(sleeper.process)


def test_another_birth_is_another_process() -> None:
    own = own_process()
    assert liveness.lives(own)
    assert not liveness.lives(ProcessId(own.pid, own.birth + 1))


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**40, 2**63])
def test_what_is_no_pid_does_not_live(pid: int) -> None:
    assert not liveness.lives(ProcessId(pid, 1))


@pytest.mark.parametrize("old_kernel", [False, True])
def test_the_peer_is_watched_with_and_without_so_peerpidfd(
    old_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old_kernel:
        monkeypatch.setattr(liveness, "SO_PEERPIDFD", 9999)  # ENOPROTOOPT, as before Linux 6.5
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert liveness.peer_of(ours) == liveness.Peer(os.getpid(), os.geteuid())
        pidfd = liveness.watch_peer(ours, own_process())
        assert pidfd is not None
        assert not os.get_inheritable(pidfd)
        os.close(pidfd)
        assert liveness.watch_peer(ours, ProcessId(os.getpid(), 1)) is None


def test_only_enoprotoopt_means_that_the_kernel_is_older() -> None:
    class Strange:
        def __init__(self, number: int) -> None:
            self.number = number

        def getsockopt(self, *_: object) -> int:
            raise OSError(self.number, "strange")

    gone = Strange(errno.ESRCH)
    assert liveness.watch_peer(gone, own_process()) is None  # type: ignore[arg-type]
    with pytest.raises(OSError, match="strange"):
        liveness.watch_peer(Strange(errno.EMFILE), own_process())  # type: ignore[arg-type]


def test_member_files_tell_the_living_from_the_dead(tmp_path: Path) -> None:
    members = Members(tmp_path, "world")
    with Sleeper() as sleeper:
        members.add(own_process())
        members.add(sleeper.process)
        members.add(sleeper.process)
        assert members.living() == {own_process(), sleeper.process}
    (tmp_path / "garbage").write_text("")
    assert members.living() == {own_process()}
    assert len(list(tmp_path.iterdir())) == 1
    assert Members(tmp_path, "another boot").living() == set()
    assert list(tmp_path.iterdir()) == []
