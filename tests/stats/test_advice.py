"""Advice, from statistics as a pool gives them, and from real pools under load."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mppool import InProcessManager
from mppool.stats.advice import advise, mean, share_above
from mppool.stats.names import BOUNDS, SERVER_COUNTERS, WORKER_COUNTERS
from tests.helpers import wait_until

BEGAN, NOW = 1000.0, 1100.0


def histogram(**counts: int) -> dict[str, Any]:
    """Counts by bucket: `b3=7` is 7 in the bucket with number 3."""
    row = [counts.get(f"b{number}", 0) for number in range(len(BOUNDS) + 1)]
    return {"bounds": list(BOUNDS), "counts": row}


def pool(
    counters: dict[str, int], wait: dict[str, Any], use: dict[str, Any], **gauges: Any
) -> dict[str, Any]:
    return {
        "name": "orders", "max_size": 8, "in_use": 0, "breaker": "closed", "processes": [{"pid": 1, "label": "", "in_use": 0, "waiting": 0}] * 2,
        "counters_began": BEGAN,
        "counters": {**dict.fromkeys((*SERVER_COUNTERS, *WORKER_COUNTERS), 0), **counters},
        "histograms": {"wait": wait, "use": use, "open": histogram(b7=10)},
        **gauges,
    }  # fmt: skip


def about(found: dict[str, Any]) -> list[str]:
    return [one["about"] for one in advise(found, NOW)]


BUSY = histogram(b8=1600)
"""1600 uses of 0.375 s in 100 s: 6 in use on average."""

QUICK = histogram(b0=1600)


def test_a_pool_that_is_well_gets_none() -> None:
    assert about(pool({"checkouts": 1600, "opened": 8}, QUICK, BUSY)) == []


def test_long_waits_ask_for_a_larger_cap() -> None:
    (advice,) = advise(pool({"checkouts": 1600}, histogram(b0=1500, b9=100), BUSY), NOW)
    assert advice["about"] == "max_size"
    assert "6 of 8 were in use on average" in advice["text"]
    assert "6.2% of the checkouts waited for more than 0.1 s" in advice["text"]
    assert "try max_size=10" in advice["text"]


def test_a_cap_that_is_never_reached_may_be_lower() -> None:
    (advice,) = advise(pool({"checkouts": 1600}, QUICK, QUICK, max_size=20), NOW)
    assert "max_size=2 would do" in advice["text"]


def test_nothing_is_said_of_bounds_after_few_checkouts() -> None:
    assert about(pool({"checkouts": 100, "moved": 90}, histogram(b9=100), BUSY)) == []


def test_a_process_that_has_most_of_it_while_others_wait_may_be_bounded() -> None:
    slow = histogram(b0=1500, b9=100)
    greedy = {"pid": 7, "label": "batch", "in_use": 6, "waiting": 3}
    others = [{"pid": pid, "label": "", "in_use": 1, "waiting": 2} for pid in (8, 9)]
    found = pool({"checkouts": 1600}, slow, BUSY, processes=[greedy, *others])
    (advice,) = (one for one in advise(found, NOW) if one["about"] == "max_per_process")
    assert advice["text"] == (
        "process 7 (batch) uses 6 of 8, and 4 checkouts of other processes wait: max_per_process=4 leaves the others "
        "room"
    )
    greedy["in_use"] = 4
    assert about(found) == ["max_size"]


def test_many_moves_and_short_lives() -> None:
    (advice,) = advise(pool({"checkouts": 1600, "moved": 400}, QUICK, BUSY), NOW)
    assert advice["about"] == "moved"
    assert "placement='host'" in advice["text"]
    for counter, option in {
        "expired_idle": "max_idle", "expired_lifetime": "max_lifetime", "worn_out": "max_uses",
    }.items():  # fmt: skip
        assert about(pool({"checkouts": 1600, counter: 400}, QUICK, BUSY)) == [option]


@pytest.mark.parametrize("counter", ["leaked", "killed", "double_releases", "hung_checks"])
def test_faults_are_told_from_the_first_on(counter: str) -> None:
    assert about(pool({counter: 1}, QUICK, BUSY)) == [counter]


def test_means_and_shares() -> None:
    assert mean(histogram(b9=3)) == 0.75
    assert share_above(histogram(b0=3, b9=1), 0.1) == 0.25
    assert mean(histogram()) == share_above(histogram(), 0.1) == 0


def test_a_real_pool_that_is_too_small() -> None:
    with InProcessManager() as manager:
        orders = manager.pool("orders", object, max_size=1)

        def use() -> None:
            for _ in range(30):
                with orders.checkout(timeout=60):
                    pause.wait(0.005)

        pause = threading.Event()
        threads = [threading.Thread(target=use) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert orders.stats()["counters"]["checkouts"] == 300
        # The last word of a thread that waited may still be on its way.
        wait_until(lambda: orders.health()["status"] == "ok", "nobody waits any more")
        advice = orders.advice()
    waited = share_above(orders.stats()["histograms"]["wait"], 0.1)
    assert ("max_size" in [one["about"] for one in advice]) == (waited > 0.01)


def test_what_the_database_lets_in_is_compared_with_the_cap() -> None:
    def advised(**said: Any) -> list[str]:
        found = pool({}, histogram(), histogram(), size=4, database=said)
        return [one["text"] for one in advise(found, NOW)]

    assert advised(limit=100, sessions=20, ours=4) == []
    (text,) = advised(limit=5, sessions=4, ours=4)
    assert "lets in 5 sessions, and max_size is 8" in text
    (text,) = advised(limit=20, sessions=18, ours=None)
    assert "14 of the 18 sessions" in text
    (text,) = advised(limit=100, sessions=20, ours=16)
    assert "16 sessions at the database bear this pool's label" in text
