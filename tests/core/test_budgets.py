"""One cap over several pools: shares by demand, `min_size`, what lies idle, and the next server."""

from __future__ import annotations

from typing import Any

import pytest

from mppool.core.events import ClosePool, Resize, ResizeBudget
from mppool.core.shares import Claim, max_min
from mppool.options import PoolOptions
from tests.core.model.house import BUDGET, House, Thing


def pools(**each: dict[str, Any]) -> dict[str, PoolOptions]:
    return {name: PoolOptions(budget=BUDGET, **options) for name, options in each.items()}


def used(house: House, pool: str, process: int = 0) -> Thing:
    """Check out and open."""
    house.want(house.living[process], pool)
    thing = max(house.things.values(), key=lambda one: one.number)
    assert thing.state == "opening", "it has to wait"
    house.opens(thing)
    return thing


def flood(house: House, *names: str, waiting: int = 6) -> None:
    """So many wait in each of these pools, in every process."""
    for name in names:
        for process in house.living:
            there = sum(w[0] == name and p == process for (p, _), w in house.waiting.items())
            for _ in range(waiting - there):
                house.want(process, name)


def run(house: House, seconds: float, *names: str) -> dict[str, float]:
    """These pools are flooded for a while; which part of what was in use each of them had."""
    end, seen = house.now + seconds, dict.fromkeys(names, 0)
    while house.now < end:
        flood(house, *names)
        house.wait(0.01)
        house.step()
        for name in names:
            seen[name] += house.held(name)
    return {name: count / sum(seen.values()) for name, count in seen.items()}


@pytest.mark.parametrize(
    ("total", "claims", "shares"),
    [
        (10, [Claim(10, 20), Claim(0, 5)], [5, 5]),
        (10, [Claim(10, 20), Claim(0, 2)], [8, 2]),
        (10, [Claim(3, 9), Claim(3, 9), Claim(4, 9)], [3, 3, 4]),  # who has it keeps it
        (10, [Claim(4, 9), Claim(3, 9), Claim(3, 9)], [4, 3, 3]),
        (10, [Claim(9, 20, 2), Claim(0, 20, 6)], [4, 6]),
        (10, [Claim(1, 3), Claim(2, 4)], [3, 4]),
        (1, [Claim(1, 5), Claim(0, 3)], [1, 0]),
        (2, [Claim(2, 5, 3), Claim(0, 3, 2)], [1, 1]),  # floors that are more than there is
        (0, [Claim(1, 1)], [0]),
        (5, [], []),
    ],
)
def test_shares_are_max_min(total: int, claims: list[Claim], shares: list[int]) -> None:
    assert max_min(total, claims) == shares


def test_pools_together_open_no_more_than_their_budget_allows() -> None:
    house = House(3, pools(orders={}, reports={}))
    used(house, "orders")
    used(house, "orders", 1)
    used(house, "reports")
    house.want(house.living[1], "reports")
    assert house.held() == 3
    assert len(house.waiting) == 1


def test_a_pool_that_wants_more_gets_its_share_of_one_that_has_it_all() -> None:
    house = House(6, pools(orders={}, reports={}))
    for _ in range(6):
        used(house, "orders")
    house.wait(1.0)
    shares = run(house, 1.0, "orders", "reports")
    assert house.held("orders") == house.held("reports") == 3, shares


def test_what_one_pool_does_not_want_the_others_share() -> None:
    house = House(9, pools(orders={}, reports={}, mail={"max_size": 1}))
    run(house, 1.0, "orders", "reports", "mail")
    assert [house.held(name) for name in house.pools] == [4, 4, 1]


def test_a_pool_that_is_flooded_has_what_others_leave_idle() -> None:
    house = House(4, pools(orders={}, reports={}))
    things = [used(house, "reports") for _ in range(4)]
    for thing in things:
        house.release(thing)
    house.wait(1.0)
    flood(house, "orders")
    house.until_served()
    assert house.held("orders") == 4


