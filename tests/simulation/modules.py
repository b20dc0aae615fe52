"""One more copy of mppool in this interpreter, over simulated primitives.

It is loaded from the same source under the name `simulated_mppool`. What its modules import from the standard library is
replaced where that reaches beyond the process's own memory. All simulated processes run the same copy; what its modules
keep for their process is exchanged when another process runs, as a CPU exchanges its address space (`STATE`).

With `statements` the source has a point before each statement of the process's side, so that threads meet anywhere.
"""

from __future__ import annotations

import asyncio
import builtins
import itertools
import logging as real_logging
import math
import random as real_random
import signal as real_signal
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import _base
from contextlib import contextmanager
from functools import cache
from pathlib import Path as RealPath
from types import ModuleType, SimpleNamespace
from typing import Any

import mppool
from tests.simulation import files, kernel, streams, threads
from tests.simulation.processes import Process
from tests.simulation.scheduler import Over, current_thread, here, point
from tests.simulation.source import compiled

ROOT = "mppool"
COPY = "simulated_mppool"
SOURCE = RealPath(mppool.__file__).parent

STATE: dict[tuple[str, str], Callable[[], Any]] = {
    ("process.fork", "_forkables"): dict,
    ("process.fork", "_numbers"): itertools.count,
    ("process.fork", "_functions_done"): int,
    ("process.fork", "_mark"): None,
    ("process.fork", "_next_mark"): None,
    ("process.fork", "_hooked"): deque,
    ("process.fork", "_renewed"): weakref.WeakSet,
    ("process.fork", "_failed"): list,
    ("process.fork", "_renewing"): dict,
    ("process.fork", "_preparing"): threads.RLock,
    ("process.fork", "_ending"): deque,
    ("logs", "_said"): dict,
    ("worker.member", "_members"): weakref.WeakSet,
    ("worker.member", "_process_name"): str,
    ("worker.member", "_says_farewell_in"): int,
    ("tokens.in_process", "_all"): weakref.WeakSet,
    ("tokens.in_process", "_listing"): threads.Lock,
    ("credentials.objects", "_serials"): itertools.count,
    ("credentials.objects", "_known"): dict,
    ("credentials.objects", "_copies"): dict,
    ("credentials.objects", "_belongings"): dict,
    ("credentials.objects", "_lock"): threads.Lock,
    ("manager", "_members"): weakref.WeakKeyDictionary,
    ("manager", "_finding"): threads.Lock,
    ("manager", "_entered"): weakref.WeakKeyDictionary,
}  # type: ignore[dict-item]
"""What modules keep for their process, and how it begins. The marks are made by `new_mark` in the process itself."""

_WITH_STATEMENTS = ("aio", "link", "worker", "process", "tokens", "server", "manager", "rendezvous")


class Mark:
    """Not zero in the process that made it."""

    def __init__(self) -> None:
        self._process = getattr(current_thread(), "process", None)

    def __getitem__(self, index: int) -> bool:
        if type(here.scheduler) is Over:
            return True  # what is still finalized is no child
        return getattr(current_thread(), "process", None) is self._process


def _number_of(connection: Any) -> int:
    number: int = connection.socket.number
    return number


REPLACED: dict[str, Any] = {
    "new_mark": Mark,
    "watch_removals": lambda: None,
    "forbid_core_dumps": lambda: True,
}
"""Functions of mppool that speak to the system without the standard library, wherever they stand."""


@contextmanager
def _nothing_happens() -> Iterator[None]:
    """A module is loaded once, in whichever world comes first: that one must be the same as if it was there already."""
    scheduler = here.scheduler
    now, countdown = scheduler.now, scheduler.countdown
    scheduler.countdown = math.inf
    try:
        yield
    finally:
        scheduler.now, scheduler.countdown = now, countdown


def mark(name: str) -> None:
    """An exception has come to this handler of mppool's."""
    here.scheduler.reached[name] += 1


