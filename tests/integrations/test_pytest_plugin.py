"""The pytest plugin, run as users run it: a pytest of its own, with and without xdist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import os
import pytest

BUSY = os.environ["BUSY_DIRECTORY"]

@pytest.fixture(scope="session")
def databases(mppool_one_of):
    return mppool_one_of("databases", ["first", "second"])

@pytest.mark.parametrize("number", range(24))
def test_a_database_is_lent_once_at_a_time(databases, number):
    with databases.checkout(timeout=30) as name:
        path = os.path.join(BUSY, name)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))  # fails if somebody else has it
        with open(os.path.join(BUSY, "seen"), "a") as seen:
            seen.write(f"{os.getpid()}\\n")
        os.unlink(path)
"""

CRASH = """
def test_that_crashes_its_worker_while_it_holds_one(databases):
    lease = databases.checkout(timeout=30)
    os._exit(3)
"""


def own_environment() -> dict[str, str]:
    """Nothing of it tells a pytest of this one."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def quick_environment() -> dict[str, str]:
    """Of a pytest that loads no plugin but those that it is told to: those that are installed take it seconds."""
    return {**own_environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


QUICK = ("-p", "mppool.integrations.pytest_plugin")


def run_pytest(
    directory: Path, suite: str, *arguments: str, environment: dict[str, str] | None = None
) -> tuple[int, str, int]:
    """Exit status, output and pid."""
    (directory / "test_suite.py").write_text(suite)
    busy = directory / "busy"
    busy.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=directory,
        env={**(environment or quick_environment()), "BUSY_DIRECTORY": str(busy)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=100)
        finally:
            process.kill()
    return process.returncode, output, process.pid


def test_xdist_workers_of_a_run_share_and_leave_nothing(tmp_path: Path) -> None:
    status, output, _ = run_pytest(tmp_path, SUITE, *QUICK, "-p", "xdist", "-n", "3")
    assert status == 0, output
    assert "24 passed" in output
    pids = {line.split()[0] for line in (tmp_path / "busy" / "seen").read_text().splitlines()}
    assert len(pids) > 1, "only one worker ran tests, so nothing was shared"


def test_without_xdist_it_works_too(tmp_path: Path) -> None:
    """With the plugins that are installed, as most users have it. And it leaves nothing of its own.

    Other runs of pytest are under way on this machine, for instance in other tests.
    """
    status, output, pid = run_pytest(
        tmp_path, SUITE, "-p", "no:xdist", environment=own_environment()
    )
    assert status == 0, output
    assert not list(Path("/tmp").glob(f"mppool-pytest-{os.geteuid()}-run-{pid}-*"))


def test_a_crashed_worker_gives_back_what_it_held(tmp_path: Path) -> None:
    status, output, _ = run_pytest(
        tmp_path,
        SUITE + CRASH + CRASH.replace("_one(", "_one_too("),
        *(*QUICK, "-p", "xdist", "-n", "2"),
    )
    assert status == 1
    assert "24 passed" in output, output
    assert output.count("crashed while running") >= 2, output


def test_runs_that_name_one_manager_share_it(tmp_path: Path, runtime_dir: Path) -> None:
    busy = tmp_path / "busy"
    busy.mkdir()
    children = []
    for number in range(2):
        directory = tmp_path / f"run{number}"
        directory.mkdir()
        (directory / "test_suite.py").write_text(SUITE)
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *QUICK],
                cwd=directory,
                env={
                    **quick_environment(),
                    "BUSY_DIRECTORY": str(busy),
                    "MPPOOL_PYTEST_NAME": "shared",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [child.communicate(timeout=100)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert (runtime_dir / "shared").is_dir()


def test_the_plugin_imports_nothing_unless_it_is_used() -> None:
    code = (
        "import sys, mppool.integrations.pytest_plugin; "
        "print(sorted(name for name in sys.modules if name.startswith('mppool')))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert (
        output.strip() == "['mppool', 'mppool.integrations', 'mppool.integrations.pytest_plugin']"
    )


@pytest.mark.parametrize("items", [[], ["same", "same"]])
def test_items_must_be_told_apart(items: list[str], tmp_path: Path) -> None:
    from mppool import ConfigurationError
    from mppool.integrations.one_of import OneOf

    with pytest.raises(ConfigurationError, match="OneOf"):
        OneOf(items, tmp_path)
