"""max_uses, max_idle, max_lifetime, check_interval, check_idle_for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import Pool, PoolManager
from mppool.worker import housekeeping
from mppool.worker.ending import retire_older_than
from tests.helpers import wait_until
from tests.processes.options.scene import CheckedThings, HookedThings, Scene, Thing, Things

Declare = Callable[..., Pool[Any]]
Hire = Callable[..., Any]


def idle(pool: Pool[Any]) -> list[dict[str, Any]]:
    return [r for r in pool.stats()["resources"] if r["state"] == "idle"]


def open_some(pool: Pool[Any], count: int) -> None:
    for lease in [pool.checkout() for _ in range(count)]:
        lease.release()


# --- recycling ------------------------------------------------------------------------------------------


def test_max_uses(declare: Declare, scene: Scene) -> None:
    pool = declare(max_size=1, max_uses=3)
    numbers = []
    for _ in range(7):
        with pool.checkout() as thing:
            numbers.append(thing.number)
    assert numbers == [0, 0, 0, 1, 1, 1, 2]
    assert scene.count("close") == 2
    assert pool.stats()["counters"]["worn_out"] == 2


def test_max_idle_closes_what_is_above_min_size_wherever_it_is(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=6, min_size=1, max_idle=0.3)
    one, two = hire(pool, 2)
    for colleague in (one, two):
        for name in "abc":
            colleague.do("checkout", name)
    began = time.monotonic()
    for colleague in (one, two):
        for name in "abc":
            colleague.do("release", name)
    wait_until(lambda: scene.count("close") >= 5, "all but one to be closed")
    first = min(at for _, _, _, at in scene.events("close"))
    assert first >= began + 0.3
    wait_until(lambda: len(idle(pool)) == 1, "the last one to lie idle")
    wait_until(lambda: (idle(pool)[0]["idle_for"] or 0) > 1.0, "it to be kept for long")
    counters = pool.stats()["counters"]
    assert (counters["expired_idle"], counters["opened"]) == (5, 6)


def test_max_idle_closes_everything_of_other_identities(declare: Declare, scene: Scene) -> None:
    pool = declare(min_size=1, max_idle=0.2)
    with pool.checkout(identity="alice"):
        pool.wait_ready(20)
    wait_until(lambda: scene.count("close") == 1, "alice's to be closed")
    wait_until(lambda: [r["identity_key"] for r in idle(pool)] == [None], "min_size to be kept")


def test_what_is_used_is_not_idle(declare: Declare, scene: Scene) -> None:
    pool = declare(max_idle=0.4)
    for _ in range(20):  # a busy machine makes pauses of its own
        numbers = set()
        longest, last, ends_at = 0.0, math.inf, time.monotonic() + 0.8
        while last is math.inf or last < ends_at:
            with pool.checkout() as thing:
                numbers.add(thing.number)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            time.sleep(0.02)
        if longest < 0.3:
            break
    assert len(numbers) == 1


def test_max_lifetime_ends_what_is_idle_and_each_at_its_own_instant(
    declare: Declare, scene: Scene
) -> None:
    pool = declare(max_size=8, max_lifetime=1.0, max_idle=None)
    open_some(pool, 8)
    opened = {number: at for _, number, _, at in scene.events("open")}
    wait_until(lambda: scene.count("close") == 8, "all to be closed")
    ages = [at - opened[number] for _, number, _, at in scene.events("close")]
    assert min(ages) >= 0.9 - 0.01
    assert max(ages) - min(ages) > 0.01  # eight draws within a tenth of a second
    wait_until(lambda: pool.stats()["counters"]["expired_lifetime"] == 8, "all to be counted")


def test_max_lifetime_ends_what_is_in_use_when_it_is_released(
    declare: Declare, scene: Scene
) -> None:
    pool = declare(max_lifetime=0.1)
    with pool.checkout() as thing:
        time.sleep(0.15)
        assert not thing.closed
    assert thing.closed
    with pool.checkout() as other:
        assert other.number == 1


def test_what_is_released_before_the_end_of_its_life_does_not_outlive_it(
    declare: Declare, manager: PoolManager, scene: Scene
) -> None:
    # The housekeeper looks while it is in use, because of another pool, and must look again later.
    pool = declare(max_lifetime=0.8, max_idle=600.0)
    gone: list[int] = []
    other = manager.pool("other", lambda: 1, close=gone.append, max_idle=0.1)
    with pool.checkout():
        other.checkout().release()
        wait_until(lambda: gone, "the housekeeper to look")
    wait_until(lambda: scene.count("close") == 1, "it to be closed")


class EndsInReset(Things):
    """What has an end of its own reaches it while it is reset: the housekeeper looks then, and finds nothing idle."""

    def reset(self, thing: Thing) -> None:
        assert thing.entry is not None
        thing.entry.retire_at = time.monotonic()


def test_what_reaches_its_end_while_it_is_reset_does_not_outlive_it(
    declare: Declare, scene: Scene
) -> None:
    """A session with the old password stayed open. Found with asyncpg, whose reset is a round trip."""
    pool = declare(EndsInReset, max_idle=None)
    with pool.checkout() as thing:
        (thing.entry,) = pool._local.entries()
    wait_until(lambda: scene.count("close") == 1, "it to be closed")


# --- health ---------------------------------------------------------------------------------------------


def test_checks_in_the_background_leave_uses_and_last_use_alone(
    declare: Declare, scene: Scene
) -> None:
    pool = declare(HookedThings, check_interval=0.05, check_idle_for=None)
    open_some(pool, 2)
    before = scene.count("on_checkout", "reset")
    wait_until(lambda: scene.count("check") >= 8, "checks")
    assert scene.count("on_checkout", "reset") == before
    stats = pool.stats()
    assert [r["uses"] for r in stats["resources"]] == [1, 1]
    assert all(r["idle_for"] > 0.1 for r in stats["resources"])
    assert stats["counters"]["checks"] >= 8
    assert stats["counters"]["checkouts"] == 2


def test_checks_keep_nothing_alive(declare: Declare, scene: Scene) -> None:
    pool = declare(CheckedThings, check_interval=0.05, max_idle=0.4)
    checks = 0
    for number in range(10):  # a busy machine may not come to check it in time
        pool.checkout().release()
        wait_until(lambda: scene.count("close") > number, "it to be closed for being idle")  # noqa: B023
        before, checks = checks, scene.count("check")
        if checks > before + 1:
            break
    assert checks > before + 1


def test_what_is_in_use_is_not_checked(declare: Declare, scene: Scene) -> None:
    pool = declare(CheckedThings, max_size=2, check_interval=0.03)
    pool.checkout().release()
    wait_until(lambda: scene.count("check") > 1, "it to be checked while it is idle")
    with pool.checkout() as used:
        other = pool.checkout()
        free = other.resource.number
        other.release()
        began = time.monotonic()
        wait_until(
            lambda: sum(n == free and at > began for _, n, _, at in scene.events("check")) > 3,
            "the other one to be checked",
        )
        assert not any(n == used.number and at > began for _, n, _, at in scene.events("check"))


def test_what_is_found_unhealthy_in_the_background_is_replaced(
    declare: Declare, scene: Scene
) -> None:
    pool = declare(CheckedThings, min_size=2, check_interval=0.05)
    pool.wait_ready(20)
    scene.switch("sick-0")
    wait_until(lambda: scene.count("open") == 3, "another one to be opened")
    assert [number for _, number, _, _ in scene.events("close")] == [0]
    wait_until(lambda: pool.stats()["counters"]["unhealthy"] == 1, "it to be counted")


def test_what_was_idle_for_longer_than_check_idle_for_is_checked_at_checkout(
    declare: Declare, manager: PoolManager, scene: Scene
) -> None:
    patient = declare(CheckedThings, check_idle_for=60.0)
    open_some(patient, 1)
    with patient.checkout():
        pass
    assert scene.count("check") == 0
    pool = manager.pool("suspicious", CheckedThings(scene.directory), check_idle_for=0.05)
    open_some(pool, 1)
    time.sleep(0.06)
    with pool.checkout() as thing:
        assert thing.number == 0
    assert scene.count("check") == 1
    assert pool.stats()["counters"]["checks"] == 1


def test_what_min_size_opened_long_ago_is_checked_at_its_first_checkout(
    declare: Declare, scene: Scene
) -> None:
    pool = declare(CheckedThings, min_size=1, check_idle_for=0.1)
    pool.wait_ready(20)
    time.sleep(0.15)
    scene.switch("sick-0")
    with pool.checkout() as thing:
        assert thing.number > 0  # 1, or 2 if the replacement for min_size was opened meanwhile


def test_the_caller_never_sees_what_is_unhealthy(declare: Declare, scene: Scene) -> None:
    pool = declare(CheckedThings, max_size=3, check_idle_for=0.0)
    open_some(pool, 3)
    for number in range(3):
        scene.switch(f"sick-{number}")
    with pool.checkout(timeout=0) as thing:  # replacing is not waiting for anybody
        assert thing.number == 3
    counters = pool.stats()["counters"]
    assert (counters["unhealthy"], counters["check_errors"]) == (3, 0)


def test_behind_what_is_unhealthy_the_shelf_is_looked_at_before_the_server_is_asked(
    declare: Declare, scene: Scene
) -> None:
    pool = declare(CheckedThings, max_size=3, check_idle_for=0.0)
    open_some(pool, 3)
    scene.switch("sick-2")  # the one that was released last
    with pool.checkout(timeout=0) as thing:
        assert thing.number == 1
    assert scene.count("open") == 3


def test_check_idle_for_none_checks_nothing_at_checkout(declare: Declare, scene: Scene) -> None:
    pool = declare(CheckedThings, check_idle_for=None)
    open_some(pool, 1)
    scene.switch("sick")
    with pool.checkout() as thing:
        assert thing.number == 0
    assert scene.count("check") == 0


def test_a_check_that_raises_is_counted_apart(declare: Declare, scene: Scene) -> None:
    pool = declare(CheckedThings, check_idle_for=0.0)
    open_some(pool, 1)
    scene.switch("puzzled")
    with pool.checkout() as thing:
        assert thing.number == 1  # what cannot be checked is not trusted
    counters = pool.stats()["counters"]
    assert (counters["check_errors"], counters["unhealthy"], counters["hook_errors"]) == (1, 0, 0)


def test_one_detection_invalidates_everything_as_old_in_all_processes(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(CheckedThings, max_size=8, check_idle_for=0.0, max_idle=None)
    one, two = hire(pool, 2)
    one.do("checkout", "held")
    for colleague in (one, two):
        for name in "ab":
            colleague.do("checkout", name)
        for name in "ab":
            colleague.do("release", name)
    alices = two.do("checkout", "alice", identity="alice")
    two.do("release", "alice")
    open_some(pool, 1)
    old = scene.count("open")
    scene.switch("gone")
    lease = pool.checkout()  # one check finds out; what is opened now is new
    scene.switch("gone", on=False)
    assert lease.resource.number == old
    wait_until(lambda: scene.count("close") == 5, "what lay idle anywhere to be closed")
    assert scene.count("check") == 1
    assert one.do("use", "held") == 0  # in use: it is its user's until the release
    one.do("release", "held")
    wait_until(lambda: scene.count("close") == 6, "what was in use to be closed on release")
    assert alices not in [number for _, number, _, _ in scene.events("close")]
    lease.release()
    with pool.checkout() as thing:
        assert thing.number == old


def test_what_went_stale_by_its_key_is_forgotten_with_the_next_generation_of_all(
    declare: Declare,
) -> None:
    """Else every identity whose backend was found gone would be remembered for as long as the process lives."""
    pool = declare()
    local = pool._local
    pool.checkout().release()
    for number in range(1, 51):
        retire_older_than(local, number, f"{local.default_key}\0user {number}")
    assert len(local.retired) >= 50
    retire_older_than(local, 60, None)
    assert set(local.retired) == {None}


def test_checks_that_are_put_off_while_somebody_waits_keep_no_thread_busy(
    declare: Declare, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found by tests/simulation: the background thread began a check that did nothing, and at once another one.
    pool = declare(CheckedThings, check_interval=0.01)
    begun: list[None] = []
    check_idle = housekeeping.check_idle

    def counted(local: Any) -> None:
        if local is pool._local:  # pools of other tests may still be there
            begun.append(None)
        check_idle(local)

    monkeypatch.setattr(housekeeping, "check_idle", counted)
    pool.checkout().release()
    wait_until(lambda: scene.count("check") > 1, "a check")
    idle = pool._local.idle
    with pool._local.inventory.lock:
        idle.attention = True  # as while a thread waits for another identity
    wait_until(lambda: not pool._local.checking, "the end of a check")
    checks, before, looks = scene.count("check"), len(begun), 3
    for _ in range(looks):
        planned = pool._local.member.housekeeper._planned
        wait_until(
            lambda: pool._local.member.housekeeper._planned != planned,  # noqa: B023
            "the background thread to look",
        )
    assert scene.count("check") <= checks + 1
    assert len(begun) <= before + 1
    idle.attention = False
    wait_until(lambda: scene.count("check") > checks + 1, "checks to go on")
