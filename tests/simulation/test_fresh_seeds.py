"""Fresh seeds each time, in parts that the workers of pytest-xdist share. What was simulated is told in pytest's summary.

MPPOOL_SIMULATION_AMOUNT is a part of 20 simulated hours and 100,000 faults, or a multiple. What was added to the worlds last
is in those of the first part alone, until some thousand seeds with it have found nothing.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable

import pytest

from tests.simulation.runs import Total, run_many, shrink, told
from tests.simulation.world import Outcome

HOURS, FAULTS = 20.0, 100_000
AMOUNT = float(os.environ.get("MPPOOL_SIMULATION_AMOUNT", "1"))
PARTS = max(2, round(10 * AMOUNT))
SEEDS_AT_A_TIME = 3
MOST_RUNS = 40
"""To shrink a history with."""


@pytest.mark.timeout(1200)  # it goes on until there is enough, however busy the machine is
@pytest.mark.parametrize("part", range(PARTS))
def test_fresh_seeds_keep_all_promises(
    part: int, record_property: Callable[[str, object], None]
) -> None:
    first = random.SystemRandom().randrange(1 << 40)
    print(f"part {part}: seeds from {first} on")
    total = simulated(first, AMOUNT / PARTS, established=part > 0)
    record_property("simulated", (first, total.runs, total.seconds, total.count, total.cpu_s))
    assert not total.failed, _told_shortly(total.failed[0])
    assert total.seconds >= HOURS * 3600 * AMOUNT / PARTS
    assert total.count >= FAULTS * AMOUNT / PARTS


def _told_shortly(failed: Outcome) -> str:
    return f"{told(failed)}\n\nshrunk: {told(shrink(failed, MOST_RUNS))}"


def simulated(first: int, amount: float, *, established: bool) -> Total:
    """Such a part of all, or until something is wrong."""
    total, numbers = Total(), itertools.count(first)
    while not total.failed:
        total.include(run_many(itertools.islice(numbers, SEEDS_AT_A_TIME), established=established))
        if total.seconds >= HOURS * 3600 * amount and total.count >= FAULTS * amount:
            break
    return total
