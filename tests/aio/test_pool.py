"""AsyncPool: lending, waiting, giving back, in one event loop."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mppool import (
    AsyncPool,
    AsyncRecipe,
    CheckoutTimeout,
    ConfigurationError,
    ConfigurationMismatch,
    LeaseReleased,
    OpenFailed,
    Opening,
    PoolClosed,
    PoolError,
    PoolManager,
    StaleLease,
    TooManyWaiting,
)
from mppool.base_manager import Manager
from mppool.rendezvous.locator import ServerLocator
from mppool.rendezvous.readiness import NotReadyYet
from tests.aio.things import CarefulRecipe, Thing, ThingRecipe, take_all, until
from tests.helpers import PATIENCE

Pool = AsyncPool[Thing]


def test_a_resource_is_lent_and_lent_again(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: Pool = manager.apool("p", recipe)

    async def main() -> None:
        async with pool.checkout() as first:
            first.touch()
        async with pool.checkout() as second:
            assert second is first
        lease = await pool.checkout()
        assert lease.resource is first
        assert not lease.released
        await lease.release()
        assert lease.released
        with pytest.raises(LeaseReleased):
            lease.resource  # noqa: B018
        async with await pool.checkout() as third:
            assert third is first
        assert (pool.idle_here, pool.in_use_here) == (1, 0)
        stats = await pool.stats()
        assert (stats["size"], stats["idle"], stats["counters"]["checkouts"]) == (1, 1, 4)

    asyncio.run(main())


def test_a_coroutine_function_with_hooks_will_do(manager: Manager) -> None:
    calls: list[str] = []

    async def open_thing(opening: Opening) -> Thing:
        calls.append(f"open {opening.number}")
        return Thing()

    async def reset(thing: Thing) -> None:
        calls.append("reset")

    def close(thing: Thing) -> None:
        calls.append("close")

    pool: Pool = manager.apool("p", open_thing, reset=reset, close=close, describe=lambda _: "it")

    async def main() -> None:
        async with pool.checkout():
            pass
        assert (await pool.stats())["resources"][0]["description"] == "it"
        assert await pool.close_idle() == 1

    asyncio.run(main())
    assert calls == ["open 0", "reset", "close"]


def test_a_warm_checkout_never_yields_to_the_loop(manager: Manager) -> None:
    pool: Pool = manager.apool("p", ThingRecipe())

    async def use() -> None:
        async with pool.checkout(timeout=20.0):
            pass

    async def main() -> None:
        await use()
        tasks, threads = asyncio.all_tasks(), threading.active_count()
        again = use()
        with pytest.raises(StopIteration):  # it ran to its end at once
            again.send(None)
        assert asyncio.all_tasks() == tasks
        assert threading.active_count() <= threads

    asyncio.run(main())


def test_all_hooks_run_in_the_loop(manager: Manager) -> None:
    recipe = CarefulRecipe()
    pool: Pool = manager.apool("p", recipe, check_idle_for=0.0)

    async def main() -> None:
        async with pool.checkout() as thing:
            assert (thing.checks, thing.resets) == (0, 0)
        async with pool.checkout() as thing:
            assert (thing.checks, thing.resets) == (1, 1)
        with pytest.raises(ZeroDivisionError):
            async with pool.checkout() as thing:
                raise ZeroDivisionError
        assert (thing.checks, thing.resets) == (3, 3)

    asyncio.run(main())
    assert not recipe.alive


def test_ten_thousand_tasks_are_served_in_their_order_without_threads(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: Pool = manager.apool("p", recipe, max_size=8, timeout=None)
    served: list[int] = []
    using = 0
    most_threads = 0

    async def use(number: int) -> None:
        nonlocal using, most_threads
        async with pool.checkout():
            using += 1
            assert using <= 8
            served.append(number)
            if number % 1000 == 0:
                most_threads = max(most_threads, threading.active_count())
            await asyncio.sleep(0)
            using -= 1

    async def main() -> None:
        for lease in await take_all(pool, 8):
            await lease.release()
        before = threading.active_count()
        await asyncio.gather(*(use(number) for number in range(10_000)))
        # Of the pool's own: what asks, what closes, what looks around.
        assert most_threads <= before + 3

    asyncio.run(main())
    assert sorted(served) == list(range(10_000))
    # What another thread hands to a task wakes it a turn later than what its own loop does.
    assert all(abs(place - number) <= 16 for place, number in enumerate(served))
    assert recipe.most == 8


def test_a_timeout_says_what_was_waited_for(manager: Manager) -> None:
    pool: Pool = manager.apool("p", ThingRecipe(), max_size=1)

    async def main() -> None:
        async with pool.checkout():
            began = time.monotonic()
            with pytest.raises(CheckoutTimeout, match=r"within 0\.1 s.*max_size=1"):
                await pool.checkout(timeout=0.1)
            assert time.monotonic() - began >= 0.1
            with pytest.raises(CheckoutTimeout, match="within 0 s"):
                await pool.checkout(timeout=0)
        async with pool.checkout(timeout=0):
            pass
        assert (await pool.stats())["counters"]["timeouts"] == 2

    asyncio.run(main())


def test_a_timeout_of_zero_opens_within_the_cap(manager: Manager) -> None:
    recipe = ThingRecipe()
    recipe.pause = 0.05
    pool: Pool = manager.apool("p", recipe, max_size=2)

    async def main() -> None:
        leases = [await pool.checkout(timeout=0) for _ in range(2)]
        assert len({lease.resource.number for lease in leases}) == 2
        for lease in leases:
            await lease.release()

    asyncio.run(main())


def test_what_cannot_be_opened_is_said(manager: Manager) -> None:
    async def refuse() -> Thing:
        raise OSError("no route")

    async def forget() -> None:
        return None

    broken: Pool = manager.apool("broken", refuse)
    empty: AsyncPool[None] = manager.apool("empty", forget)

    async def main() -> None:
        with pytest.raises(OpenFailed, match="no route") as caught:
            await broken.checkout()
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(OpenFailed, match="no route"):
            await broken.checkout()
        with pytest.raises(OpenFailed, match="returned None"):
            await empty.checkout()

    asyncio.run(main())


def test_more_waiting_tasks_than_may_are_refused(manager: Manager) -> None:
    pool: Pool = manager.apool("p", ThingRecipe(), max_size=1, max_waiting=2)

    async def main() -> None:
        async with pool.checkout():
            waiting = [asyncio.ensure_future(pool.checkout(timeout=5)._lease()) for _ in range(3)]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            with pytest.raises(TooManyWaiting):
                await done.pop()
        for task in waiting:
            if not isinstance(task.exception() if task.done() else None, TooManyWaiting):
                await (await task).release()

    asyncio.run(main())


def test_an_opening_outlives_the_task_that_wanted_it(manager: Manager) -> None:
    recipe = ThingRecipe()
    recipe.pause = 0.2
    pool: Pool = manager.apool("p", recipe, max_size=1)

    async def main() -> None:
        impatient = asyncio.ensure_future(pool.checkout(timeout=10)._lease())
        await until(lambda: recipe.alive, "the opening to begin")
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        await until(lambda: pool.idle_here == 1, "the resource to lie on the shelf")
        async with pool.checkout(timeout=0):
            pass

    asyncio.run(main())


def test_a_lost_lease_costs_its_resource_and_not_its_slot(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: Pool = manager.apool("p", recipe, max_size=1)

    async def main() -> None:
        first = (await pool.checkout()).resource
        gc.collect()
        async with pool.checkout() as second:
            assert second is not first
        assert (await pool.stats())["counters"]["leaked"] == 1

    asyncio.run(main())


def test_an_overdue_lease_is_closed_in_its_loop(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: Pool = manager.apool("p", recipe, max_size=1, max_lease_kill=0.05)

    async def main() -> None:
        lease = await pool.checkout()
        async with pool.checkout(timeout=10):
            pass
        with pytest.raises(StaleLease):
            lease.resource  # noqa: B018
        await lease.release()

    asyncio.run(main())
    assert recipe.most == 1


def test_what_is_idle_is_checked_and_closed_in_its_loop(manager: Manager) -> None:
    recipe = CarefulRecipe()
    pool: Pool = manager.apool("p", recipe, max_idle=0.3, check_interval=0.02)

    async def main() -> None:
        for _ in range(10):  # a busy machine may not come to check it in time
            async with pool.checkout() as thing:
                pass
            await until(lambda: thing.closed, "the end of what is idle")
            assert not thing.abandoned
            if thing.checks:
                break
        assert thing.checks

    asyncio.run(main())


def test_a_check_that_says_no_costs_the_caller_nothing(manager: Manager) -> None:
    class Doubtful(ThingRecipe):
        async def check(self, thing: Thing) -> bool:
            return False

    class Hanging(ThingRecipe):
        async def check(self, thing: Thing) -> bool:
            await asyncio.sleep(3600)
            return True

    doubtful: Pool = manager.apool("d", Doubtful(), check_idle_for=0.0)
    hanging: Pool = manager.apool("h", Hanging(), check_idle_for=0.0, check_timeout=0.05)

    async def main() -> None:
        for pool in (doubtful, hanging):
            async with pool.checkout() as first:
                pass
            async with pool.checkout() as second:
                assert second is not first
            await until(lambda first=first: first.closed, "the end of the first")
        assert (await hanging.stats())["counters"]["hung_checks"] == 1

    asyncio.run(main())


def test_min_size_is_opened_in_the_loop(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: Pool = manager.apool("p", recipe, max_size=4, min_size=3)

    async def main() -> None:
        assert await pool.wait_ready(timeout=10)
        assert len(recipe.alive) == 3
        assert {thing.loop for thing in recipe.alive} == {asyncio.get_running_loop()}

    asyncio.run(main())
    assert not recipe.alive


def test_resize_reset_drain_and_close(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: Pool = manager.apool("p", recipe, max_size=1)

    async def main() -> None:
        await pool.resize(max_size=3)
        leases = await take_all(pool, 3)
        assert await pool.drain(timeout=0.05) == 3
        for lease in leases:
            await lease.release()
        await until(lambda: not recipe.alive, "the end of what was drained")
        async with pool.checkout() as old:
            pass
        await pool.reset()
        async with pool.checkout() as new:
            assert new is not old
        await pool.aclose()
        assert not recipe.alive
        with pytest.raises(PoolClosed):
            await pool.checkout()

    asyncio.run(main())


def test_whoever_releases_waits_for_the_reset_where_nobody_else_wants_the_resource(
    manager: Manager,
) -> None:
    async def slow_reset(_: Thing) -> None:
        said.append("reset begins")
        await go_on.wait()
        said.append("reset ends")

    async def wait() -> None:
        async with pool.checkout():
            said.append("lent")

    async def main() -> None:
        async with pool.checkout():
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0.05)
        said.append("released")
        await asyncio.sleep(0)
        go_on.set()
        await waiting
        said.append("released again")

    said: list[str] = []
    go_on = asyncio.Event()
    recipe = ThingRecipe()
    recipe.reset = slow_reset  # type: ignore[method-assign]
    pool: Pool = manager.apool("p", recipe, max_size=1)
    asyncio.run(main())
    one = ["reset begins", "reset ends"]
    assert said == ["released", *one, "lent", *one, "released again"]


def test_the_others_ask_where_the_one_that_has_asked_was_refused(manager: Manager) -> None:
    """The books know of as many tickets as there are slots, here of one. It is refused at the timeout of its task."""

    async def wait(timeout: float) -> None:
        async with pool.checkout(timeout=timeout):
            pass

    async def main() -> None:
        # What is used for long is not starved for soon: nothing else makes the tasks look again.
        pool._lender.local.durations.use_s = PATIENCE
        lease = await pool.checkout()
        first = asyncio.create_task(wait(0.5))
        await asyncio.sleep(0.2)
        others = [asyncio.create_task(wait(PATIENCE / 2)) for _ in range(3)]
        with pytest.raises(CheckoutTimeout):
            await first
        await asyncio.sleep(0.1)
        await lease.discard()
        await asyncio.gather(*others)

    pool: Pool = manager.apool("p", ThingRecipe(), max_size=1)
    asyncio.run(main())


def test_closed_everywhere_and_declared_again(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: Pool = manager.apool("p", recipe)

    async def main() -> None:
        async with pool.checkout():
            pass
        await pool.aclose(everywhere=True)
        with pytest.raises(PoolClosed):
            await pool.checkout()
        again: Pool = manager.apool("p", recipe)
        assert again == pool
        async with again.checkout():
            pass

    asyncio.run(main())


def test_identities_have_their_own_resources(manager: Manager) -> None:
    class ForEach(AsyncRecipe[str]):
        async def open(self, opening: Opening) -> str:
            return str(opening.identity)

    pool = manager.apool("p", ForEach(), max_size=4)

    async def main() -> None:
        for identity in ("ann", "bob", "ann"):
            async with pool.checkout(identity=identity) as resource:
                assert resource == identity
        async with pool.checkout() as resource:
            assert resource == "None"
        resources = (await pool.stats())["resources"]
        assert {one["identity_key"] for one in resources} == {"ann", "bob", None}

    asyncio.run(main())


def test_what_cannot_be_a_recipe_or_an_option_is_refused(manager: Manager) -> None:
    def plain() -> Thing:
        return Thing()

    with pytest.raises(ConfigurationError, match="not a coroutine function"):
        manager.apool("p", plain)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="the class ThingRecipe itself"):
        manager.apool("p", ThingRecipe)  # type: ignore[type-var]
    with pytest.raises(ConfigurationError, match="hooks as keyword arguments"):
        manager.apool("p", ThingRecipe(), reset=plain)
    with pytest.raises(ConfigurationError, match="max_size"):
        manager.apool("p", ThingRecipe(), max_size=0)
    pool: Pool = manager.apool("p", ThingRecipe())
    with pytest.raises(ConfigurationError, match="timeout=-1"):
        pool.checkout(timeout=-1)


def test_a_name_is_of_one_kind_within_a_process(manager: Manager) -> None:
    manager.apool("tasks", ThingRecipe())
    manager.pool("threads", dict)
    with pytest.raises(ConfigurationMismatch, match=r"manager\.apool"):
        manager.pool("tasks", dict)
    with pytest.raises(ConfigurationMismatch, match=r"manager\.pool"):
        manager.apool("threads", ThingRecipe())


def test_a_checkout_is_used_once_and_asynchronously(manager: Manager) -> None:
    pool: Pool = manager.apool("p", ThingRecipe())

    async def main() -> None:
        lease = await pool.checkout()
        with pytest.raises(PoolError, match="async with"), lease:  # type: ignore[attr-defined]
            pass
        await lease.discard()
        await lease.release()  # refused, and harmless
        assert (await pool.stats())["counters"]["double_releases"] == 1

    asyncio.run(main())


def test_outside_of_an_event_loop_the_way_out_is_named(manager: Manager) -> None:
    pool: Pool = manager.apool("p", ThingRecipe())
    stray: Any = pool.checkout()._lease()
    with pytest.raises(ConfigurationError, match=r"trio\.to_thread"):
        stray.send(None)


def test_a_server_that_starts_slowly_is_waited_for(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = ServerLocator.connect
    early = iter([NotReadyYet("the server was started but is not ready yet")])

    def slowly(locator: ServerLocator, deadline: float) -> socket.socket:
        for error in early:
            raise error
        return connect(locator, deadline)

    monkeypatch.setattr(ServerLocator, "connect", slowly)
    manager = PoolManager("slow", linger=0.2)
    pool: AsyncPool[Thing] = manager.apool("p", ThingRecipe(), max_size=1)

    async def main() -> None:
        (lease,) = await take_all(pool, 1)
        await lease.release()

    asyncio.run(main())
    assert list(early) == []
    manager.shutdown()
