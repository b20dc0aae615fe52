"""What a checkout waits for: the pool, not a login. Shown by conditions; how fast it is, is in benchmarks/."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from mppool import (
    CheckoutTimeout,
    InProcessManager,
    OpenFailed,
    Opening,
    Pool,
    PoolManager,
    Recipe,
)
from mppool.worker import demand
from tests.helpers import PATIENCE, Fork, wait_until

Forks = Callable[..., Fork]
Start = Callable[..., "Future[Any]"]


class Logins:
    """Opens numbers. Each opening has to be let in, unless the door is open; which have begun can be seen."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.threads: list[int] = []
        self.door = threading.Event()
        self._let_in = threading.Semaphore(0)
        self.errors: list[BaseException] = []

    def __call__(self) -> int:
        number = len(self.begun)
        self.threads.append(threading.get_ident())
        self.begun.append(number)
        while not self.door.is_set() and not self._let_in.acquire(timeout=0.01):
            pass
        if self.errors:
            raise self.errors.pop()
        return number

    def let_in(self, count: int = 1) -> None:
        self._let_in.release(count)

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.begun) >= count, f"{count} openings begin")


@pytest.fixture
def logins() -> Iterator[Logins]:
    made = Logins()
    yield made
    made.door.set()


@pytest.fixture(params=["server", "in process"])
def either(request: pytest.FixtureRequest, runtime_dir: Path) -> Iterator[Any]:
    """A manager over a server, and one without."""
    manager: Any = PoolManager("t", linger=5.0) if request.param == "server" else InProcessManager()
    manager.start()  # what that takes is no part of a short timeout
    yield manager
    manager.shutdown()


@pytest.fixture
def start(logins: Logins) -> Iterator[Start]:
    """Starts a function in a thread."""
    with ThreadPoolExecutor(16) as threads:
        yield threads.submit
        logins.door.set()  # also after a failure: nobody waits for ever


def figures(manager: Any) -> dict[str, Any]:
    found: dict[str, Any] = manager.stats()["pools"]["p"]
    return found


def taken(future: Future[Any]) -> Any:
    """The resource of the lease that a thread got."""
    return future.result(timeout=PATIENCE).resource


# --- whatever comes first -----------------------------------------------------------------------------


def test_a_waiter_is_served_by_a_release_while_its_own_opening_hangs(
    either: Any, logins: Logins, start: Start
) -> None:
    pool = either.pool("p", logins, max_size=2)
    logins.let_in()
    first = pool.checkout(timeout=PATIENCE)
    waiting = start(pool.checkout, PATIENCE)
    logins.wait_for(2)
    first.release()
    assert taken(waiting) == 0
    assert logins.begun == [0, 1], "and its opening still hangs"
    assert figures(either)["opening"] == 1
    logins.let_in()
    with pool.checkout(timeout=PATIENCE) as other:
        assert other == 1, "what was opened for it serves the next"
    waiting.result().release()
    assert len(logins.begun) == 2


def test_an_opening_outlives_its_impatient_caller_and_lies_on_the_shelf(
    either: Any, logins: Logins
) -> None:
    pool = either.pool("p", logins, max_size=1)
    for _ in range(3):
        with pytest.raises(CheckoutTimeout, match="1 are being opened"):
            pool.checkout(timeout=0.01)
    logins.let_in()
    wait_until(lambda: figures(either)["idle"] == 1, "what was opened lies on the shelf")
    assert pool.checkout(timeout=0).resource == 0
    assert logins.begun == [0]


def test_an_opening_outlives_its_impatient_caller_and_serves_one_that_waits(
    either: Any, logins: Logins, start: Start
) -> None:
    pool = either.pool("p", logins, max_size=1)
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0.01)
    waiting = start(pool.checkout, PATIENCE)
    wait_until(lambda: figures(either)["waiting"] == 1, "a thread waits")
    logins.let_in()
    assert taken(waiting) == 0
    waiting.result().release()
    assert logins.begun == [0]


def test_a_pool_of_impatient_callers_fills(either: Any, logins: Logins, start: Start) -> None:
    pool = either.pool("p", logins, max_size=4)

    def give_up() -> None:
        with pytest.raises(CheckoutTimeout):
            pool.checkout(timeout=0.02)

    while len(logins.begun) < 4:
        for future in [start(give_up) for _ in range(4)]:
            future.result(timeout=PATIENCE)
    logins.let_in(4)
    wait_until(lambda: figures(either)["idle"] == 4, "all four are there")
    leases = [pool.checkout(timeout=0) for _ in range(4)]
    assert len(logins.begun) == 4
    for lease in leases:
        lease.release()


# --- what nobody needs any more -----------------------------------------------------------------------


