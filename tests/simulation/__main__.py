"""Hours of simulated time, from one seed on.

python -m tests.simulation --hours 20               fresh seeds, which are printed
python -m tests.simulation --hours 20 --seed 7      seeds 7, 8, 9, ...
python -m tests.simulation --only 12                one seed, and its history shrunk if it fails
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.simulation.runs import SECONDS, Total, run_many, run_seed, shrink, told
from tests.simulation.source import HANDLERS

PER_TURN = 40
"""Seeds for one interpreter, which has to load mppool twice."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=0.5, help="to simulate (default: 0.5)")
    parser.add_argument("--seed", type=int, help="the first one (default: a fresh one)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of faults in each world")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument("--only", type=int, help="run this seed alone")
    parser.add_argument(
        "--marks",
        action="store_true",
        help="say how often each line was logged, and each handler reached",
    )
    parser.add_argument("--turn", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        return _turn(*arguments.turn, arguments.seconds)
    if arguments.only is not None:
        return _only(arguments.only, arguments.seconds)
    first = random.SystemRandom().randrange(1 << 40) if arguments.seed is None else arguments.seed
    print(f"from seed {first}", flush=True)
    return _all(first, arguments)


def _all(first: int, arguments: argparse.Namespace) -> int:
    total, began, failed = Total(), time.monotonic(), []
    handlers: set[str] = set()

    def turn(number: int) -> None:
        if total.seconds >= arguments.hours * 3600:
            return
        seeds = [str(first + number * PER_TURN), str(PER_TURN)]
        command = [sys.executable, "-m", "tests.simulation", "--seconds", str(arguments.seconds)]
        done = subprocess.run(
            [*command, "--turn", *seeds],
            capture_output=True,
            text=True,
            cwd=Path.cwd(),
            check=False,
        )
        if done.returncode:
            failed.append(f"seeds from {seeds[0]} on ended with\n{done.stderr}")
            return
        said = json.loads(done.stdout)
        total.runs += PER_TURN
        total.seconds += said["seconds"]
        total.cpu_s += said["cpu_s"]
        handlers.update(said["handlers"])
        for name in ("faults", "done", "marks", "reached"):
            getattr(total, name).update(Counter(said[name]))
        for text in said["failed"]:
            failed.append(text)
            print(text, flush=True)

    turns = range(int(arguments.hours * 3600 / PER_TURN / 20) + arguments.jobs + 1)
    with ThreadPoolExecutor(arguments.jobs) as executor:
        list(executor.map(turn, turns))
    wall = time.monotonic() - began
    print(
        f"{total}, {len(failed)} in all; {total.seconds / 3600 / wall:.4f} hours a second of the wall"
    )
    print(", ".join(f"{count} {kind}" for kind, count in total.faults.most_common()))
    if arguments.marks:
        never = handlers - set(total.reached)
        print(f"reached {len(handlers) - len(never)} of {len(handlers)} handlers of exceptions")
        for counted in (total.marks, total.reached, dict.fromkeys(sorted(never), 0)):
            ordered = sorted(counted.items(), key=lambda one: -one[1])
            print("\n".join(f"{count:8} {text}" for text, count in ordered))
    return bool(failed)


def _turn(first: int, count: int, seconds: float) -> int:
    total = run_many(range(first, first + count), seconds)
    said = {
        "seconds": total.seconds, "cpu_s": total.cpu_s, "faults": total.faults, "done": total.done,
        "marks": total.marks, "reached": total.reached, "handlers": sorted(HANDLERS), "failed": [told(one) for one in total.failed],
    }  # fmt: skip
    print(json.dumps(said))
    return 0


def _only(seed: int, seconds: float) -> int:
    outcome = run_seed(seed, seconds)
    if not outcome.problems:
        print(
            f"seed {seed}: nothing wrong in {outcome.seconds:.0f} s, {sum(outcome.faults.values())} faults"
        )
        return 0
    print(told(outcome))
    small = shrink(outcome)
    print(f"\nshrunk from {len(outcome.history)} to {len(small.history)} faults:\n{told(small)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
