"""A chaos run: workers of many kinds under load, and a tormentor that kills, stops and resets.

Everything is drawn from a seed, which is printed. (The interleaving of processes is the kernel's, so a
seed repeats the plan, not the run.) What is judged, by the witness and by the workers themselves:

- at no instant are more sessions held than max_size, or more of them opened than max_opening (promise 1);
- afterwards max_size leases can be taken again, and not one more (promise 2);
- nobody gets an answer meant for somebody else (promise 3);
- no checkout of a surviving process fails, but by what was injected: openings that fail, and no descriptors;
- nothing is left running.

What a worker does to itself stands in worker.py and kinds.py. In half of the runs a third of the workers use asyncio (tasks.py).
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mppool import CheckoutTimeout, OpenFailed, PoolManager
from tests.helpers import processes_using
from tests.processes.witness import Witness
from tests.stress.kinds import processes_holding
from tests.stress.tasks import TaskWorker
from tests.stress.worker import LONG_WAIT_S, Worker
from tests.stress.world import LONGEST_WAIT_S, MAX_SIZE, World

WORKERS = 6


@dataclass
class Outcome:
    """What happened, and what must not have."""

    world: World
    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        done = ", ".join(f"{count} {what}" for what, count in sorted(self.done.items()))
        judged = f"peak {self.figures.get('peak')} of {MAX_SIZE}"
        if self.world.max_opening is not None and self.world.login_s:
            judged += f", at most {self.figures.get('logins')} logins of {self.world.max_opening}"
        lines = [f"{self.world}, {self.seconds:.0f} s: {done}; {judged}"]
        return "\n".join(lines + [f"PROBLEM: {problem}" for problem in self.problems])


# --- the tormentor ------------------------------------------------------------------------------------


class Chaos:
    """One run."""

    def __init__(self, world: World, witness: Witness, manager: PoolManager) -> None:
        self.world = world
        self.chance = random.Random(world.seed)
        self.witness = witness
        self.manager = manager
        self.outcome = Outcome(world)
        self.pool, self.recipe = world.declare(manager)
        self.workers: set[int] = set()
        self.stopped: dict[int, float] = {}
        # Every process of the run has its second end open: the first ends when the last of them has ended.
        self.alive, self.living = os.pipe()
        os.set_inheritable(self.living, True)

    def run(self, seconds: float) -> Outcome:
        began = time.monotonic()
        self.ends_at = began + seconds
        try:
            while time.monotonic() < self.ends_at:
                self._reap()
                while len(self.workers) < WORKERS:
                    self._start_worker()
                time.sleep(self.chance.uniform(0.005, 0.15))
                self._wake(all_of_them=False)
                self._torment()
            self._wake(all_of_them=True)
            self._wait_for_workers()
            self._judge()
        finally:
            self._wake(all_of_them=True)
            self._end_all()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _start_worker(self) -> None:
        self.outcome.done["workers"] += 1
        seed = self.chance.randrange(1 << 30)
        pid = os.fork()
        if pid == 0:
            if self.world.has_tasks and seed % 3 == 0:
                TaskWorker(
                    self.world, self.pool, self.recipe, seed, self.ends_at, "a fork, with asyncio"
                ).live()
            Worker(self.world, self.pool, self.recipe, seed, self.ends_at, "a fork").live()
        self.workers.add(pid)

    def _torment(self) -> None:
        drawn = self.chance.random()
        if drawn < 0.22:
            self._strike(self.chance.choice(sorted(self.workers)), signal.SIGKILL)
        elif drawn < 0.42:
            self._stop(self.chance.choice(sorted(self.workers)), "workers stopped")
        elif drawn < 0.54:
            server = self.manager.server_pid
            if server is not None:
                self._strike(server, signal.SIGKILL)
        elif drawn < 0.59:
            server = self.manager.server_pid
            if server is not None:
                self._stop(server, "servers stopped")
        elif drawn < 0.62:
            self._command(self.pool.reset, "resets")

    def _command(self, command: Any, what: str) -> None:
        try:
            command()
        except Exception as error:  # the server may be stopped or dying: commands have a deadline
            self.outcome.done[f"{what} in vain ({type(error).__name__})"] += 1
        else:
            self.outcome.done[what] += 1

    def _strike(self, pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        self.outcome.done["workers killed" if pid in self.workers else "servers killed"] += 1

    def _stop(self, pid: int, what: str) -> None:
        if pid in self.stopped:
            return
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return
        self.stopped[pid] = time.monotonic() + self.chance.uniform(0.05, 0.6)
        self.outcome.done[what] += 1

    def _wake(self, *, all_of_them: bool) -> None:
        for pid, at in list(self.stopped.items()):
            if all_of_them or time.monotonic() >= at:
                del self.stopped[pid]
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    continue

    def _reap(self) -> None:
        for pid in list(self.workers):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.workers.discard(pid)

    def _wait_for_workers(self) -> None:
        deadline = time.monotonic() + LONGEST_WAIT_S + 30
        late = time.monotonic() + LONG_WAIT_S
        while self.workers and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.01)
            late = self._have_stacks_written_once(late)
        os.close(self.living)
        self.living = -1
        os.set_blocking(self.alive, False)
        # Children of workers that were killed end by themselves, at the end of the run at the latest.
        while True:
            try:
                os.read(self.alive, 1)
                return
            except BlockingIOError:
                time.sleep(0.02)
            late = self._have_stacks_written_once(late)
            if time.monotonic() > deadline:
                self._tell_of_hanging()
                return

    def _tell_of_hanging(self) -> None:
        """Which processes did not end, and where their threads are."""
        hanging = self._have_stacks_written()
        time.sleep(1)
        for pid, command in hanging.items():
            stacks = self.world.reports / f"stacks-{pid}"
            text = stacks.read_text() if stacks.exists() else ""
            self.outcome.problems.append(f"process {pid} ({command}) did not end:\n{text}")

    def _have_stacks_written_once(self, late: float) -> float:
        """When to do it; never again when it is done."""
        if time.monotonic() < late:
            return late
        self._have_stacks_written()
        return math.inf

    def _have_stacks_written(self) -> dict[int, str]:
        hanging = processes_holding(os.fstat(self.alive).st_ino)
        for pid in hanging:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
        return hanging

    def _end_all(self) -> None:
        """Whatever still runs: nothing does, unless something went wrong."""
        for pid in processes_holding(os.fstat(self.alive).st_ino):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in list(self.workers):
            os.waitpid(pid, 0)
        for descriptor in (self.alive, self.living):
            if descriptor >= 0:
                os.close(descriptor)

    # --- the judgement --------------------------------------------------------------------------------

    def _judge(self) -> None:
        for path in self.world.reports.glob("*.json"):
            counts, problems = json.loads(path.read_text())
            self.outcome.done.update(counts)
            self.outcome.problems += problems
        self.outcome.done.update(self.world.noted())
        leases: list[Any] = []
        for _ in range(MAX_SIZE):
            lease = self._take()
            if lease is None:
                self.outcome.problems.append(
                    f"capacity was lost: {len(leases)} of {MAX_SIZE} can be had; {self.manager.stats()}"
                )
                break
            leases.append(lease)
        try:
            lease = self.pool.checkout(timeout=0.3)
            self.outcome.problems.append("one more than max_size can be had")
        except (CheckoutTimeout, OpenFailed):
            pass
        for lease in leases:
            lease.resource.ask("exact")
            lease.release()
        self.outcome.figures = figures = self.witness.figures()
        if figures["over"]:
            self.outcome.problems.append(
                f"{len(figures['over'])} times over the cap: {figures['over'][0]}"
            )

        logins, most = figures["logins"], self.world.max_opening
        if most is not None and logins > most:
            self.outcome.problems.append(f"{logins} logins at a time, of {most}")

    def _take(self) -> Any:
        for _ in range(60):
            began = time.monotonic()
            try:
                lease = self.pool.checkout(timeout=20)
            except OpenFailed:
                time.sleep(0.2)  # injected
                continue
            except CheckoutTimeout:
                return None
            if time.monotonic() - began > 5:
                self.outcome.problems.append("capacity came back after more than 5 s only")
            return lease
        return None


def run(seconds: float, seed: int, directory: Path) -> Outcome:
    """One run in a directory of its own, which holds the server's files, the reports and the witness."""
    world = World(seed, directory)
    print(f"chaos: {world}, {seconds:g} s", file=sys.stderr, flush=True)
    world.reports.mkdir()
    witness = Witness(directory / "w", cap=MAX_SIZE)
    manager = world.manager()
    try:
        outcome = Chaos(world, witness, manager).run(seconds)
    finally:
        manager.shutdown()
        witness.end()
    deadline = time.monotonic() + 10
    while (left := processes_using(directory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        outcome.problems.append(f"left running: {left}")
    return outcome
