"""What a machine makes of answers, of errors and of the time. The clock is an argument."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mppool.machines.machine import Machine, Part
from mppool.machines.needs import Need, PoolTold, Said, Told
from mppool.machines.timing import TOLERATED_RATIO, Timing

TIMING = Timing(10.0)
BUSY = {"orders": Need(6, 6, 3, starves=True)}


def machine(fallback: int | None = None, since: float | None = None) -> Machine:
    return Machine(
        "m", "here", 1, TIMING, fallback, now=0.0, since=since, jitter=lambda: 1.0, fresh=lambda: "f"
    )  # fmt: skip


def told(share: int, kept_ms: int = 0, version: int = 1) -> Told:
    return Told("i", version, kept_ms, "", 2, 4, [PoolTold("orders", share, 6, 6, 9)])


def leased(share: int, now: float = 0.0, needs: Mapping[str, Need] = BUSY) -> tuple[Machine, Said]:
    one = machine()
    said = one.call(now, needs, 1)
    one.answered(said.number, told(share), now)
    return one, said


def test_before_the_first_answer_there_is_nothing() -> None:
    one = machine()
    assert one.is_due(0.0, {})
    assert one.part("orders", 0.0) == Part(0, ends=True, why="its share is being asked for")


def test_a_lease_counts_from_before_the_call_was_sent() -> None:
    one = machine()
    said = one.call(0.0, BUSY, 1)
    one.answered(said.number, told(4), 3.0)
    assert one.part("orders", 4.9).opens
    assert not one.part("orders", TIMING.renew_s).opens
    assert one.part("orders", TIMING.close_s) == Part(0, ends=True, why=one.why())


def test_deadlines_leave_time_to_close_whatever_the_clocks() -> None:
    lasts_at_most = TIMING.close_s * TOLERATED_RATIO
    assert lasts_at_most < TIMING.lease_s * 0.75


def test_an_answer_that_comes_after_the_close_is_of_no_use() -> None:
    one = machine()
    said = one.call(0.0, BUSY, 1)
    one.answered(said.number, told(4), TIMING.close_s)
    assert one.part("orders", TIMING.close_s).size == 0
    assert "too late" in one.trouble


def test_only_the_answer_to_the_call_under_way_counts() -> None:
    one, said = leased(4)
    one.answered(said.number, told(6), 1.0)  # it comes twice
    assert one.part("orders", 1.0).size == 4
    second = one.call(2.0, BUSY, 1)
    one.answered(said.number, told(6), 2.1)
    assert one.part("orders", 2.1).size == 4
    one.answered(second.number, told(5), 2.2)
    assert one.part("orders", 2.2).size == 5


def test_what_may_be_opened_by_itself_is_said_until_a_lower_share_is_known() -> None:
    one, _ = leased(6)
    assert one.call(1.0, BUSY, 1).pools[0].limit == 6
    one.failed(2, "no", 1.5)
    said = one.call(2.0, BUSY, 1)
    assert said.pools[0].limit == 6
    one.answered(said.number, told(3), 2.0)
    assert one.call(3.0, BUSY, 1).pools[0].limit == 3


def test_what_was_given_back_is_said_at_once() -> None:
    calm = {"orders": Need(6, 1, 5)}
    one, _ = leased(6, needs=calm)
    said = one.call(1.0, calm, 1)
    one.answered(said.number, told(2), 1.0)
    assert one.due_at(calm) < 1.1  # it will not open the sixth any more
    said = one.call(1.1, calm, 1)
    one.answered(said.number, told(2), 1.0)
    assert one.due_at(calm) > 2.0  # five are open, as it has said
    assert one.due_at({"orders": Need(6, 1, 2)}) == pytest.approx(1.0 + TIMING.least_s)


def test_it_calls_sooner_for_a_new_pool_and_where_somebody_starves() -> None:
    one, _ = leased(3)
    assert one.due_at({"orders": Need(6, 1, 1)}) == pytest.approx(TIMING.next_refresh_s(1.0))
    assert one.due_at(BUSY) == pytest.approx(TIMING.hurry_s)
    assert one.due_at({**BUSY, "new": Need(6, 0, 0)}) == pytest.approx(TIMING.least_s)


def test_without_redis_it_holds_until_the_close_and_then_has_the_fallback() -> None:
    one = machine(fallback=2)
    said = one.call(0.0, BUSY, 1)
    one.answered(said.number, told(4), 0.0)
    said = one.call(3.0, BUSY, 1)
    one.failed(said.number, "connection refused", 3.1)
    assert one.part("orders", 3.1).size == 4
    lost = one.part("orders", TIMING.close_s)
    assert (lost.size, lost.opens, lost.ends) == (2, True, True)
    assert "connection refused; on_redis_lost=2 applies" in lost.why
    assert one.call(TIMING.close_s, BUSY, 1).pools[0].limit == 2


def test_a_successor_opens_nothing_and_closes_nothing_until_it_is_answered() -> None:
    one = machine(since=-2.0)
    assert one.part("orders", 0.0)[:3] == (None, False, False)
    assert one.call(0.0, BUSY, 1).pools[0].limit == 3  # what it has
    assert one.part("orders", TIMING.close_s - 2.0).size == 0


def test_a_successor_calls_again_as_soon_as_it_knows_the_cap() -> None:
    one = machine(since=-2.0)
    said = one.call(0.0, {"orders": Need(None, 0, 3, known=False)}, 0)
    assert said.pools[0].cap == -2
    one.answered(said.number, told(3), 0.0)
    assert one.part("orders", 0.0).size == 3
    assert one.due_at({"orders": Need(None, 0, 3, known=False)}) > 1.0
    assert one.due_at({"orders": Need(6, 1, 3)}) == pytest.approx(TIMING.least_s)
