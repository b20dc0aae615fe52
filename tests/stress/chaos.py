"""A chaos run: workers of many kinds under load, and a tormentor that kills, stops and forks.

Everything is drawn from a seed, which is printed. (The interleaving of processes is the kernel's, so a
seed repeats the plan, not the run.) What is judged, by the witness and by the workers themselves:

- at no instant are more sessions held than max_size (promise 1);
- afterwards max_size leases can be taken again, and not one more (promise 2);
- nobody gets an answer meant for somebody else (promise 3);
- no checkout of a surviving process fails, but by the failures that were injected into `open`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mppool import CheckoutTimeout, OpenFailed, Opening, Pool, PoolManager
from tests.helpers import is_alive
from tests.processes.witness import Session, SessionRecipe, Witness

MAX_SIZE = 5
WORKERS = 6
LONGEST_WAIT_S = 60.0
"""Longer than any stop; a checkout that takes longer has been forgotten."""


class Injected(Exception):
    """A failure of `open` that the run itself has caused."""


class ChaosRecipe(SessionRecipe):
    """Opens sessions; now and then it fails, or dawdles."""

    def __init__(self, path: str, chance: random.Random) -> None:
        super().__init__(path)
        self.chance = chance

    def open(self, opening: Opening) -> Session:
        drawn = self.chance.random()
        if drawn < 0.02:
            raise Injected("drawn")
        if drawn < 0.1:
            time.sleep(self.chance.random() * 0.02)
        return Session(self.path)


@dataclass
class Outcome:
    """What happened, and what must not have."""

    seed: int
    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        done = ", ".join(f"{count} {what}" for what, count in sorted(self.done.items()))
        judged = f"peak {self.figures.get('peak')} of {MAX_SIZE}"
        lines = [f"seed {self.seed}, {self.seconds:.0f} s: {done}; {judged}"]
        return "\n".join(lines + [f"PROBLEM: {problem}" for problem in self.problems])


# --- a worker -----------------------------------------------------------------------------------------


def _worker(pool: Pool[Session], seed: int, ends_at: float, report: Path) -> NoReturn:
    """A process under load, in several threads; now and then it forks a child that does the same."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    try:
        threads = [
            threading.Thread(target=_load, args=(pool, chance.random(), ends_at, counts, problems))
            for _ in range(chance.randint(1, 3))
        ]
        for thread in threads:
            thread.start()
        children = []
        while time.monotonic() < ends_at:
            time.sleep(chance.uniform(0.05, 0.5))
            if chance.random() < 0.2 and time.monotonic() < ends_at - 0.5:
                until = min(ends_at, time.monotonic() + chance.uniform(0.1, 1.0))
                children.append(_fork(pool, chance.randrange(1 << 30), until, report))
        for thread in threads:
            thread.join(LONGEST_WAIT_S + 10)
            if thread.is_alive():
                problems.append(f"a thread of process {os.getpid()} hangs")
        for child in children:
            os.waitpid(child, 0)
    except BaseException:
        problems.append(f"worker {os.getpid()}: {traceback.format_exc()}")
    finally:
        path = report / f"{os.getpid()}.json"
        path.with_suffix(".new").write_text(json.dumps([counts, problems]))
        path.with_suffix(".new").rename(path)
        os._exit(0)


def _fork(pool: Pool[Session], seed: int, ends_at: float, report: Path) -> int:
    pid = os.fork()
    if pid == 0:
        _worker(pool, seed, ends_at, report)
    # Into a file: most workers are killed before they report.
    with (report / "forks").open("ab", buffering=0) as counted:
        counted.write(b"x")
    return pid


def _load(
    pool: Pool[Session], seed: float, ends_at: float, counts: Counter[str], problems: list[str]
) -> None:
    chance = random.Random(seed)
    while time.monotonic() < ends_at and not problems:
        began = time.monotonic()
        try:
            _once(pool, chance, counts)
        except OpenFailed as error:
            if "Injected" not in str(error):
                problems.append(f"process {os.getpid()}: {error}")
            counts["injected failures"] += 1
        except CheckoutTimeout as error:
            problems.append(
                f"process {os.getpid()}: after {time.monotonic() - began:.1f} s: {error}"
            )
        except BaseException:
            problems.append(f"process {os.getpid()}: {traceback.format_exc()}")


