"""Finding and starting the server: one for all, nobody's child, and clear words where it fails."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mppool import PoolManager
from mppool.errors import ConfigurationError, ServerUnavailable
from mppool.ids import own_process
from mppool.rendezvous import interpreter, launch
from mppool.rendezvous.paths import Address, ManagerPaths, manager_paths, read_address
from mppool.server.loop import Server
from mppool.wire.messages import Done, Leave, Welcome
from tests.helpers import PATIENCE, ROOT, Fork, is_alive, run_python, wait_until
from tests.server.clients import Background, Client, Member, in_children, kill_server


def soon() -> float:
    return time.monotonic() + PATIENCE


def process_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def open_files_of(pid: int) -> set[str]:
    return {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def test_no_server_is_there_at_first(paths: ManagerPaths) -> None:
    assert launch.connect(paths) is None
    assert launch.server_pid(paths) is None


def test_twelve_unrelated_processes_that_start_at_once_agree_on_one_server(
    paths: ManagerPaths,
) -> None:
    code = f"""
import sys, time
from mppool.rendezvous import interpreter
from mppool.rendezvous import launch
from mppool.rendezvous.paths import manager_paths
from tests.server.clients import Client
sys.stdin.readline()
client = Client(manager_paths("shop", {str(paths.runtime_dir)!r}), start=True, linger=1.0)
print(client.hello("control").server.pid, flush=True)
sys.stdin.readline()
"""
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(12)
    ]
    try:
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("\n")
            starter.stdin.flush()
        pids = {starter.stdout.readline() for starter in starters if starter.stdout is not None}
        assert pids == {f"{launch.server_pid(paths)}\n"}
    finally:
        for starter in starters:
            starter.communicate("\n")


def test_the_server_is_nobodys_child(paths: ManagerPaths) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.set_inheritable(True)  # as web servers do with theirs
    secret = "MPP_TEST_SECRET"
    os.environ[secret] = "hunter2"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        client = Client(paths, start=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        del os.environ[secret]
    pid = launch.server_pid(paths)
    assert pid is not None
    status = process_status(pid)
    assert int(status["PPid"]) != os.getpid()
    assert os.getsid(pid) not in {
        pid,
        os.getsid(0),
    }  # own session, which it does not lead: no terminal
    assert int(status["SigBlk"], 16) == 0
    ignored = int(status["SigIgn"], 16)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        assert ignored & 1 << number - 1
    assert wait_until(lambda: "pipe:" not in " ".join(open_files_of(pid)), "the pipe to be closed")
    open_files = open_files_of(pid)
    inode = f"socket:[{os.fstat(listener.fileno()).st_ino}]"
    assert inode not in open_files
    own_memory = f"/proc/{pid}/mem"  # for the title
    expected = ("/dev/null", str(paths.directory), "socket:", "anon_inode:", own_memory)
    # A libffi with static trampolines (3.4.5 and newer) keeps its own file open for as long as ctypes is loaded.
    others = {name for name in open_files if "/libffi.so" not in name}
    assert all(name.startswith(expected) for name in others), open_files
    assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    limit = Path(f"/proc/{pid}/limits").read_text().split("Max open files")[1].split()
    assert limit[0] == limit[1]
    assert not own_zombies()
    assert pid not in own_children()
    listener.close()
    client.close()


def own_children() -> list[int]:
    """Children of this process; other tests may have left some that are none of our business (forkserver)."""
    return [pid for pid, _ in _children()]


def own_zombies() -> list[int]:
    return [pid for pid, state in _children() if state == "Z"]


def _children() -> Iterator[tuple[int, str]]:
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid():
            yield int(directory.name), state


def test_a_starter_whose_children_somebody_else_reaps_is_not_disturbed(paths: ManagerPaths) -> None:
    def starter() -> bool:
        def reap(*_: object) -> None:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass

        signal.signal(signal.SIGCHLD, reap)  # as gunicorn's master does
        Client(paths, start=True).close()
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        return False

    assert Fork(starter).result()


def test_it_starts_from_a_process_with_many_threads(paths: ManagerPaths) -> None:
    pids: list[int] = []

    def use() -> None:
        client = Client(paths, start=True, linger=1.0)
        welcome = client.hello("control")
        assert isinstance(welcome, Welcome)
        pids.append(welcome.server.pid)
        client.close()

    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(pids) == 16
    assert len(set(pids)) == 1


def test_children_forked_while_a_server_is_starting_get_the_same_one(paths: ManagerPaths) -> None:
    def ask() -> int:
        client = Client(paths, start=True, linger=1.0)
        welcome = client.hello("control")
        assert isinstance(welcome, Welcome)
        return welcome.server.pid

    stop = threading.Event()

    def start_over_and_over() -> None:
        while not stop.is_set():
            ask()

    thread = threading.Thread(target=start_over_and_over)
    thread.start()
    try:
        assert len(set(in_children(6, ask))) == 1
    finally:
        stop.set()
        thread.join()


def test_a_server_loads_no_openssl() -> None:
    """It would be a sixth of its memory. hashlib and secrets bring it along."""
    loaded = "[name for name in ('_hashlib', '_ssl', 'hashlib', 'secrets') if name in sys.modules]"
    run_python(f"import sys, mppool.server.loop\nassert not {loaded}, {loaded}")


def test_the_address_of_a_dead_server_is_replaced(paths: ManagerPaths) -> None:
    paths.prepare()
    paths.address.write_text('{"server": [1, 2], "epoch": 3, "socket": "s-gone", "version": "0"}')
    assert launch.connect(paths) is None
    assert launch.server_pid(paths) is None
    Client(paths, start=True).close()


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff" * 100, b'{"server": 1}'])
def test_garbage_in_the_address_file_is_replaced(paths: ManagerPaths, content: bytes) -> None:
    paths.prepare()
    paths.address.write_bytes(content)
    assert read_address(paths) is None
    Client(paths, start=True).close()
    assert launch.server_pid(paths) is not None


def test_the_pid_of_another_process_is_not_the_servers(paths: ManagerPaths) -> None:
    paths.prepare()
    own = own_process()
    address = {"server": [own.pid, own.birth + 1], "epoch": 3, "socket": "s", "version": "0"}
    paths.address.write_text(json.dumps(address))
    assert launch.server_pid(paths) is None


def test_a_killed_server_is_replaced_by_the_next_epoch(paths: ManagerPaths) -> None:
    first = Client(paths, start=True, linger=1.0)
    one = first.hello("control")
    pid = kill_server(paths)
    assert first.is_closed()
    second = Client(paths, start=True, linger=1.0)
    two = second.hello("control")
    assert isinstance(one, Welcome)
    assert isinstance(two, Welcome)
    assert two.epoch == one.epoch + 1
    assert two.server.pid != pid
    second.close()


def test_a_lock_that_nobody_gives_back_delays_but_does_not_stop(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "LOCK_PATIENCE_S", 0.1)
    paths.prepare()
    descriptor = os.open(paths.start_lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    client = Client(paths, start=True)
    assert isinstance(client.hello("control"), Welcome)
    client.close()
    os.close(descriptor)


def test_an_interrupted_attempt_leaves_the_start_lock_to_the_other_threads(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an exception from a signal handler, say, which may strike before any line."""
    monkeypatch.setattr(launch, "server_is_there", lambda paths: True)
    paths.prepare()
    lines = ended = 0

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(("launch.py", "shielded.py")):
            return None
        left -= event == "line"
        if left == 0:
            raise KeyboardInterrupt
        return interrupt

    def attempt() -> bool:
        return launch._start_locked(paths, 1.0, time.monotonic(), whatever=False)

    while not ended:
        lines += 1
        left = lines
        sys.settrace(interrupt)
        try:
            ended = attempt()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        with ThreadPoolExecutor(1) as others:
            # What was interrupted goes on to its end in its thread, and gives the lock back then.
            wait_until(
                lambda: others.submit(attempt).result(10),
                f"the lock, after a strike at line {lines}",
            )
    assert lines > 5


