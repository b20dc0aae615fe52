"""All that shares one limit at once: two pools on a budget, lanes, tenants of which one floods both.

Within a second everybody has its share.
"""

from __future__ import annotations

from collections import Counter
from itertools import cycle

from mppool.options import PoolOptions
from tests.core.model.house import BUDGET, House

CAP, TENANTS, WEB, FLOOD = 20, 200, 4, 11
STEP_S = 0.01


class Crowd:
    """One tenant floods `orders`, in the lane of batch jobs, and `reports`, where floods names it."""

    def __init__(self) -> None:
        options = {
            "orders": PoolOptions(
                budget=BUDGET, max_size=CAP // 2, lanes={"web": WEB, "batch": CAP // 2 - WEB}
            ),
            "reports": PoolOptions(budget=BUDGET, max_size=CAP),
        }
        self.house = House(CAP, options, processes=2, opening_s=STEP_S)
        self._turns = cycle(self.house.living)
        self.floods: list[tuple[str, str, str | None]] = []

    def want(self, pool: str, key: str, lane: str | None = None) -> None:
        self.house.want(next(self._turns), pool, key, lane)

    def run(self, seconds: float) -> Counter[str]:
        """A use takes a step, so does an opening. How many of `orders` were in use at most, by lane."""
        most: Counter[str] = Counter()
        for _ in range(round(seconds / STEP_S)):
            waiting = Counter(self.house.waiting.values())
            for flood in self.floods:
                for _ in range(FLOOD - waiting[flood]):
                    self.want(*flood)
            self.house.wait(STEP_S)
            self.house.step()
            most |= Counter(
                thing.lane
                for thing in self.house.things.values()
                if thing.pool == "orders" and thing.lane and thing.state in ("used", "opening")
            )
        return most

    def tenants_waiting(self) -> int:
        return sum(key.startswith("tenant") for _, key, _ in self.house.waiting.values())


def test_within_a_second_every_pool_lane_and_tenant_has_its_share() -> None:
    crowd = Crowd()
    house = crowd.house
    crowd.floods = [("reports", "flood", None)]
    crowd.run(0.3)
    assert house.held("reports") == CAP
    crowd.floods.append(("orders", "flood", "batch"))
    assert crowd.run(0.3) == {"batch": CAP // 2}
    assert (house.held("orders"), house.held("reports")) == (CAP // 2, CAP // 2)
    for number in range(TENANTS - 1):
        crowd.want("reports", f"tenant {number}")
    crowd.floods.append(("orders", "flood", "web"))
    crowd.run(1.0)
    assert crowd.tenants_waiting() == 0
    assert (house.held("orders"), house.held("reports")) == (CAP // 2, CAP // 2)
    assert crowd.run(0.3) == {"batch": CAP // 2 - WEB, "web": WEB}
