"""Runs of one seed, or of many; what fails is shrunk to the shortest history that still fails in the same way."""

from __future__ import annotations

import gc
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache

from tests.simulation.settings import Fault, Settings, drawn
from tests.simulation.world import Outcome, World, unraisable

LONGEST_TOLD = 60


def run(settings: Settings, history: list[Fault], *, traced: bool = False) -> Outcome:
    """One world, from its begin to its end."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        outcome = World(settings, history, traced=traced).run()
        with unraisable(lambda _: None):
            gc.collect()  # frames of killed processes, which nothing else may finalize earlier
        _collect_no_modules(settings.statements)
    finally:
        if was_enabled:
            gc.enable()
    return outcome


@cache
def _collect_no_modules(statements: bool) -> None:
    """What is here after the first run are modules, for the most part: the collector need not go through them each time."""
    gc.freeze()


def run_seed(
    seed: int, seconds: float | None = None, *, established: bool = False, traced: bool = False
) -> Outcome:
    return run(*drawn(seed, seconds, established=established), traced=traced)


@dataclass
class Total:
    """Of many runs."""

    runs: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.seconds += outcome.seconds
        self.faults += outcome.faults
        self.done += outcome.done
        self.marks += outcome.marks
        self.reached += outcome.reached
        if outcome.problems:
            self.failed.append(outcome)

    @property
    def count(self) -> int:
        """Of faults."""
        return sum(self.faults.values())

    def include(self, other: Total) -> None:
        self.runs += other.runs
        self.seconds += other.seconds
        self.cpu_s += other.cpu_s
        for name in ("faults", "done", "marks", "reached"):
            getattr(self, name).update(getattr(other, name))
        self.failed += other.failed

    def __str__(self) -> str:
        pace = self.seconds / 3600 / self.cpu_s if self.cpu_s else 0.0
        return (
            f"{self.runs} seeds, {self.seconds / 3600:.2f} simulated hours, {self.count} faults, "
            f"{self.done['checkouts'] + self.done['checkouts of tasks']} checkouts in {self.cpu_s:.0f} s of a CPU ({pace:.4f} hours a second); "
            f"{len(self.failed)} failed"
        )


def run_many(
    seeds: Iterable[int],
    seconds: float | None = None,
    cpu_s: float = 1e9,
    *,
    established: bool = False,
) -> Total:
    """The seeds, one after the other, until so much time of the CPU is used up."""
    total, began = Total(), time.process_time()
    for seed in seeds:
        if time.process_time() - began >= cpu_s:
            break
        total.add(run_seed(seed, seconds, established=established))
    total.cpu_s = time.process_time() - began
    return total


def told(outcome: Outcome) -> str:
    """What somebody must know who wants to see a failure again."""
    history = "\n".join(f"    {fault!r}," for fault in outcome.history)
    if len(outcome.history) > LONGEST_TOLD:
        history = f"    {len(outcome.history)} faults; shrink it to see them"
    return (
        f"seed {outcome.settings.seed}: {outcome.problems[0]}\n"
        f"  {outcome.settings}\n  history: [\n{history}\n  ]\n"
        f"Again: python -m tests.simulation --only {outcome.settings.seed}"
        f"{' --established' if outcome.settings.established else ''}"
    )


# --- shrinking -------------------------------------------------------------------------------------------


def kind_of(outcome: Outcome) -> str:
    """What is the matter, without numbers; empty where nothing is."""
    if not outcome.problems:
        return ""
    return re.sub(r"[\d.]+", "", outcome.problems[0].partition(": ")[2].partition("\n")[0])[:60]


def shrink(outcome: Outcome, most_runs: int = 200) -> Outcome:
    """The failure with as few faults as are found to do. It is of the same kind, perhaps not the same."""
    kind, best = kind_of(outcome), outcome
    runs = 0

    def tried(history: list[Fault]) -> Outcome | None:
        nonlocal runs
        runs += 1
        again = run(best.settings, history)
        return again if kind_of(again) == kind else None

    at = float(outcome.problems[0].split()[1].rstrip(":")) - 1000.0
    if at < outcome.settings.seconds:
        sooner = run(
            replace(outcome.settings, seconds=at + 0.001),
            [one for one in outcome.history if one.at <= at],
        )
        best = sooner if kind_of(sooner) == kind else best
    size = max(1, len(best.history) // 2)
    while runs < most_runs:
        before = len(best.history)
        for begin in range(len(best.history) - size, -1, -size):
            if runs < most_runs and (
                found := tried(best.history[:begin] + best.history[begin + size :])
            ):
                best = found
        if size == 1 and len(best.history) == before:
            break
        size = max(1, min(size // 2, len(best.history) // 2))
    return best
