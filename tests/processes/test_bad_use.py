"""What people get wrong, and what hooks may do: the books stay exact, and somebody is told."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import (
    CheckoutTimeout,
    ConfigurationError,
    ConfigurationMismatch,
    InProcessManager,
    LeaseReleased,
    OpenFailed,
    Pool,
    PoolClosed,
    PoolError,
    PoolManager,
)
from tests.helpers import Fork, wait_until
from tests.processes.witness import Session, SessionRecipe, Witness

Forks = Callable[..., Fork]


@pytest.fixture(params=["in process", "server"])
def any_manager(request: pytest.FixtureRequest) -> Any:
    if request.param == "in process":
        return InProcessManager()
    return request.getfixturevalue("manager")


def _counters(pool: Pool[Any]) -> dict[str, int]:
    counters: dict[str, int] = pool.stats()["counters"]
    return counters


def _all_is_there(pool: Pool[Any], size: int) -> None:
    leases = [pool.checkout(timeout=5) for _ in range(size)]
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0)
    for lease in leases:
        lease.release()


# --- leases -------------------------------------------------------------------------------------------


def test_of_two_threads_that_release_at_once_one_gives_back(any_manager: Any) -> None:
    pool = any_manager.pool("p", list, max_size=2)
    for _ in range(100):
        lease = pool.checkout(timeout=20)
        barrier = threading.Barrier(2)

        def release(lease: Any = lease, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            lease.release()

        threads = [threading.Thread(target=release) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert _counters(pool)["double_releases"] == 100
    assert len({id(pool.checkout(timeout=20).resource)}) == 1
    gc.collect()


def test_a_second_release_is_refused_harmless_counted_and_logged(
    any_manager: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = any_manager.pool("p", list, max_size=1)
    lease = pool.checkout(timeout=20)
    lease.release()
    with pool.checkout(timeout=20):
        lease.release()
        lease.discard()
        assert lease.released
        with pytest.raises(LeaseReleased):
            _ = lease.resource
        with pytest.raises(LeaseReleased), lease:
            pass
        with pytest.raises(CheckoutTimeout):
            pool.checkout(timeout=0)
    assert _counters(pool)["double_releases"] >= 2
    assert "second time" in caplog.text


def test_a_lease_may_be_released_in_another_thread(any_manager: Any) -> None:
    pool = any_manager.pool("p", list, max_size=1)
    lease = pool.checkout(timeout=20)
    thread = threading.Thread(target=lease.release)
    thread.start()
    thread.join()
    _all_is_there(pool, 1)


def test_a_lease_may_be_released_after_the_servers_death(
    manager: PoolManager, witness: Witness
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    leases = [pool.checkout(timeout=20) for _ in range(2)]
    server = manager.server_pid
    assert server is not None
    os.kill(server, signal.SIGKILL)
    leases[0].release()
    leases[1].discard()
    leases[1].discard()
    _all_is_there(pool, 2)
    assert witness.figures()["peak"] <= 2


def test_a_leaked_lease_is_closed_within_a_second_counted_and_logged(
    any_manager: Any, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    pool = any_manager.pool("p", witness.recipe(), max_size=1, track_leaks=True)
    pool.checkout(timeout=20)
    gc.collect()
    with pool.checkout(timeout=20) as session:
        assert session.number == 2
    wait_until(lambda: _counters(pool)["leaked"] == 1, "it is counted")
    assert "garbage-collected" in caplog.text
    assert "test_a_leaked_lease" in caplog.text


def test_the_resource_of_a_collected_lease_is_never_handed_out_again(
    any_manager: Any, witness: Witness
) -> None:
    """Rule 4: `session` is still in use while its lease is garbage."""
    pool = any_manager.pool("p", witness.recipe(), max_size=2)
    session = pool.checkout(timeout=20).resource
    for _ in range(5):
        with pool.checkout(timeout=20) as other:
            assert other is not session
    wait_until(lambda: _counters(pool)["leaked"] == 1, "it is closed")


def test_a_lease_in_a_reference_cycle_is_found(any_manager: Any) -> None:
    pool = any_manager.pool("p", list, max_size=1)
    cycle: list[Any] = [pool.checkout(timeout=20)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    _all_is_there(pool, 1)


def test_a_lease_is_not_pickled() -> None:
    pool = InProcessManager().pool("p", list)
    with pytest.raises(PoolError, match="send the Pool instead"):
        pickle.dumps(pool.checkout())


# --- resources and hooks ------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", [0, "", [], {}, False])
def test_any_object_is_a_resource(any_manager: Any, resource: Any) -> None:
    pool = any_manager.pool("p", lambda: resource, max_size=1)
    for _ in range(3):
        with pool.checkout(timeout=20) as lent:
            assert lent is resource
    assert _counters(pool)["opened"] == 1


class _Unhelpful:
    """Neither hashable nor comparable, and false."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


