"""The whole demonstration, in its order; whatever happens, everything that it started is ended."""

from __future__ import annotations

import http.client
import os
import signal
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from mppool.cli import output
from mppool.cli.demo import acts, setting
from mppool.cli.demo.kinds import Declared, chosen
from mppool.cli.demo.load import Death, Load, WrongAnswer, ask
from mppool.cli.demo.observers import Activity, Descriptors, Observer
from mppool.cli.demo.result import Result
from mppool.cli.demo.screen import Screen, View, make_screen
from mppool.cli.demo.stage import Stage
from mppool.cli.demo.web_server import WebServer, require_gunicorn
from mppool.cli.demo.witness import Witness
from mppool.cli.failing import FAULT, OK, CommandFailed
from mppool.errors import PoolError
from mppool.recipe import Opening

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from types import FrameType

    from mppool.cli.demo.kinds import Kind

_START_PATIENCE_S = 30.0
_END_PATIENCE_S = 5.0
_TICK_S = 0.1
_SETTLE_S = 0.5
_NAME_VARIABLE = "PGAPPNAME"  # PostgreSQL's name of a session; other drivers do not read it


def perform(options: argparse.Namespace) -> int:
    """Run it; the exit status."""
    require_gunicorn()
    kind = chosen(options)
    kind.require()
    result = Result(options.cap, hosted=kind.placement == "host")
    rich = output.is_rich(options.plain)
    before = signal.signal(signal.SIGTERM, _interrupt)
    ending = ExitStack()
    try:
        Performance(options, kind, result, ending).go(rich=rich)
    finally:
        with _undisturbed():
            ending.close()
        signal.signal(signal.SIGTERM, before)
    output.show([result.table()], rich=rich)
    if result.broken:
        print("\nBROKEN: " + "; ".join(result.broken))
        print(result.explanation())
        return FAULT
    print("\nEvery promise was kept.")
    return OK


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The end takes a second or two; a second Ctrl-C must not cut it short."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class Performance:
    """One demonstration. What it starts it also writes down in `ending`, which undoes it."""

    def __init__(
        self, options: argparse.Namespace, kind: Kind, result: Result, ending: ExitStack
    ) -> None:
        self._options = options
        self._use = kind
        self._result = result
        self._stage = Stage(options.runtime_dir)
        ending.callback(lambda: result.left_behind.extend(self._stage.leave()))
        self._ending = ending
        self._deaths: list[Death] = []
        self._started = 0.0

    def go(self, *, rich: bool) -> None:
        """Set up, let things go wrong under load, and look at what is left."""
        options, stage = self._options, self._stage
        self._connection_string = self._choose_database()
        self._witness = Witness(str(stage.directory / "witness"))
        self._ending.callback(self._witness.stop)
        self._web = self._start_web_server()
        self._load = Load(self._web.port, options.clients or options.workers * options.threads + 4)
        self._ending.callback(self._load.stop, _END_PATIENCE_S)
        for observer in self._observers():
            observer.start()
            self._ending.callback(observer.stop)
            self._result.observers.append(observer)
        self._announce()
        with make_screen(rich=rich) as screen:
            self._play(screen)
        self._load.stop()
        self._count()
        self._result.capacity = self._take_everything()
        self._result.witness = self._witness.seen()

    # --- before --------------------------------------------------------------------------------------------

    def _choose_database(self) -> str:
        """The connection string, which was tried: else every request would say what is wrong with it."""
        given, reason = self._use.database(self._options.connection_string, self._stage.database)
        if reason is not None:
            print(f"Using Python's own sqlite3: {reason}")
        recipe = setting.plain_recipe(given)
        try:
            connection = recipe.open(Opening(0))
        except Exception as error:
            raise CommandFailed(f"the database cannot be opened: {error}", FAULT) from error
        try:
            self._kind = _kind_of(connection)
        finally:
            recipe.close(connection)
        return given

    def _start_web_server(self) -> WebServer:
        options, stage = self._options, self._stage
        environment = setting.environment(
            name=stage.name,
            connection_string=self._connection_string,
            cap=options.cap,
            query_s=options.query,
            witness=self._witness.address,
            placement=self._use.placement,
        )
        web = WebServer(
            stage,
            self._use,
            workers=options.workers,
            threads=options.threads,
            environment={**environment, _NAME_VARIABLE: self._application_name()},
        )
        self._ending.callback(lambda: self._result.left_behind.extend(web.stop()))
        deadline = time.monotonic() + _START_PATIENCE_S
        while len(web.workers()) < options.workers:
            web.check()
            if time.monotonic() > deadline:
                raise CommandFailed(f"gunicorn started no workers:\n{web.log_tail()}", FAULT)
            time.sleep(0.02)
        try:
            ask(web.port, 0, _START_PATIENCE_S)
        except (OSError, http.client.HTTPException, WrongAnswer) as error:
            text = f"the application does not answer: {error}\n{web.log_tail()}"
            raise CommandFailed(text, FAULT) from error
        return web

    def _application_name(self) -> str:
        return f"mppool-demo-{os.getpid()}"

    def _observers(self) -> list[Observer]:
        if self._kind == "SQLite" and self._options.connection_string is None:
            return [Descriptors(self._stage.database, self._openers)]
        if self._kind == "PostgreSQL":
            recipe = setting.plain_recipe(self._connection_string)
            return [Activity(recipe, self._application_name())]
        return []

    def _openers(self) -> set[int]:
        """The processes that may have connections open: the workers, or hosts, which the witness knows."""
        workers = self._web.workers()
        return workers | set(self._witness.seen().by_pid) if self._result.hosted else workers

    def _announce(self) -> None:
        options, stage = self._options, self._stage
        threads = f" x {options.threads} threads" if self._use.worker_class == "gthread" else ""
        print(
            f"gunicorn --preload, {options.workers} workers{threads}, shares at most {options.cap} "
            f"connections to {self._kind}{self._use.text}.\nTo look at it from elsewhere: "
            f"mppool top {stage.name} --runtime-dir {stage.runtime_dir}\n",
            flush=True,
        )

    # --- meanwhile -------------------------------------------------------------------------------------------

    def _play(self, screen: Screen) -> None:
        seconds = self._options.seconds
        plan = [
            (0.25, lambda: self._kill_worker(screen)),
            (0.5, lambda: acts.kill_server(screen, self._stage.manager, self._result)),
            (0.75, lambda: acts.reload(screen, self._web, self._result, lambda: self._tick(screen))),
        ]  # fmt: skip
        self._started = time.monotonic()
        self._load.start()
        ends_at = self._started + seconds
        while plan or time.monotonic() < ends_at:
            self._web.check()
            self._tick(screen)
            if plan and time.monotonic() >= self._started + plan[0][0] * seconds:
                plan.pop(0)[1]()
                # On a slow machine an act may end late: the load goes on for a while after the last one.
                ends_at = max(ends_at, time.monotonic() + _SETTLE_S)
            time.sleep(_TICK_S)

    def _kill_worker(self, screen: Screen) -> None:
        manager = self._stage.manager
        death = acts.kill_worker(screen, manager, self._web, self._witness, self._result)
        if death is not None:
            self._deaths.append(death)

    def _tick(self, screen: Screen) -> None:
        failures, _ = self._load.judge(self._deaths)
        by_worker = self._load.by_worker
        screen.show(
            View(
                elapsed=time.monotonic() - self._started,
                seconds=self._options.seconds,
                rate=self._load.rate(),
                answered=self._load.answered,
                failures=len(failures),
                open_now=self._witness.seen().now,
                cap=self._options.cap,
                pool=acts.pool_figures(self._stage.manager, self._result),
                workers={pid: by_worker[pid] for pid in self._web.workers()},
            )
        )

    # --- afterwards --------------------------------------------------------------------------------------------

    def _count(self) -> None:
        result, load = self._result, self._load
        result.seconds = time.monotonic() - self._started
        result.answered, result.longest_s = load.answered, load.longest_s
        result.failures, result.inside_killed = load.judge(self._deaths)

    def _take_everything(self) -> int | None:
        """How many leases one process can have at the same time now: no capacity may be lost, nor won."""
        declared = Declared(
            self._stage.manager, self._connection_string, self._witness.address, self._options.cap
        )
        try:
            return self._use.take(declared)
        except PoolError as error:
            print(f"taking leases failed: {error}")
            return None


def _kind_of(connection: Any) -> str:
    """What the database calls itself."""
    if not hasattr(connection, "getinfo"):
        return "SQLite"
    import pyodbc

    return str(connection.getinfo(pyodbc.SQL_DBMS_NAME))
