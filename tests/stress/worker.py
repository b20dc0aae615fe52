"""A worker of a chaos run: a process under load, in several threads, that does unkind things to itself.

As a program, which a worker execs: python -m tests.stress.worker DIRECTORY RUN SEED ENDS_AT
"""

from __future__ import annotations

import faulthandler
import math
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mppool import (
    CheckoutTimeout,
    ForkedLease,
    Lease,
    LeaseReleased,
    OpenFailed,
    Pool,
    PoolError,
    ServerUnavailable,
)
from tests.processes.witness import Session
from tests.stress import kinds
from tests.stress.world import LONGEST_WAIT_S, ChaosRecipe, World

SHORT_TIMEOUTS_S = (0, 0.005, 0.05)
LONGEST_OVERRUN_S = 10.0
"""What a short timeout may take more: a login, and the stops of this process and of the server."""
LONG_WAIT_S = 12.0
LONGEST_BACK_OFF_S = 15.0
DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)


class Worker:
    """One process. Its main thread does what must be done there; others only use the pool."""

    def __init__(
        self,
        world: World,
        pool: Pool[Session],
        recipe: ChaosRecipe,
        seed: int,
        ends_at: float,
        made_by: str,
    ) -> None:
        self.world, self.pool, self.recipe = world, pool, recipe
        self.made_by = made_by
        self.chance = random.Random(seed)
        self.ends_at = ends_at
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.children: set[int] = set()
        # Held while this process must be quiet: the other threads stop at it.
        self.quiet = threading.Lock()
        self.short_until = -math.inf
        self.name = f"{os.getpid()}-{time.monotonic_ns()}"
        # By thread: since when it has been waiting for a lease.
        self.waiting: dict[int, float] = {}
        self.has_told = False

    # --- its life -----------------------------------------------------------------------------------------

    def live(self) -> NoReturn:
        """Until the end, which is always the end of the process."""
        try:
            self._begin()
            threads = [
                threading.Thread(target=self._load, args=(self.chance.random(),), daemon=True)
                for _ in range(self.chance.randint(0, 3))
            ]
            for thread in threads:
                thread.start()
            while time.monotonic() < self.ends_at and not self.problems:
                self._spend(self.chance.uniform(0.05, 0.5), is_alone=not threads)
                self._report()
                self._tell_of_waiting()
                self._do_something()
            self._join(threads)
            self._reap(options=0)
        except BaseException:
            self._problem(traceback.format_exc())
        finally:
            self._report()
            os._exit(0)

    def _join(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + LONGEST_WAIT_S + 10
        for thread in threads:
            while thread.is_alive() and time.monotonic() < deadline:
                thread.join(1)
                self._tell_of_waiting()
            if thread.is_alive():
                self._problem("a thread hangs")

    def _begin(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, DESCRIPTORS)
        sys.unraisablehook = lambda _: None
        path = self.world.reports / f"stacks-{os.getpid()}"
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        faulthandler.register(signal.SIGUSR2, file=descriptor)
        os.write(descriptor, f"{self.made_by}\n".encode())
        self.recipe.chance = random.Random(self.chance.random())
        kinds.log_to(self.chance.choice([None, self._raise, self._use_in_handler]))

    def _spend(self, seconds: float, *, is_alone: bool) -> None:
        until = min(time.monotonic() + seconds, self.ends_at)
        if not is_alone:
            time.sleep(max(0.0, until - time.monotonic()))
            return
        while time.monotonic() < until and not self.problems:
            self._use(self.chance)

    def _report(self) -> None:
        self.world.report(self.name, self.counts, self.problems)

    def _tell_of_waiting(self) -> None:
        """Where the threads are while one of them waits for very long: afterwards it is too late to see."""
        since = min(list(self.waiting.values()), default=math.inf)
        if time.monotonic() - since > LONG_WAIT_S and not self.has_told:
            self.has_told = True
            os.kill(os.getpid(), signal.SIGUSR2)

    def _problem(self, text: str) -> None:
        self.problems.append(f"process {os.getpid()} ({self.made_by}): {text}")

    # --- its load -----------------------------------------------------------------------------------------

    def _load(self, seed: float) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self.ends_at and not self.problems:
            self._use(chance)

    def _use(self, chance: random.Random) -> None:
        """One use of the pool. Whatever goes wrong is told, and what the run has caused is counted."""
        drawn, began = chance.random(), time.monotonic()
        is_short = drawn < 0.1  # with hardly any time: may fail, must not harm
        timeout = chance.choice(SHORT_TIMEOUTS_S) if is_short else LONGEST_WAIT_S
        try:
            lease = self._checkout(timeout)
            if lease is not None:
                self._use_lease(lease, drawn, chance)
        except BaseException:
            self._problem(f"after {time.monotonic() - began:.1f} s: {traceback.format_exc()}")

    def _checkout(self, timeout: float) -> Lease[Session] | None:
        """A lease, or None for a reason that the run has caused itself; another is raised."""
        with self.quiet:
            pass
        self.waiting[threading.get_ident()] = began = time.monotonic()
        try:
            lease = self.pool.checkout(timeout=timeout)
        except (OpenFailed, ServerUnavailable, CheckoutTimeout) as error:
            why = self._expected(error, timeout, began)
            if why is None:
                raise
            self.counts[why] += 1
            lease = None
        finally:
            self.waiting.pop(threading.get_ident(), None)
        if timeout < 1 and time.monotonic() - began > timeout + LONGEST_OVERRUN_S:
            self._problem(f"timeout={timeout} took {time.monotonic() - began:.1f} s")
        return lease

    def _expected(self, error: PoolError, timeout: float, began: float) -> str | None:
        text = str(error)
        if isinstance(error, CheckoutTimeout):
            return "short timeouts" if timeout < 1 else None
        if isinstance(error, OpenFailed) and "Injected" in text:
            return "injected failures"
        if "Too many open files" in text or "ulimit -n" in text:
            if began < self.short_until + LONGEST_BACK_OFF_S:
                return "refused without descriptors"
            if isinstance(error, OpenFailed):
                return "refused because another process had no descriptors"
        if isinstance(error, ServerUnavailable) and timeout < 1:
            return "short timeouts while a server starts"
        return None

    def _use_lease(self, lease: Lease[Session], drawn: float, chance: random.Random) -> None:
        session = lease.resource
        for _ in range(chance.randint(1, 4)):
            session.ask("chaos")
        if chance.random() < 0.3:
            time.sleep(chance.random() * 0.01)
        with self.quiet:
            pass
        self.counts["checkouts"] += 1
        if drawn > 0.95:
            lease.discard()
        elif drawn > 0.94:
            del lease  # leaked: closed by the pool
        else:
            lease.release()

    # --- log handlers -------------------------------------------------------------------------------------

    def _raise(self) -> None:
        self.counts["lines to handlers that raise"] += 1
        raise OSError("the log server is away")

    def _use_in_handler(self) -> None:
        self.counts["lines to handlers that use the pool"] += 1
        try:
            lease = self._checkout(0.05)
            if lease is not None:
                with lease as session:
                    session.ask("a log handler")
        except BaseException:
            self._problem(f"a log handler: {traceback.format_exc()}")

    # --- what it does to itself, in its main thread -------------------------------------------------------

    def _do_something(self) -> None:
        self._reap(options=os.WNOHANG)
        left = self.ends_at - time.monotonic()
        if left < 0.5:
            return
        drawn = self.chance.random()
        for share, do in self._choices():
            drawn -= share
            if drawn < 0:
                do()
                return

    def _choices(self) -> list[tuple[float, Callable[[], None]]]:
        return [
            (0.12, lambda: self._fork("forks", os.fork)),
            (0.12, self._fork_by_c),
            (0.08, lambda: self._fork("signals at births", self._fork_under_a_signal)),
            (0.08, self._kill_a_child),
            (0.12, self._lack_descriptors),
            (0.15, self._be_interrupted),
            (0.03, self._exec_a_worker),
            (0.03, self._exec_something_else),
        ]

    def _fork(self, what: str, fork: Callable[[], int | None]) -> None:
        """Fork a child that does the same, half of the time while a lease is held."""
        if len(self.children) >= 2:
            return
        lease = self._checkout(0.05) if self.chance.random() < 0.5 else None
        seed = self.chance.randrange(1 << 30)
        until = min(self.ends_at, time.monotonic() + self.chance.uniform(0.1, 1.0))
        pid = fork()
        if pid == 0:
            made_by = f"{what}, of {os.getppid()}"
            child = Worker(self.world, self.pool, self.recipe, seed, until, made_by)
            child.refuse(lease, is_told=fork is os.fork)
            child.live()
        if pid is None:
            self.counts["forks by C code put off"] += 1
        else:
            self.children.add(pid)
            self.world.note(what)
        if lease is not None:
            lease.resource.ask("unharmed")
            lease.release()

    def refuse(self, lease: Lease[Session] | None, *, is_told: bool) -> None:
        """In a child: what its parent holds is not the child's, and cannot be given back by it.

        A child that was not told that it is one finds out at its next checkout (decision 16).
        """
        if lease is None:
            return
        try:
            if not is_told:
                if self.chance.random() < 0.5:
                    lease.release()
                mine = self._checkout(0)
                if mine is not None:
                    mine.release()
            lease.resource.ask("not mine")
        except (ForkedLease, LeaseReleased):
            lease.release()
        except BaseException:
            self._problem(f"a lease of its parent: {traceback.format_exc()}")
        else:
            self._problem("has used a lease of its parent")

    def _fork_by_c(self) -> None:
        def fork() -> int | None:
            with self.quiet:
                return kinds.fork_by_c()

        self._fork("forks by C code", fork)

    def _fork_under_a_signal(self) -> int:
        return kinds.fork_under_a_signal(self.chance.randrange(3000))

    def _kill_a_child(self) -> None:
        if self.children:
            os.kill(self.chance.choice(sorted(self.children)), signal.SIGKILL)
            self.world.note("children killed")

    def _lack_descriptors(self) -> None:
        self.short_until = math.inf
        self.world.note("times without descriptors")
        try:
            with kinds.few_descriptors(self.chance.randint(0, 5)):
                until = time.monotonic() + self.chance.uniform(0.05, 0.5)
                while time.monotonic() < until and not self.problems:
                    self._use_shortly()
                    time.sleep(0.005)
        finally:
            self.short_until = time.monotonic()

    def _be_interrupted(self) -> None:
        self.world.note("times under an interval timer")
        with kinds.interval_timer(self.chance.choice([0.001, 0.004, 0.02])):
            until = time.monotonic() + self.chance.uniform(0.05, 0.5)
            while time.monotonic() < until and not self.problems:
                self._use_shortly()

    def _use_shortly(self) -> None:
        lease = self._checkout(self.chance.choice(SHORT_TIMEOUTS_S))
        if lease is not None:
            with lease as session:
                session.ask("shortly")
            self.counts["checkouts"] += 1

    def _exec_a_worker(self) -> None:
        self.world.note("execs of a worker")
        self._report()
        seed, until = self.chance.randrange(1 << 30), self.ends_at
        kinds.exec_python(
            __spec__.name, str(self.world.directory), str(self.world.seed), str(seed), repr(until)
        )

    def _exec_something_else(self) -> None:
        self.world.note("execs of something else")
        self._report()
        left = self.ends_at - time.monotonic()
        kinds.exec_sleep(min(left, self.chance.uniform(0.1, 2.0)))

    def _reap(self, *, options: int) -> None:
        for pid in list(self.children):
            if os.waitpid(pid, options)[0]:
                self.children.discard(pid)


def main(directory: str, run: str, seed: str, ends_at: str) -> NoReturn:
    world = World(int(run), Path(directory))
    pool, recipe = world.declare(world.manager())
    Worker(world, pool, recipe, int(seed), float(ends_at), "exec").live()


if __name__ == "__main__":
    main(*sys.argv[1:])