def test_a_resource_need_be_neither_hashable_nor_comparable(any_manager: Any) -> None:
    pool = any_manager.pool("p", _Unhelpful, max_size=2)
    with pool.checkout(timeout=20), pool.checkout(timeout=20):
        pass
    _all_is_there(pool, 2)


def _raise(*_: object) -> Any:
    raise ZeroDivisionError("from a hook")


@pytest.mark.parametrize("hook", ["on_checkout", "stats", "describe"])
def test_after_these_hooks_raise_the_resource_stays(any_manager: Any, hook: str) -> None:
    pool = any_manager.pool("p", list, max_size=1, **{hook: _raise})
    first = pool.checkout(timeout=20)
    resource = first.resource
    first.release()
    assert pool.stats()["size"] == 1
    with pool.checkout(timeout=20) as again:
        assert again is resource
    assert _counters(pool)["hook_errors"] >= 1


@pytest.mark.parametrize("hook", ["reset", "check"])
def test_after_these_hooks_raise_the_resource_is_discarded(any_manager: Any, hook: str) -> None:
    pool = any_manager.pool("p", list, max_size=1, check_idle_for=0, **{hook: _raise})
    first = pool.checkout(timeout=20)
    resource = first.resource
    first.release()
    with pool.checkout(timeout=20) as again:
        assert again is not resource
    counters = _counters(pool)
    assert counters["hook_errors"] + counters["check_errors"] >= 1


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("hook", ["open", "configure", "on_checkout", "reset", "check", "close"])
def test_whatever_a_hook_raises_no_capacity_is_lost(
    any_manager: Any, witness: Witness, hook: str, error: type[BaseException]
) -> None:
    armed = True

    def raising(*_: object) -> Any:
        if armed:
            raise error("from a hook")
        return True

    def closing(session: Session) -> None:
        session.close()
        raising()

    def opening() -> Session:
        if hook == "open":
            raising()
        return Session(witness.path)

    hooks = {} if hook == "open" else {hook: closing if hook == "close" else raising}
    pool = any_manager.pool("p", opening, max_size=2, check_idle_for=0, **hooks)
    for _ in range(4):
        try:
            pool.checkout(timeout=5).release()
            pool.checkout(timeout=5).discard()
        except (PoolError, error):
            continue
    armed = False
    if hook in ("open", "configure") and error is ZeroDivisionError:
        wait_until(
            lambda: pool.stats()["breaker"] != "open" or _can_open(pool), "the back-off ends"
        )
    _all_is_there(pool, 2)
    assert witness.figures()["peak"] <= 2


def _can_open(pool: Pool[Any]) -> bool:
    try:
        pool.checkout(timeout=1).release()
    except OpenFailed:
        return False
    return True


def test_hooks_may_use_the_pool_themselves(any_manager: Any, witness: Witness) -> None:
    inside = threading.local()
    seen: list[str] = []
    over: list[bool] = []

    def again(name: str) -> Callable[..., bool]:
        def hook(*_: object) -> bool:
            if not over and not getattr(inside, "busy", False):
                inside.busy = True
                try:
                    with pool.checkout(timeout=20) as session:
                        session.ask(name)
                    seen.append(name)
                finally:
                    inside.busy = False
            return True

        return hook

    class Reentrant(SessionRecipe):
        configure = staticmethod(again("configure"))  # type: ignore[assignment]
        on_checkout = staticmethod(again("on_checkout"))  # type: ignore[assignment]
        reset = staticmethod(again("reset"))  # type: ignore[assignment]
        check = staticmethod(again("check"))  # type: ignore[assignment]

        def close(self, resource: Session) -> None:
            again("close")()
            resource.close()

    pool: Pool[Session] = any_manager.pool(
        "p", Reentrant(witness.path), max_size=4, check_idle_for=0
    )
    pool.checkout(timeout=20).release()
    pool.checkout(timeout=20).release()
    pool.checkout(timeout=20).discard()
    over.append(True)  # or closing at the server's goodbye would start the next one
    assert {"configure", "on_checkout", "reset", "check", "close"} <= set(seen)
    assert witness.figures()["peak"] <= 4


