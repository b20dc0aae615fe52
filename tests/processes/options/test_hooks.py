"""What hooks that raise, return nonsense, re-enter the pool or close twice do: nothing to the books."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mppool import CheckoutTimeout, InProcessManager, OpenFailed, Pool, PoolManager
from mppool.recipe import Opening
from tests.helpers import wait_until
from tests.processes.options.scene import HookedThings, Scene, Thing

Declare = Callable[..., Pool[Any]]


def counters(pool: Pool[Any]) -> dict[str, int]:
    return dict(pool.stats()["counters"])


def test_hooks_are_called_in_their_order(declare: Declare, scene: Scene) -> None:
    pool = declare(HookedThings, check_idle_for=0.0)
    with pool.checkout():
        pass
    with pool.checkout():
        pass
    pool.close()
    wait_until(lambda: scene.count("close") == 1, "it to be closed")
    assert [event[0] for event in scene.events()] == [
        "open", "configure", "on_checkout", "reset", "check", "on_checkout", "reset", "close",
    ]  # fmt: skip


def test_after_on_checkout_raised_the_resource_stays(declare: Declare, scene: Scene) -> None:
    pool = declare(HookedThings)
    scene.switch("on_checkout-raises")
    for _ in range(2):
        with pool.checkout() as thing:
            assert thing.number == 0
    assert counters(pool)["hook_errors"] == 2
    assert scene.count("close") == 0


def test_after_configure_raised_the_resource_is_closed_and_its_slot_free(
    declare: Declare, scene: Scene
) -> None:
    pool = declare(HookedThings, max_size=1, fail_fast=False)
    scene.switch("configure-raises")

    def fails() -> bool:
        try:
            pool.checkout(timeout=0)
        except CheckoutTimeout:  # a server that starts on a busy machine
            return False
        except OpenFailed as error:
            return "configure raises" in str(error)
        raise AssertionError("it was configured")

    wait_until(fails, "an opening that fails")
    assert scene.count("close") == 1
    scene.switch("configure-raises", on=False)
    with pool.checkout(timeout=20):
        assert pool.stats()["size"] == 1
    assert (counters(pool)["hook_errors"], counters(pool)["open_failed"]) == (1, 1)


def test_after_reset_raised_the_resource_is_closed(declare: Declare, scene: Scene) -> None:
    pool = declare(HookedThings, max_size=1)
    scene.switch("reset-raises")
    pool.checkout().release()
    assert scene.count("close") == 1
    with pool.checkout() as thing:
        assert thing.number == 1
    assert counters(pool)["hook_errors"] == 2


def test_after_close_raised_the_resource_is_gone(declare: Declare, scene: Scene) -> None:
    pool = declare(HookedThings, max_size=1, max_uses=1)
    scene.switch("close-raises")
    for number in range(3):
        with pool.checkout(timeout=20) as thing:
            assert thing.number == number
    assert (counters(pool)["hook_errors"], counters(pool)["worn_out"]) == (3, 3)


def test_after_stats_and_describe_raised_the_resource_stays(declare: Declare, scene: Scene) -> None:
    pool = declare(HookedThings)
    with pool.checkout():
        (resource,) = pool.stats()["resources"]
        assert (resource["description"], resource["shoe size"]) == ("thing 0", 42)
        scene.switch("stats-raises")
        scene.switch("describe-raises")
        (resource,) = pool.stats()["resources"]
        assert (resource["description"], "shoe size" in resource) == ("", False)
    assert counters(pool)["hook_errors"] >= 2
    with pool.checkout() as thing:
        assert thing.number == 0


@pytest.mark.parametrize(
    ("stats", "describe"),
    [
        (lambda r: 7, lambda r: 7),
        (lambda r: {"x": object()}, lambda r: object()),
        (lambda r: {"x": "\ud800"}, lambda r: "\ud800"),
        (lambda r: {"x": 2**80}, lambda r: None),
        (lambda r: None, lambda r: b"\xff"),
    ],
)
def test_nonsense_from_stats_and_describe_is_left_out(
    manager: PoolManager, stats: Any, describe: Any
) -> None:
    pool = manager.pool("nonsense", lambda: "resource", stats=stats, describe=describe)
    with pool.checkout():
        found = pool.stats()
        assert not any(process["stale"] for process in found["processes"])
        assert found["in_use"] == 1
        json.loads(json.dumps(found, allow_nan=False))
    assert counters(pool)["hook_errors"] > 0


def test_what_is_nearly_json_is_made_json(manager: PoolManager) -> None:
    pool = manager.pool(
        "nearly", lambda: "resource", stats=lambda r: {1: {3}, "nan": float("nan"), "id": "mine"}
    )
    with pool.checkout():
        (resource,) = pool.stats()["resources"]
    assert (resource["1"], resource["nan"]) == ([3], None)
    assert resource["id"] != "mine"  # what is ours stays ours


@pytest.mark.parametrize("hook", ["stats", "describe"])
def test_where_a_hook_hangs_an_in_process_manager_answers_without_it(hook: str) -> None:
    hang, asked = threading.Event(), threading.Event()

    def hangs(resource: str) -> str | dict[str, int]:
        asked.set()
        hang.wait(20)
        return {"hung": 1} if hook == "stats" else "hung"

    pool = InProcessManager().pool("hangs", lambda: "resource", **{hook: hangs})
    with pool.checkout():
        names = {thread.name for thread in threading.enumerate()}
        for _ in range(3):
            (resource,) = pool.stats()["resources"]
            assert (resource["state"], resource["description"]) == ("in_use", "")
            assert "hung" not in resource
        assert asked.is_set()
        added = [one.name for one in threading.enumerate() if one.name not in names]
        assert len(added) <= 1, added
        hang.set()
        wait_until(lambda: "hung" in str(pool.stats()["resources"]), "the hook to be heard again")


@pytest.mark.parametrize("resource", [0, "", [], {}, set()], ids=repr)
def test_falsy_and_unhashable_resources(manager: PoolManager, resource: Any) -> None:
    pool = manager.pool("odd", lambda: resource, max_size=1, check=lambda r: True, check_idle_for=0)
    for _ in range(2):
        with pool.checkout() as got:
            assert got is resource
    assert counters(pool)["opened"] == 1


def test_an_open_hook_that_forgets_its_return_is_told_so(manager: PoolManager) -> None:
    closed: list[Any] = []
    pool = manager.pool("nothing", lambda: None, max_size=1, close=closed.append)
    with pytest.raises(OpenFailed, match="returned None; return the resource"):
        pool.checkout()
    assert not closed
    assert pool.stats()["size"] == 0


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_ends_a_process_passes_through_open_and_leaves_the_books_right(
    manager: PoolManager, raised: BaseException
) -> None:
    once = [raised]

    def opener() -> str:
        if once:
            raise once.pop()
        return "resource"

    pool = manager.pool("exits", opener, max_size=1)
    with pytest.raises(type(raised)):
        pool.checkout()
    with pool.checkout(timeout=20):
        assert pool.stats()["size"] == 1
    assert counters(pool)["open_failed"] == 0


@pytest.mark.parametrize("hook", ["on_checkout", "check", "reset"])
def test_what_ends_a_process_in_another_hook_loses_no_slot(manager: PoolManager, hook: str) -> None:
    fail = [True]

    def exits(resource: str) -> bool:
        if hook == "on_checkout" and not opened[1:]:
            return True  # the first checkout fills the shelf
        if fail:
            fail.pop()
            raise SystemExit(hook)
        return True

    opened: list[int] = []

    def opener() -> str:
        opened.append(1)
        return "resource"

    pool = manager.pool("exits", opener, max_size=1, check_idle_for=0, **{hook: exits})
    with pytest.raises(SystemExit):  # noqa: PT012  # which of the two raises depends on the hook
        pool.checkout().release()
        opened.append(0)
        pool.checkout().release()
    assert not fail
    for _ in range(2):
        with pool.checkout(timeout=20):
            assert pool.stats()["size"] == 1


def test_an_open_hook_that_exits_in_the_background_ends_nothing_but_itself(
    manager: PoolManager,
) -> None:
    exits = [True, True]

    def opener() -> str:
        if exits and threading.current_thread() is not threading.main_thread():
            exits.pop()
            raise SystemExit("nobody is asked")
        return "resource"

    pool = manager.pool("exits", opener, min_size=2)
    assert pool.wait_ready(20)
    assert counters(pool)["open_failed"] == 2  # it backs off like any failure


def test_hooks_may_use_the_pool(manager: PoolManager) -> None:
    depth = threading.local()
    over: list[int] = []

    def again(resource: Any) -> str:
        if not getattr(depth, "inside", False) and not over:
            depth.inside = True
            try:
                with pool.checkout(timeout=20):
                    pool.stats()
            finally:
                depth.inside = False
        return "described"

    hooks: dict[str, Any] = dict.fromkeys(
        ("configure", "on_checkout", "reset", "check", "close", "describe"), again
    )
    pool = manager.pool("again", list, max_size=3, check_idle_for=0.0, max_uses=4, **hooks)
    for _ in range(12):
        with pool.checkout(timeout=20):
            pass
    stats = pool.stats()
    assert stats["size"] <= 3
    assert stats["counters"]["hook_errors"] == 0
    assert stats["counters"]["worn_out"] > 2
    over.append(1)  # the farewell to the server closes things, which must not start the next one


def test_statistics_of_statistics_of_statistics_end(manager: PoolManager) -> None:
    pool = manager.pool("mirror", list, stats=lambda r: {"size": pool.stats()["size"]})
    with pool.checkout():
        assert pool.stats()["in_use"] == 1


def test_a_resource_that_its_user_closed_is_closed_once_more_and_gone(
    manager: PoolManager,
) -> None:
    closes: list[int] = []

    class Fragile:
        def close(self) -> None:
            closes.append(1)
            if len(closes) > 1:
                raise ValueError("closed already")

    pool = manager.pool("fragile", Fragile, max_size=1)
    lease = pool.checkout()
    lease.resource.close()
    lease.discard()
    with pool.checkout(timeout=20):
        assert pool.stats()["size"] == 1
    assert counters(pool)["hook_errors"] == 1


def test_a_stats_hook_that_hangs_is_left_out_and_the_figures_are_right(
    manager: PoolManager,
) -> None:
    hangs = threading.Event()
    pool = manager.pool("hangs", list, stats=lambda r: {"waited": hangs.wait(30)})
    pool.checkout().release()
    before = threading.active_count()
    with pool.checkout():
        for _ in range(5):
            wait_until(
                lambda: (
                    [(p["in_use"], p["stale"]) for p in pool.stats()["processes"]] == [(1, False)]
                ),
                "the figures of this process",
            )
    assert threading.active_count() <= before + 1  # reports do not pile up
    hangs.set()
    wait_until(lambda: [r.get("waited") for r in pool.stats()["resources"]] == [True], "an answer")


def test_a_double_release_from_many_threads_at_once(manager: PoolManager) -> None:
    pool = manager.pool("double", list, max_size=4)
    for _ in range(50):
        lease = pool.checkout()
        ready = threading.Barrier(4)

        def release(lease: Any = lease, ready: Any = ready) -> None:
            ready.wait()
            lease.release()

        threads = [threading.Thread(target=release) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    stats = pool.stats()
    assert (stats["size"], stats["idle"], stats["counters"]["double_releases"]) == (1, 1, 150)


def test_an_error_without_a_text(manager: PoolManager) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def opener(opening: Opening) -> Thing:
        raise Mute

    pool = manager.pool("mute", opener, max_size=1)
    with pytest.raises(OpenFailed, match="Mute"):
        pool.checkout()
    assert (pool.stats()["size"], counters(pool)["open_failed"]) == (0, 1)
