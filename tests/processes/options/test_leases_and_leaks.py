"""max_lease_warn, max_lease_kill, track_leaks; leaked leases, closes that hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import Pool, StaleLease
from tests.helpers import wait_until
from tests.processes.options.scene import Colleague, Scene

Declare = Callable[..., Pool[Any]]
Hire = Callable[..., Any]


def heard(colleague: Colleague, part: str) -> list[str]:
    """What a colleague's log says about something."""
    return [message for message in colleague.do("messages") if part in message]


def test_an_overdue_lease_is_warned_of_once(declare: Declare, hire: Hire) -> None:
    pool = declare(max_lease_warn=0.1)
    holder = hire(pool)
    holder.do("checkout")
    (warning,) = wait_until(lambda: heard(holder, "max_lease_warn"), "the warning")
    for part in ("'things'", f"process {holder.pid}", "'MainThread'", " s old", "track_leaks"):
        assert part in warning
    time.sleep(0.3)
    assert len(heard(holder, "max_lease_warn")) == 1
    assert holder.do("use") == 0  # a warning changes nothing
    holder.do("release")
    holder.do("checkout")
    wait_until(lambda: len(heard(holder, "max_lease_warn")) == 2, "the next lease to be warned of")
    assert pool.stats()["counters"]["killed"] == 0


def test_a_lease_that_is_given_back_in_time_is_not_warned_of(declare: Declare, hire: Hire) -> None:
    pool = declare(max_lease_warn=0.2, max_lease_kill=0.4)
    holder = hire(pool)
    for _ in range(20):  # a busy machine may hold one for longer
        numbers, before = set(), len(heard(holder, "lease"))
        longest, until = 0.0, time.monotonic() + 0.6
        while (began := time.monotonic()) < until:
            numbers.add(holder.do("checkout"))
            holder.do("release")
            longest = max(longest, time.monotonic() - began)
        if longest < 0.2:
            break
        time.sleep(0.1)  # it may have something to say of this round yet
    assert len(heard(holder, "lease")) == before
    assert len(numbers) == 1


def test_with_track_leaks_the_stack_says_who_took_it(declare: Declare, hire: Hire) -> None:
    pool = declare(
        max_lease_warn=0.5, track_leaks=True
    )  # the stack is read from files, which takes a moment
    holder = hire(pool)
    holder.do("checkout")
    (warning,) = wait_until(lambda: heard(holder, "max_lease_warn"), "the warning")
    assert "scene.py" in warning
    assert "self.pool.checkout(**keywords)" in warning


def test_a_killed_lease_is_stale_and_its_slot_is_free(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=1, max_lease_warn=0.05, max_lease_kill=0.8)
    holder = hire(pool)
    holder.do("checkout")
    with pool.checkout(timeout=20) as thing:
        assert thing.number == 1
        assert [number for _, number, _, _ in scene.events("close")] == [0]
        with pytest.raises(StaleLease, match=r"max_lease_kill=0\.8"):
            holder.do("use")
        assert len(heard(holder, "max_lease_warn")) == len(heard(holder, "max_lease_kill")) == 1
        holder.do("release")
        assert len(heard(holder, "after it had been killed")) == 1
    counters = pool.stats()["counters"]
    assert (counters["killed"], counters["closed"]) == (1, 1)
    assert pool.stats()["size"] == 1


def test_a_kill_without_a_warning_and_a_warning_after_the_kill(
    declare: Declare, hire: Hire, caplog: pytest.LogCaptureFixture
) -> None:
    pool = declare(max_lease_warn=5.0, max_lease_kill=0.1)
    assert "max_lease_warn=5 is later than max_lease_kill=0.1" in caplog.text
    holder = hire(pool)
    holder.do("checkout")
    wait_until(lambda: heard(holder, "max_lease_kill"), "the kill")
    wait_until(lambda: pool.stats()["counters"]["killed"] == 1, "it to be counted")


def test_a_close_that_hangs_keeps_its_slot_and_delays_nobody_else(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=3, max_lease_kill=0.1)
    holder = hire(pool)
    scene.switch("stuck")
    holder.do("checkout", "a")
    holder.do("checkout", "b")
    wait_until(lambda: len(heard(holder, "max_lease_kill")) == 2, "both to be killed")
    stats = pool.stats()
    assert stats["size"] == 2
    assert [r["state"] for r in stats["resources"]] == ["closing", "closing"]
    assert stats["counters"]["killed"] == 0
    assert holder.do("checkout", "c") == 2  # nothing waits behind the hanging ones
    holder.do("release", "c")
    wait_until(lambda: len(heard(holder, "closing a resource has been")) == 2, "both warnings")
    assert pool.stats()["counters"]["long_closes"] == 2
    scene.switch("stuck", on=False)
    wait_until(lambda: pool.stats()["counters"]["killed"] == 2, "the closes to return")
    assert pool.stats()["size"] == 1


@pytest.mark.parametrize("track", [False, True])
def test_a_lease_that_is_collected_is_closed_counted_and_logged(
    declare: Declare, hire: Hire, scene: Scene, track: bool
) -> None:
    pool = declare(max_size=1, track_leaks=track)
    careless = hire(pool)
    careless.do("checkout")
    careless.do("drop")
    with pool.checkout(timeout=20) as thing:
        assert thing.number == 1
    assert [number for _, number, _, _ in scene.events("close")] == [0]
    (warning,) = heard(careless, "garbage-collected")
    assert ("self.pool.checkout(**keywords)" in warning) is track
    assert pool.stats()["counters"]["leaked"] == 1
