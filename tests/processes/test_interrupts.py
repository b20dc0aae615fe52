"""An exception raised at any point of checkout and release: nothing is lost, nothing is misread.

The trace function raises at the n-th line or instruction within mppool, for every n, as a signal handler
may. Afterwards all of max_size can be taken again within a second, the witness has never seen more than
the cap, and no answer was another's.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from mppool import CheckoutTimeout, InProcessManager, Pool, PoolManager
from mppool.process.waiter import _LOOK_S
from tests.helpers import ROOT
from tests.processes.witness import Session, Witness

SIZE = 2
LIBRARY = f"{ROOT / 'mppool'}{os.sep}"

pytestmark = [
    # An interrupt in a finalizer cannot get out of it; the interpreter reports it and goes on.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.skipif(
        bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        reason="reference counts say nothing on free-threaded builds",
    ),
    pytest.mark.skipif(sys.gettrace() is not None, reason="something else is tracing"),
]


class Interrupt(BaseException):
    """What a signal handler may raise."""


class _RaiseAt:
    """Raises at the n-th event within mppool in this thread; `raised_at` is where."""

    def __init__(self, event: str, number: int) -> None:
        self._event = event
        self._left = number
        self.raised_at = ""

    def __enter__(self) -> None:
        sys._getframe().f_trace_opcodes = True  # or CPython 3.12 and 3.13 deliver none at first
        sys.settrace(self._enter_frame)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter_frame(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        return self._in_frame

    def _in_frame(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == self._event:
            self._left -= 1
            if self._left == 0:
                sys.settrace(None)
                self.raised_at = f"{frame.f_code.co_name}:{frame.f_lineno}"
                raise Interrupt(self.raised_at)
        return self._in_frame


def _interrupt(
    pool: Pool[Session],
    event: str,
    number: int,
    here: Callable[[Pool[Session], str, int], str],
) -> str:
    """Use the pool, interrupted at the n-th event; where, or '' if it ended before.

    In a thread of its own: an exception that a tracer raises inside an `except` block may stay the context of
    whatever its thread raises later.
    """
    raised_at: list[str] = []
    thread = threading.Thread(target=lambda: raised_at.append(here(pool, event, number)))
    thread.start()
    thread.join()
    return raised_at[0]


def _interrupt_here(pool: Pool[Session], event: str, number: int) -> str:
    tracer = _RaiseAt(event, number)
    try:
        with tracer, pool.checkout(timeout=10) as session:
            sys.settrace(None)
            session.ask("as always")
            sys.settrace(tracer._enter_frame)
    except Interrupt:
        pass
    finally:
        sys.settrace(None)
    return tracer.raised_at


def _interrupt_detaching(pool: Pool[Session], event: str, number: int) -> str:
    """Who has got no resource from `detach` can close none; `closed` is called until it has returned."""
    tracer, session = _RaiseAt(event, number), None
    lease = pool.checkout(timeout=10)
    try:
        with tracer:
            session = lease.detach()
            sys.settrace(None)
            session.ask("detached")
            session.close()
            sys.settrace(tracer._enter_frame)
            lease.closed()
    except Interrupt:
        pass
    finally:
        sys.settrace(None)
    if session is not None:
        lease.closed()
    return tracer.raised_at


def _all_is_there(pool: Pool[Session], where: str) -> None:
    began = time.monotonic()
    try:
        leases = [pool.checkout(timeout=20) for _ in range(SIZE)]
    except CheckoutTimeout as error:
        pytest.fail(f"interrupted at {where}: capacity was lost: {error}")
    # Sooner than a thread that waits looks around by itself.
    assert time.monotonic() - began < _LOOK_S, f"interrupted at {where}: it came back late"
    numbers = set()
    for lease in leases:
        lease.resource.ask("mine")
        numbers.add(lease.resource.number)
        lease.release()
    assert len(numbers) == SIZE, f"interrupted at {where}: one resource was lent twice"


def _run(
    pool: Pool[Session],
    witness: Witness,
    event: str,
    points: range,
    prepare: Callable[[], object],
    here: Callable[[Pool[Session], str, int], str] = _interrupt_here,
) -> int:
    """Interrupt at each of the points that exist; how many there were."""
    ends_at = time.monotonic() + 7  # on a busy machine fewer points are tried
    tried = missed = 0
    for number in points:
        prepare()
        where = _interrupt(pool, event, number, here)
        if not where:
            missed += 1  # CPython 3.13 does not trace opcodes of a frame at once
        if missed > 5 or (tried > 10 and time.monotonic() > ends_at):
            break
        if where:
            _all_is_there(pool, where)
            tried += 1
    assert witness.figures()["peak"] <= SIZE
    print(f"{tried} points")
    return tried


@pytest.fixture(params=["in process", "server"])
def pool(request: pytest.FixtureRequest, witness: Witness) -> Pool[Session]:
    if request.param == "server":
        request.getfixturevalue("runtime_dir")
        manager: Any = PoolManager("t", linger=0.0)
    else:
        manager = InProcessManager()
    made: Pool[Session] = manager.pool("p", witness.recipe(), max_size=SIZE)
    made.checkout(timeout=10).release()
    return made


@pytest.mark.parametrize("event", ["line", "opcode"])
def test_warm_checkout_and_release_are_interrupted_at_every_point(
    pool: Pool[Session], witness: Witness, event: str
) -> None:
    assert _run(pool, witness, event, range(1, 5000), lambda: None) > 10


@pytest.mark.parametrize(("event", "step"), [("line", 1), ("opcode", 7)])
def test_hazard_3_cold_checkout_and_release_are_interrupted_at_every_point(
    pool: Pool[Session], witness: Witness, event: str, step: int
) -> None:
    """Cold: asked of the books, opened, configured. `drain` has closed everything before."""
    start = 1 + int(time.time()) % step
    assert _run(pool, witness, event, range(start, 20000, step), lambda: pool.drain(5)) > 10


@pytest.mark.parametrize("event", ["line", "opcode"])
def test_detaching_is_interrupted_at_every_point(
    pool: Pool[Session], witness: Witness, event: str
) -> None:
    points = range(1, 5000)
    assert _run(pool, witness, event, points, lambda: None, _interrupt_detaching) > 10


def test_a_waiting_checkout_is_interrupted_by_a_signal(pool: Pool[Session]) -> None:
    def handler(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(20):
            leases = [pool.checkout(timeout=20) for _ in range(SIZE)]
            with pytest.raises(Interrupt):
                _waits_until_a_signal(pool)
            for lease in leases:
                lease.release()
            _all_is_there(pool, "waiting")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _waits_until_a_signal(pool: Pool[Session]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    pool.checkout(timeout=20)


def _until_a_signal(pool: Pool[Session], number: int) -> None:
    """A function of its own: a jump at the end of a `try` in a loop may lie outside of what it guards."""
    signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.0001 * (number % 37))
    for _ in range(2000):  # a signal that strikes in a finalizer gets lost
        with pool.checkout(timeout=20):
            pass
        if number % 3 == 0:
            pool.checkout(timeout=20).discard()
    signal.setitimer(signal.ITIMER_REAL, 0)


def test_signals_that_raise_under_load_lose_nothing(pool: Pool[Session], witness: Witness) -> None:
    """Real signals at random instants of the main thread, while other threads want the same resources."""

    def handler(number: int, frame: object) -> None:
        raise Interrupt

    ended = threading.Event()
    failures: list[BaseException] = []

    def load() -> None:
        while not ended.is_set():
            try:
                with pool.checkout(timeout=20) as session:
                    session.ask("x")
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    before = signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    ends_at = time.monotonic() + 3
    try:
        while time.monotonic() < ends_at:
            try:
                _until_a_signal(pool, interrupted)
            except Interrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        ended.set()
        for thread in threads:
            thread.join(30)
    assert not failures
    print(f"{interrupted} signals")
    assert interrupted > 5  # hundreds, on a machine that is not busy
    gc.collect()
    _all_is_there(pool, "under load")
    assert witness.figures()["peak"] <= SIZE


def test_a_kept_traceback_only_delays_the_cure(pool: Pool[Session]) -> None:
    """The frames of an exception that somebody keeps refer to nothing that is needed."""
    kept: list[BaseException] = []

    def raise_in_hook(session: Session) -> None:
        raise Interrupt

    local = pool._local
    local.hooks.on_checkout, local.trust_s = raise_in_hook, -1.0
    for _ in range(SIZE):
        try:
            pool.checkout(timeout=5)
        except Interrupt as error:
            kept.append(error)
    local.hooks.on_checkout = None
    assert len(kept) == SIZE
    _all_is_there(pool, "on_checkout")
