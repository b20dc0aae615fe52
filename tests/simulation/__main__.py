"""Hours of simulated time, from one seed on.

python -m tests.simulation --hours 20               fresh seeds, which are printed
python -m tests.simulation --hours 20 --seed 7      seeds 7, 8, 9, ...
python -m tests.simulation --only 12                one seed, and its history shrunk if it fails
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.simulation.runs import Total, run_many, run_seed, shrink, told
from tests.simulation.source import HANDLERS

PER_TURN = 50
"""Seeds for one interpreter, which has to load mppool twice."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=0.5, help="to simulate (default: 0.5)")
    parser.add_argument(
        "--faults", type=int, default=0, help="to have besides (default: any number)"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="at most (default: any)")
    parser.add_argument("--seed", type=int, help="the first one (default: a fresh one)")
    parser.add_argument(
        "--seconds",
        type=float,
        help="of faults in each world (default: as each seed draws its pace)",
    )
    parser.add_argument("-j", "--jobs", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument("--only", type=int, help="run this seed alone")
    parser.add_argument(
        "--marks",
        action="store_true",
        help="say how often each line was logged, and each handler reached",
    )
    parser.add_argument(
        "--established", action="store_true", help="without what was added to the worlds last"
    )
    parser.add_argument("--turn", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        return _turn(*arguments.turn, arguments.seconds, arguments.established)
    if arguments.only is not None:
        return _only(arguments.only, arguments.seconds, arguments.established)
    first = random.SystemRandom().randrange(1 << 40) if arguments.seed is None else arguments.seed
    print(f"from seed {first}", flush=True)
    return _all(first, arguments)


class _Campaign:
    """Seeds, so many at a time in an interpreter of their own, until there were enough hours and faults."""

    def __init__(self, first: int, arguments: argparse.Namespace) -> None:
        self.first, self.arguments = first, arguments
        self.total, self.failed = Total(), 0
        self._began = time.monotonic()
        self.handlers: set[str] = set()
        self._numbers = itertools.count()
        self._adding = threading.Lock()

    def run(self) -> None:
        with ThreadPoolExecutor(self.arguments.jobs) as executor:
            for done in [executor.submit(self._turns) for _ in range(self.arguments.jobs)]:
                done.result()

    def _is_enough(self) -> bool:
        total, wanted = self.total, self.arguments
        if time.monotonic() - self._began >= wanted.minutes * 60:
            return True
        return bool(total.seconds >= wanted.hours * 3600 and total.count >= wanted.faults)

    def _turns(self) -> None:
        while not self._is_enough():
            self._turn(self.first + next(self._numbers) * PER_TURN)

    def _turn(self, first: int) -> None:
        command = [sys.executable, "-m", "tests.simulation", "--turn", str(first), str(PER_TURN)]
        if self.arguments.seconds is not None:
            command += ["--seconds", str(self.arguments.seconds)]
        if self.arguments.established:
            command.append("--established")
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd(), check=False)
        with self._adding:
            if done.returncode:
                self.failed += 1
                print(f"seeds from {first} on ended with\n{done.stderr}", flush=True)
                return
            self._add(json.loads(done.stdout))

    def _add(self, said: dict[str, Any]) -> None:
        total = self.total
        total.runs += PER_TURN
        total.seconds += said["seconds"]
        total.cpu_s += said["cpu_s"]
        self.handlers.update(said["handlers"])
        for name in ("faults", "done", "marks", "reached"):
            getattr(total, name).update(Counter(said[name]))
        for text in said["failed"]:
            self.failed += 1
            print(text, flush=True)
        print(f"so far {total}, {self.failed} in all", flush=True)


def _all(first: int, arguments: argparse.Namespace) -> int:
    campaign, began = _Campaign(first, arguments), time.monotonic()
    campaign.run()
    total, wall = campaign.total, time.monotonic() - began
    print(
        f"{total}, {campaign.failed} in all; {total.seconds / 3600 / wall:.4f} hours a second of the wall"
    )
    print(", ".join(f"{count} {kind}" for kind, count in total.faults.most_common()))
    if arguments.marks:
        _tell_marks(total, campaign.handlers)
    return bool(campaign.failed)


def _tell_marks(total: Total, handlers: set[str]) -> None:
    never = handlers - set(total.reached)
    print(f"reached {len(handlers) - len(never)} of {len(handlers)} handlers of exceptions")
    for counted in (total.marks, total.reached, dict.fromkeys(sorted(never), 0)):
        ordered = sorted(counted.items(), key=lambda one: -one[1])
        print("\n".join(f"{count:8} {text}" for text, count in ordered))


def _turn(first: int, count: int, seconds: float | None, established: bool) -> int:
    total = run_many(range(first, first + count), seconds, established=established)
    said = {
        "seconds": total.seconds, "cpu_s": total.cpu_s, "faults": total.faults, "done": total.done,
        "marks": total.marks, "reached": total.reached, "handlers": sorted(HANDLERS), "failed": [told(one) for one in total.failed],
    }  # fmt: skip
    print(json.dumps(said))
    return 0


def _only(seed: int, seconds: float | None, established: bool) -> int:
    outcome = run_seed(seed, seconds, established=established)
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
