"""Log handlers that raise, hang or use the pool cost a line, and nothing else."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from mppool import InProcessManager, Pool, PoolManager, logs
from mppool.logs import Log, afterwards, handed_to
from tests.helpers import Fork, wait_until
from tests.processes.witness import Witness

Forks = Callable[..., Fork]


class _Handler(logging.Handler):
    def __init__(self, do: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._do = do

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())
        self._do(record)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., _Handler]]:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger, made = logging.getLogger("mppool"), []

    def add(do: Callable[[logging.LogRecord], None]) -> _Handler:
        made.append(_Handler(do))
        logger.addHandler(made[-1])
        return made[-1]

    yield add
    for handler in made:
        logger.removeHandler(handler)


@pytest.fixture(params=["server", "in process"])
def any_manager(request: pytest.FixtureRequest, manager: PoolManager) -> Any:
    return manager if request.param == "server" else InProcessManager("logs")


def _raise(record: logging.LogRecord) -> None:
    raise OSError("the log server is away")


def _fail(resource: object) -> None:
    raise ValueError("a hook raises")


def _troubled(manager: Any) -> list[tuple[Pool[Any], Callable[[], Any]]]:
    """Pools of one resource each, and something that happens to it and is logged."""
    pools: list[tuple[Pool[Any], Callable[[], Any]]] = []

    def add(name: str, happen: Callable[[Pool[Any]], Any], **options: Any) -> None:
        pool = manager.pool(name, object, max_size=1, **options)
        pools.append((pool, lambda: happen(pool)))

    def lose(pool: Pool[Any]) -> None:
        pool.checkout(timeout=20)
        gc.collect()

    def twice(pool: Pool[Any]) -> None:
        lease = pool.checkout(timeout=20)
        lease.release()
        lease.release()

    def use(pool: Pool[Any]) -> None:
        pool.checkout(timeout=20).release()

    def throw(pool: Pool[Any]) -> None:
        pool.checkout(timeout=20).discard()

    def hold(pool: Pool[Any]) -> None:
        lease = pool.checkout(timeout=20)
        time.sleep(0.3)
        lease.release()

    add("lost", lose)
    add("twice", twice)
    add("reset", use, reset=_fail)
    add("close", throw, close=_fail)
    verdicts = iter([_fail])
    add(
        "check",
        lambda pool: (use(pool), use(pool)),
        check=lambda one: next(verdicts, bool)(one) is not None,
        check_idle_for=0.0,
    )
    add("lent", use, on_checkout=_fail)
    add("killed", hold, max_lease_warn=0.05, max_lease_kill=0.1)
    return pools


def test_a_handler_that_raises_costs_a_line(
    any_manager: Any, install: Callable[..., _Handler]
) -> None:
    handler = install(_raise)
    for pool, happen in _troubled(any_manager):
        before = len(handler.seen)
        happen()
        for _ in range(2):
            pool.checkout(timeout=10).release()
        wait_until(lambda before=before: len(handler.seen) > before, pool.name)  # type: ignore[misc]


class _Interrupt(BaseException):
    """As Ctrl-C."""


def test_a_thread_whose_block_was_interrupted_at_its_end_logs_on(
    any_manager: Any, install: Callable[..., _Handler]
) -> None:
    handler = install(lambda record: None)
    pool = any_manager.pool("p", object, max_size=1, check=bool, check_idle_for=0.0)
    pool.checkout(timeout=20).release()

    def strike(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code is afterwards.__exit__.__code__:
            sys.settrace(None)
            raise _Interrupt

    def use() -> None:
        sys.settrace(strike)
        try:
            pool.checkout(timeout=20)
        except _Interrupt:
            struck.append(True)
        finally:
            sys.settrace(None)
        lease = pool.checkout(timeout=20)
        lease.release()
        lease.release()

    struck: list[bool] = []
    thread = threading.Thread(target=use)
    thread.start()
    thread.join(50)
    assert struck
    assert any("a second time" in line for line in handler.seen)


def test_a_handler_that_uses_the_pool_itself_stops_nothing(
    any_manager: Any, install: Callable[..., _Handler]
) -> None:
    served: list[str] = []
    pools = _troubled(any_manager)

    def use(record: logging.LogRecord) -> None:
        for pool, _ in pools:
            if f"{pool.name!r}" in record.getMessage():
                pool.checkout(timeout=10).release()
                served.append(pool.name)

    install(use)
    for pool, happen in pools:
        if pool.name == "lent":
            continue  # its line is logged by a thread that has the only resource
        began = time.monotonic()
        happen()
        for _ in range(2):
            pool.checkout(timeout=20).release()
        assert time.monotonic() - began < 9, pool.name  # it has waited for nobody
    wait_until(lambda: "lost" in served, "the line of the background thread was logged")
    assert {"twice", "reset", "close", "check", "lost"} <= set(served)


def test_a_handler_that_hangs_does_not_keep_the_background_thread(
    manager: PoolManager, witness: Witness, install: Callable[..., _Handler]
) -> None:
    go = threading.Event()
    install(lambda record: go.wait(60) and None)
    pool = manager.pool("p", witness.recipe(), max_size=1)
    pool.checkout(timeout=20)  # lost at once, and told by the background thread
    gc.collect()
    try:
        neighbour = Fork(lambda: pool.checkout(timeout=15).resource.number)
        assert neighbour.result()
    finally:
        go.set()


def test_lines_come_after_the_block_in_their_order(install: Callable[..., _Handler]) -> None:
    log, handler = Log("mppool"), install(lambda record: None)
    with afterwards():
        log.warning("one %d", 1)
        with afterwards():
            log.warning("two")
        assert not handler.seen
    assert handler.seen == ["one 1", "two"]
    handed: list[Callable[[], None]] = []
    with handed_to(handed.append):
        log.warning("three")
        with afterwards():
            log.warning("four")
    log.warning("five")
    for line in handed:
        line()
    assert handler.seen == ["one 1", "two", "five", "three", "four"]


def test_a_line_names_where_it_was_logged_and_keeps_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Log("mppool.test")
    with afterwards():
        try:
            raise ValueError("here")
        except ValueError:
            log.exception("it failed")
    (record,) = caplog.records
    assert record.funcName == "test_a_line_names_where_it_was_logged_and_keeps_its_traceback"
    assert record.levelno == logging.ERROR
    assert "ValueError: here" in caplog.text


def test_what_is_logged_within_a_handler_is_left_out(install: Callable[..., _Handler]) -> None:
    log = Log("mppool")
    handler = install(lambda record: log.warning("again"))
    log.warning("once")
    assert handler.seen == ["once"]


# --- equal lines, and fields ----------------------------------------------------------------------------


def test_equal_warnings_are_logged_once_a_minute_and_the_next_says_how_many_were_left_out(
    install: Callable[..., _Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that was away filled the disk of a log: each checkout of each worker logged the same."""
    clock = [1000.0]
    monkeypatch.setattr(logs, "monotonic", lambda: clock[0])
    handler, log = install(lambda record: None), Log("mppool")
    for _ in range(3):
        log.warning("pool %r: away", "a")
        log.warning("pool %r: away", "b")
        log.info("pool %r: not a warning", "a")
    clock[0] += logs.EQUAL_LINES_S
    log.warning("pool %r: away", "a")
    log.warning("pool %r: away", "a")
    assert [line for line in handler.seen if "away" in line] == [
        "pool 'a': away",
        "pool 'b': away",
        "pool 'a': away (2 equal lines were left out)",
    ]


