"""The commands against a real server, run as users run them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mppool import PoolClosed, PoolManager
from mppool.cli import doctor
from mppool.cli.looking import for_javascript
from mppool.cli.output import Table, as_text
from mppool.rendezvous.launch import server_pid
from mppool.rendezvous.paths import ManagerPaths
from mppool.worker.pool import Pool
from tests.helpers import Fork, is_alive, wait_until


class Thing:
    def close(self) -> None:
        pass


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[PoolManager]:
    manager = PoolManager("shop", runtime_dir=runtime_dir)
    yield manager
    manager.shutdown()


@pytest.fixture
def orders(manager: PoolManager) -> Pool[Thing]:
    pool = manager.pool("orders", Thing, max_size=3)
    with pool.checkout(timeout=20):
        pass
    return pool


def mppool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mppool", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_list_names_managers_that_run_and_such_as_do_not(
    manager: PoolManager, orders: Pool[Thing], runtime_dir: Path
) -> None:
    done = mppool("list", "--runtime-dir", runtime_dir)
    assert done.returncode == 0
    assert re.search(rf"shop +{manager.server_pid} .* 1 +orders", done.stdout)
    manager.shutdown()
    done = mppool("list", "--all")  # by $MPPOOL_RUNTIME_DIR
    assert done.returncode == 0
    assert re.search(r"shop +not running", done.stdout)


def test_list_leaves_out_what_nobody_uses_and_clean_removes_its_files(
    manager: PoolManager, runtime_dir: Path
) -> None:
    def use() -> None:
        with manager.pool("orders", Thing).checkout(timeout=20):
            pass

    Fork(use).result()
    manager.connect()
    assert "nothing to remove" in mppool("clean").stdout
    assert re.search(r"shop +\d+", mppool("list").stdout)
    manager.shutdown()
    manager.close()

    def is_left_out() -> bool:  # this process has been attached, and its file goes in its own time
        return "no manager is in use" in mppool("list").stdout

    directory = runtime_dir / "shop"
    for member in (directory / "members").iterdir():
        member.unlink()  # as after the end of this process
    wait_until(is_left_out, "a list without it")
    assert mppool("list", "--names").stdout == "\n"
    locks = {"start.lock", "alive.lock"}
    living = directory / "living"
    if living.exists():
        living.unlink()  # this process lives, and holds a byte of it
    assert "removed what was left of shop" in mppool("clean").stdout
    assert {path.name for path in directory.iterdir() if path.is_file()} <= locks
    assert "nothing to remove" in mppool("clean").stdout


def test_the_runtime_directory_may_be_given_before_the_command_and_after_it(
    orders: Pool[Thing], runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPPOOL_RUNTIME_DIR")
    before, after = ["--runtime-dir", runtime_dir], ["--runtime-dir", runtime_dir / "none"]
    assert mppool(*before, "stats", "shop").returncode == 0
    assert mppool("stats", *before, "shop").returncode == 0
    assert mppool(*before, "stats", "shop", *after).returncode == 3  # the last word


def test_looking_starts_no_server_and_makes_no_directory(runtime_dir: Path) -> None:
    place = runtime_dir / "none"
    assert mppool("list", "--runtime-dir", place).returncode == 0
    assert mppool("doctor", "--runtime-dir", place).returncode == 0
    for command in (
        ["stats", "shop"],
        ["top", "shop"],
        ["drain", "shop", "p"],
        ["shutdown", "shop"],
    ):
        done = mppool(*command, "--runtime-dir", place)
        assert done.returncode == 3
        assert "there is no manager 'shop'" in done.stderr
        assert "Traceback" not in done.stderr
    assert not place.exists()


def test_stats_show_lanes_and_budgets(manager: PoolManager) -> None:
    budget = manager.budget("db", 4)
    jobs = manager.pool("jobs", object, max_size=3, lanes={"web": 2}, budget=budget)
    with jobs.checkout(lane="web"):
        shown = mppool("stats", "shop").stdout
    assert re.search(r"lanes of pool jobs", shown)
    assert re.search(r"^ *web +2 +1 +0 *$", shown, re.MULTILINE), shown
    assert re.search(r"^ *\(common\) +1 +0 +0 *$", shown, re.MULTILINE), shown
    assert re.search(r"^ *db +4 +1 +0 +jobs 1 *$", shown, re.MULTILINE), shown


def test_stats_as_tables_and_as_json(orders: Pool[Thing]) -> None:
    with orders.checkout():
        done = mppool("stats", "shop", "--json")
        assert done.returncode == 0
        pool = json.loads(done.stdout)["pools"]["orders"]
        assert (pool["max_size"], pool["in_use"], pool["idle"]) == (3, 1, 0)
        plain = mppool("stats", "shop")
    assert plain.returncode == 0
    assert re.search(r"orders +3 +1 +1 +0", plain.stdout)
    assert str(os.getpid()) in plain.stdout


def test_top_shows_one_table_after_another_and_ends_with_ctrl_c(orders: Pool[Thing]) -> None:
    done = mppool("top", "shop", "--count", "2", "--interval", "0.05")
    assert done.returncode == 0
    assert done.stdout.count("manager shop") == 2
    command = [sys.executable, "-m", "mppool", "top", "shop", "--interval", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as top:
        assert top.stdout is not None
        assert top.stderr is not None
        assert top.stdout.readline()
        top.send_signal(signal.SIGINT)
        top.stdout.read()
        assert top.stderr.read() == b""
        assert top.wait(20) == 0


def test_drain_closes_idle_resources_and_tells_what_is_out(orders: Pool[Thing]) -> None:
    lease = orders.checkout()
    done = mppool("drain", "shop", "orders", "--timeout", "0.1")
    assert (done.returncode, "1 still out" in done.stdout) == (1, True)
    lease.release()
    done = mppool("drain", "shop", "orders", "--timeout", "20")
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: orders.stats()["size"] == 0, "an empty pool")


def test_resize_and_reset_reach_pools_of_other_processes(orders: Pool[Thing]) -> None:
    assert mppool("resize", "shop", "orders", "--max-size", "7", "--min-size", "2").returncode == 0
    stats = orders.stats()
    assert (stats["max_size"], stats["min_size"]) == (7, 2)
    assert mppool("resize", "shop", "orders", "--max-size", "none").returncode == 0
    assert orders.stats()["max_size"] is None
    done = mppool("resize", "shop", "orders")
    assert (done.returncode, "--max-size" in done.stderr) == (2, True)
    done = mppool("resize", "shop", "orders", "--max-size", "1", "--min-size", "3")
    assert (done.returncode, "min_size" in done.stderr) == (2, True)
    before = orders.stats()["generation"]
    assert mppool("reset", "shop", "orders").returncode == 0
    assert orders.stats()["generation"] > before


def test_a_pool_that_was_closed_everywhere_is_reopened(orders: Pool[Thing]) -> None:
    orders.close(everywhere=True)
    with pytest.raises(PoolClosed):
        orders.checkout()
    done = mppool("reopen", "shop", "orders")
    assert (done.returncode, done.stderr) == (0, "")

    def serves() -> bool:  # the word goes round
        try:
            orders.checkout(timeout=20).release()
        except PoolClosed:
            return False
        return True

    wait_until(serves, "an open pool")


def test_leases_are_listed_with_their_holders(orders: Pool[Thing]) -> None:
    assert mppool("leases", "shop").stdout == "nothing is lent\n"
    with orders.checkout():
        said = mppool("leases", "shop", "--pool", "orders").stdout
        assert re.search(rf"orders +[\d.]+ m?s +{os.getpid()} ", said)
        (lease,) = json.loads(mppool("leases", "shop", "--json").stdout)
    assert (lease["pool"], lease["pid"]) == ("orders", os.getpid())
    done = mppool("leases", "shop", "--pool", "order")
    assert (done.returncode, "there are: orders" in done.stderr) == (3, True)


def test_numbers_in_json_are_such_as_javascript_can_hold(orders: Pool[Thing]) -> None:
    def numbers(value: object) -> Iterator[int]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                yield from numbers(one)
        elif isinstance(value, int):
            yield value

    found = json.loads(mppool("stats", "shop", "--json").stdout)
    assert max(map(abs, numbers(found))) < 2**53
    assert int(found["epoch"]) == orders._local.member.link.stats()["epoch"]
    assert for_javascript([2**53, -(2**53), 2**53 - 1]) == [str(2**53), str(-(2**53)), 2**53 - 1]


COMMANDS = [
    "list",
    "stats",
    "top",
    "leases",
    "health",
    "metrics",
    "doctor",
    "drain",
    "resize",
    "reset",
    "reopen",
    "forget-tokens",
    "shutdown",
    "clean",
    "completion",
    "demo",
    "bench",
]


def test_every_command_has_examples_in_its_help() -> None:
    for command in COMMANDS:
        done = mppool(command, "--help")
        assert done.returncode == 0
        assert (
            f"examples:\n  {'eval' if command == 'completion' else 'mppool ' + command}"
            in done.stdout.replace('eval "$(', "eval")
        )
    assert set(COMMANDS) <= set(
        re.findall(r"^    ([a-z-]+) ", mppool("--help").stdout, re.MULTILINE)
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(shell: str, orders: Pool[Thing]) -> None:
    done = mppool("completion", shell)
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout


def test_bash_completes_commands_and_names(orders: Pool[Thing]) -> None:
    command = f"""
