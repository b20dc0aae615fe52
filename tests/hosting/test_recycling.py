"""A host that has lent or grown enough makes way for a new one, and nobody notices."""

from __future__ import annotations

from typing import Any

import pytest

from mppool import PoolManager
from tests.helpers import PATIENCE, Fork, is_alive, wait_until
from tests.hosting.things import Thing


def pid_of(pool: Any) -> int:
    with pool.checkout() as thing:
        found: int = thing.pid()
    return found


@pytest.mark.parametrize("options", [{"host_max_uses": 3}, {"host_max_memory": 1}], ids=str)
def test_it_makes_way_and_what_is_out_goes_on(
    manager: PoolManager, options: dict[str, int]
) -> None:
    pool = manager.pool("p", Thing, max_size=2, placement="host", timeout=PATIENCE, **options)  # type: ignore[arg-type]
    lease = pool.checkout()
    first = lease.resource.pid()
    later = wait_until(lambda: (pid := pid_of(pool)) != first and pid, "another host")
    # Both count under the one cap, and the old one still serves what it has lent.
    assert is_alive(first)
    assert lease.resource.pid() == first
    assert pool.stats()["size"] <= 2
    lease.release()
    wait_until(lambda: not is_alive(first), "the end of the old host")
    assert later != first
    pid_of(pool)


def test_processes_go_on_while_hosts_come_and_go(manager: PoolManager) -> None:
    pool = manager.pool(
        "p", Thing, max_size=2, placement="host", timeout=PATIENCE, host_max_uses=20
    )
    pid_of(pool)

    def works() -> int:
        seen: set[int] = set()
        done = 0
        while len(seen) < 2 or done < 50:
            seen.add(pid_of(pool))
            done += 1
        return done

    children = [Fork(works) for _ in range(3)]
    assert all(child.result() >= 50 for child in children)
    assert pool.stats()["size"] <= 2