def test_errors_are_equal_only_if_the_same_was_raised(install: Callable[..., _Handler]) -> None:
    handler, log = install(lambda record: None), Log("mppool")
    for error in (ValueError("one"), ValueError("one"), ValueError("other")):
        try:
            raise error
        except ValueError:
            log.exception("pool %r: a hook raised", "a")
    assert len(handler.seen) == 2


def test_an_error_that_cannot_be_shown_is_logged(install: Callable[..., _Handler]) -> None:
    class Shy(Exception):
        def __repr__(self) -> str:
            raise RuntimeError("no")

    handler, log = install(lambda record: None), Log("mppool")
    for _ in range(2):
        try:
            raise Shy
        except Shy:
            log.exception("a hook raised")
    assert handler.seen == ["a hook raised"]


def test_a_child_and_a_new_manager_have_said_nothing_yet(install: Callable[..., _Handler]) -> None:
    handler, log = install(lambda record: None), Log("mppool")
    log.warning("away")

    def child() -> list[str]:
        log.warning("away")
        return list(handler.seen)

    assert Fork(child).result() == ["away", "away"]
    InProcessManager("begins")
    log.warning("away")
    assert handler.seen == ["away", "away"]


def test_how_many_texts_are_remembered_is_bounded(install: Callable[..., _Handler]) -> None:
    handler, log = install(lambda record: None), Log("mppool")
    for number in range(logs._MOST_TEXTS * 3):
        log.warning("%d", number)
    assert len(handler.seen) == logs._MOST_TEXTS * 3
    assert len(logs._said) <= logs._MOST_TEXTS


def test_a_line_has_the_name_of_its_pool_as_a_field(install: Callable[..., _Handler]) -> None:
    fields = []
    install(lambda record: fields.append(getattr(record, "mppool_pool", None)))
    pool = InProcessManager().pool("orders", object)
    lease = pool.checkout()
    lease.release()
    lease.release()
    assert fields == ["orders"]