class Copy:
    """The modules. statements: whether another thread may run between any two statements."""

    def __init__(self, *, statements: bool) -> None:
        self.name = f"{COPY}_{'statements' if statements else 'primitives'}"
        self._statements = statements
        self._builtins = {
            **vars(builtins),
            "__import__": self._import,
            "simulated_point": point,
            "simulated_mark": mark,
        }
        self._substitutes = _substitutes(self)
        self._substitutes["concurrent"] = SimpleNamespace(futures=self._over_primitives(_base))
        self._modules: dict[str, ModuleType] = {}
        self.replaced: set[str] = set()
        self.load(ROOT)

    def __getattr__(self, name: str) -> Any:
        """`copy.worker_member` is the module mppool.worker.member."""
        return self.load(f"{ROOT}.{name.replace('__', '.')}")

    # --- loading -------------------------------------------------------------------------------------------

    def load(self, name: str) -> ModuleType:
        found = self._modules.get(name)
        if found is not None:
            return found
        above, _, last = name.rpartition(".")
        parent = self.load(above) if above else None
        if name in self._modules:
            return self._modules[name]
        path = SOURCE.joinpath(*name.split(".")[1:])
        is_package = path.is_dir()
        path = path / "__init__.py" if is_package else path.with_suffix(".py")
        if not path.exists():
            raise ModuleNotFoundError(f"no module {name}", name=name)
        module = ModuleType(self.name + name.removeprefix(ROOT))
        module.__dict__.update(
            __builtins__=self._builtins,
            __file__=str(path),
            __package__=name if is_package else above,
        )
        if is_package:
            module.__path__ = [str(path.parent)]
        self._modules[name] = sys.modules[module.__name__] = module
        with _nothing_happens():
            exec(compiled(path, name, self._has_points(name)), module.__dict__)
        for function in REPLACED.keys() & vars(module).keys():
            if vars(module)[function].__module__ == module.__name__:
                setattr(module, function, REPLACED[function])
                self.replaced.add(function)
        if parent is not None:
            setattr(parent, last, module)
        return module

    def _over_primitives(self, real: ModuleType) -> ModuleType:
        """A module of the standard library that is written in Python, over simulated primitives."""
        assert real.__file__ is not None
        module = ModuleType(f"{self.name}_{real.__name__}")
        module.__dict__["__builtins__"] = self._builtins
        exec(compiled(RealPath(real.__file__), "", False), module.__dict__)
        return module

    def _has_points(self, name: str) -> bool:
        return (
            self._statements
            and name.split(".")[1:2] != []
            and name.split(".")[1] in _WITH_STATEMENTS
        )

    def _import(
        self,
        name: str,
        globals: Any = None,  # noqa: A002  # the builtin's names
        locals: Any = None,  # noqa: A002
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        assert not level, "mppool has no relative imports"
        if name.partition(".")[0] == ROOT:
            module = self.load(name)
            if not fromlist:
                return self.load(ROOT)
            for wanted in fromlist:
                if not hasattr(module, wanted):
                    try:
                        self.load(f"{name}.{wanted}")
                    except ModuleNotFoundError as error:
                        raise ImportError(f"cannot import {wanted} from {name}") from error
            return module
        if name in self._substitutes:
            return self._substitutes[name]
        return builtins.__import__(name, globals, locals, fromlist, level)

    # --- the state of processes ----------------------------------------------------------------------------

    def switcher(self) -> Callable[[Process], None]:
        """What takes the state of a process into the modules, and notes that of the one before."""
        places = [
            (self.load(f"{ROOT}.{module}").__dict__, name, (module, name)) for module, name in STATE
        ]
        before: list[Process | None] = [None]

        def switch(process: Process) -> None:
            if process.name == "server":
                return  # no module of the server's keeps anything
            old = before[0]
            if old is process:
                return
            if old is not None:
                kept = old.state
                for namespace, name, key in places:
                    kept[key] = namespace[name]
            before[0] = process
            state = process.state or _fresh(process)
            for namespace, name, key in places:
                namespace[name] = state[key]

        return switch

    def forget(self) -> None:
        """The world has ended: nothing here refers to its processes any more."""
        for (module, name), make in STATE.items():
            self.load(f"{ROOT}.{module}").__dict__[name] = Mark() if make is None else make()


def _fresh(process: Process) -> dict[tuple[str, str], Any]:
    mark = Mark()
    mark._process = process
    for key, make in STATE.items():
        process.state[key] = mark if make is None else make()
    return process.state


# --- what is replaced ------------------------------------------------------------------------------------


class _OfTheWorld:
    """`random.SystemRandom`: the chance of the running world."""

    def __getattr__(self, name: str) -> Any:
        return getattr(here.scheduler.chance, name)


def _bytes(length: int) -> bytes:
    return bytes(here.scheduler.chance.randbytes(length))


class _Logger(real_logging.Logger):
    """A logger whose lines the world hears."""

    def __init__(self, name: str) -> None:
        super().__init__(name, real_logging.INFO)

    def handle(self, record: real_logging.LogRecord) -> None:
        hear = getattr(here.scheduler, "hear", None)
        if hear is not None:
            hear(record)


@cache
def _logger(name: str) -> _Logger:
    return _Logger(name)


def _substitutes(of: Copy) -> dict[str, Any]:
    chance = _OfTheWorld()
    os = kernel.os_module(_bytes)
    logging = SimpleNamespace(**{**vars(real_logging), "getLogger": _logger})
    return {
        "os": os,
        "threading": threads.threading,
        "_thread": threads._thread,
        "time": threads.time,
        "queue": threads.queues,
        "socket": streams.socket_module,
        "_socket": streams._socket_module,
        "select": streams.select_module,
        "fcntl": kernel.fcntl_module,
        "filelock": kernel.filelock_module,
        "tempfile": SimpleNamespace(mkstemp=kernel.mkstemp),
        "pathlib": SimpleNamespace(Path=files.Path, PurePath=RealPath),
        "logging": logging,
        "atexit": SimpleNamespace(register=lambda function: function),
        "random": SimpleNamespace(
            random=lambda: here.scheduler.chance.random(),
            uniform=lambda a, b: here.scheduler.chance.uniform(a, b),
            SystemRandom=_OfTheWorld,
            Random=real_random.Random,
        ),
        "secrets": SimpleNamespace(
            randbits=lambda bits: here.scheduler.chance.getrandbits(bits),
            token_bytes=_bytes,
            token_hex=lambda length: _bytes(length).hex(),
            choice=lambda items: chance.choice(items),
        ),
        # A set of all signals takes long to make, and no simulated process has any.
        "signal": streams._Module(real_signal, valid_signals=frozenset),
        "mmap": SimpleNamespace(mmap=_no_page, MAP_PRIVATE=0, MAP_ANONYMOUS=0, PAGESIZE=4096),
    }


def _no_page(*_: Any, **__: Any) -> Any:
    raise OSError("Mark stands in its place")


def the_copy(*, statements: bool = False) -> Copy:
    return _the_copy(statements)


@cache
def _the_copy(statements: bool) -> Copy:
    """Loaded once. The server's connections are put into sets: by their numbers, so that a seed gives one order."""
    loaded = Copy(statements=statements)
    loaded.load(f"{ROOT}.process.fork")
    loaded.load(f"{ROOT}.server.removals")
    loaded.load(f"{ROOT}.server.connection").Connection.__hash__ = _number_of
    assert loaded.replaced == set(REPLACED), (
        "a function that is to be replaced has another name now"
    )
    _have_loops_answer(loaded)
    registry = loaded.load(f"{ROOT}.server.processes").ProcessRegistry
    for name in ("living_members", "_without_channel"):
        setattr(registry, name, _in_order(getattr(registry, name)))
    return loaded


def _have_loops_answer(loaded: Copy) -> None:
    """A thread that waits for a coroutine of a loop waits on simulated primitives; see asyncio.run_coroutine_threadsafe."""
    futures = loaded._substitutes["concurrent"].futures
    module = loaded.load(f"{ROOT}.credentials.shared_async")

    def run_coroutine_threadsafe(coroutine: Any, loop: Any) -> Any:
        future = futures.Future()

        def begin() -> None:
            task = loop.create_task(coroutine)
            task.add_done_callback(ended)
            future.add_done_callback(
                lambda _: loop.is_closed() or loop.call_soon_threadsafe(task.cancel)
            )

        def ended(task: Any) -> None:
            if future.done():
                return
            if task.cancelled():
                future.cancel()
            elif task.exception() is not None:
                future.set_exception(task.exception())
            else:
                future.set_result(task.result())

        loop.call_soon_threadsafe(begin)
        return future

    replaced = {**vars(asyncio), "run_coroutine_threadsafe": run_coroutine_threadsafe}
    vars(module).update(
        asyncio=SimpleNamespace(**replaced), concurrent=SimpleNamespace(futures=futures)
    )


def _in_order(method: Any) -> Any:
    """Processes are hashed by the address of their type, so that a set of them has another order each time."""
    return lambda registry: dict.fromkeys(sorted(method(registry)))