def test_an_opening_that_has_become_needless_is_not_begun(
    either: Any, logins: Logins, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = either.pool("p", logins, max_size=2)
    logins.let_in()
    first = pool.checkout(timeout=PATIENCE)
    # The thread that is to open comes too late: when it gets to work, nobody waits any more.
    late: list[Callable[[], None]] = []
    with monkeypatch.context() as patch:
        patch.setattr(pool._local.member.openers, "add", late.append)
        waiting = start(pool.checkout, PATIENCE)
        wait_until(lambda: late, "the opening is granted")
    first.release()
    assert taken(waiting) == 0
    late.pop()()
    wait_until(lambda: figures(either)["size"] == 1, "the slot is free again")
    assert logins.begun == [0]
    logins.let_in()
    with pool.checkout(timeout=PATIENCE) as other:  # and can be had
        assert other == 1
    waiting.result().release()


def test_a_ticket_of_a_thread_that_a_neighbour_has_served_opens_nothing(
    either: Any, logins: Logins, start: Start
) -> None:
    pool = either.pool("p", logins, max_size=3, max_opening=1)
    logins.let_in()
    first = pool.checkout(timeout=PATIENCE)
    waiting = [start(pool.checkout, PATIENCE) for _ in range(2)]
    logins.wait_for(2)  # of one of them; max_opening keeps the other in the queue
    first.release()
    wait_until(lambda: sum(one.done() for one in waiting) == 1, "one is served")
    served = next(one for one in waiting if one.done())
    waiting.remove(served)
    assert taken(served) == 0
    served.result().release()
    assert taken(waiting[0]) == 0
    wait_until(lambda: figures(either)["waiting"] == 0, "the queue is empty")
    logins.let_in()
    wait_until(lambda: figures(either)["idle"] == 1, "what was begun lies on the shelf")
    assert figures(either)["size"] == 2
    assert logins.begun == [0, 1]


# --- the caller of an opening -------------------------------------------------------------------------

REQUEST: ContextVar[str] = ContextVar("REQUEST", default="nobody's")


def test_the_open_hook_sees_the_context_of_the_checkout_that_asked(
    either: Any, start: Start
) -> None:
    seen: list[tuple[str, int]] = []

    def login() -> str:
        seen.append((REQUEST.get(), threading.get_ident()))
        REQUEST.set("the hook's own")
        return seen[-1][0]

    pool = either.pool("p", login, max_size=3)
    leases = []

    def ask(name: str) -> int:
        REQUEST.set(name)
        leases.append(pool.checkout(timeout=PATIENCE))
        assert leases[-1].resource == name
        assert REQUEST.get() == name
        return threading.get_ident()

    askers = [start(ask, name).result(timeout=PATIENCE) for name in ("Ada's", "Bob's")]
    assert [name for name, _ in seen] == ["Ada's", "Bob's"]
    assert not {thread for _, thread in seen} & set(askers), "it ran beside its caller"
    for lease in leases:
        lease.release()


def test_a_failing_hook_raises_in_the_caller_that_asked(either: Any, logins: Logins) -> None:
    pool = either.pool("p", logins, max_size=1)
    logins.door.set()
    cause = ValueError("no such database")
    logins.errors.append(cause)
    with pytest.raises(OpenFailed, match="no such database") as caught:
        pool.checkout(timeout=PATIENCE)
    assert caught.value.__cause__ is cause
    assert figures(either)["size"] == 0


def test_of_two_that_wait_only_the_one_that_asked_hears_of_the_failure(
    either: Any, logins: Logins, start: Start
) -> None:
    pool = either.pool("p", logins, max_size=2, max_opening=1)
    logins.let_in()
    first = pool.checkout(timeout=PATIENCE)
    waiting = [start(pool.checkout, PATIENCE) for _ in range(2)]
    logins.wait_for(2)
    wait_until(lambda: figures(either)["waiting"] == 1, "the other one is in the queue")
    cause = ValueError("no such database")
    logins.errors.append(cause)
    logins.let_in()
    logins.wait_for(3)  # other resources work, so the other one's turn comes at once
    (failed,) = wait_until(lambda: [one for one in waiting if one.done()], "it hears of it")
    assert isinstance(failed.exception(), OpenFailed)
    assert failed.exception().__cause__ is cause
    waiting.remove(failed)
    first.release()
    assert taken(waiting[0]) == 0
    waiting[0].result().release()


class Enough(BaseException):
    """As SystemExit and KeyboardInterrupt: no Exception."""


@pytest.mark.parametrize("error", [Enough(), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_is_no_exception_passes_through_to_the_caller_that_asked(
    either: Any, logins: Logins, error: BaseException
) -> None:
    pool = either.pool("p", logins, max_size=1)
    logins.door.set()
    logins.errors.append(error)
    with pytest.raises(type(error)) as caught:
        pool.checkout(timeout=PATIENCE)
    assert caught.value is error
    wait_until(lambda: figures(either)["size"] == 0, "its slot is free again")
    with pool.checkout(timeout=PATIENCE):
        assert len(logins.begun) == 2


# --- where it is opened -------------------------------------------------------------------------------


class OfItsThread(Recipe[int]):
    """What it opens belongs to the thread that opened it."""

    open_in_caller = True

    def open(self, opening: Opening) -> int:
        return threading.get_ident()


def test_open_in_caller_opens_in_the_thread_that_checks_out(either: Any, start: Start) -> None:
    pools = [
        either.pool("p", OfItsThread(), max_size=4),
        either.pool("callable", threading.get_ident, max_size=4, open_in_caller=True),
    ]

    def ask(pool: Pool[int], timeout: float | None) -> Any:
        return threading.get_ident(), pool.checkout(timeout)

    for pool in pools:
        answers = [start(ask, pool, timeout).result(PATIENCE) for timeout in (None, PATIENCE, 0)]
        for thread, lease in answers:
            assert lease.resource == thread
        for _, lease in answers:
            lease.release()


def test_without_waiting_what_the_cap_allows_is_opened_however_long_it_takes(
    either: Any, logins: Logins, start: Start
) -> None:
    pool = either.pool("p", logins, max_size=1)
    opening = start(pool.checkout, 0)
    logins.wait_for(1)
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0)  # beyond the cap: at once
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0.02)  # another one's time passes meanwhile
    assert not opening.done()
    logins.let_in()
    assert taken(opening) == 0
    opening.result().release()


def test_what_is_opened_without_waiting_is_for_that_caller_alone(
    either: Any, logins: Logins, start: Start
) -> None:
    pool = either.pool("p", logins, max_size=1)
    opening = start(pool.checkout, 0)
    logins.wait_for(1)
    waiting = start(pool.checkout, PATIENCE)
    wait_until(lambda: figures(either)["waiting"] == 1, "another thread waits")
    logins.let_in()
    assert taken(opening) == 0
    assert not waiting.done()
    opening.result().release()
    assert taken(waiting) == 0
    waiting.result().release()


# --- the brake ----------------------------------------------------------------------------------------


def test_max_opening_holds_for_the_threads_of_a_process(
    either: Any, logins: Logins, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a login may be let in late; threads would count on it no longer, and have one more opened.
    monkeypatch.setattr(demand, "SHORTEST_LATE_S", 1000.0)
    pool = either.pool("p", logins, max_size=8, max_opening=2)
    waiting = [start(pool.checkout, PATIENCE) for _ in range(6)]
    for done in range(5):
        logins.wait_for(2 + done)
        wait_until(lambda left=4 - done: figures(either)["waiting"] == left, "the others wait")
        assert len(logins.begun) == 2 + done
        logins.let_in()
        wait_until(lambda done=done: sum(one.done() for one in waiting) == done + 1, "one more")
    logins.let_in()
    assert sorted(taken(one) for one in waiting) == [*range(6)]
    for one in waiting:
        one.result().release()


def test_max_opening_holds_over_all_processes(
    manager: PoolManager, fork: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    # See above: a ninth login would be begun, for nobody.
    monkeypatch.setattr(demand, "SHORTEST_LATE_S", 1000.0)
    context = get_context("fork")
    inside, most, let_in = context.Value("i"), context.Value("i"), context.Semaphore(0)

    def login() -> object:
        with inside.get_lock():
            inside.value += 1
            most.value = max(most.value, inside.value)
        assert let_in.acquire(timeout=PATIENCE)
        with inside.get_lock():
            inside.value -= 1
        return object()

    pool = manager.pool("p", login, max_size=20, max_opening=2)
    manager.start()
    leaving = context.Event()

    def use() -> bool:
        with ThreadPoolExecutor(2) as threads:
            leases = [*threads.map(lambda _: pool.checkout(timeout=PATIENCE), range(2))]
        assert leaving.wait(PATIENCE), "it keeps what it has until all have been served"
        for lease in leases:
            lease.release()
        return len(leases) == 2

    children = [fork(use) for _ in range(4)]
    for opened in range(8):
        at_once = min(2, 8 - opened)
        wait_until(
            lambda at_once=at_once, opened=opened: (
                inside.value == at_once
                and figures(manager)["waiting"] == 8 - opened - at_once
                and figures(manager)["in_use"] + at_once == opened + at_once
            ),
            "all others wait",
        )
        let_in.release()
    wait_until(lambda: figures(manager)["in_use"] == 8, "all have been served")
    leaving.set()
    assert [child.result() for child in children] == [True] * 4
    assert most.value == 2


# --- nobody is asked ----------------------------------------------------------------------------------


def test_threads_that_hope_for_each_other_need_no_server(
    manager: PoolManager, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = manager.pool("p", object, max_size=2)
    for lease in [pool.checkout(timeout=PATIENCE) for _ in range(2)]:
        lease.release()
    # Hoping ends after half an opening, and after 0.1 s: on a busy machine that may be too soon for a test.
    monkeypatch.setattr("mppool.worker.line.hope_s", lambda opening_s, left_s: PATIENCE)
    together = threading.Barrier(6)

    def take_turns() -> int:
        together.wait()
        for _ in range(200):
            with pool.checkout(timeout=PATIENCE):
                os.sched_yield()
        return 200

    pid = manager.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        threads = [start(take_turns) for _ in range(6)]
        assert [one.result(timeout=PATIENCE) for one in threads] == [200] * 6
    finally:
        os.kill(pid, signal.SIGCONT)
    assert figures(manager)["counters"]["checkouts"] >= 1200
    assert figures(manager)["counters"]["opened"] == 2