def test_whoever_waits_for_the_lock_waits_no_longer_than_its_deadline(paths: ManagerPaths) -> None:
    paths.prepare()
    descriptor = os.open(paths.start_lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    begin = time.monotonic()
    with pytest.raises(ServerUnavailable, match="time that was left"):
        launch.find_or_start(paths, linger=1, deadline=begin + 0.1)
    assert time.monotonic() - begin < launch.LOCK_PATIENCE_S
    os.close(descriptor)


def test_a_deadline_too_short_for_the_start_does_not_stop_it(paths: ManagerPaths) -> None:
    with pytest.raises(ServerUnavailable, match="not ready yet"):
        launch.find_or_start(paths, linger=1.0, deadline=time.monotonic() + 0.005)
    wait_until(lambda: launch.server_pid(paths), "the server that was started")
    wait_until(lambda: "mppool-reaper" not in {t.name for t in threading.enumerate()}, "the reaper")
    assert not own_zombies()


def test_a_start_that_takes_long_is_waited_for_while_there_is_time(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None])
    answer_of = launch.answer_of

    def late_once(reading: int, until: float) -> bytes | None:
        return next(answers, answer_of(reading, until))

    monkeypatch.setattr(launch, "answer_of", late_once)
    connection = launch.find_or_start(paths, linger=1.0, deadline=soon())
    connection.close()
    assert list(answers) == []
    wait_until(lambda: "mppool-reaper" not in {t.name for t in threading.enumerate()}, "the reaper")
    assert not own_zombies()