def test_a_moment_of_idleness_takes_nothing_from_a_pool() -> None:
    house = House(2, pools(orders={}, reports={}), opening_s=0.3)
    for thing in [used(house, "reports") for _ in range(2)]:
        house.release(thing)
    flood(house, "orders", waiting=1)
    assert house.held("reports") == 2
    house.wait(0.1)
    assert house.held("orders") == 0
    house.wait(0.5)
    house.step()
    assert house.held("orders") >= 1


def test_uniform_load_moves_nothing_between_pools() -> None:
    house = House(5, pools(orders={}, reports={}))
    run(house, 2.0, "orders", "reports")
    before = set(house.things)
    run(house, 3.0, "orders", "reports")
    assert set(house.things) == before


def test_more_pools_than_slots_take_turns() -> None:
    house = House(1, pools(orders={}, reports={}, mail={}), processes=1)
    shares = run(house, 6.0, "orders", "reports", "mail")
    assert all(share > 0.2 for share in shares.values()), shares


def test_what_min_size_keeps_is_not_taken() -> None:
    house = House(4, pools(orders={}, reports={"min_size": 2}))
    things = [used(house, "reports") for _ in range(2)]
    for thing in things:
        house.release(thing)
    house.wait(1.0)
    flood(house, "orders")
    house.until_served()
    assert (house.held("orders"), house.held("reports")) == (2, 2)


def test_what_has_not_earned_its_opening_is_not_taken() -> None:
    house = House(4, pools(orders={}, reports={}), opening_s=1.0)
    things = [used(house, "orders") for _ in range(4)]
    house.want(house.living[0], "reports")
    house.want(house.living[0], "orders")
    house.release(things[0])
    assert things[0].state == "used"
    house.wait(10.0)
    house.release(things[0])
    assert things[0].state == "closing"


def test_a_pool_gets_its_min_size_back_at_once() -> None:
    house = House(4, pools(orders={}, reports={"min_size": 2}), opening_s=10.0)
    for _ in range(4):
        used(house, "orders")
    house.want(house.living[0], "reports")  # nothing has earned its opening yet
    house.step()
    house.step()
    assert house.held("reports") == 2


def test_a_pool_that_cannot_open_takes_nothing_from_others() -> None:
    house = House(2, pools(orders={}, reports={"fail_fast": False}))
    house.want(house.living[0], "reports")
    for _ in range(3):
        house.fails(next(iter(house.things.values())))
        house.want(house.living[0], "reports")
        house.wait(0.01)
        if not house.things:
            break
    first = used(house, "orders")
    second = used(house, "orders")
    house.release(first)
    house.release(second)
    assert {first.state, second.state} == {"idle"}


def test_bounds_within_a_pool_are_no_reason_to_take_slots() -> None:
    house = House(3, pools(orders={}, reports={"max_per_process": 1}), processes=1)
    used(house, "reports")
    things = [used(house, "orders") for _ in range(2)]
    house.want(house.living[0], "reports")
    house.wait(1.0)
    for thing in things:
        house.release(thing)
    house.wait(1.0)
    assert [thing.state for thing in things] == ["idle", "idle"]


def test_a_lowered_budget_is_reached_as_resources_come_back() -> None:
    house = House(6, pools(orders={}, reports={}))
    things = [used(house, name) for name in ("orders", "reports") for _ in range(3)]
    house.command(ResizeBudget(BUDGET, 2))
    assert house.held() == 6
    for thing in things:
        house.release(thing)
    house.step()
    assert house.held() == 2
    assert [house.held(name) for name in house.pools] == [1, 1]


def test_a_raised_budget_serves_those_who_wait() -> None:
    house = House(1, pools(orders={}, reports={}))
    used(house, "orders")
    house.want(house.living[0], "reports")
    house.command(ResizeBudget(BUDGET, 2))
    assert house.held("reports") == 1


def test_a_process_that_dies_frees_its_slots_for_all_pools() -> None:
    house = House(2, pools(orders={}, reports={}))
    used(house, "orders")
    used(house, "orders")
    house.want(house.living[1], "reports")
    house.dies(house.living[0])
    assert house.held("reports") == 1


