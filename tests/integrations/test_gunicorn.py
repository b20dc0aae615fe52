"""gunicorn, started as users start it, with real signals. A witness counts the sessions, not mppool."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from mppool import PoolManager
from mppool.ids import birth_of
from tests.helpers import ROOT, component_is_missing, is_alive, is_server, wait_until
from tests.integrations.webserver import (
    Load,
    Refused,
    WebServer,
    children_of,
    control_socket,
    session_of,
)
from tests.integrations.witness import Witness

CAP = 2
LINGER_S = 60.0  # where all workers may be gone for a moment, which is long on a busy machine
HOOKS = "from mppool.integrations.gunicorn import *\n"
Start = Callable[..., WebServer]


@pytest.fixture
def place(runtime_dir: Path) -> Iterator[Path]:
    """A short path that other users may enter, for sockets and logs."""
    directory = Path(tempfile.mkdtemp(prefix="mppg-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def witness(place: Path) -> Iterator[Witness]:
    with Witness(place / "db") as witness:
        yield witness


@pytest.fixture
def gunicorn(place: Path, runtime_dir: Path, witness: Witness) -> Iterator[Start]:
    """Starts a gunicorn; `settings` are the application's."""
    pytest.importorskip("gunicorn")
    with ExitStack() as running:

        def start(
            *options: str,
            config: str = "",
            before: Sequence[str] = (),
            python: str = sys.executable,
            remove: Sequence[str] = (),
            **settings: object,
        ) -> WebServer:
            name = os.urandom(4).hex()
            (place / f"{name}.conf.py").write_text(config)
            # Its control socket lies, like everything else, in a directory of this test.
            command = [
                *before, python, "-m", "gunicorn", "-c", str(place / f"{name}.conf.py"),
                "--bind", f"unix:{place / name}", *control_socket(place / f"{name}.ctl"),
                *options, "tests.integrations.witness_app:application",
            ]  # fmt: skip
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "WITNESS": str(witness.path),
                "APP_CAP": str(CAP),
                **{key: str(value) for key, value in settings.items()},
            }
            for variable in remove:
                environment.pop(variable, None)
            server = WebServer(
                command, directory=place, environment=environment, address=place / name
            )
            return running.enter_context(server)

        yield start


def workers_are(server: WebServer, count: int) -> list[int]:
    return wait_until(
        lambda: len(found := children_of(server.pid)) == count and found, f"{count} workers"
    )


def replaced(server: WebServer, before: Sequence[int], count: int) -> list[int]:
    return wait_until(
        lambda: (
            len(found := children_of(server.pid)) == count
            and not set(found) & set(before)
            and found
        ),
        f"{count} workers other than {before}",
    )


def server_pid(runtime_dir: Path, manager: str = "shop") -> int | None:
    return PoolManager(manager, runtime_dir=runtime_dir).server_pid


