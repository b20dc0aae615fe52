"""The housekeeper: its interval, recycling, overdue objects, health, its end, the werkzeug workaround."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from mppool.compat.proxypatternpool import Pool, TimeOut
from tests.compat.conftest import Thing
from tests.helpers import wait_until

MakePool = Callable[..., Pool]


@pytest.mark.parametrize(
    ("parameters", "delay"),
    [
        ({}, 0.0),
        ({"health": bool}, 60.0),
        ({"max_avail_delay": 8.0}, 4.0),
        ({"max_using_delay": 6.0, "max_avail_delay": 8.0}, 3.0),
        ({"max_using_delay_kill": 2.0, "max_avail_delay": 8.0}, 1.0),
        ({"max_using_delay": 6.0, "max_using_delay_kill": 2.0}, 3.0),
        ({"max_avail_delay": 8.0, "health": bool}, 4.0),
        ({"max_avail_delay": 8.0, "delay": 30.0}, 30.0),
        ({"delay": 30.0}, 30.0),
    ],
    ids=str,
)
def test_the_delay_is_half_the_shortest_one_by_default(
    make_pool: MakePool, parameters: dict[str, Any], delay: float
) -> None:
    pool = make_pool(**parameters)
    assert pool.stats()["delay"] == delay
    assert (pool._housekeeper is not None) == (delay > 0)


def test_without_anything_to_look_after_there_is_no_thread(make_pool: MakePool) -> None:
    before = threading.active_count()
    pool = make_pool(min_size=2, max_size=4)
    with pool.obj():
        pool.stats()
    assert threading.active_count() <= before


def test_the_warning_comes_at_the_time_of_the_kill_by_default(make_pool: MakePool) -> None:
    assert make_pool(max_using_delay_kill=5.0).stats()["max_using_delay_warn"] == 5.0
    stats = make_pool(max_using_delay=2.0, max_using_delay_kill=5.0).stats()
    assert (stats["max_using_delay_warn"], stats["max_using_delay_kill"]) == (2.0, 5.0)


def test_a_warning_later_than_the_kill_is_only_logged(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    make_pool(max_using_delay=5.0, max_using_delay_kill=2.0)
    assert "killed unwarned" in caplog.text


def test_what_is_unused_for_long_goes_down_to_min_size(make_pool: MakePool) -> None:
    pool = make_pool(min_size=1, max_avail_delay=0.05, closer=Thing.close)
    things = [pool.get() for _ in range(3)]
    for thing in things:
        pool.ret(thing)
    wait_until(lambda: pool.stats()["nobjs"] == 1, "recycling")
    rounds = pool.stats()["hk_rounds"]
    wait_until(lambda: pool.stats()["hk_rounds"] > rounds + 5, "more rounds")
    stats = pool.stats()
    assert (stats["nobjs"], stats["nrecycled"], stats["ncreated"]) == (1, 2, 3)
    assert sum(thing.closed for thing in things) == 2


def test_an_object_in_use_for_long_is_warned_of_and_then_killed(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    returned: list[Thing] = []
    pool = make_pool(
        min_size=0,
        max_size=1,
        max_using_delay=0.05,
        max_using_delay_kill=0.6,
        closer=Thing.close,
        retter=returned.append,
    )
    thing = pool.get()
    wait_until(lambda: "longer than max_lease_warn" in caplog.text, "the warning")
    wait_until(lambda: thing.closed, "the kill")
    other = pool.get(timeout=20)
    assert other is not thing
    pool.ret(thing)
    assert thing.closed == 1
    assert returned == []
    stats = pool.stats()
    assert (stats["nkilled"], stats["nobjs"], stats["nusing"]) == (1, 1, 1)


# --- health ----------------------------------------------------------------------------------------------


def test_health_is_asked_every_so_many_rounds(make_pool: MakePool) -> None:
    pool = make_pool(min_size=2, health=bool, health_freq=3, delay=0.01)
    wait_until(lambda: pool.stats()["hc_rounds"] >= 4, "rounds")
    stats = pool.stats()
    assert stats["hc_rounds"] == stats["hk_rounds"] // 3
    assert stats["nhealth"] >= 2 * 3
    assert stats["hk_errors"] == stats["hc_errors"] == stats["bad_health"] == 0
    assert stats["time_per_hk"] > 0
    assert stats["rel_hk_last"] <= 0


def test_what_is_unhealthy_is_replaced_and_every_place_stays_free(make_pool: MakePool) -> None:
    pool = make_pool(
        min_size=2,
        max_size=2,
        health=lambda thing: thing.number > 3,
        delay=0.01,
        closer=Thing.close,
    )
    first = pool._avail
    wait_until(lambda: pool.stats()["bad_health"] == 4, "four unhealthy objects")
    wait_until(lambda: pool.stats()["navail"] == 2, "their replacement")
    assert [thing.closed for thing in first] == [1, 1]
    held = [pool.get(timeout=5), pool.get(timeout=5)]
    assert {thing.number for thing in held} == {4, 5}
    with pytest.raises(TimeOut):
        pool.get(timeout=0)


def test_a_health_hook_that_raises_is_counted_and_the_object_stays(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    def health(thing: Thing) -> bool:
        raise SystemExit("no")

    pool = make_pool(health=health, delay=0.01, max_size=1)  # no other is made during a check
    wait_until(lambda: pool.stats()["hc_errors"] >= 3, "errors")
    assert "health check error" in caplog.text
    with pool.obj(timeout=20) as thing:
        assert thing.number == 0
    assert pool.stats()["ncreated"] == 1


def test_checks_count_as_no_use_and_call_no_other_hook(make_pool: MakePool) -> None:
    others: list[Thing] = []
    pool = make_pool(
        health=lambda thing: True, delay=0.01, max_use=1, getter=others.append, retter=others.append
    )
    wait_until(lambda: pool.stats()["nhealth"] >= 3, "checks")
    stats = wait_until(lambda: (told := pool.stats())["navail"] and told, "the object")
    assert (stats["ncreated"], stats["avail"][0]["uses"], others) == (1, 0, [])
    assert stats["nborrows"] >= stats["nreturns"] >= 2


def test_a_check_that_hangs_keeps_one_object_and_nothing_else(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()
    pool = make_pool(min_size=2, max_size=2, health=lambda thing: go.wait(20), delay=0.01)
    wait_until(lambda: pool.stats()["nhealth"], "a check that hangs")
    for _ in range(10):
        pool.ret(pool.get(timeout=0))
    pool.shutdown(0.01)
    assert "housekeeper is still at work" in caplog.text
    go.set()


def test_a_round_that_fails_is_counted_and_followed_by_others(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(delay=0.01)

    def fail() -> None:
        raise ValueError("a bug")

    assert pool._keeper is not None
    monkeypatch.setattr(pool._keeper, "_look_around", fail)
    wait_until(lambda: pool.stats()["hk_errors"] >= 2, "two rounds that fail")


def test_shutdown_joins_the_housekeeper(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(delay=60.0)
    thread = pool._housekeeper
    assert thread is not None
    pool.shutdown(10.0)
    assert not thread.is_alive()
    assert "at work" not in caplog.text


def test_a_hook_may_shut_its_pool_down(make_pool: MakePool) -> None:
    pools: list[Pool] = []
    pool = make_pool(health=lambda thing: pools[0].shutdown(5.0), delay=0.01)
    thread = pool._housekeeper
    pools.append(pool)
    assert thread is not None
    wait_until(lambda: not thread.is_alive(), "the end of the housekeeper")
    assert pool.stats()["nobjs"] == 0


# --- under werkzeug's reloader ---------------------------------------------------------------------------


@pytest.mark.parametrize("run_main", [None, "false"])
def test_in_the_reloaders_parent_nothing_starts_before_the_first_get(
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    run_main: str | None,
) -> None:
    monkeypatch.setenv("PPP_WERKZEUG_WORKAROUND", "1")
    if run_main is None:
        monkeypatch.delenv("WERKZEUG_RUN_MAIN", raising=False)
    else:
        monkeypatch.setenv("WERKZEUG_RUN_MAIN", run_main)
    pool = make_pool(min_size=2, delay=0.01)
    assert "PPP_WERKZEUG_WORKAROUND" in caplog.text
    assert pool._housekeeper is None
    assert pool.stats()["ncreated"] == 0
    with pool.obj():
        assert pool.stats()["ncreated"] == 2
    assert pool._housekeeper is not None
    wait_until(lambda: pool.stats()["hk_rounds"], "a round")


@pytest.mark.parametrize(("workaround", "run_main"), [(None, None), ("1", "true")])
def test_elsewhere_the_constructor_starts_everything(
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    workaround: str | None,
    run_main: str | None,
) -> None:
    for name, value in (
        ("PPP_WERKZEUG_WORKAROUND", workaround),
        ("WERKZEUG_RUN_MAIN", run_main),
    ):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    pool = make_pool(min_size=2, delay=60.0)
    assert pool._housekeeper is not None
    assert pool.stats()["ncreated"] == 2


def test_a_pool_that_was_never_used_there_can_be_shut_down(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPP_WERKZEUG_WORKAROUND", "1")
    pool = make_pool(delay=1.0)
    pool.shutdown()
    assert pool.stats()["ncreated"] == 0
