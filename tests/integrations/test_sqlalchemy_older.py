"""The tests of shared_pool once more, over the release of SQLAlchemy before the one that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

from tests.helpers import ROOT, component_is_missing

OLDER = "2.0"


@pytest.mark.timeout(180)
def test_over_the_release_before(tmp_path: Path) -> None:
    if sqlalchemy.__version__.startswith(f"{OLDER}."):
        pytest.skip(f"SQLAlchemy {OLDER} is the installed one")
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:",
         "--target", str(tmp_path), f"SQLAlchemy=={OLDER}.*"],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    if installed.returncode:
        component_is_missing(f"SQLAlchemy {OLDER} cannot be installed: {installed.stderr[-500:]}")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "MPPOOL_RUNTIME_DIR": "",
    }
    for name in list(environment):
        if name.startswith(("PYTEST_", "MPPOOL_")):
            del environment[name]
    told = subprocess.run(
        [sys.executable, "-c", "import sqlalchemy; print(sqlalchemy.__version__)"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.startswith(OLDER)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/integrations/test_sqlalchemy.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
