"""What users are promised of many machines, with the real books and servers' parts, in simulated time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mppool.options import PoolOptions
from tests.core.model.house import BUDGET
from tests.machines.furnished import LEASE_S, REFRESH_S, STEP_S, Street
from tests.machines.redis_server import RedisServer

ORDERS = {"orders": PoolOptions(max_size=6)}


@pytest.fixture
def street(
    any_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Street]:
    client = any_redis.client()
    yield Street(client, tmp_path, monkeypatch, cap=6)
    client.close()


def test_skewed_load_moves_all_of_the_capacity_within_two_refreshes(street: Street) -> None:
    first, second = (street.add(name, ORDERS) for name in ("a", "b"))
    first.load["orders"] = 6
    street.run(2 * LEASE_S)
    for of, to in ((first, second), (second, first)) * 3:
        assert (of.held(), to.held()) == (6, 0)
        of.load["orders"], to.load["orders"] = 0, 6
        street.run(2 * REFRESH_S)
        assert (of.held(), to.held()) == (0, 6)
        street.run(REFRESH_S * 1.7 + STEP_S)  # each time at another point of a refresh


def test_half_of_it_moves_to_a_machine_that_wants_as_much_within_one_refresh(
    street: Street,
) -> None:
    first, second = (street.add(name, ORDERS) for name in ("a", "b"))
    first.load["orders"] = 6
    street.run(2 * LEASE_S)
    second.load["orders"] = 6
    street.run(REFRESH_S + 0.5)
    assert (first.held(), second.held()) == (3, 3)


def test_the_share_of_a_dead_machine_is_anothers_within_its_lease(street: Street) -> None:
    first, second = (street.add(name, ORDERS) for name in ("a", "b"))
    for machine in street.machines:
        machine.load["orders"] = 6
    street.run(3 * LEASE_S)
    assert (first.held(), second.held()) == (3, 3)
    first.alive = False
    street.run(LEASE_S + REFRESH_S / 2)
    assert second.held() == 6


def test_a_budget_holds_over_machines_and_pools_and_each_has_its_share_within_a_second(
    street: Street,
) -> None:
    pools = {
        name: PoolOptions(max_size=6, budget=BUDGET, check_idle_for=None)
        for name in ("orders", "reports")
    }
    first, second = (street.add(name, pools) for name in ("a", "b"))
    for machine in street.machines:
        machine.load["orders"] = 6
    street.run(3 * LEASE_S)
    assert [machine.held("orders") for machine in street.machines] == [3, 3]
    for machine in street.machines:
        machine.load["reports"] = 6
    street.run(1.0)
    for machine in street.machines:
        assert min(machine.held("orders"), machine.held("reports")) == 1
    first.load.clear()
    street.run(2 * REFRESH_S)
    assert (second.held("orders"), second.held("reports")) == (3, 3)