KINDS = {
    "sync": ["--worker-class", "sync"],
    "sync, preload": ["--worker-class", "sync", "--preload"],
    "gthread, preload": ["--worker-class", "gthread", "--threads", "3", "--preload"],
    "gthread": ["--worker-class", "gthread", "--threads", "3"],
    "gevent": ["--worker-class", "gevent"],
    "gevent, preload": ["--worker-class", "gevent", "--preload"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_server_and_one_cap_through_all_that_a_master_does(
    kind: str, gunicorn: Start, witness: Witness, runtime_dir: Path
) -> None:
    if "gevent" in kind:
        pytest.importorskip("gevent")
    server = gunicorn(
        "--workers", "2", "--graceful-timeout", "5", *KINDS[kind], APP_LINGER=LINGER_S
    )
    server.ask_until("/use")
    pid = server_pid(runtime_dir)
    assert pid is not None
    with Load(server, "/use", threads=4) as load:
        load.more()
        if "gevent" not in kind:  # whose workers take their time to leave
            server.send(signal.SIGTTIN)
            workers_are(server, 3)
            load.more()
            server.send(signal.SIGTTOU)
        workers = workers_are(server, 2)
        load.more()
        server.send(signal.SIGHUP)
        workers = replaced(server, workers, 2)
        load.more()
        server.send(signal.SIGKILL, workers[0])
        wait_until(lambda: not is_alive(workers[0]), "the end of a worker")
        workers = workers_are(server, 2)
        load.more()
    # The master has no child but workers, and the server is nobody's: no exit status of it comes here.
    assert pid not in session_of(server.pid)
    assert load.refused == []
    assert server.ask_until("/fill")["leases"] == CAP
    assert 0 < witness.peak <= CAP
    assert witness.pids() <= set(children_of(server.pid))
    assert server_pid(runtime_dir) == pid
    assert server.stop() == 0
    wait_until(lambda: not witness.sessions(), "the end of all sessions")
    PoolManager("shop", runtime_dir=runtime_dir).shutdown()
    wait_until(lambda: server_pid(runtime_dir) is None, "the server to leave")


def test_a_master_that_uses_a_pool_itself_shares_it_and_reaps_nothing_of_ours(
    gunicorn: Start, witness: Witness, runtime_dir: Path
) -> None:
    server = gunicorn("--workers", "2", "--preload", "--log-level", "debug", APP_USE_AT_IMPORT=1)
    server.ask_until("/use")
    pid = server_pid(runtime_dir)
    with Load(server, "/use") as load:
        load.more(30)
        for worker in children_of(server.pid):
            server.send(signal.SIGKILL, worker)
            load.more()
    assert witness.peak <= CAP
    assert load.refused == []
    assert server.ask_until("/fill")["leases"] == CAP
    assert server_pid(runtime_dir) == pid
    assert pid not in children_of(server.pid)
    assert "unknown child" not in server.text()
    assert server.stop() == 0


@pytest.mark.parametrize("farewell", [signal.SIGTERM, signal.SIGQUIT])
def test_usr2_two_masters_one_cap(
    farewell: signal.Signals, gunicorn: Start, witness: Witness, runtime_dir: Path
) -> None:
    server = gunicorn("--workers", "2", "--graceful-timeout", "5")
    server.ask_until("/use")
    pid = server_pid(runtime_dir)
    old_workers = workers_are(server, 2)
    with Load(server, "/use", threads=4) as load:
        load.more()
        server.send(signal.SIGUSR2)
        (new_master,) = wait_until(
            lambda: set(children_of(server.pid)) - set(old_workers), "the new master"
        )
        new_workers = wait_until(
            lambda: len(found := children_of(new_master)) == 2 and found, "its workers"
        )
        wait_until(lambda: load.pids & set(new_workers), "answers of the new workers")
        load.more()
        server.send(farewell)  # to the old master
        server.process.wait(15)
        load.more()
        before = load.answers
        load.pids.clear()
        wait_until(lambda: load.answers > before + 5 and load.pids, "more answers")
        assert load.pids <= set(children_of(new_master))
    assert witness.peak <= CAP
    # With QUIT gunicorn interrupts requests by SystemExit, wherever they are, also in a checkout.
    assert len(load.refused) == (server.text().count("\nSystemExit: 0"))
    assert farewell == signal.SIGQUIT or not load.refused
    assert server_pid(runtime_dir) == pid
    server.send(signal.SIGTERM, new_master)
    wait_until(lambda: not list(session_of(server.pid)), "the end of the new master")
    wait_until(lambda: server_pid(runtime_dir) is None, "the server to linger out")
    assert not witness.sessions()


def test_max_requests(gunicorn: Start, witness: Witness, runtime_dir: Path) -> None:
    server = gunicorn("--workers", "2", "--max-requests", "8", APP_LINGER=10)
    server.ask_until("/use")
    pid = server_pid(runtime_dir)
    with Load(server, "/use", threads=3) as load:
        wait_until(lambda: len(load.pids) >= 6, "six workers, one after the other")
    assert witness.peak <= CAP
    assert load.refused == []
    assert server.ask_until("/fill")["leases"] == CAP
    assert server_pid(runtime_dir) == pid


@pytest.mark.parametrize("path", ["/hang", "/stuck"])
def test_a_hung_request_is_ended_with_its_worker_and_its_session_is_free(
    path: str, gunicorn: Start, witness: Witness
) -> None:
    # gunicorn tries SIGABRT first, which interrupts the request; a worker that does not hear it is killed.
    server = gunicorn("--workers", "2", "--timeout", "1", APP_CAP=1)
    server.ask_until("/use")
    with pytest.raises((OSError, http.client.HTTPException, Refused)):
        server.ask(path)
    if path == "/stuck":
        wait_until(lambda: "was sent SIGKILL" in server.text(), "the master to see it")
    assert server.ask_until("/fill")["leases"] == 1
    assert witness.peak == 1


def test_sigkill_of_the_master_leaves_no_orphan(
    gunicorn: Start, witness: Witness, runtime_dir: Path
) -> None:
    server = gunicorn("--workers", "2", "--timeout", "2", "--preload", APP_USE_AT_IMPORT=1)
    server.ask_until("/use")
    pid = server_pid(runtime_dir)
    assert pid is not None
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not list(session_of(server.pid)), "the workers to notice")
    wait_until(lambda: not is_alive(pid), "the server to linger out")
    assert not witness.sessions()


def age_of(pid: int) -> float:
    """Seconds since the birth of a process."""
    birth = birth_of(pid)
    assert birth is not None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - birth / os.sysconf("SC_CLK_TCK")


def test_reload_of_changed_code(
    gunicorn: Start, witness: Witness, runtime_dir: Path, place: Path
) -> None:
    module = place / "watched.py"
    module.write_text("version = 1\n")
    server = gunicorn(
        "--workers", "2", "--reload", "--reload-engine", "poll",
        "--reload-extra-file", str(module), APP_LINGER=LINGER_S,
    )  # fmt: skip
    server.ask_until("/use")
    pid = server_pid(runtime_dir)
    workers = workers_are(server, 2)
    server.ask_until("/use")
    # A poller overlooks what was changed before its first look, which comes a second after its start.
    for worker in workers:
        wait_until(lambda pid=worker: age_of(pid) > 2, "the poller's first look")
    later = module.stat().st_mtime + 10
    os.utime(module, (later, later))
    replaced(server, workers, 2)
    assert server.ask_until("/fill")["leases"] == CAP
    assert server_pid(runtime_dir) == pid
    assert witness.peak <= CAP
    assert server.stop() == 0
    PoolManager("shop", runtime_dir=runtime_dir).shutdown()
    wait_until(lambda: server_pid(runtime_dir) is None, "the server to leave")


# --- hooks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_hooks_warm_up_before_the_worker_accepts_and_say_farewell(
    options: Sequence[str], gunicorn: Start, witness: Witness
) -> None:
    server = gunicorn("--workers", "2", *options, config=HOOKS)
    wait_until(lambda: len(witness.pids()) == 2, "one session in each worker")
    answer = server.ask_until("/quick")
    assert answer["opened"] == answer["opened_before"] == 2
    look = server.ask_until("/look")
    assert [label.rpartition(" worker ")[2] for label in look["labels"]] == ["1", "2"]
    counters = look["stats"]["pools"]["orders"]["counters"]
    assert counters["timeouts"] == 0
    assert counters["checkouts"] == 1  # what was warmed up was not lent
    assert witness.farewells == 0
    stopped = server.stop()
    assert stopped == 0
    wait_until(lambda: not witness.sessions(), "the end of all sessions")
    assert witness.farewells == 2
    assert "Traceback" not in server.text()


