"""The chaos run of CI: short, with a seed of its own each time, which is printed."""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.helpers import run_python


@pytest.mark.stress
@pytest.mark.timeout(240)
def test_chaos_breaks_no_promise() -> None:
    """In an interpreter of its own: its children are forked from a process with nothing else in it."""
    seconds = float(os.environ.get("MPPOOL_CHAOS_SECONDS", "20"))
    seed = int(os.environ.get("MPPOOL_CHAOS_SEED", random.randrange(1 << 30)))
    logging.getLogger(__name__).info("seed %d", seed)
    directory = Path(tempfile.mkdtemp(prefix="mppc-", dir="/tmp"))
    done = run_python(
        "import logging; logging.disable(logging.CRITICAL)\n"
        "from pathlib import Path\n"
        "from tests.stress.chaos import run\n"
        f"outcome = run({seconds}, {seed}, Path({str(directory)!r}))\n"
        "print(outcome)\n"
        "raise SystemExit(bool(outcome.problems))",
        timeout=seconds + 200,
    )
    print(done.stdout)
    shutil.rmtree(directory)
