"""The world: a server, processes with threads that check out, a database that counts, and what goes wrong."""

from __future__ import annotations

import gc
import logging
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.database import Database
from tests.simulation.faults import RECOVERY_S, Faults
from tests.simulation.healing import Healing
from tests.simulation.issuer import Issuer
from tests.simulation.kernel import Kernel
from tests.simulation.loop import exchange
from tests.simulation.modules import the_copy
from tests.simulation.processes import Process
from tests.simulation.recipes import Recipes
from tests.simulation.scheduler import Over, Scheduler, Stuck, current_thread, here
from tests.simulation.settings import Fault, Settings
from tests.simulation.tasks import TaskWorker
from tests.simulation.worker import Worker

DIRECTORY = "/run/simulated"
POOL = "main"


@dataclass
class Release:
    """What workers that start now declare. number: of what they open; odd and even ones open something different."""

    options: dict[str, Any]
    number: int = 0


@dataclass
class Outcome:
    """What came of a run. marks: what was logged. reached: handlers of exceptions, in mppool."""

    settings: Settings
    history: list[Fault]
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)


@contextmanager
def unraisable(tell: Callable[[str], None]) -> Iterator[None]:
    """What finalizers raise goes there; and nobody is warned of coroutines that a world leaves behind."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda what: tell(f"{what.object!r} has raised {what.exc_value!r}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook


class World:
    """One run. Everything in it follows from its settings and its history of faults."""

    def __init__(self, settings: Settings, history: list[Fault], *, traced: bool = False) -> None:
        self.settings = settings
        self.outcome = Outcome(settings, history)
        self.chance = random.Random(settings.seed)
        self.copy = the_copy(statements=settings.statements)
        self.scheduler = Scheduler(self.chance, settings.patience, self.copy.switcher(), exchange)
        self.scheduler.reached = self.outcome.reached
        self.scheduler.hear = self.hear  # type: ignore[attr-defined]
        if traced:
            self.scheduler.trace = self.outcome.trace
        self.kernel = kernel = Kernel(self.scheduler, self.chance)
        kernel.trouble, kernel.deaths = self.trouble, self._died
        kernel.spawn = self._spawn
        kernel.room, kernel.cpus = settings.room, settings.cpus
        kernel.delayed, kernel.longest_delay = settings.delayed, settings.longest_delay
        kernel.knows_peerpidfd, kernel.most_pids = settings.knows_peerpidfd, settings.most_pids
        self.database = Database(self)
        self.issuer = Issuer(self)
        self.recipes = Recipes(self.copy, self.database)
        self.workers: dict[int, Process] = {}
        self.is_healing = False
        self.release = Release(dict(settings.options))
        self.largest: int = settings.options["max_size"]  # of all caps
        self.ill_until = 0.0  # the server may not answer at once

    def trouble(self, text: str) -> None:
        if (
            here.scheduler is self.scheduler
        ):  # else the world has ended, and its threads are being left
            self.outcome.problems.append(f"at {self.scheduler.now:.6f}: {text}")

    def refused(self, kind: str, text: str) -> None:
        """A checkout has got nothing."""
        self.outcome.done[kind] += 1

    def hear(self, record: logging.LogRecord) -> None:
        """What mppool has logged."""
        self.outcome.marks[record.msg] += 1
        if record.levelno >= logging.ERROR and not self.settings.may_be_logged(record.getMessage()):
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            self.trouble(f"{current_thread().process} logs an error: {text}")

    # --- processes -----------------------------------------------------------------------------------------

    @property
    def server(self) -> Process | None:
        for process in self.kernel.processes.values():
            if process.name == "server":
                return process
        return None

    def _spawn(
        self, starter: Process, arguments: list[str], actions: list[tuple[Any, ...]]
    ) -> None:
        readiness = next(one[1] for one in actions if one[-1] == 3)
        pipe = starter.get(readiness)
        directory, name, linger = arguments[-3:]
        process = self.kernel.new_process(
            "server",
            lambda: self._serve(directory, name, float(linger), number),
            namespace=starter.namespace,
        )
        number = process.open(pipe)

    def _serve(self, directory: str, name: str, linger: float, readiness: int) -> None:
        """As mppool.server.__main__ does it, without what concerns this interpreter alone."""
        copy, os = self.copy, self.copy._substitutes["os"]
        self.scheduler.sleep(self.chance.uniform(0.01, self.settings.longest_start))
        ready, errors = copy.rendezvous__readiness, copy.errors
        paths = copy.rendezvous__paths.ManagerPaths(
            copy._substitutes["pathlib"].Path(directory), name
        )
        answer = ready.READY
        try:
            server = copy.server__loop.Server(paths, linger=linger)
            server.open()
        except errors.ServerUnavailable:
            answer = ready.ANOTHER
        except errors.ConfigurationError as error:
            answer = ready.REFUSED + str(error).encode()
        except OSError as error:
            self.outcome.marks[f"the server could not be opened: {error.strerror}"] += 1
            answer = ready.FAILED
        try:
            os.write(readiness, answer)
        except OSError:
            pass
        os.close(readiness)
        if answer == ready.READY:
            current_thread().process.told = server
            server.serve_forever()

    def start_worker(self) -> Process:
        return self._joins(self.kernel.new_process("worker", self._work))

    def _joins(self, process: Process, *, is_replaced: bool = True) -> Process:
        process.at_death.append(lambda: self.database.forget(process))
        process.at_death.append(lambda: self._ended(process, is_replaced))
        self.workers[process.pid] = process
        return process

    def fork(self, parent: Process, seconds: float, *, hooks: bool) -> None:
        """A child with copies of all descriptors. hooks: it closes them, and works on its own; else it only lives so long."""

        def live() -> None:
            self.scheduler.sleep(seconds)
            if hooks:
                child.close_all()
                self._work()

        child = self.kernel.new_process("worker" if hooks else "child", live, parent=parent)
        if hooks:
            self._joins(child, is_replaced=False)

    def exec(self, process: Process) -> None:
        """A worker runs another program in its place, which does the same."""
        self.database.forget(process)
        self._joins(self.kernel.exec(process, self._work))

    def visit(self) -> None:
        """A process of another pid namespace tries to take part."""
        visitor = self.kernel.new_process("visitor", self._visits, namespace=1)
        visitor.at_death.append(lambda: self.database.forget(visitor))

    def _visits(self) -> None:
        visitor = Worker(self, current_thread().process)
        for _ in range(20):
            lease = None
            try:
                lease = visitor.pool.checkout(0.5)
                self.scheduler.sleep(0.5)
            except visitor.errors.PoolError as error:
                self.outcome.done[f"visitor: {type(error).__name__}"] += 1
            if lease is not None:
                lease.release()
            self.scheduler.sleep(0.2)

    def _ended(self, process: Process, is_replaced: bool) -> None:
        self.workers.pop(process.pid, None)
        if is_replaced and not self.is_healing:
            self.scheduler.call_at(self.scheduler.now + self.chance.random() ** 2, self._replace)

    def _replace(self) -> None:
        if not self.is_healing:
            self.start_worker()

    def journal(self) -> Any:
        """The file, or None."""
        return self.kernel.files.find(f"{DIRECTORY}/simulated/journal")

    def _died(self, process: Process) -> None:
        if process.name == "server":
            self.ill_until = max(self.ill_until, self.scheduler.now + RECOVERY_S)

    def _work(self) -> None:
        """What a worker's main thread does."""
        process = current_thread().process
        worker = self._kind_of_worker()(self, process)
        process.told = worker
        worker.live()

    def _kind_of_worker(self) -> type[Worker]:
        tasks = self.settings.tasks
        has_loop = tasks == "apool" or (tasks != "" and self.chance.random() < 0.5)
        return TaskWorker if has_loop else Worker

    # --- the run -------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        with unraisable(self.trouble):
            return self._run_to_its_end()

    def _run_to_its_end(self) -> Outcome:
        was_enabled = gc.isenabled()
        gc.disable()
        here.scheduler = self.scheduler
        began = self.scheduler.now
        try:
            self._run()
        except Stuck as stuck:
            self.trouble(str(stuck))
        finally:
            self.outcome.seconds = self.scheduler.now - began
            here.scheduler = Over()
            self.kernel.end()
            exchange(None, None)
            self.copy.forget()
            if was_enabled:
                gc.enable()
        return self.outcome

    def has_failed(self) -> bool:
        return bool(self.outcome.problems)

    def _run(self) -> None:
        for _ in range(self.settings.processes):
            self.start_worker()
        Faults(self).plan(self.outcome.history)
        self.scheduler.run(self.has_failed, self.scheduler.now + self.settings.seconds)
        if not self.has_failed():
            Healing(self).run()
