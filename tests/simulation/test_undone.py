"""Faults that were found between the real pieces, and mended: with the mending undone the simulation finds each."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.simulation.modules import ROOT, the_copy
from tests.simulation.runs import run
from tests.simulation.settings import Fault, Settings

SEEDS = 4
"""At most. One or two do for most."""

Undo = Callable[[pytest.MonkeyPatch], None]


def module(name: str) -> Any:
    return the_copy().load(f"{ROOT}.{name}")


def no_member_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members of one process are one to the books (decision 17)."""
    ids = module("ids")

    def process(_: Any) -> Any:
        own = ids.own_process()
        return ids.ProcessId(own.pid, own.birth, 0)

    monkeypatch.setattr(module("link.witness").Witness, "process", process)


def last_word_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is born into a resized pool undoes the resize (decision 24)."""

    def declare(bound: Any, value: int | None, made_at: float) -> bool:
        if made_at <= bound.declared_at:
            return False
        bound.declared_at, bound.declared = made_at, value
        bound.value, bound.set_at = value, made_at
        return True

    monkeypatch.setattr(module("core.declarations").Bound, "declare", declare)


def no_look_for_other_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of another pid namespace voids the journal of those that live (decision 22)."""
    monkeypatch.setattr(module("server.loop"), "check_no_other_world", lambda paths: None)


UNDONE: dict[Undo, tuple[dict[str, Any], list[Fault]]] = {
    no_member_number: ({"two_members": True}, []),
    last_word_wins: ({"kinds": ("resize",)}, []),
    no_look_for_other_worlds: (
        {
            "options": {"max_size": 2}, "hold": 5.0, "pause": 0.01, "processes": 2, "threads": 1,
            "kinds": ("visitor", "stop worker"),
        },
        [
            Fault(3.0, "stop worker", 0.0, 1.0), Fault(3.0, "stop worker", 0.9, 1.0),
            Fault(3.1, "kill server", 0.0, 0.0), Fault(3.2, "visitor", 0.0, 0.0),
        ],
    ),
}  # fmt: skip


SLOW = pytest.mark.skipif(
    os.environ.get("MPPOOL_SIMULATION") != "all", reason="two members keep a CPU busy for a minute"
)
CASES = [
    pytest.param(undo, id=undo.__name__, marks=SLOW if undo is no_member_number else ())
    for undo in UNDONE
]


@pytest.mark.parametrize("undo", CASES)
def test_the_simulation_finds_what_was_mended(undo: Undo, monkeypatch: pytest.MonkeyPatch) -> None:
    world, history = UNDONE[undo]

    def problems(seed: int) -> list[str]:
        return run(Settings(seed, **{"seconds": 10.0, **world}), history).problems

    assert not problems(1)
    undo(monkeypatch)
    assert any(problems(seed) for seed in range(1, SEEDS))