def test_a_close_that_hangs_keeps_its_slot_and_nothing_else(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    """Neither the errand thread nor the closing of the others waits for it."""
    hang = threading.Event()
    hung: list[int] = []

    def close(session: Session) -> None:
        if not hung:
            hung.append(session.number)
            hang.wait(30)
        session.close()

    pool = manager.pool("p", lambda: Session(witness.path), max_size=3, close=close)
    leases = [pool.checkout(timeout=20) for _ in range(3)]
    for lease in leases:
        lease.release()
    pool.reset()
    wait_until(lambda: witness.figures()["held"] == 1, "the other two are closed")

    def use() -> int:
        taken = [pool.checkout(timeout=20) for _ in range(2)]
        try:
            pool.checkout(timeout=0.2)
        except CheckoutTimeout:
            return len(taken)
        return 3

    assert fork(use).result() == 2
    assert witness.figures()["peak"] == 3
    hang.set()
    wait_until(lambda: pool.stats()["size"] == 0, "its slot is free")


def test_a_resource_that_its_user_has_closed_is_replaced(
    any_manager: Any, witness: Witness
) -> None:
    def check(session: Session) -> bool:
        session.ask("still there?")
        return True

    pool = any_manager.pool(
        "p", lambda: Session(witness.path), max_size=1, check=check, check_idle_for=0
    )
    with pool.checkout(timeout=20) as session:
        session.close()
    with pool.checkout(timeout=20) as session:
        session.ask("a new one")
    assert session.number == 2


def test_a_hook_that_gives_back_its_own_lease_harms_nobody(any_manager: Any) -> None:
    leases: list[Any] = []

    def close(resource: Any) -> None:
        for lease in leases:
            lease.release()
            lease.discard()

    pool = any_manager.pool("p", list, max_size=1, close=close, reset=close)
    leases.append(pool.checkout(timeout=20))
    leases[0].release()
    leases.append(pool.checkout(timeout=20))
    leases[1].discard()
    _all_is_there(pool, 1)


# --- control ------------------------------------------------------------------------------------------


def test_commands_are_seen_by_all_processes(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    held, idle = pool.checkout(timeout=20), pool.checkout(timeout=20)
    idle.release()
    fork(pool.reset).result()
    wait_until(lambda: witness.figures()["held"] == 1, "what is idle is closed")
    held.resource.ask("works on")
    held.release()
    wait_until(lambda: witness.figures()["held"] == 0, "what was out is closed on release")
    fork(lambda: pool.resize(max_size=1)).result()
    with pool.checkout(timeout=5), pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0)
    held = pool.checkout(timeout=5)
    assert fork(pool.drain, 2.0).result() == 1  # the child has to attach within that
    held.release()
    assert fork(pool.drain, 5.0).result() == 0
    held = pool.checkout(timeout=20)
    fork(lambda: pool.close(everywhere=True)).result()
    wait_until(lambda: pool._local.closed, "we hear of it")
    with pytest.raises(PoolClosed):
        pool.checkout(timeout=5)
    held.resource.ask("works on")
    held.release()
    wait_until(lambda: witness.figures()["held"] == 0, "closed on release")


def test_what_waits_when_the_pool_is_closed_is_told(any_manager: Any) -> None:
    pool = any_manager.pool("p", list, max_size=1)
    lease = pool.checkout(timeout=20)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            pool.checkout(timeout=20)
        except PoolError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: pool.stats()["waiting"] == 1, "a waiter")
    pool.close()
    thread.join(10)
    assert [type(error) for error in errors] == [PoolClosed]
    lease.release()


def test_a_grant_that_was_under_way_when_its_generation_ended_is_not_kept(
    any_manager: Any, witness: Witness
) -> None:
    opening, go = threading.Event(), threading.Event()

    def slow() -> Session:
        opening.set()
        go.wait(10)
        return Session(witness.path)

    pool = any_manager.pool("p", slow, max_size=1)
    thread = threading.Thread(target=lambda: pool.checkout(timeout=20).release())
    thread.start()
    opening.wait(10)
    pool.reset()
    go.set()
    thread.join(10)
    wait_until(lambda: witness.figures()["held"] == 0, "it is closed on release")