def test_hooks_open_min_size_without_a_request(gunicorn: Start, witness: Witness) -> None:
    server = gunicorn("--workers", "2", config=HOOKS, APP_CAP=4, APP_MIN_SIZE=4)
    wait_until(lambda: len(witness.sessions()) == 4, "all that are to be open")
    assert witness.peak == 4
    counters = server.ask_until("/look")["stats"]["pools"]["orders"]["counters"]
    assert counters["checkouts"] == 0


def test_workers_without_hooks_have_the_names_that_gunicorn_gives_them(gunicorn: Start) -> None:
    server = gunicorn("--workers", "2", "--name", "web", "--preload", APP_USE_AT_IMPORT=1)
    server.ask_until("/use")
    wanted = ["gunicorn", "web worker 1", "web worker 2"]
    assert wait_until(
        lambda: server.ask("/use") and server.ask("/look")["labels"] == wanted, "their names"
    )


def test_hooks_with_fewer_sessions_than_workers_and_without_a_database(
    gunicorn: Start, witness: Witness
) -> None:
    server = gunicorn("--workers", "3", config=HOOKS, APP_CAP=1)
    answer = server.ask_until("/look", lambda answer: len(answer["labels"]) == 3)
    wait_until(
        lambda: witness.peak == 1, "the session of one of them"
    )  # the others have accepted by then
    assert answer["stats"]["pools"]["orders"]["counters"]["timeouts"] == 0
    assert server.ask("/use")
    assert "WARNING" not in server.text()
    assert "nothing could be opened" not in server.text()
    assert server.stop() == 0
    down = gunicorn("--workers", "2", config=HOOKS, WITNESS="/nowhere/at/all", APP_MANAGER="down")
    down.ask_until("/look", lambda answer: len(answer["labels"]) == 2)
    assert "nothing could be opened before the first request" in down.text()


