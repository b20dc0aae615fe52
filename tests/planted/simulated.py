"""Plant every bug of core, worker and server, and see in how many seconds of a CPU the simulation finds it.

python -m tests.planted.simulated                      all, 60 s each
python -m tests.planted.simulated --cpu 10 no-erase    some
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.planted.__main__ import ALL, copy_into
from tests.planted.bugs import Bug

PARTS = ("core/", "worker/", "server/", "link/", "process/", "tokens/", "manager.py", "rendezvous/")

RUN = """
import json, random, sys, time
from tests.simulation.runs import kind_of, run_seed
first, limit = int(sys.argv[1]), float(sys.argv[2])
began, seed, found = time.process_time(), first, ""
while not found and time.process_time() - began < limit:
    found = kind_of(run_seed(seed, 20.0))
    seed += 1
print(json.dumps([found, seed - first, time.process_time() - began]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="bugs to plant (default: all)")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument("--cpu", type=float, default=60.0, help="seconds for each (default: 60)")
    parser.add_argument("--seed", type=int, help="the first one (default: a fresh one)")
    arguments = parser.parse_args()
    bugs = [bug for bug in ALL if bug.file.startswith(PARTS)]
    unknown = set(arguments.names) - {bug.name for bug in bugs}
    if unknown:
        parser.error(f"no such bugs: {', '.join(sorted(unknown))}")
    first = random.SystemRandom().randrange(1 << 30) if arguments.seed is None else arguments.seed
    bugs = [bug for bug in bugs if not arguments.names or bug.name in arguments.names]
    print(f"from seed {first}", flush=True)
    found = 0

    def look(bug: Bug) -> tuple[str, int, float]:
        return search(bug, first, arguments.cpu)

    with ThreadPoolExecutor(arguments.jobs) as executor:
        for bug, (kind, seeds, cpu_s) in zip(bugs, executor.map(look, bugs), strict=True):
            found += bool(kind)
            what = kind or f"not found: {bug.why}"
            print(f"{bug.name:30} {cpu_s:6.1f} s {seeds:4} seeds  {what}", flush=True)
    print(f"{len(bugs)} bugs planted, {found} found by the simulation")
    return 0


def search(bug: Bug, first: int, cpu_s: float) -> tuple[str, int, float]:
    """Of what kind the first problem was (empty: there was none), after how many seeds and seconds."""
    with tempfile.TemporaryDirectory(prefix="mppool-planted-") as name:
        copy = Path(name)
        copy_into(copy)
        bug.plant(copy / "mppool")
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(first), str(cpu_s)],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return f"it ends with {done.stderr.strip().splitlines()[-1]}", 1, 0.0
        kind, seeds, seconds = json.loads(done.stdout)
        return kind, seeds, seconds


if __name__ == "__main__":
    sys.exit(main())