def test_the_same_pool_with_other_options_is_refused(any_manager: Any) -> None:
    any_manager.pool("p", list, max_size=2)
    any_manager.pool("p", list, max_size=2)
    with pytest.raises(ConfigurationMismatch, match="max_size=2 and 3"):
        any_manager.pool("p", list, max_size=3)
    with pytest.raises(ConfigurationMismatch):
        any_manager.pool("p", dict, max_size=2)


@pytest.mark.parametrize("place", ["", b"/tmp/b", 3, "a\0b"], ids=repr)
def test_what_is_no_runtime_directory_is_refused_where_it_is_said(place: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"manager 't': runtime_dir=.* is not allowed"):
        PoolManager("t", runtime_dir=place)


def test_an_empty_variable_names_no_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", "")
    manager = PoolManager("t")
    assert pickle.loads(pickle.dumps(manager)).name == "t"


def test_managers_of_one_name_share_what_the_process_holds(runtime_dir: object) -> None:
    one, two = PoolManager("t", linger=0.0), PoolManager("t", linger=0.0)
    lease = one.pool("p", list, max_size=1).checkout(timeout=5)
    with pytest.raises(CheckoutTimeout):
        two.pool("p", list, max_size=1).checkout(timeout=0)
    lease.release()
    with pytest.raises(ConfigurationMismatch):
        two.pool("p", list, max_size=2)


def test_pools_and_managers_pickle_as_themselves(
    manager: PoolManager, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=5)
    copy = pickle.loads(pickle.dumps(pool))
    with pytest.raises(CheckoutTimeout):
        copy.checkout(timeout=0)
    lease.release()
    copy.checkout(timeout=5).release()
    assert pickle.loads(pickle.dumps(manager)).server_pid == manager.server_pid
    # A forkserver that was started earlier has another environment than we.
    pickled, pid = pickle.dumps(manager), manager.server_pid
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", "/somewhere/else")
    assert pickle.loads(pickled).server_pid == pid
    assert witness.figures()["opened"] == 1


async def _open_in_a_coroutine() -> list[object]:
    return []


def test_nonsense_is_refused_where_it_is_said(
    any_manager: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for name in ("a/b", "", "..", "x" * 65, 3):
        with pytest.raises(ConfigurationError):
            any_manager.pool(name, list)
    for options in (
        {"max_sise": 3},
        {"max_size": 0},
        {"max_size": 2, "min_size": 3},
        {"timeout": -1},
    ):
        with pytest.raises(ConfigurationError):
            any_manager.pool("p", list, **options)
    with pytest.raises(ConfigurationError):
        any_manager.pool("p", "not callable")
    with pytest.raises(ConfigurationError, match="coroutine function"):
        any_manager.pool("p", _open_in_a_coroutine)
    with pytest.raises(ConfigurationError, match="the hook check is the coroutine function"):
        any_manager.pool("p", list, check=_open_in_a_coroutine)
    pool = any_manager.pool("p", list)
    for _ in ("cold", "warm"):
        for timeout in (-1, -0.5, "1", float("nan"), float("inf"), True):
            with pytest.raises(ConfigurationError, match=r"pool 'p': timeout=.* is not allowed"):
                pool.checkout(timeout=timeout)
        pool.checkout(timeout=5).release()
    for identity in ("", "a\0b", 3):
        with pytest.raises(ConfigurationError):
            pool.checkout(identity=identity)


def test_a_check_that_always_fails_does_not_hold_a_checkout_beyond_its_timeout(
    any_manager: Any,
) -> None:
    """Another thread refills the shelf meanwhile, so there is always something to check."""
    ended = threading.Event()
    refused = threading.local()

    def check(resource: object) -> bool:
        return not getattr(refused, "here", False) or ended.is_set()

    pool = any_manager.pool(
        "p", object, max_size=2, check=check, check_idle_for=0.0, check_timeout=None
    )

    def refill() -> None:
        while not ended.is_set():
            pool.checkout(timeout=20).release()

    pool.checkout(timeout=20).release()  # the server is there
    thread = threading.Thread(target=refill)
    thread.start()
    try:
        refused.here = True
        for _ in range(5):
            began = time.monotonic()
            try:
                pool.checkout(timeout=0.3).release()
            except CheckoutTimeout:
                pass
            assert time.monotonic() - began < 20
    finally:
        ended.set()
        thread.join(20)
