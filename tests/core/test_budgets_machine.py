"""Any step of anybody in any order, in pools that share a budget: what must never be is in `House.check`."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mppool.core.events import Resize, ResizeBudget
from mppool.options import PoolOptions
from tests.core.model.house import BUDGET, House, Thing

LONG = os.environ.get("MPPOOL_HYPOTHESIS") == "long"
ANY = st.integers(0, 10**6)
POOLS = ("orders", "reports", "mail")


class BudgetsMachine(RuleBasedStateMachine):
    """Two or three pools on one budget."""

    @initialize(
        cap=st.integers(1, 6),
        pools=st.lists(
            st.tuples(
                st.integers(1, 5),
                st.integers(0, 1),
                st.sampled_from([None, None, 1, 2]),
                st.sampled_from([None, None, {"web": 1}]),
            ),
            min_size=2,
            max_size=3,
        ),
        processes=st.integers(1, 3),
        opening_s=st.sampled_from([0.0, 0.01, 0.3]),
    )
    def begin(
        self,
        cap: int,
        pools: list[tuple[int, int, int | None, dict[str, int] | None]],
        processes: int,
        opening_s: float,
    ) -> None:
        left = cap - 1  # so that something is left to share
        options = {}
        for name, (most, least, per, lanes) in zip(POOLS, pools, strict=False):
            kept = min(least, left)
            left -= kept
            options[name] = PoolOptions(
                max_size=most,
                min_size=kept,
                max_per_process=per,
                budget=BUDGET,
                lanes=lanes,
                max_idle=None,
            )
        self.house = House(cap, options, processes, opening_s)

    def thing(self, choice: int, *states: str) -> Thing | None:
        found = [
            thing
            for thing in self.house.things.values()
            if thing.state in states and thing.process in self.house.attached
        ]
        return found[choice % len(found)] if found else None

    @rule(
        choice=ANY,
        pool=ANY,
        key=st.sampled_from("kkj"),
        lane=st.sampled_from([None, "web"]),
        timeout=st.sampled_from([None, None, 0.0]),
    )
    def somebody_wants(
        self, choice: int, pool: int, key: str, lane: str | None, timeout: float | None
    ) -> None:
        house = self.house
        process = house.living[choice % len(house.living)]
        if process in house.attached and len(house.waiting) < 12:
            name = list(house.pools)[pool % len(house.pools)]
            house.want(process, name, key, lane, timeout)

    @rule(choice=ANY)
    def it_opens(self, choice: int) -> None:
        if thing := self.thing(choice, "opening"):
            self.house.opens(thing)

    @rule(choice=ANY)
    def it_fails(self, choice: int) -> None:
        if thing := self.thing(choice, "opening"):
            self.house.fails(thing)

    @rule(choice=ANY)
    def it_is_released(self, choice: int) -> None:
        if thing := self.thing(choice, "used"):
            self.house.release(thing)

    @rule(choice=ANY)
    def it_has_closed(self, choice: int) -> None:
        if thing := self.thing(choice, "closing", "used", "idle"):
            self.house.closes(thing)

    @rule(choice=ANY)
    def somebody_gives_up(self, choice: int) -> None:
        names = [name for name in self.house.waiting if name[0] in self.house.attached]
        if names:
            self.house.gives_up(names[choice % len(names)])

    @rule(choice=ANY)
    def a_process_dies(self, choice: int) -> None:
        attached = [one for one in self.house.living if one in self.house.attached]
        if attached:
            self.house.dies(attached[choice % len(attached)])

    @rule(sure=st.integers(0, 4))
    def the_server_dies(self, sure: int) -> None:
        if sure == 3:
            self.house.server_dies()

    @rule(choice=ANY)
    def a_process_attaches(self, choice: int) -> None:
        missing = [one for one in self.house.living if one not in self.house.attached]
        if missing:
            self.house.attach(missing[choice % len(missing)])

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.1, 0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.house.wait(seconds)

    @rule(cap=st.integers(1, 7))
    def the_budget_is_resized(self, cap: int) -> None:
        if any(True for _ in self.house.books.budgets):
            kept = sum(options.min_size for options in self.house.pools.values())
            # What `min_size` keeps is for nobody else: something must be left to share.
            self.house.command(ResizeBudget(BUDGET, max(cap, kept + 1)))

    @rule(pool=ANY, cap=st.integers(1, 5))
    def a_pool_is_resized(self, pool: int, cap: int) -> None:
        name = list(self.house.pools)[pool % len(self.house.pools)]
        if name in self.house.books.pools:
            self.house.command(Resize(name, cap, True, None))

    def teardown(self) -> None:
        if hasattr(self, "house"):
            self.house.until_served()


def machine_settings() -> Any:
    return settings(
        max_examples=int(os.environ.get("MPPOOL_EXAMPLES", "3000")) if LONG else 25,
        stateful_step_count=120 if LONG else 50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


BudgetsMachine.TestCase.settings = machine_settings()
TestBudgets = BudgetsMachine.TestCase
