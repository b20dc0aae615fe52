"""Event loops of all kinds, their ends, and several of them at a time."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mppool import AsyncPool, CheckoutTimeout, ConfigurationError, Opening, StaleLease
from mppool.aio import bridge
from mppool.aio.homes import Home
from mppool.base_manager import Manager
from mppool.core.events import Declare, Event
from mppool.recipe import LoopIsOver
from tests.aio.things import Thing, ThingRecipe, take_all, until
from tests.helpers import PATIENCE, wait_until

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def run_plainly(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


def run_in_uvloop(main: Coroutine[Any, Any, Any]) -> Any:
    uvloop = pytest.importorskip("uvloop")
    return uvloop.run(main)


def run_in_anyio(main: Coroutine[Any, Any, Any]) -> Any:
    anyio = pytest.importorskip("anyio")

    async def start() -> Any:
        return await main

    return anyio.run(start)


@pytest.fixture(params=[run_plainly, run_in_uvloop, run_in_anyio])
def run(request: pytest.FixtureRequest) -> Run:
    made: Run = request.param
    return made


async def use_all(pool: AsyncPool[Thing], size: int) -> list[Thing]:
    leases = await take_all(pool, size)
    things = [lease.resource for lease in leases]
    for lease in leases:
        lease.resource.touch()
        await lease.release()
    return things


def test_a_loop_that_ends_closes_what_it_opened(manager: Manager, run: Run) -> None:
    recipe = ThingRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=2)
    first = run(use_all(pool, 2))
    assert not recipe.alive
    assert not any(thing.abandoned for thing in first)
    second = run(use_all(pool, 2))
    assert not {thing.number for thing in first} & {thing.number for thing in second}
    assert recipe.most == 2


def test_waiting_and_cancelling_in_other_loops(manager: Manager, run: Run) -> None:
    recipe = ThingRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=1)

    async def use(pause: float) -> None:
        async with pool.checkout(timeout=20) as thing:
            thing.touch()
            await asyncio.sleep(pause)

    async def main() -> None:
        tasks = [asyncio.ensure_future(use(0.001)) for _ in range(50)]
        await asyncio.sleep(0.01)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.wait(tasks)
        async with pool.checkout():
            with pytest.raises(CheckoutTimeout):
                await pool.checkout(timeout=0.05)

    run(main())
    assert recipe.most == 1
    assert not recipe.alive


def test_a_loop_that_is_closed_without_a_word(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=2)
    loop = asyncio.new_event_loop()
    lease = loop.run_until_complete(pool.checkout()._lease())
    loop.run_until_complete(use_all(pool, 1))
    loop.close()
    # What is idle and what was lent go when another loop wants it.
    things = asyncio.run(use_all(pool, 2))
    assert len(things) == 2
    assert recipe.most == 2
    with pytest.raises(StaleLease, match="event loop"):
        lease.resource  # noqa: B018
    assert not recipe.alive


def test_a_loop_whose_end_is_being_noticed_leaves_nothing_to_the_next(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next loop begins while another thread has noticed the end, and has not yet closed what is idle."""
    recipe = ThingRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=1)
    loop = asyncio.new_event_loop()
    old = loop.run_until_complete(use_all(pool, 1))
    loop.close()
    new: list[Thing] = []
    give_up = Home.give_up

    def late(home: Home) -> None:
        monkeypatch.setattr(Home, "give_up", give_up)
        new.extend(asyncio.run(use_all(pool, 1)))
        give_up(home)

    monkeypatch.setattr(Home, "give_up", late)
    pool._lender.homes.look(time.monotonic())
    assert new
    assert new != old
    assert not recipe.alive