mppool() {{ {sys.executable} -m mppool "$@"; }}
source <(mppool completion bash)
complete_at() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mppool; echo "${{COMPREPLY[@]}}"; }}
complete_at mppool sh
complete_at mppool stats sh
complete_at mppool drain --ti
"""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=50)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["shutdown", "shop", "--timeout"]


def test_zsh_that_nobody_has_configured_completes_them_too(
    orders: Pool[Thing], tmp_path: Path
) -> None:
    """It said `compdef: command not found`, and did not know how bash counts words."""
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh here")
    command = f"""
mppool() {{ {sys.executable} -m mppool "$@"; }}
source <(mppool completion zsh)
complete_at() {{
  setopt localoptions ksharrays
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mppool; echo "${{COMPREPLY[@]}}"
}}
complete_at mppool sh
complete_at mppool stats sh
complete_at mppool drain shop --ti
"""
    done = subprocess.run(
        ["zsh", "-f", "-c", command],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.stderr == ""
    # zsh itself leaves out what does not begin as the word does.
    commands, of_stats, of_drain = (line.split() for line in done.stdout.splitlines())
    assert "shutdown" in commands
    assert {"shop", "--json"} <= set(of_stats)
    assert {"shop", "--timeout"} <= set(of_drain)
    assert not list(tmp_path.iterdir())


def test_an_unknown_pool_is_named_beside_those_that_there_are(orders: Pool[Thing]) -> None:
    done = mppool("drain", "shop", "order")
    assert done.returncode == 3
    assert "no pool 'order'; there are: orders" in done.stderr


def test_shutdown_ends_the_server(manager: PoolManager, orders: Pool[Thing]) -> None:
    pid = manager.server_pid
    assert pid is not None
    assert mppool("shutdown", "shop").returncode == 0
    wait_until(lambda: not is_alive(pid), "the end of the server")
    assert mppool("shutdown", "shop").returncode == 3


def test_doctor_finds_nothing_wrong_beside_a_server(orders: Pool[Thing]) -> None:
    done = mppool("doctor")
    assert (done.returncode, "no fault found" in done.stdout) == (0, True)
    assert "serves 1 process and 1 pool" in done.stdout


def test_doctor_finds_a_directory_that_others_can_enter(runtime_dir: Path) -> None:
    runtime_dir.chmod(0o755)
    done = mppool("doctor")
    assert done.returncode == 1
    assert "chmod 700" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("stats", "shop"),
        ("top", "shop"),
        ("doctor",),
        ("drain", "shop", "orders"),
        ("shutdown", "shop"),
    ],
)
def test_no_command_of_root_looks_into_the_directory_of_another_user(
    runtime_dir: Path, command: tuple[str, ...]
) -> None:
    evil = runtime_dir / "shop\x1b]0;owned\x07"
    evil.mkdir()
    (evil / "alive.lock").touch()
    os.chown(runtime_dir, 65534, 65534)
    try:
        done = mppool(*command)
    finally:
        os.chown(runtime_dir, 0, 0)
    said = done.stdout + done.stderr
    assert done.returncode not in (0, 3)
    assert "MPPOOL_RUNTIME_DIR" in said
    assert "belongs to user 65534" in said
    assert "chmod" not in said
    assert "\x1b" not in said


def test_labels_and_names_reach_the_terminal_without_what_it_would_carry_out() -> None:
    table = Table("title\x1b[2J", ("name",))
    table.add("label\x1b]0;owned\x07\u202e")
    assert as_text(table).isprintable() or "\n" in as_text(table)
    assert not {"\x1b", "\x07", "\u202e"} & set(as_text(table))


def test_doctor_finds_a_server_that_was_killed(manager: PoolManager, orders: Pool[Thing]) -> None:
    pid = manager.server_pid
    assert pid is not None
    orders.close()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the end of the server")
    done = mppool("doctor")
    assert done.returncode == 0
    assert f"server {pid} died" in done.stdout or "serves" in done.stdout


@pytest.fixture
def locked(manager: PoolManager, orders: Pool[Thing], runtime_dir: Path) -> Iterator[int]:
    """The alive lock is held, as by a server that has no address yet; the descriptor that holds it."""
    manager.shutdown()
    paths = ManagerPaths(runtime_dir, "shop")
    wait_until(lambda: server_pid(paths) is None, "the end of the server")
    descriptor = os.open(paths.alive_lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def test_doctor_finds_a_lock_that_no_server_holds(
    locked: int, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "START_PATIENCE_S", 0.1)
    faults = [one.text for one in doctor.examine(str(runtime_dir)) if one.level == "FAULT"]
    assert len(faults) == 1
    assert "no living server has published its address" in faults[0]


def test_doctor_takes_a_server_that_is_about_to_serve_for_none_that_is_stuck(
    locked: int, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def look(paths: ManagerPaths) -> int | None:
        nonlocal looks
        looks += 1
        if looks == 3:  # it has left, or is there
            fcntl.flock(locked, fcntl.LOCK_UN)
        return None

    monkeypatch.setattr(doctor, "server_pid", look)
    findings = list(doctor.examine(str(runtime_dir)))
    assert looks >= 4
    assert [one for one in findings if one.level == "FAULT"] == []


def test_doctor_finds_a_server_that_does_not_answer(
    manager: PoolManager, orders: Pool[Thing]
) -> None:
    pid = manager.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        done = mppool("doctor")
        assert time.monotonic() - started < 30
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.returncode == 1
    assert f"server {pid} does not answer" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nonsense"], ["stats"], ["stats", "a/b"], ["top", "x", "--interval", "0"], ["demo", "--cap", "0"],
        ["metrics", "shop", "--serve", "9464"], ["completion", "csh"], ["resize", "shop", "orders", "--max-size", "x"],
        ["health", "a/b"], ["leases"], ["drain", "shop", "orders", "--timeout", "nan"],
    ],
)  # fmt: skip
def test_what_cannot_be_understood(runtime_dir: Path, arguments: list[str]) -> None:
    done = mppool(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["list"], ["stats", "shop"], ["doctor"], ["clean"], ["health", "shop"]]
)
def test_a_runtime_directory_that_is_none_is_said(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/1/none")):
        done = mppool(*command, "--runtime-dir", place)
        assert "Traceback" not in done.stderr + done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(orders: Pool[Thing]) -> None:
    command = f"{sys.executable} -m mppool stats shop --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=40)
    assert done.stdout == "{"
    assert done.stderr == ""


def test_columns_of_numbers_stand_on_the_right() -> None:
    table = Table("title", ("name", "n"))
    table.add("a", 1)
    table.add("b", 100)
    assert as_text(table) == "title\n  name    n\n  a       1\n  b     100"


def test_bench_measures_in_a_checkout_and_refuses_what_it_does_not_know() -> None:
    unknown = mppool("bench", "nonsense")
    assert unknown.returncode == 2
    assert "there is no benchmark 'nonsense'" in unknown.stderr
    assert "there are warm, " in unknown.stderr


def test_bench_without_the_sources_says_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mppool as package
    from mppool.cli import main

    monkeypatch.setattr(package, "__file__", str(tmp_path / "mppool" / "__init__.py"))
    assert main(["bench"]) == 3
    assert "make bench" in capsys.readouterr().err
