"""Resources that write down what happens to them, and colleagues: other processes that do as they are told."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from mppool import Pool
from mppool.recipe import Opening, Recipe
from tests.helpers import PATIENCE, wait_until


class Thing:
    """A resource. `number` is its creation number."""

    def __init__(self, opening: Opening) -> None:
        self.number = opening.number
        self.identity = opening.identity
        self.pid = os.getpid()
        self.closed = False
        self.entry: Any = None

    def __repr__(self) -> str:
        return f"<Thing {self.number}>"


class Things(Recipe[Thing]):
    """Opens things. Files in its directory are switches that all processes see.

    down: opening fails. down-<identity>: for this one. sick: checks say no. sick-<number>: for this one. puzzled: checks raise.
    gone: checks raise ConnectionError. stuck: closing hangs while it is there.
    <hook>-raises: that hook raises.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fingerprint(self) -> str:
        return f"things:{self.directory}"

    def on(self, switch: str) -> bool:
        return (self.directory / switch).exists()

    def note(self, event: str, thing: Thing | None = None) -> None:
        number = "-" if thing is None else str(thing.number)
        line = f"{event} {number} {os.getpid()} {time.monotonic()}\n".encode()
        descriptor = os.open(self.directory / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line)  # one write: lines of several processes do not mix
        os.close(descriptor)

    def _hook(self, name: str, thing: Thing) -> None:
        self.note(name, thing)
        if self.on(f"{name}-raises"):
            raise RuntimeError(f"{name} raises")

    def open(self, opening: Opening) -> Thing:
        if self.on("down") or self.on(f"down-{opening.identity}"):
            self.note("refused")
            raise ConnectionRefusedError("the database is down")
        thing = Thing(opening)
        self.note("open", thing)
        return thing

    def configure(self, thing: Thing) -> None:
        self._hook("configure", thing)

    def close(self, thing: Thing) -> None:
        wait_until(lambda: not self.on("stuck"), "closing to be let go on", timeout=60)
        thing.closed = True
        self._hook("close", thing)


class CheckedThings(Things):
    """The same, with a check."""

    def check(self, thing: Thing) -> bool:
        self._hook("check", thing)
        if self.on("puzzled"):
            raise RuntimeError("cannot be checked")
        if self.on("gone"):
            raise ConnectionResetError("the backend is gone")
        return not (self.on("sick") or self.on(f"sick-{thing.number}"))


class HookedThings(CheckedThings):
    """The same, with all hooks."""

    def on_checkout(self, thing: Thing) -> None:
        self._hook("on_checkout", thing)

    def reset(self, thing: Thing) -> None:
        self._hook("reset", thing)

    def stats(self, thing: Thing) -> Mapping[str, Any]:
        if self.on("stats-raises"):
            raise RuntimeError("stats raises")
        return {"number": thing.number, "shoe size": 42}

    def describe(self, thing: Thing) -> str:
        if self.on("describe-raises"):
            raise RuntimeError("describe raises")
        return f"thing {thing.number}"


class Scene:
    """The directory of the things of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def switch(self, name: str, on: bool = True) -> None:
        path = self.directory / name
        if on:
            path.touch()
        else:
            path.unlink()

    def events(self, *kinds: str) -> list[tuple[str, int, int, float]]:
        """What was noted: event, number of the thing, pid, when."""
        log = self.directory / "log"
        found = []
        for line in log.read_text().splitlines() if log.exists() else ():
            kind, number, pid, at = line.split()
            if not kinds or kind in kinds:
                found.append((kind, -1 if number == "-" else int(number), int(pid), float(at)))
        return found

    def count(self, *kinds: str) -> int:
        return len(self.events(*kinds))


class Colleague:
    """A forked process that has the same pool, and does what it is asked for, one thing after the other."""

    def __init__(self, pool: Pool[Any]) -> None:
        self._mine, theirs = get_context("fork").Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._mine.close()
            _work(pool, theirs)
        theirs.close()
        self._reaped = False

    def tell(self, order: str, *arguments: Any, **keywords: Any) -> None:
        """Have something done, and do not wait for it."""
        self._mine.send((order, arguments, keywords))

    def answer(self, timeout: float = PATIENCE) -> Any:
        """What it answers to the oldest order that was only told. Raises what it raised."""
        if not self._mine.poll(timeout):
            raise AssertionError(f"colleague {self.pid} has not answered within {timeout} s")
        succeeded, value = self._mine.recv()
        if not succeeded:
            raise value
        return value

    def do(self, order: str, *arguments: Any, **keywords: Any) -> Any:
        """Have something done, and return the answer."""
        self.tell(order, *arguments, **keywords)
        return self.answer()

    def kill(self) -> None:
        if not self._reaped:
            self._reaped = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._mine.close()


class _Desk:
    """What a colleague can do."""

    def __init__(self, pool: Pool[Any]) -> None:
        self.pool = pool
        self.leases: dict[str, Any] = {}
        self.heard: list[str] = []

    def checkout(self, name: str = "it", **keywords: Any) -> int:
        self.leases[name] = self.pool.checkout(**keywords)
        return int(self.leases[name].resource.number)

    def checkout_and_release(self) -> None:
        self.pool.checkout(timeout=10).release()

    def release(self, name: str = "it") -> None:
        self.leases[name].release()

    def use(self, name: str = "it") -> int:
        return int(self.leases[name].resource.number)

    def drop(self, name: str = "it") -> None:
        del self.leases[name]

    def closed(self, name: str = "it") -> bool:
        return bool(self.leases[name].resource.closed)

    def messages(self) -> list[str]:
        return list(self.heard)

    def declare(self) -> None:
        """Declare the pool once more, as it is."""
        _, (manager, name, recipe, options, *_) = self.pool.__reduce__()
        manager.pool(name, recipe, **options)

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        return getattr(self.pool, method)(*arguments, **keywords)


class _Ear(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record.getMessage())


def _work(pool: Pool[Any], pipe: Any) -> NoReturn:
    try:
        desk = _Desk(pool)
        logger = logging.getLogger("mppool")
        logger.handlers = [_Ear(desk.heard)]
        logger.propagate = False
        while True:
            order, arguments, keywords = pipe.recv()
            try:
                answer = (True, getattr(desk, order)(*arguments, **keywords))
            except Exception as error:
                answer = (False, error)
            pipe.send(answer)
    except BaseException:
        os._exit(1)
    os._exit(0)
