"""Simulated processes with event loops: what they must do, and what the simulation must see of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.modules import the_copy
from tests.simulation.runs import run, told
from tests.simulation.settings import Fault, drawn
from tests.simulation.test_simulation import planted, small_world

KINDS = ("kill worker", "kill server", "cut", "stop server", "leave", "shutdown", "logins fail")


@pytest.mark.parametrize("tasks", ["apool", "acheckout"])
def test_tasks_are_served_whatever_happens(tasks: str) -> None:
    history = [
        Fault(0.5 + number / 3, kind, number / 8, number / 8) for number, kind in enumerate(KINDS)
    ]
    world = small_world(
        seconds=3.0,
        tasks=tasks, kinds=KINDS, loops=2, loop_life=2.0, cancelled=0.3, rough=0.3,
        options={"max_size": 3, "min_size": 1}, timeouts=(0.0, 0.2, 5.0), more_hooks=True,
    )  # fmt: skip
    outcome = run(world, history)
    assert not outcome.problems, told(outcome)
    assert outcome.done["checkouts of tasks"] > 10
    assert outcome.faults["task cancelled"] > 3
    assert outcome.faults["loop closed"]


def test_asynchronous_credentials_are_asked_again_and_their_failures_are_survived() -> None:
    kinds = ("issuer fails", "tokens revoked", "issuer hangs", "kill worker")
    history = [Fault(1.0 + number, kind, 0.5, 0.3) for number, kind in enumerate(kinds)]
    world = small_world(
        seed=2, tasks="apool", tokens=True, async_credentials=True, token_life=3.0, loops=2, loop_life=4.0,
        rough=0.3, identities=("anna", "bert"), kinds=kinds,
    )  # fmt: skip
    outcome = run(world, history)
    assert not outcome.problems, told(outcome)
    assert outcome.done["tokens of loops"] > 10
    assert outcome.faults["failed token"]
    assert outcome.faults["refused token"]


def crowded(**more: Any) -> Any:
    """Many tasks of one process, few resources."""
    settings = {
        "tasks": "apool", "processes": 1, "threads": 8, "hold": 0.002, "pause": 0.001, "cancelled": 0.5,
        "options": {"max_size": 1}, "seconds": 1.0, "patience": 3.0,
    }  # fmt: skip
    return small_world(**{**settings, **more})


def test_a_crowd_of_tasks_that_are_cancelled_loses_nothing() -> None:
    outcome = run(crowded(), [])
    assert not outcome.problems, told(outcome)


def test_what_a_cancelled_task_loses_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, "worker.tasks", "Desk.hand_on", lambda _: lambda *_: None)
    outcome = run(crowded(timeouts=(None,)), [])
    assert any("waits still" in problem for problem in outcome.problems)


def test_a_resource_in_another_loop_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, "aio.homes", "Home.key_for", lambda _: lambda self, key: key)
    outcome = run(crowded(loops=2, threads=2), [])
    assert any("in another event loop" in problem for problem in outcome.problems)


def test_a_loop_whose_tasks_have_all_asked_does_not_look_again_without_a_pause() -> None:
    """Tasks of two loops waited for one pool, and only those of the other one had something left to ask."""
    outcome = run(*drawn(1021, 5.0))
    assert not outcome.problems, told(outcome)


def test_a_loop_that_waits_awake_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(
        monkeypatch,
        "worker.tasks",
        "Desk.look",
        lambda look: lambda desk, key: (look(desk, key), desk.look_soon(key)),
    )
    outcome = run(crowded(), [])
    assert any("spins" in problem for problem in outcome.problems)


def test_a_loop_that_is_blocked_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = the_copy()._substitutes["time"].sleep
    planted(
        monkeypatch,
        "worker.tasks",
        "Desk.begins_to_wait",
        lambda begins: lambda desk, key: (sleep(0.2), begins(desk, key)),
    )
    outcome = run(crowded(), [])
    assert any("was blocked" in problem for problem in outcome.problems)
