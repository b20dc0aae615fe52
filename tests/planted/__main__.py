"""Plant every bug, or those that are named, and see whether the tests find it: tests/core, or those that it names.

python -m tests.planted                 all
python -m tests.planted -j 4 no-erase   some, four at a time
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.planted.budget_bugs import BUDGET_BUGS
from tests.planted.bugs import BUGS, PACKAGE, Bug
from tests.planted.hosting_bugs import HOSTING_BUGS
from tests.planted.machine_bugs import MACHINE_BUGS
from tests.planted.sharing_bugs import SHARING_BUGS
from tests.planted.token_bugs import TOKEN_BUGS
from tests.planted.undone import UNDONE
from tests.planted.worker_bugs import WORKER_BUGS

ROOT = PACKAGE.parent
# The cheap ones first: most bugs are found within a second.
_PARTS = (
    "test_checkout",
    "test_returns",
    "test_sharing",
    "test_max_opening",
    "test_opening_times",
    "test_line",
    "test_restart",
    "test_breaker",
    "test_control",
)
ORDER = (*(f"tests/core/{part}.py" for part in _PARTS), "tests/core")
ALL = [
    *BUGS, *SHARING_BUGS, *TOKEN_BUGS, *WORKER_BUGS, *BUDGET_BUGS, *MACHINE_BUGS, *HOSTING_BUGS, *UNDONE,
]  # fmt: skip


def main() -> int:
    """Exit status: 0 if every bug was killed, 1 if one survived, 2 if the tests fail without any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="bugs to plant (default: all)")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument(
        "--limit", type=float, default=300.0, help="seconds for each (default: 300)"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {bug.name for bug in ALL}
    if unknown:
        parser.error(f"no such bugs: {', '.join(sorted(unknown))}")
    bugs = [bug for bug in ALL if not arguments.names or bug.name in arguments.names]
    parts = {part: None for bug in bugs for part in bug.tests or ("tests/core",)}
    killer, seconds = run(None, arguments.limit, tuple(parts))
    if killer is not None:
        print(f"without any bug the tests fail: {killer}")
        return 2
    print(f"without any bug the tests pass ({seconds:.1f} s)", flush=True)
    survivors = []
    with ThreadPoolExecutor(arguments.jobs) as executor:
        for bug, (killer, seconds) in zip(
            bugs, executor.map(lambda bug: run(bug, arguments.limit), bugs), strict=True
        ):
            if killer is None:
                survivors.append(bug)
            print(f"{bug.name:26} {seconds:6.1f} s  {killer or 'SURVIVED: ' + bug.why}", flush=True)
    print(
        f"{len(bugs)} bugs planted, {len(bugs) - len(survivors)} killed, {len(survivors)} survived"
    )
    return 1 if survivors else 0


def run(bug: Bug | None, limit: float, parts: tuple[str, ...] = ()) -> tuple[str | None, float]:
    """What killed the bug (None: nothing did), and after how many seconds."""
    if bug is not None:
        parts = bug.tests or ORDER
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mppool-planted-") as name:
        copy = Path(name)
        copy_into(copy)
        if bug is not None:
            bug.plant(copy / "mppool")
        done = None
        try:
            for part in parts:
                done = _pytest(copy, part, limit - (time.monotonic() - began))
                if done.returncode:
                    break
        except subprocess.TimeoutExpired:
            return f"no end within {limit:g} s", time.monotonic() - began
        assert done is not None
        killer = _first_failure(done.stdout) if done.returncode else None
        return killer, time.monotonic() - began


def copy_into(copy: Path) -> None:
    # The list of bugs does not fit sources with a bug in them.
    skipped = shutil.ignore_patterns("__pycache__", "planted")
    shutil.copytree(PACKAGE, copy / "mppool", ignore=skipped)
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", copy / "pyproject.toml")


def _pytest(copy: Path, part: str, limit: float) -> subprocess.CompletedProcess[str]:
    """Run a file of tests, or a directory."""
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {
        **os.environ,
        "MPPOOL_SIMULATION": "all",
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(copy / ".hypothesis"),
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", part, *options],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=max(1.0, limit),
        check=False,
    )


def _first_failure(output: str) -> str:
    for line in output.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            return line.split(" - ")[0].removeprefix("FAILED ").removeprefix("tests/core/")
    return output.strip().splitlines()[-1] if output.strip() else "no output"


if __name__ == "__main__":
    sys.exit(main())
