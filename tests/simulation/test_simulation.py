"""The real code in a simulated world: a few seeds each time, and what must hold of the simulation itself."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.simulation.modules import ROOT, STATE, the_copy
from tests.simulation.runs import run, run_seed, shrink, told
from tests.simulation.scheduler import SimThread
from tests.simulation.settings import Fault, Settings, drawn
from tests.simulation.world import World

KNOWN = (25, 102, 5010, 5017)
"""Seeds that found something: threads that kept a CPU busy while they waited."""


@pytest.mark.parametrize("seed", KNOWN)
def test_seeds_that_found_something(seed: int) -> None:
    settings, history = drawn(seed, 20.0)
    settings.tasks, settings.tokens = "", False  # there were none then
    outcome = run(settings, history)
    assert not outcome.problems, told(outcome)


def test_a_seed_replays_to_the_letter() -> None:
    """It has event loops. Also in another interpreter, where text is hashed otherwise, and everything has another address."""
    assert said_elsewhere("digest_of(7)") == digest_of(7)


def test_a_seed_is_the_same_whether_or_not_it_is_the_first_one_that_needs_a_module() -> None:
    """In a world with points between statements, loading one passed points."""
    first, second = said_elsewhere("digest_of(20000), digest_of(20000)").split()
    assert first == second


def said_elsewhere(what: str) -> str:
    """By another interpreter."""
    code = f"from tests.simulation.test_simulation import digest_of; print({what})"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def digest_of(seed: int) -> str:
    """Of who ran when."""
    lines = run_seed(seed, seconds=3.0, traced=True).trace
    assert len(lines) > 100
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def small_world(**more: Any) -> Settings:
    return Settings(**{"seed": 1, "seconds": 10.0, **more})


def test_a_world_without_faults_works() -> None:
    outcome = run(small_world(), [])
    assert not outcome.problems, told(outcome)
    assert outcome.done["checkouts"] > 20


KINDS = (
    *("kill worker", "kill server", "cut", "stop server", "leave", "fork", "exec", "redeploy"),
    *("hooks fail", "ask", "drain", "close"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_these_faults_is_survived(kind: str) -> None:
    history = [Fault(1.0 + number, kind, number / 8, number / 8) for number in range(8)]
    options = {"max_size": 3, "min_size": 1, "check_interval": 0.5}
    outcome = run(small_world(kinds=(kind,), all_hooks=True, options=options), history)
    assert not outcome.problems, told(outcome)
    assert outcome.faults[kind] >= 3
    if kind == "hooks fail":
        assert outcome.faults["failed hook"] >= 3


def test_detached_and_overdue_leases_and_lanes() -> None:
    options = {"max_size": 3, "lanes": {"web": 1}, "max_lease_warn": 4.0, "max_lease_kill": 8.0}
    settings = small_world(options=options, detached=0.2, overdue=0.1, seconds=60.0)
    outcome = run(settings, [])
    assert not outcome.problems, told(outcome)
    assert outcome.done["detached"] >= 3
    assert any("killed" in text for text in outcome.marks), "overdue leases were ended"


def test_a_detached_resource_that_takes_no_slot_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def frees_it(detach: Any) -> Any:
        def detach_and_free(self: Any, entry: Any) -> Any:
            resource = detach(self, entry)
            self.begin_close(entry, 0.0)
            self.closed(entry, "discarded")
            return resource

        return detach_and_free

    planted(monkeypatch, "worker.inventory", "Inventory.detach", frees_it)
    outcome = run(small_world(detached=0.5, hold=0.5, seconds=20.0), [])
    assert any("over the cap" in problem for problem in outcome.problems)


def cuts(how_many: int = 12) -> list[Fault]:
    """Connections break, mostly such as nobody uses at that moment."""
    return [Fault(1.0 + n / 2, "cut", n / how_many, 0.0) for n in range(how_many)]


def crowded_world() -> Settings:
    """Threads wait for one resource, as long as it takes."""
    return small_world(
        processes=4, threads=1, options={"max_size": 1}, timeouts=(None,), hold=0.5, kinds=("cut",)
    )


def test_a_thread_whose_connection_the_server_loses_asks_again() -> None:
    outcome = run(crowded_world(), cuts())
    assert not outcome.problems, told(outcome)


def test_a_thread_that_is_never_told_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, "core.outbox", "Outbox.ask_again", lambda _: lambda *_: None)
    outcome = run(crowded_world(), cuts())
    assert any("a checkout waits still" in problem for problem in outcome.problems)


def planted(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, made: Callable[[Any], Any]
) -> None:
    """Replace a method, `Class.method`, in the copy of mppool without points between statements."""
    kind, _, method = name.partition(".")
    of = getattr(the_copy().load(f"{ROOT}.{module}"), kind)
    monkeypatch.setattr(of, method, made(getattr(of, method)))


def test_one_resource_above_the_cap_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    history = [Fault(2.0, "stop worker", place, 0.9) for place in (0.1, 0.5)]
    history.append(Fault(2.1, "kill server", 0.0, 0.0))
    # What the journal says is forgotten: rule 3.
    planted(monkeypatch, "server.journal", "Journal._take_over", lambda _: lambda *_: None)
    outcome = run(small_world(hold=0.5, kinds=("kill server",)), history)
    assert any("over the cap" in problem for problem in outcome.problems), outcome.done


def test_capacity_that_is_lost_is_seen_and_its_history_is_shrunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A process that dies takes its slots along.
    planted(monkeypatch, "core.books", "Books._died", lambda _: lambda *_: None)
    history = [
        Fault(1.0 + number, kind, 0.5, 0.5) for number in range(3) for kind in ("cut", "leave")
    ]
    history.append(Fault(5.0, "kill worker", 0.2, 0.0))
    outcome = run(small_world(hold=0.5, kinds=("kill worker",)), history)
    assert any("can be had" in problem or "waits" in problem for problem in outcome.problems)
    small = shrink(outcome, most_runs=6)
    assert "kill worker" in {fault.kind for fault in small.history}
    assert len(small.history) < len(history)


def test_a_thread_that_waits_awake_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    vain = iter(range(5000))  # some threads do so many rounds in all: long enough to be seen

    def awake(wait: Any) -> Any:
        return lambda self, until: wait(self, until if next(vain, None) is None else 0.0)

    planted(monkeypatch, "process.waiter", "LocalWaiter.wait", awake)
    outcome = run(small_world(options={"max_size": 1}, hold=0.5, seconds=2.0), [])
    assert any("spins" in problem for problem in outcome.problems)


def test_all_state_of_modules_is_exchanged_with_the_process() -> None:
    """What a module keeps for its process would else be shared by all simulated processes."""
    loaded = the_copy()
    run(small_world(), [])  # so that all modules are loaded
    kinds = (
        dict,
        list,
        set,
        loaded._substitutes["threading"].Lock,
        loaded._substitutes["threading"].RLock,
    )
    own = (
        "process.fork",
        "worker.member",
        "manager",
        "link",
        "worker",
        "process",
        "aio",
        "credentials",
    )
    found = set()
    for name, module in list(loaded._modules.items()):
        short = name.removeprefix(f"{ROOT}.")
        if not short.startswith(own):
            continue
        for key, value in vars(module).items():
            if isinstance(value, kinds) and not key.startswith("__") and not key.isupper():
                found.add((short, key))
    constant = {("process.fork", name) for name in ("_functions", "_before", "_after_in_parent")}
    constant.add(("credentials.identity", "_unwarned"))
    assert {
        one for one in found - set(STATE) - constant if not one[1].lstrip("_").isupper()
    } == set()


def test_threads_that_start_threads_come_no_nearer_to_the_greatest_depth_of_the_stack() -> None:
    world, generations = World(small_world(seconds=1.0), []), []

    def begin(worker: Any) -> None:
        generations.append(worker)
        if len(generations) < 500:
            worker.start_thread(lambda: begin(worker), "next")
            world.scheduler.sleep(0.1)

    def begin_first() -> None:
        worker = next(iter(world.workers.values()))
        worker.start_thread(lambda: begin(worker), "first")

    world.scheduler.call_at(world.scheduler.now + 0.5, begin_first)
    outcome = world.run()
    assert not outcome.problems, told(outcome)
    assert len(generations) == 500


def test_no_simulated_thread_outlives_its_world() -> None:
    world = World(small_world(), [Fault(2.0, "kill worker", 0.0, 0.0)])
    world.run()
    threads = [one for one in gc.get_objects() if isinstance(one, SimThread) and one]
    assert not [one for one in threads if one.scheduler is world.scheduler]