def test_tasks_that_are_never_finished_lose_nothing(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=1)
    loop = asyncio.new_event_loop()

    async def main() -> None:
        lease = await pool.checkout()
        waiting.append(asyncio.ensure_future(pool.checkout(timeout=None)._lease()))
        await asyncio.sleep(0.02)
        await lease.release()  # it is given to the one that waits, which never runs again

    waiting: list[asyncio.Task[Any]] = []
    loop.run_until_complete(main())
    loop.close()
    waiting[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    waiting.clear()
    gc.collect()
    assert len(asyncio.run(use_all(pool, 1))) == 1
    assert recipe.most == 1


class SlowRecipe(ThingRecipe):
    """Opens nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_open = self.is_opening = False
        self.given_up = 0

    async def open(self, opening: Opening) -> Thing:
        self.is_opening = True
        try:
            while not self.may_open:
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return await super().open(opening)


def test_an_opening_that_outlives_its_checkout_is_cancelled_at_the_end_of_the_loop(
    manager: Manager,
) -> None:
    """A loop that stops in the middle of it would leave half a connection: also one that cancels no task at its end."""
    recipe = SlowRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=1)

    async def main() -> None:
        while not recipe.is_opening:  # the server may take longer to start
            with pytest.raises(CheckoutTimeout):
                await pool.checkout(timeout=0.05)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert not asyncio.all_tasks(loop)
    loop.close()
    assert recipe.given_up == 1
    recipe.may_open = True
    assert len(asyncio.run(use_all(pool, 1))) == 1
    assert recipe.most == 1


def test_what_is_opened_in_the_instant_in_which_its_loop_ends_is_nobody_elses(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that has opened it hears of it late. The next loop has the same keys, and must not find it."""
    recipe = ThingRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=1)
    has_ended = threading.Event()
    in_loop = bridge.in_loop

    def late(home: Any, function: Any, *arguments: Any, **options: Any) -> Any:
        value = in_loop(home, function, *arguments, **options)
        assert has_ended.wait(PATIENCE)
        return value

    async def take() -> None:
        await pool.checkout(timeout=PATIENCE)

    async def main() -> None:
        leaving = asyncio.ensure_future(take())
        await until(lambda: recipe.alive, "an opening")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving

    with monkeypatch.context() as patch:
        patch.setattr(bridge, "in_loop", late)
        asyncio.run(main())
        (opened,) = recipe.alive
        has_ended.set()
        wait_until(lambda: opened.abandoned, "its end")
    assert asyncio.run(use_all(pool, 1)) != [opened]
    assert recipe.most == 1


def test_a_hook_that_is_cancelled_before_it_begins_keeps_no_thread(manager: Manager) -> None:
    """As at the end of a loop, where it has become a task in the same turn."""
    pool: AsyncPool[Thing] = manager.apool("p", ThingRecipe(), max_size=1)

    async def main() -> None:
        await use_all(pool, 1)
        loop: Any = asyncio.get_running_loop()
        home = pool._lender.homes.by_loop[loop]
        call_soon_threadsafe, called, ended = loop.call_soon_threadsafe, threading.Event(), []

        def call(*arguments: Any, **options: Any) -> None:
            call_soon_threadsafe(*arguments, **options)
            called.set()

        async def hook() -> None:
            ended.append("it has begun")

        def thread() -> None:
            try:
                bridge.in_loop(home, hook)
            except LoopIsOver as error:
                ended.append(error)

        def cancel() -> None:
            for task in home.tasks.running:
                task.cancel()

        loop.call_soon_threadsafe = call
        one = threading.Thread(target=thread)
        one.start()
        assert called.wait(PATIENCE)  # the loop does nothing meanwhile
        loop.call_soon_threadsafe = call_soon_threadsafe
        loop.call_soon(cancel)
        await until(lambda: ended, "the thread to go on")
        one.join()
        assert [type(one) for one in ended] == [LoopIsOver]

    asyncio.run(main())


def test_loops_in_threads_share_the_cap_and_no_resource(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=4)
    used: dict[int, int] = {}
    errors: list[BaseException] = []

    async def use() -> None:
        async with pool.checkout(timeout=60) as thing:
            thing.touch()
            thing.users += 1
            assert thing.users == 1
            await asyncio.sleep(0.001)
            thing.users -= 1

    async def main(name: int) -> None:
        for _ in range(10):
            await asyncio.gather(*(use() for _ in range(10)))
        used[name] = 100

    def thread(name: int) -> None:
        try:
            asyncio.run(main(name))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=thread, args=(name,)) for name in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not errors
    assert used == {0: 100, 1: 100, 2: 100}
    assert recipe.most <= 4
    wait_until(lambda: not recipe.alive, "the end of what the loops have opened")


def test_an_idle_resource_moves_to_the_loop_that_needs_one(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=1)

    async def main() -> None:
        here = (await use_all(pool, 1))[0]
        there = await asyncio.to_thread(lambda: asyncio.run(use_all(pool, 1)))
        assert there[0] is not here
        assert here.closed
        assert not here.abandoned
        await use_all(pool, 1)

    asyncio.run(main())
    assert recipe.most == 1