def test_worker_exit_called_in_the_master_closes_nothing_of_the_master(
    gunicorn: Start, witness: Witness
) -> None:
    # gunicorn does so when a worker vanished before its signal arrived; here a hook calls it.
    config = (
        HOOKS
        + "from mppool.integrations import gunicorn as pools\n"
        + "def child_exit(server, worker):\n"
        + "    pools.worker_exit(server, worker)\n"
        + "    pools.child_exit(server, worker)\n"
        + "    print('worker_exit in the master', flush=True)\n"
    )
    server = gunicorn("--workers", "1", "--preload", config=config, APP_USE_AT_IMPORT=1)
    server.ask_until("/use")
    assert server.pid in witness.pids()
    (worker,) = children_of(server.pid)
    server.send(signal.SIGKILL, worker)
    replaced(server, [worker], 1)
    wait_until(lambda: "worker_exit in the master" in server.text(), "the hook")
    assert server.pid in witness.pids()
    server.ask_until("/use")
    assert server.stop() == 0
    wait_until(lambda: not witness.sessions(), "the master's farewell")


# --- other users, other namespaces -----------------------------------------------------------------------


def python_for_everybody() -> str:
    """An interpreter of this version that other users may execute."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        tried = subprocess.run(
            ["runuser", "-u", "www-data", "--", candidate, "-c", "import ctypes, socket"],
            cwd="/", capture_output=True, check=False,
        )  # fmt: skip
        if tried.returncode == 0:
            return candidate
    component_is_missing(f"there is no {version} that the user www-data may execute")
    raise AssertionError("not reached")


def in_a_container() -> list[str]:
    """A command that makes what follows process 1 of a pid namespace."""
    container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        component_is_missing("unshare cannot make a pid namespace here")
    return container


def servers_among(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if is_server(Path(f"/proc/{pid}/cmdline").read_bytes().decode())]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start gunicorn with --user")
def test_a_root_master_with_workers_of_another_user(gunicorn: Start, witness: Witness) -> None:
    import pwd

    user = pwd.getpwnam("www-data")
    directory = Path("/tmp") / f"mppool-{user.pw_uid}"
    existed = directory.exists()
    manager = f"test-{os.getpid()}-{os.urandom(3).hex()}"
    try:
        server = gunicorn(
            "--workers", "2", "--user", "www-data", "--group", "www-data", "--preload",
            python=python_for_everybody(), remove=["MPPOOL_RUNTIME_DIR"], APP_MANAGER=manager,
        )  # fmt: skip
        server.ask_until("/use")
        with Load(server, "/use") as load:
            load.more(20)
        assert load.refused == []
        assert witness.peak <= CAP
        address = json.loads((directory / manager / "address").read_text())
        pid = address["server"][0]
        assert os.stat(f"/proc/{pid}").st_uid == user.pw_uid
        assert server.stop() == 0
        wait_until(lambda: not is_alive(pid), "the server to linger out")
    finally:
        shutil.rmtree(directory / manager, ignore_errors=True)
        if not existed and directory.exists() and not any(directory.iterdir()):
            directory.rmdir()


def test_as_process_1_of_a_container(gunicorn: Start, witness: Witness) -> None:
    server = gunicorn(
        "--workers", "2", "--log-level", "debug", before=in_a_container(), APP_LINGER="0.1"
    )
    server.ask_until("/use")
    (master,) = children_of(server.pid)
    (pid,) = servers_among(children_of(master))  # process 1 adopts it
    # Workers leave with HUP, nobody needs the server, and it leaves with status 0: process 1 goes on.
    server.send(signal.SIGHUP, master)
    wait_until(lambda: not is_alive(pid), "the server to linger out")
    server.ask_until("/use")
    assert servers_among(children_of(master)) not in ([], [pid])
    said = server.text()
    assert not re.search(r"unknown child process .*status:[^0]", said)
    assert "failed to boot" not in said
    assert witness.peak <= CAP
    server.send(signal.SIGTERM, master)
    server.process.wait(10)


def test_a_server_killed_under_a_process_1_does_not_end_it(
    gunicorn: Start, witness: Witness
) -> None:
    server = gunicorn("--workers", "2", before=in_a_container())
    server.ask_until("/use")
    (master,) = children_of(server.pid)
    with Load(server, "/use") as load:
        load.more()
        (pid,) = servers_among(children_of(master))
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "its end")
        load.more(20)
    assert load.refused == []
    assert witness.peak <= CAP
    server.send(signal.SIGTERM, master)
    server.process.wait(10)