def test_why_a_start_failed_is_said(paths: ManagerPaths) -> None:
    paths.prepare()
    paths.journal.mkdir()
    with pytest.raises(ServerUnavailable, match=r"(?s)did not start.*Is a directory"):
        launch.find_or_start(paths, linger=1, deadline=soon())


def test_an_interpreter_that_is_none_is_said(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPPOOL_PYTHON", "/no/such/python")
    with pytest.raises(ServerUnavailable, match=r"/no/such/python.*MPPOOL_PYTHON"):
        launch.find_or_start(paths, linger=1, deadline=soon())
    monkeypatch.setenv("MPPOOL_PYTHON", "/bin/false")
    with pytest.raises(ServerUnavailable, match="did not start"):
        launch.find_or_start(paths, linger=1, deadline=soon())


@pytest.mark.parametrize(
    ("pretend", "why"),
    [
        ("sys.frozen = True", "frozen program"),
        ("sys._MEIPASS = '/tmp/_MEI1'", "frozen program"),
        ("sys.modules['__main__'].__compiled__ = ()", "frozen program"),
        ("sys.executable = ''", "sys.executable is empty"),
        ("sys.executable = None", "sys.executable is empty"),
        (
            "sys.executable = '/usr/bin/uwsgi-core'",
            "/usr/bin/uwsgi-core, which does not have the name of a Python",
        ),
        ("sys.modules['uwsgi'] = sys; sys.executable = '/usr/bin/uwsgi-core'", "it runs in uwsgi"),
        ("os.environ['MPPOOL_STARTED_AS_SERVER'] = '1'", "itself started as a server"),
    ],
)
def test_what_is_no_interpreter_is_never_started_as_a_server(
    runtime_dir: Path, pretend: str, why: str
) -> None:
    code = f"""
import os, sys, time
from mppool import ConfigurationError, PoolManager
{pretend}
pool = PoolManager("shop").pool("orders", object)
begin = time.monotonic()
try:
    pool.checkout(timeout=20)
except ConfigurationError as error:
    assert time.monotonic() - begin < 10
    print(error)
"""
    said = run_python(code).stdout
    assert why in said
    assert "Set $MPPOOL_PYTHON to a Python 3" in said


def test_a_program_that_is_started_as_a_server_after_all_starts_no_other(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, starts = tmp_path / "application", tmp_path / "starts"
    code = (
        "from mppool import PoolManager; PoolManager('shop').pool('p', object).checkout(timeout=20)"
    )
    program.write_text(f"""#!/bin/sh
echo start >> {starts}
PYTHONPATH={ROOT} exec {sys.executable} -c "{code}"
""")
    program.chmod(0o755)
    monkeypatch.setenv("MPPOOL_PYTHON", str(program))
    with pytest.raises(ServerUnavailable, match="itself started as a server"):
        launch.find_or_start(manager_paths("shop"), linger=1, deadline=soon())
    assert starts.read_text() == "start\n"


def test_a_frozen_program_has_its_server_from_another_interpreter(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setenv("MPPOOL_PYTHON", sys.executable)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/tmp/_MEI1")
    assert "LD_LIBRARY_PATH" not in interpreter.environment()
    monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/opt/lib")
    assert interpreter.environment()["LD_LIBRARY_PATH"] == "/opt/lib"
    paths = manager_paths("shop")
    launch.find_or_start(paths, linger=0.1, deadline=soon()).close()
    assert launch.server_pid(paths) is not None
    assert "-I" in interpreter.arguments()
    assert "-S" not in interpreter.arguments()


def test_nothing_of_the_server_reaches_a_core_file(paths: ManagerPaths) -> None:
    client = Client(paths, start=True)
    pid = launch.server_pid(paths)
    assert pid is not None
    limits = Path(f"/proc/{pid}/limits").read_text().split("Max core file size")[1].split()
    assert limits[0] == "0"
    assert int(process_status(pid)["SigIgn"], 16) & 1 << signal.SIGQUIT - 1
    # Its files in /proc are root's where a process is not dumpable, no matter who runs it.
    read_dumpable = """
import ctypes, os
from mppool.rendezvous.detached import settle_in
settle_in()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
    assert run_python(read_dumpable).stdout == "0\n"
    client.close()


def test_it_starts_where_only_pythonpath_leads_to_mppool(runtime_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "selectors.py").write_text("raise RuntimeError('shadowed')")
    code = """
import time
from mppool.rendezvous import interpreter
from mppool.rendezvous import launch
from mppool.rendezvous.paths import manager_paths
paths = manager_paths("shop")
with launch.find_or_start(paths, linger=0.1, deadline=time.monotonic() + 20):
    print(launch.server_pid(paths))
"""
    environment = {"PYTHONPATH": str(ROOT), "MPPOOL_RUNTIME_DIR": str(runtime_dir)}
    assert int(run_python(code, environment=environment).stdout) > 1


def test_a_second_server_for_the_same_paths_refuses_to_start(paths: ManagerPaths) -> None:
    with Background(paths), pytest.raises(ServerUnavailable, match=f"pid {os.getpid()} already"):
        Server(paths, linger=1).open(patience_s=0.05)


def test_nobody_who_waits_starts_a_second_one_beside_a_server_that_lost_its_address(
    paths: ManagerPaths,
) -> None:
    with Background(paths) as server:
        paths.address.unlink()
        connection = launch.find_or_start(paths, linger=1, deadline=soon())
        connection.close()
        assert launch.server_pid(paths) == os.getpid()
        assert server.address == str(paths.runtime_dir / _address(paths).socket)


def _address(paths: ManagerPaths) -> Address:
    address = read_address(paths)
    assert address is not None
    return address


def test_a_stopped_server_does_not_hold_up_a_connect(paths: ManagerPaths) -> None:
    Client(paths, start=True, linger=5.0).close()
    pid = launch.server_pid(paths)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        connection = launch.connect(paths, time.monotonic() + 1)
        assert (
            connection is not None
        )  # the backlog takes it; the handshake's deadline is the client's
        connection.close()
    finally:
        os.kill(pid, signal.SIGCONT)


def test_ctrl_c_and_hangup_do_not_end_it_and_term_does(paths: ManagerPaths) -> None:
    member = Member(paths, linger=60)
    pid = member.welcome.server.pid
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(pid, number)
    assert isinstance(Client(paths).hello("control"), Welcome)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), "the end of the server")
    member.close()
    left = {path.name for path in paths.directory.iterdir()}
    assert left == {"alive.lock", "start.lock", "members", "journal", "address.spare"}
    assert list(paths.runtime_dir.iterdir()) == [paths.directory]


def test_the_next_server_starts_while_the_last_one_is_still_leaving(paths: ManagerPaths) -> None:
    for _ in range(5):
        client = Client(paths, start=True, linger=30.0)
        welcome = client.hello("control")
        assert isinstance(welcome, Welcome)
        assert client.call(Leave()) == Done()
        following = Client(paths, start=True, linger=30.0)
        answer = following.hello("control")
        # A quick one has reached the old one, which says that it is leaving.
        assert isinstance(answer, Welcome) or answer.reason == "leaving"  # type: ignore[union-attr]
        client.close()
        following.close()


def test_an_interrupted_start_leaves_no_zombie(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(launch, "answer_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launch.find_or_start(paths, linger=1.0, deadline=soon())
    Client(
        paths, start=True
    ).close()  # the start lock was given back, and the server goes on starting
    wait_until(lambda: "mppool-reaper" not in {t.name for t in threading.enumerate()}, "the reaper")
    assert not own_zombies()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_server_of_another_user_is_not_trusted(runtime_dir: Path) -> None:
    def as_nobody() -> str:
        os.seteuid(65534)
        with pytest.raises(ConfigurationError) as caught:
            launch.connect(paths)
        return str(caught.value)

    paths = manager_paths("shop", runtime_dir)
    with Background(paths) as server:
        for directory in (paths.runtime_dir, paths.directory, Path(server.address)):
            directory.chmod(0o777)  # a trap
        paths.address.chmod(0o644)
        assert "belongs to user 0" in Fork(as_nobody).result()
        for directory in (paths.runtime_dir, paths.directory):
            directory.chmod(0o700)


def test_a_client_in_another_pid_namespace_is_told_so(paths: ManagerPaths) -> None:
    code = f"""
from mppool.rendezvous.paths import manager_paths
from tests.server.clients import Client
answer = Client(manager_paths("shop", {str(paths.runtime_dir)!r})).hello("errand")
print(answer.reason, answer.text)
"""
    with Background(paths):
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    if "unshare" in done.stderr:
        pytest.skip(f"no pid namespace can be made here: {done.stderr.strip()}")
    assert done.stdout.startswith("namespace you say that you are pid"), done.stderr
    assert "MPPOOL_RUNTIME_DIR" in done.stdout


def test_ps_shows_what_a_server_serves(runtime_dir: Path) -> None:
    manager = PoolManager("shop")
    manager.pool("orders", object).checkout().release()

    def title() -> str:
        found = Path(f"/proc/{manager.server_pid}/cmdline").read_bytes()
        return found.rstrip(b"\0").decode()

    wait_until(lambda: title() == "mppool: shop (1 process, 1 pool)", "the title")
    manager.pool("reports", object).checkout().release()
    wait_until(lambda: title() == "mppool: shop (1 process, 2 pools)", "the title")
    manager.shutdown()