def test_who_stops_waiting_leaves_the_slot_to_others() -> None:
    house = House(2, pools(orders={}, reports={}))
    first = used(house, "orders")
    used(house, "orders")
    house.wait(1.0)
    house.want(house.living[0], "reports")
    house.release(first)
    assert first.state == "closing"
    house.gives_up(next(iter(house.waiting)))
    house.want(house.living[0], "orders")
    house.closes(first)
    assert house.held("orders") == 2


def test_a_closed_pool_wants_nothing() -> None:
    house = House(2, pools(orders={}, reports={"min_size": 1}))
    house.release(used(house, "reports"))
    house.command(ClosePool("reports"))
    house.step()
    things = [used(house, "orders") for _ in range(2)]
    for thing in things:
        house.release(thing)
    assert house.held("orders") == 2


# --- the next server ---------------------------------------------------------------------------------------------


def test_the_next_server_counts_what_only_the_journal_tells_of() -> None:
    house = House(3, pools(orders={}, reports={}))
    used(house, "orders", 0)
    used(house, "orders", 0)
    house.server_dies()
    house.knows[house.living[1]] = "reports"  # the second process has no other pool
    house.attach(house.living[1])
    used(house, "reports", 1)
    house.want(house.living[1], "reports")
    assert len(house.waiting) == 1
    assert next(iter(house.books.budgets)).total.size == 3


def test_what_only_the_journal_tells_of_is_free_when_its_process_dies() -> None:
    house = House(2, pools(orders={}, reports={}))
    used(house, "orders", 0)
    used(house, "orders", 0)
    house.server_dies()
    house.knows[house.living[1]] = "reports"
    house.attach(house.living[1])
    house.want(house.living[1], "reports")
    assert house.waiting
    house.attached.add(house.living[0])
    house.dies(house.living[0])
    assert not house.waiting


def test_a_cap_that_was_set_holds_under_the_next_server() -> None:
    house = House(5, pools(orders={}, reports={}))
    house.command(ResizeBudget(BUDGET, 2))
    house.server_dies()
    for process in list(house.living):
        house.attach(process)
    assert house.cap_in_force() == 2


def test_the_newest_declaration_of_a_budget_wins() -> None:
    house = House(5, pools(orders={}))
    house.cap = 3
    house.sessions += 1
    newer = house.declarations()[0]
    budget = newer.budget
    assert budget is not None
    house.declarations = lambda: [  # type: ignore[method-assign]
        newer.__class__("orders", newer.options, 0.0, "k", budget=budget.__class__(BUDGET, 3, 0.0))
    ]
    house.attach(house.living[1])
    assert house.cap_in_force() == 3


def test_a_pool_may_change_its_budget() -> None:
    house = House(2, pools(orders={}, reports={}))
    used(house, "orders")
    used(house, "orders")
    house.want(house.living[0], "reports")
    without = house.declarations()[0]
    options = PoolOptions()
    house.pools["orders"] = options
    house.declarations = lambda: [  # type: ignore[method-assign]
        without.__class__("orders", options, 0.0, "k")
    ]
    house.attach(house.living[1])
    assert house.books.pools["orders"].budget is None
    assert house.held("reports") == 1
    assert {record.budget for record in house.slots.values() if record.pool == "orders"} == {""}


def test_a_pool_below_its_own_cap_waits_for_the_budget_and_is_told_so() -> None:
    house = House(1, pools(orders={}, reports={}))
    used(house, "orders")
    pool = house.books.pools["reports"]
    assert "budget 'db' has 1 of max_size=1 in use: 1 of pool 'orders'" in pool.refusals.how_full(
        "k", house.now
    )


def test_a_pools_own_cap_counts_within_its_budget() -> None:
    house = House(4, pools(orders={"max_size": 1}, reports={}))
    used(house, "orders")
    house.want(house.living[0], "orders")
    assert house.waiting
    house.command(Resize("orders", 2, True, None))
    assert not house.waiting