def test_a_lease_may_be_released_in_another_loop(manager: Manager) -> None:
    recipe = ThingRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=1)

    async def main() -> None:
        lease = await pool.checkout()
        await asyncio.to_thread(lambda: asyncio.run(lease.release()))
        async with pool.checkout(timeout=10) as thing:
            thing.touch()

    asyncio.run(main())
    assert recipe.most == 1


def test_trio_is_refused_with_the_way_out(manager: Manager) -> None:
    trio = pytest.importorskip("trio")
    pool: AsyncPool[Thing] = manager.apool("p", ThingRecipe())

    async def main() -> None:
        with pytest.raises(ConfigurationError, match=r"trio\.to_thread\.run_sync"):
            async with pool.checkout():
                pass

    trio.run(main)


def test_no_timer_is_left_of_a_wait_that_is_over(manager: Manager) -> None:
    pool: AsyncPool[Thing] = manager.apool("p", ThingRecipe(), max_size=1)

    async def main() -> float:
        loop = asyncio.get_running_loop()

        async def wait() -> None:
            async with pool.checkout(timeout=3600.0):
                pass

        async with pool.checkout():
            waiting = asyncio.create_task(wait())
            deadlines = pool._lender.by_loop[loop].desk.deadlines
            while deadlines._timer.at == math.inf:
                await asyncio.sleep(0)
        await waiting
        return deadlines._timer.at

    assert asyncio.run(main()) == math.inf


def test_nothing_wakes_up_for_an_idle_loop(manager: Manager) -> None:
    pool: AsyncPool[Thing] = manager.apool("p", ThingRecipe(), max_idle=None, max_lifetime=None)

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        async with pool.checkout():
            pass
        await until(
            lambda: not loop._scheduled and not pool._lender.homes.by_loop[loop].desk._timers,
            "no timer",
        )
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def told_of(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What the books are told from now on."""
    told: list[Event] = []
    member: Any = manager._member
    tell = member.tell

    def listen(*events: Event) -> None:
        told.extend(events)
        tell(*events)

    monkeypatch.setattr(member, "tell", listen)
    return told


def test_the_end_of_a_loop_is_told_although_the_pool_is_closed(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else, when another process opens it again, the books grant what cannot be opened here, again and again."""
    pool: AsyncPool[Thing] = manager.apool("p", ThingRecipe(), max_size=2, min_size=1)
    told = told_of(manager, monkeypatch)

    async def use_and_close() -> None:
        await use_all(pool, 1)
        await pool.aclose(everywhere=True)
        told.clear()

    asyncio.run(use_and_close())
    said = [one.declaration for one in told if isinstance(one, Declare)]
    assert said
    assert said[-1].closed


@pytest.mark.parametrize("awaits", [True, False])
def test_a_release_whose_task_is_cancelled_before_it_begins_loses_nothing(
    manager: Manager, awaits: bool
) -> None:
    """Somebody ends all tasks that are there, in the turn of the release."""

    async def release(lease: Any, before: set[asyncio.Task[Any]]) -> None:
        if not awaits:
            lease.release_soon()  # becomes a task in the next turn
        asyncio.get_running_loop().call_soon(cancel_new, before | {asyncio.current_task()})
        if awaits:
            await lease.release()

    def cancel_new(before: set[asyncio.Task[Any]]) -> None:
        for task in asyncio.all_tasks() - before:
            task.cancel()

    async def main() -> None:
        pool: AsyncPool[Thing] = manager.apool("p", ThingRecipe(), max_size=1, max_uses=9)
        for _ in range(3):
            lease = await pool.checkout(timeout=PATIENCE)
            await asyncio.wait_for(release(lease, asyncio.all_tasks()), PATIENCE)

    asyncio.run(main())


def test_what_says_whether_to_reset_may_raise(manager: Manager) -> None:
    class Unsure(ThingRecipe):
        def needs_reset(self, resource: Thing) -> bool:
            raise ValueError("nobody knows")

        async def reset(self, resource: Thing) -> None:
            resets.append(resource.number)

    async def main() -> None:
        pool: AsyncPool[Thing] = manager.apool("p", Unsure(), max_size=1)
        for _ in range(3):
            async with pool.checkout(timeout=PATIENCE):
                pass
        assert (await pool.stats())["counters"]["hook_errors"] >= 3

    resets: list[int] = []
    asyncio.run(main())
    assert len(resets) == 3
