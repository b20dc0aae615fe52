"""Pool: parameters, get and ret, errors, statistics."""

from __future__ import annotations

import inspect
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mppool import ConfigurationError
from mppool.compat.proxypatternpool import (
    Pool,
    PoolException,
    PPPException,
    ProxyException,
    TimeOut,
)
from tests.compat.conftest import Thing
from tests.helpers import PATIENCE, wait_until

MakePool = Callable[..., Pool]


def test_the_parameters_are_those_of_proxypatternpool() -> None:
    original = pytest.importorskip("ProxyPatternPool")
    for ours, theirs in ((Pool, original.Pool),):
        mine = inspect.signature(ours).parameters
        other = inspect.signature(theirs).parameters
        assert list(mine) == list(other)
        assert [p.default for p in mine.values()] == [p.default for p in other.values()]


def test_the_statistics_have_the_keys_of_proxypatternpool(make_pool: MakePool) -> None:
    original = pytest.importorskip("ProxyPatternPool")
    theirs = original.Pool(fun=lambda number: number, min_size=2)
    ours = make_pool(min_size=2)
    try:
        held = theirs.get(), ours.get()
        assert set(ours.stats()) == set(theirs.stats())
        for place in ("avail", "using"):
            assert set(ours.stats()[place][0]) == set(theirs.stats()[place][0]), held
    finally:
        theirs.shutdown()


def test_errors_have_the_tree_of_proxypatternpool() -> None:
    assert issubclass(TimeOut, PoolException)
    assert issubclass(PoolException, PPPException)
    assert issubclass(ProxyException, PPPException)


# --- filling ---------------------------------------------------------------------------------------------


def test_the_constructor_fills_up_to_min_size(make_pool: MakePool) -> None:
    pool = make_pool(min_size=3)
    stats = pool.stats()
    assert (stats["nobjs"], stats["navail"], stats["ncreated"], stats["nuses"]) == (3, 3, 3, 0)


def test_the_constructor_fills_in_its_own_thread_and_starts_none(make_pool: MakePool) -> None:
    threads = []
    before = set(threading.enumerate())  # some may be ending: chores of other tests
    make_pool(lambda number: threads.append(threading.current_thread()), min_size=2)
    assert threads == [threading.current_thread()] * 2
    assert not set(threading.enumerate()) - before


def test_filling_stays_under_the_cap(make_pool: MakePool) -> None:
    pool = make_pool(min_size=5, max_size=2)
    assert pool.stats()["nobjs"] == 2
    assert pool.stats()["min_size"] == 5


def test_a_failure_while_filling_is_logged_and_get_tries_for_itself(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError("not yet")]

    def fun(number: int) -> Thing:
        if failures:
            raise failures.pop()
        return Thing(number)

    pool = make_pool(fun, min_size=1, max_size=1)
    assert "not yet" in caplog.text
    assert pool.get(timeout=0).number == 0


def test_what_filling_could_not_make_is_made_by_a_later_round(make_pool: MakePool) -> None:
    failures = [OSError("not yet")] * 3

    def fun(number: int) -> Thing:
        if failures:
            raise failures.pop()
        return Thing(number)

    pool = make_pool(fun, min_size=2, max_size=2, delay=0.02)
    wait_until(lambda: pool.stats()["navail"] == 2, "the filling of the pool")
    assert not failures
    # Not a third one, while a check has one in its hands.
    things = [pool.get(timeout=PATIENCE) for _ in range(2)]  # held: one that is dropped is replaced
    assert sorted(thing.number for thing in things) == [0, 1]


def test_what_goes_is_replaced_up_to_min_size(make_pool: MakePool) -> None:
    pool = make_pool(min_size=2, max_use=1)
    pool.ret(pool.get())
    wait_until(lambda: pool.stats()["ncreated"] == 3, "a new object for the one that is worn out")
    assert pool.stats()["nobjs"] == 2


# --- get and ret -----------------------------------------------------------------------------------------


def test_fun_is_called_with_the_number_of_objects_made_before(make_pool: MakePool) -> None:
    pool = make_pool(min_size=0)
    assert [pool.get().number for _ in range(3)] == [0, 1, 2]


def test_an_object_goes_round(make_pool: MakePool) -> None:
    pool = make_pool(min_size=0, max_size=1)
    first = pool.get()
    pool.ret(first)
    with pool.obj() as second:
        assert second is first
        assert pool.stats()["nusing"] == 1
    assert pool.stats()["navail"] == 1


