"""Machines that share a cap for many simulated hours, with all that may go wrong: run it by hand.

python -m tests.machines.hours                   100 hours from a random seed, in two processes
python -m tests.machines.hours 20 --seed 7       20 hours from this one, as before
python -m tests.machines.hours --crowd 10 100    calls per second of so many machines, where all have enough, and where load moves
python -m tests.machines.hours 50 --planted      plants the faults that break the cap; each must be found within 50 hours

Exit status: 0: the cap was never exceeded, and nobody starved (with --planted: every fault was found); else 1.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.machines.redis_server import RedisServer
from tests.machines.simulation import OverTheCap, drive
from tests.machines.stories import Starved, crowd, story

HOURS_OF_A_STORY = 0.135


@dataclass
class Sum:
    """Of many stories. full: in so many of them the whole cap was in use at some time. fault: what was found."""

    seconds: float = 0.0
    calls: int = 0
    stories: int = 0
    full: int = 0
    troubles: Counter[str] = field(default_factory=Counter)
    fault: str = ""

    @property
    def hours(self) -> float:
        return self.seconds / 3600


def simulate(count: int, first: int, step: int = 1) -> Sum:
    """So many stories, with the seeds first, first + step, ...; until a fault is found."""
    total = Sum()
    seeds = range(first, first + count * step, step)
    with tempfile.TemporaryDirectory(prefix="mppool-hours-") as directory:
        server = RedisServer(Path(directory))
        try:
            for one in drive(server.client(), map(story, seeds)):
                total.seconds += one.seconds
                total.calls += one.calls
                total.stories += 1
                total.full += one.peak == one.cap
                total.troubles += one.troubles
        except (OverTheCap, Starved) as error:
            total.fault = f"{type(error).__name__}: {error}"
        finally:
            server.kill()
    return total


def together(parts: list[Sum]) -> Sum:
    total = Sum()
    for part in parts:
        total.seconds += part.seconds
        total.calls += part.calls
        total.stories += part.stories
        total.full += part.full
        total.troubles += part.troubles
        total.fault = "; ".join(filter(None, (total.fault, part.fault)))
    return total


def run(hours: float, seed: int, jobs: int) -> int:
    began = time.monotonic()
    print(f"{hours:g} simulated hours from seed {seed}", flush=True)
    with multiprocessing.Pool(jobs) as workers:
        count = math.ceil(hours / HOURS_OF_A_STORY / jobs)
        each = [(count, seed + number, jobs) for number in range(jobs)]
        total = together(workers.starmap(simulate, each))
    print(
        f"{total.hours:.1f} hours in {time.monotonic() - began:.0f} s: {total.stories} stories, {total.calls} calls\n"
        f"in {total.full} of them all of the cap was in use; it was exceeded {'' if total.fault else 'never'}\n"
        f"troubles: {', '.join(f'{count} {kind}' for kind, count in sorted(total.troubles.items()))}"
    )
    if total.fault:
        print(total.fault)
        print("once more: python -m tests.machines.hours 0.01 --jobs 1 --seed SEED")
    return 1 if total.fault else 0


def plant(hours: float, seed: int, names: list[str]) -> int:
    """Each of these faults, or all that break the cap, in a copy of its own, from the same seed."""
    from tests.planted.__main__ import copy_into
    from tests.planted.machine_bugs import BREAK_THE_CAP, MACHINE_BUGS

    survived = 0
    for bug in MACHINE_BUGS:
        if bug.name not in (names or BREAK_THE_CAP):
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mppool-planted-") as name:
            copy = Path(name)
            copy_into(copy)
            bug.plant(copy / "mppool")
            command = [
                sys.executable,
                "-m",
                "tests.machines.hours",
                f"{hours}",
                "--seed",
                f"{seed}",
                "-j",
                "1",
            ]
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("OverTheCap")]
        survived += not found
        said = (
            found[0] if found else f"SURVIVED: {bug.why} {done.stdout[-300:]}{done.stderr[-300:]}"
        )
        print(f"{bug.name:26} {time.monotonic() - began:6.1f} s  {said}", flush=True)
    return 1 if survived else 0


def count_calls(crowds: list[int]) -> int:
    with tempfile.TemporaryDirectory(prefix="mppool-hours-") as directory:
        server = RedisServer(Path(directory))
        try:
            for machines in crowds:
                ((calm, moving),) = drive(server.client(), [crowd(machines, 30.0)])
                print(f"{machines} machines: {calm:.1f} calls/s, {moving:.1f} where load moves")
        finally:
            server.kill()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("hours", nargs="?", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first story")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes, each with its Redis")
    parser.add_argument(
        "--planted", nargs="*", metavar="NAME", help="plant these, or all, and find them"
    )
    parser.add_argument("--crowd", nargs="+", type=int, metavar="N", help="count calls of machines")
    arguments = parser.parse_args()
    if arguments.crowd:
        return count_calls(arguments.crowd)
    seed = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    if arguments.planted is not None:
        return plant(arguments.hours, seed, arguments.planted)
    return run(arguments.hours, seed, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