def _once(pool: Pool[Session], chance: random.Random, counts: Counter[str]) -> None:
    drawn = chance.random()
    if drawn < 0.1:  # with hardly any time: may fail, must not harm
        try:
            lease = pool.checkout(timeout=chance.choice([0, 0.001, 0.01]))
        except CheckoutTimeout:
            counts["short timeouts"] += 1
            return
    else:
        lease = pool.checkout(timeout=LONGEST_WAIT_S)
    session = lease.resource
    for _ in range(chance.randint(1, 4)):
        session.ask("chaos")
    if chance.random() < 0.3:
        time.sleep(chance.random() * 0.01)
    counts["checkouts"] += 1
    if drawn > 0.95:
        lease.discard()
    elif drawn > 0.94:
        del lease  # leaked: closed by the pool
    else:
        lease.release()


# --- the tormentor ------------------------------------------------------------------------------------


class Chaos:
    """One run."""

    def __init__(self, witness: Witness, manager: PoolManager, seed: int, report: Path) -> None:
        self.chance = random.Random(seed)
        self.witness = witness
        self.manager = manager
        self.report = report
        self.outcome = Outcome(seed)
        self.pool = manager.pool(
            "chaos",
            ChaosRecipe(witness.path, random.Random(seed + 1)),
            max_size=MAX_SIZE,
            fail_fast=True,
        )
        self.workers: set[int] = set()
        self.stopped: dict[int, float] = {}

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
            for pid in list(self.workers):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _start_worker(self) -> None:
        self.outcome.done["workers"] += 1
        seed, until = self.chance.randrange(1 << 30), self.ends_at
        pid = os.fork()
        if pid == 0:
            self.pool._face.recipe.chance = random.Random(seed)  # type: ignore[attr-defined]
            _worker(self.pool, seed, until, self.report)
        self.workers.add(pid)

    def _torment(self) -> None:
        drawn = self.chance.random()
        if drawn < 0.35:
            self._strike(self.chance.choice(sorted(self.workers)), signal.SIGKILL)
        elif drawn < 0.55:
            self._stop(self.chance.choice(sorted(self.workers)), "workers stopped")
        elif drawn < 0.70:
            server = self.manager.server_pid
            if server is not None:
                self._strike(server, signal.SIGKILL)
        elif drawn < 0.75:
            server = self.manager.server_pid
            if server is not None:
                self._stop(server, "servers stopped")
        elif drawn < 0.78:
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
        while self.workers and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.01)
        if self.workers:
            self.outcome.problems.append(f"workers {sorted(self.workers)} did not end")
        self._wait_for_orphans()

    def _wait_for_orphans(self) -> None:
        """Children of workers that were killed end by themselves, at the end of the run at the latest."""
        deadline = time.monotonic() + LONGEST_WAIT_S
        while time.monotonic() < deadline:
            pids = {pid for pid in self.witness.figures()["pids"] if pid != os.getpid()}
            if not any(is_alive(pid) for pid in pids):
                return
            time.sleep(0.02)
        self.outcome.problems.append(f"processes {sorted(pids)} still hold sessions")

    # --- the judgement --------------------------------------------------------------------------------

    def _judge(self) -> None:
        for path in self.report.glob("*.json"):
            counts, problems = json.loads(path.read_text())
            self.outcome.done.update(counts)
            self.outcome.problems += problems
        forks = self.report / "forks"
        self.outcome.done["forks under load"] = forks.stat().st_size if forks.exists() else 0
        leases = []
        for _ in range(MAX_SIZE):
            began = time.monotonic()
            lease = self._take()
            if lease is None:
                self.outcome.problems.append(
                    f"capacity was lost: {len(leases)} of {MAX_SIZE} can be had; {self.manager.stats()}"
                )
                break
            if time.monotonic() - began > 5:
                self.outcome.problems.append("capacity came back after more than 5 s only")
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

    def _take(self) -> Any:
        for _ in range(60):
            try:
                return self.pool.checkout(timeout=20)
            except OpenFailed:
                time.sleep(0.2)  # injected
            except CheckoutTimeout:
                return None
        return None


def run(seconds: float, seed: int, directory: Path) -> Outcome:
    """One run in a directory of its own, which holds the server's files, the reports and the witness."""
    print(f"chaos: seed {seed}, {seconds:g} s", file=sys.stderr, flush=True)
    report = directory / "reports"
    report.mkdir()
    witness = Witness(directory / "w", cap=MAX_SIZE)
    manager = PoolManager("chaos", runtime_dir=directory / "r", linger=1.0)
    try:
        return Chaos(witness, manager, seed, report).run(seconds)
    finally:
        manager.shutdown()
        witness.end()