def test_obj_returns_the_object_although_the_block_raises(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    with pytest.raises(KeyError), pool.obj():
        raise KeyError
    assert pool.stats()["nusing"] == 0


@pytest.mark.parametrize("timeouts", [(None, 0.01), (0, None), (5.0, 0)])
def test_get_gives_up_after_its_timeout_or_that_of_the_pool(
    make_pool: MakePool, timeouts: tuple[float | None, float | None]
) -> None:
    of_pool, of_get = timeouts
    pool = make_pool(max_size=1, timeout=of_pool)
    held = pool.get()
    with pytest.raises(TimeOut, match="timeout after"):
        pool.get(of_get)
    pool.ret(held)
    pool.get(0)


def test_get_waits_for_a_return(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    held = pool.get()
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(pool.get(timeout=10)))
    waiter.start()
    wait_until(lambda: pool._core.stats()["waiting"], "a waiting get")
    pool.ret(held)
    waiter.join()
    assert got == [held]


def test_get_raises_what_the_factory_raised_every_time(make_pool: MakePool) -> None:
    error = OSError("down")
    calls = []

    def fun(number: int) -> Any:
        calls.append(number)
        raise error

    pool = make_pool(fun, min_size=0, max_size=1)
    for _ in range(3):
        with pytest.raises(OSError, match="down") as caught:
            pool.get(timeout=0)
        assert caught.value is error
    assert calls == [0, 0, 0]
    assert pool.stats()["ncreating"] == 3
    assert pool.stats()["ncreated"] == 0


def test_get_raises_what_the_factory_raised_although_filling_failed_before(
    make_pool: MakePool,
) -> None:
    def fun(number: int) -> Any:
        raise OSError("down")

    pool = make_pool(fun, min_size=1, max_size=1, delay=0.01)
    for _ in range(50):
        with pytest.raises(OSError, match="down"):
            pool.get(timeout=1)


def test_ending_the_program_in_the_factory_is_not_caught(make_pool: MakePool) -> None:
    def fun(number: int) -> Any:
        raise KeyboardInterrupt

    pool = make_pool(fun, min_size=0, max_size=1)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pool.get(timeout=0)


def test_what_is_not_in_use_is_refused_with_a_warning(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    returned = []
    pool = make_pool(max_size=1, retter=returned.append)
    thing = pool.get()
    pool.ret(thing)
    pool.ret(thing)
    pool.ret(Thing(99))
    assert caplog.text.count("unexpected object returned") == 2
    assert returned == [thing]
    assert pool.stats()["sem"] == {"value": 1, "init": 1}


@pytest.mark.parametrize("content", [0, "", (), [], {}, set(), None], ids=repr)
def test_falsy_and_unhashable_objects_are_objects(make_pool: MakePool, content: Any) -> None:
    pool = make_pool(lambda number: content, max_size=1)
    for _ in range(3):
        got = pool.get(timeout=0)
        assert got is content
        pool.ret(got)
    assert pool.stats()["ncreated"] == 1


def test_an_object_that_equals_everything_is_found_by_identity(make_pool: MakePool) -> None:
    class Equal(Thing):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    pool = make_pool(Equal, max_size=2)
    first, second = pool.get(), pool.get()
    pool.ret(second)
    assert pool.get(timeout=0) is second
    pool.ret(first)


def test_one_object_may_be_in_the_pool_twice(make_pool: MakePool) -> None:
    one = Thing(0)
    pool = make_pool(lambda number: one, min_size=0, max_size=2)
    pool.get()
    pool.get()
    with pytest.raises(TimeOut):
        pool.get(timeout=0)
    pool.ret(one)
    pool.ret(one)
    assert pool.stats()["navail"] == 2


def test_max_use_replaces_an_object(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, max_use=2, closer=Thing.close)
    seen = []
    for _ in range(4):
        with pool.obj() as thing:
            seen.append(thing)
    assert [thing.number for thing in seen] == [0, 0, 1, 1]
    assert [thing.closed for thing in seen] == [1, 1, 1, 1]
    assert pool.stats()["nwornout"] == 2


def test_without_a_cap_nobody_waits(make_pool: MakePool) -> None:
    pool = make_pool(max_size=0, timeout=0)
    assert len({id(thing) for thing in [pool.get() for _ in range(20)]}) == 20
    assert pool.stats()["sem"] is None


def test_a_release_does_not_wait_for_a_creation(make_pool: MakePool) -> None:
    go = threading.Event()

    def fun(number: int) -> Thing:
        if number:
            go.wait(20)
        return Thing(number)

    pool = make_pool(fun, max_size=2)
    held = pool.get()
    creator = threading.Thread(target=pool.get)
    creator.start()
    wait_until(lambda: pool.stats()["ncreating"] == 2, "a creation that hangs")
    pool.ret(held)  # hangs where objects are made under the pool's lock
    assert pool.get(timeout=0) is held
    go.set()
    creator.join()


def test_values_that_are_not_allowed_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        Pool(Thing, max_use=-1)


# --- hooks -----------------------------------------------------------------------------------------------


def test_hooks_are_called_in_the_course_of_a_life(make_pool: MakePool) -> None:
    told: list[tuple[str, int]] = []

    def note(event: str) -> Callable[[Thing], None]:
        return lambda thing: told.append((event, thing.number))

    pool = make_pool(
        opener=note("open"), getter=note("get"), retter=note("ret"), closer=note("close")
    )
    assert told == [("open", 0)]
    pool.ret(pool.get())
    pool.shutdown()
    assert told == [("open", 0), ("get", 0), ("ret", 0), ("close", 0)]


@pytest.mark.parametrize("hook", ["opener", "getter", "retter", "closer", "stats", "tracer"])
def test_a_hook_that_raises_is_logged_and_the_object_stays(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    def fail(thing: Thing) -> None:
        raise ValueError(f"{hook} fails")

    pool = make_pool(max_size=1, **{hook: fail})
    for _ in range(3):
        with pool.obj(timeout=0) as thing:
            assert thing.number == 0
    assert json.loads(str(pool))["nobjs"] == 1
    pool.shutdown()
    assert f"{hook} fails" in caplog.text
    assert pool.stats()["nobjs"] == 0


def test_an_interrupt_in_the_getter_or_the_retter_loses_no_place(make_pool: MakePool) -> None:
    def interrupt(thing: Thing) -> None:
        if thing.number == 0:
            raise KeyboardInterrupt

    for hook in ("getter", "retter"):
        pool = make_pool(max_size=1, closer=Thing.close, **{hook: interrupt})
        with pytest.raises(KeyboardInterrupt):
            pool.ret(pool.get())
        assert pool.get(timeout=5).number == 1


def test_log_level_is_that_of_the_logger(make_pool: MakePool) -> None:
    log = logging.getLogger("ppp")
    before = log.level
    try:
        make_pool(log_level=logging.ERROR)
        assert log.level == logging.ERROR
    finally:
        log.setLevel(before)


# --- statistics ------------------------------------------------------------------------------------------


def test_times_in_the_statistics_are_relative_to_now(make_pool: MakePool) -> None:
    pool = make_pool(min_size=2, max_size=4, timeout=1.5)
    held = pool.get()
    stats = pool.stats()
    using, available = stats["using"][0], stats["avail"][0]
    assert using["uses"] == 1
    assert available["uses"] == 0
    for told in (using, available):
        assert -60 < told["last_get"] <= 0
        assert -60 < told["last_ret"] <= 0
    assert 0 <= stats["running"] < 60
    assert -60 < stats["rel_hk_last"] <= 0
    assert stats["sem"] == {"value": 3, "init": 4}
    assert stats["timeout"] == 1.5
    assert stats["now"] > 1e9
    pool.ret(held)


def test_the_tracer_is_str_by_default(make_pool: MakePool) -> None:
    assert make_pool().stats()["avail"][0]["trace"] == "thing 0"
    assert make_pool(tracer=repr).stats()["avail"][0]["trace"].startswith("<")


def test_the_stats_hook_takes_the_place_of_the_tracer(make_pool: MakePool) -> None:
    told = make_pool(stats=lambda thing: {"number": thing.number}).stats()["avail"][0]
    assert told["stats"] == {"number": 0}
    assert "trace" not in told


def test_str_is_the_statistics_as_json(make_pool: MakePool) -> None:
    pool = make_pool(stats=lambda thing: {"not json": thing})
    assert json.loads(str(pool))["id"] == pool.stats()["id"]


# --- the end ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_shutdown_waits_for_nothing_that_it_does_itself(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each took 5 s: the thread that was to close what lay idle waited until somebody had."""
    monkeypatch.setattr("mppool.worker.pool.CLOSE_PATIENCE_S", 1000.0)
    pool = make_pool(min_size=2, closer=Thing.close)
    things = pool._avail
    pool.shutdown()
    assert [thing.closed for thing in things] == [1, 1]


def test_after_shutdown_get_raises(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    pool.shutdown()
    pool.shutdown()
    with pytest.raises(PoolException, match="shut down"):
        pool.get()
    assert pool.stats()["shutdown"] is True


def test_shutdown_closes_what_is_available_and_what_is_in_use(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(min_size=2, closer=Thing.close)
    using = pool.get()
    available = pool._avail[0]
    pool.shutdown()
    assert (using.closed, available.closed) == (1, 1)
    assert "1 objects that are in use" in caplog.text
    stats = pool.stats()
    assert (stats["nobjs"], stats["ndestroys"], stats["ncreated"]) == (0, 2, 2)
    pool.ret(using)
    assert using.closed == 1
    assert "unexpected object returned" in caplog.text


def test_shutdown_ends_who_waits(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    held = pool.get()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            pool.get()
        except PoolException as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: pool._core.stats()["waiting"], "a waiting get")
    pool.shutdown()
    waiter.join()
    assert len(errors) == 1
    assert not isinstance(errors[0], TimeOut)
    assert held.closed == 0


def test_shutdown_keeps_the_counts(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, max_use=1)
    pool.ret(pool.get())
    pool.shutdown()
    assert pool.stats()["nwornout"] == 1


def test_delete_closes_everything_and_the_pool_goes_on(make_pool: MakePool) -> None:
    pool = make_pool(min_size=2, max_size=2, closer=Thing.close)
    using = pool.get()
    available = pool._avail[0]
    pool.__delete__()
    assert (using.closed, available.closed) == (1, 1)
    assert pool.stats()["nobjs"] == 0
    with pool.obj(timeout=20) as thing:
        assert thing.closed == 0
        assert pool.stats()["nobjs"] == 2
