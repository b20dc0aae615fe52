"""The chaos run: half a minute where CI promises to have the time, else short; its seed is printed."""

from __future__ import annotations

import os
import random
import re
import tempfile

import pytest

from tests.helpers import run_python
from tests.stress.world import MAX_SIZE


@pytest.mark.stress
@pytest.mark.timeout(300)
def test_chaos_breaks_no_promise() -> None:
    """In an interpreter of its own: its children are forked from a process with nothing else in it."""
    usual = "30" if os.environ.get("CI", "").lower() == "true" else "20"
    seconds = float(os.environ.get("MPPOOL_CHAOS_SECONDS", usual))
    seed = int(os.environ.get("MPPOOL_CHAOS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}, {seconds:g} s")  # shown where the test fails
    with tempfile.TemporaryDirectory(prefix="mppc-", dir="/tmp") as directory:
        done = run_python(
            "import logging; logging.disable(logging.CRITICAL)\n"
            "from pathlib import Path\n"
            "from tests.stress.chaos import run\n"
            f"outcome = run({seconds}, {seed}, Path({directory!r}))\n"
            "print(outcome)\n"
            "raise SystemExit(bool(outcome.problems))",  # run_python fails for it
            timeout=seconds + 200,
        )
    print(done.stdout)
    assert "PROBLEM" not in done.stdout
    judged = re.search(r"peak (\d+) of", done.stdout)
    assert judged is not None
    assert 1 <= int(judged[1]) <= MAX_SIZE
