"""Hardened systems: a /proc that hides, a seccomp profile that forbids, and containers that share a directory."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mppool import PoolManager
from mppool.errors import ConfigurationError
from mppool.rendezvous import world
from mppool.rendezvous.paths import ManagerPaths
from mppool.server.journal import Journal
from tests.helpers import ROOT, Fork, component_is_missing, is_alive, run_python, wait_until
from tests.server.clients import Background

NO_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
USE = """
import os, signal, sys, time
from mppool import PoolManager
def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
manager = PoolManager("shop", linger=0.2)
pool = manager.pool("orders", object, max_size=2)
lease = pool.checkout(timeout=20)
"""
# As after a change of the user: /proc shows such a process to root alone.
UNSEEN = """
import ctypes
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
"""


def hardened(options: str, code: str) -> str:
    """Run code where /proc is mounted with these options, without root's rights; what it printed."""
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("setpriv"):
        component_is_missing("only root can mount another /proc (unshare, setpriv: util-linux)")
    run = [*NO_RIGHTS, sys.executable, "-c", code]
    script = f'mount -t proc -o {options} proc /proc && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *run],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if "mount" in done.stderr and "permission denied" in done.stderr:
        pytest.skip(f"this container may not mount: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("options", ["hidepid=1", "hidepid=2", "hidepid=4", "subset=pid"])
@pytest.mark.parametrize("unseen", [False, True])
def test_it_works_where_proc_hides(runtime_dir: Path, options: str, unseen: bool) -> None:
    code = (
        (UNSEEN if unseen else "")
        + USE
        + """
first = manager.server_pid
child = os.fork()
if not child:
    with pool.checkout(timeout=20):
        os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
with pool.checkout(timeout=20):  # the slot of the killed child is free again
    pass
os.kill(first, signal.SIGKILL)
until(lambda: manager.server_pid not in (None, first))
until(lambda: manager.stats()["pools"]["orders"]["size"] == 2)
child = os.fork()
if not child:  # one slot is held by its parent, which lives, and the other moves here
    with pool.checkout(timeout=20):
        os._exit(0 if manager.stats()["pools"]["orders"]["size"] == 2 else 1)
assert os.waitpid(child, 0)[1] == 0
lease.release()
print("served")
"""
    )
    assert hardened(options, code).endswith("served\n")


def test_doctor_says_what_proc_hides(runtime_dir: Path) -> None:
    code = "from mppool.cli import main; raise SystemExit(main(['doctor', '--plain']))"
    assert "hidepid=" in hardened("hidepid=2", code)
    assert "the boot id is not visible" in hardened("subset=pid", code)


def test_a_journal_of_an_unknown_boot_is_continued(paths: ManagerPaths) -> None:
    paths.prepare()
    before = Journal(paths.journal, boot="abc")
    before.unsettled()
    before.close()
    assert world.may_be_one_boot("", "abc")
    assert not world.may_be_one_boot("abd", "abc")
    after = Journal(paths.journal, boot="abc")
    assert after.torn  # not void
    after.close()


@pytest.mark.parametrize(
    ("unshare", "proc", "said"),
    [
        (["--mount"], "mount -t tmpfs none /proc", "cannot be read"),
        (["--pid", "--fork"], "true", "says that this is process"),
    ],
)
def test_no_proc_and_the_proc_of_others_are_one_clear_error(
    runtime_dir: Path, unshare: list[str], proc: str, said: str
) -> None:
    if os.geteuid() or not shutil.which("unshare"):
        component_is_missing("only root can make a namespace (unshare: util-linux)")
    done = subprocess.run(
        ["unshare", *unshare, "sh", "-c", f'{proc} && "$@"', "sh", sys.executable, "-c", TRY],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert "ConfigurationError /proc/self/stat" in done.stdout, done.stdout + done.stderr
    assert said in done.stdout
    assert list(runtime_dir.iterdir()) == []


FORBID = """
import ctypes, errno, struct, sys
def forbid(number):  # a seccomp filter: EPERM for this system call
    code = struct.pack("HBBI", 0x20, 0, 0, 0)  # load its number
    code += struct.pack("HBBI", 0x15, 0, 1, number)
    code += struct.pack("HBBI", 0x06, 0, 0, 0x50000 | errno.EPERM)
    code += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0
forbid(434)  # pidfd_open, on every machine
"""


def test_a_seccomp_profile_without_pidfd_open_is_one_clear_error(runtime_dir: Path) -> None:
    done = run_python(
        FORBID
        + """
from mppool import ConfigurationError, PoolManager
pool = PoolManager("shop").pool("orders", object)
for _ in range(2):
    try:
        pool.checkout(timeout=5)
    except ConfigurationError as error:
        print(error)
"""
    )
    for said in done.stdout.splitlines():
        assert "pidfd_open fails (Operation not permitted)" in said
        assert "seccomp" in said
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr
    assert list(runtime_dir.iterdir()) == []  # nothing was started


@pytest.mark.parametrize("command", ["list", "doctor", "stats"])
def test_commands_say_it_too(paths: ManagerPaths, command: str) -> None:
    Background(paths)
    arguments = [command, *(["shop"] if command == "stats" else []), "--plain"]
    code = FORBID + f"from mppool.cli import main; print('status', main({arguments!r}))"
    done = run_python(code)
    assert "Traceback" not in done.stderr
    assert command == "list" or "pidfd_open" in done.stdout + done.stderr
    assert "status 0" not in done.stdout or command == "list"


# --- two pid namespaces ---------------------------------------------------------------------------------------


def elsewhere(code: str) -> str:
    """Run code in a pid namespace of its own; what it printed."""
    if os.geteuid() or not shutil.which("unshare"):
        component_is_missing("only root can make a pid namespace (unshare: util-linux)")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TRY = """
from mppool import PoolError, PoolManager
pool = PoolManager("shop", linger=0.1).pool("orders", object, max_size=1)
try:
    pool.checkout(timeout=10).release()
    print("served")
except PoolError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("server", ["lives", "was killed"])
def test_another_pid_namespace_is_refused_while_one_lives_here(
    runtime_dir: Path, server: str
) -> None:
    shop = PoolManager("shop", linger=0.2)
    with shop.pool("orders", object, max_size=1).checkout(timeout=20):
        pid = shop.server_pid
        assert pid is not None
        journal = (shop.directory / "journal").read_bytes()
        if server == "was killed":
            with stopped_errands(shop):
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not is_alive(pid), "the end of the server")
                said = elsewhere(TRY)
                assert (shop.directory / "journal").read_bytes() == journal
        else:
            said = elsewhere(TRY)
        assert "another pid namespace" in said
        assert "MPPOOL_RUNTIME_DIR" in said
    with shop.pool("orders", object, max_size=1).checkout(timeout=20):
        pass


class stopped_errands:  # noqa: N801
    """Nobody here starts the next server."""

    def __init__(self, manager: PoolManager) -> None:
        self._link = manager._link.session

    def __enter__(self) -> None:
        self._link._attaching.acquire()

    def __exit__(self, *_: object) -> None:
        self._link._attaching.release()


def test_what_the_dead_of_another_pid_namespace_left_is_void(runtime_dir: Path) -> None:
    hold = USE + "os.kill(manager.server_pid, signal.SIGKILL); os._exit(1)"
    with pytest.raises(AssertionError):  # killed: as a container that is stopped hard
        elsewhere(hold)
    assert (runtime_dir / "shop" / "journal").exists()
    assert elsewhere(TRY) == "served\n"


def test_the_sign_of_life_is_of_one_process_and_ends_with_it(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.prepare()
    reading, writing = os.pipe()
    child = Fork(show_and_wait, paths, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        grandchild = int(pipe.readline())
    other = world.pid_namespace_inode() + 1
    monkeypatch.setattr(world, "pid_namespace_inode", lambda: other)

    def is_seen() -> bool:
        try:
            world.check_no_other_world(paths)
        except ConfigurationError:
            return True
        return False

    wait_until(is_seen, "the child's sign of life")
    child.kill()
    assert not is_seen()
    os.kill(grandchild, signal.SIGKILL)


def show_and_wait(paths: ManagerPaths, writing: int) -> None:
    sign = world.SignOfLife(paths)
    assert sign.is_seen()
    grandchild = os.fork()  # by whatever: it has the descriptor, and not the lock
    if grandchild:
        os.write(writing, b"%d\n" % grandchild)
        os.close(writing)
    signal.pause()


def test_the_sign_of_life_stays_while_other_members_of_the_process_come_and_go(
    paths: ManagerPaths,
) -> None:
    """A lock of the process ends with the first descriptor of the file that is closed in it."""
    paths.prepare()
    ends = os.pipe(), os.pipe()
    child = Fork(show_several, paths, ends[0][1], ends[1][0])
    with os.fdopen(ends[0][0]) as pipe:
        assert pipe.readline() == "shown\n"
    elsewhere_here = f"""
from mppool.rendezvous import world
from mppool.rendezvous.paths import ManagerPaths
from pathlib import Path
other = world.pid_namespace_inode() + 1
world.pid_namespace_inode = lambda: other
try:
    world.check_no_other_world(ManagerPaths(Path({os.fspath(paths.runtime_dir)!r}), {paths.name!r}))
except Exception as error:
    print(type(error).__name__)
"""
    assert run_python(elsewhere_here).stdout == "ConfigurationError\n"
    os.write(ends[1][1], b"end")
    assert child.result()
    assert run_python(elsewhere_here).stdout == ""


def show_several(paths: ManagerPaths, shown: int, end: int) -> bool:
    first = world.SignOfLife(paths)
    second = world.SignOfLife(paths)  # of another member of this process
    del second
    gc.collect()
    world.check_no_other_world(paths)  # this process serves, too
    os.write(shown, b"shown\n")
    os.close(shown)
    os.read(end, 3)
    return first.is_seen()
