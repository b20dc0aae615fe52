"""python -m tests.stress [--seconds N] [--seed S]: chaos runs, until one fails or the time is over."""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.stress.chaos import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="in all")
    parser.add_argument("--seed", type=int, default=None, help="of the first run; the next are +1")
    parser.add_argument("--run", type=float, default=20.0, help="seconds of one run")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # thousands of warnings are what this is about
    seed = random.randrange(1 << 30) if arguments.seed is None else arguments.seed
    ends_at = time.monotonic() + arguments.seconds
    while time.monotonic() < ends_at:
        directory = Path(tempfile.mkdtemp(prefix="mppc-", dir="/tmp"))
        seconds = min(arguments.run, max(3.0, ends_at - time.monotonic()))
        outcome = run(seconds, seed, directory)
        print(outcome, flush=True)
        if outcome.problems:
            print(f"files are kept in {directory}")
            return 1
        shutil.rmtree(directory)
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
