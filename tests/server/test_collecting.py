"""The statistics of many resources are put together in steps, between which others are served."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mppool.core.books import Books
from mppool.core.decisions import Grant
from mppool.core.events import Attach, Checkout, Declaration, Opened
from mppool.ids import GrantNumber, ProcessId, Session, Ticket
from mppool.options import PoolOptions
from mppool.server import collecting
from mppool.server.collecting import Collector
from mppool.server.members import Members
from mppool.server.processes import ProcessRegistry
from mppool.stats.report import PoolReport, ResourceReport
from mppool.wire.messages import Report, Stats, WantReport

P = ProcessId(101, 1)


class Connection:
    """Keeps what is sent on it."""

    process = P
    broken = None
    unsent = b""
    session = Session(1)
    pidfd: int | None = 0

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


def scene(directory: Path, count: int) -> tuple[Collector, Connection, list[GrantNumber]]:
    books = Books(1)
    declaration = Declaration("p", PoolOptions(max_size=None), 0.0, "k")
    books.apply(P, Session(1), Attach("", [declaration], []), 0.0)
    numbers = []
    for ticket in range(1, count + 1):
        for _, decision in books.apply(
            P, Session(1), Checkout("p", "k", Ticket(ticket), None), 0.0
        ):
            if isinstance(decision, Grant):
                numbers.append(decision.number)
                books.apply(P, Session(1), Opened(decision.number, 0.1), 0.0)
    processes = ProcessRegistry(
        Members(directory, "this world"),
        watch=lambda process, pidfd: None,
        unwatch=lambda pidfd: None,
    )
    errand = Connection()
    processes.attach(errand, "")  # type: ignore[arg-type]
    return Collector("m", books, processes), errand, numbers


def say(collector: Collector, errand: Any, numbers: list[GrantNumber], size: int) -> None:
    request = next(m.request for m in reversed(errand.sent) if isinstance(m, WantReport))
    resources = [
        ResourceReport(number, "k", "in_use", 1, 1.0, None, 0.5, "list", {}) for number in numbers
    ]
    for start in range(0, len(numbers), size):
        some = [PoolReport("p", 0, 0, 0, {}, {}, resources[start : start + size])]
        collector.reported(errand, Report(request, some, more=True), 0.0)
    figures = [PoolReport("p", len(numbers), 0, 0, {"checkouts": len(numbers)}, {}, [])]
    collector.reported(errand, Report(request, figures), 0.0)


@pytest.fixture(autouse=True)
def steps_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far a step gets is no matter of how busy this machine is."""
    monkeypatch.setattr(collecting, "STEP_S", 1000.0)


def test_between_the_steps_of_a_long_answer_others_are_served(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(collecting, "STEP_S", 0.0)
    collector, errand, numbers = scene(tmp_path, 1500)
    wanting = Connection()
    collector.wanted(wanting, 0.0)  # type: ignore[arg-type]
    say(collector, errand, numbers, 200)
    steps = 0
    while not wanting.sent:
        assert collector.deadline() == -math.inf
        collector.tick(0.0)
        steps += 1
    assert steps >= 1500 / 200
    assert collector.deadline() == math.inf
    (answer,) = wanting.sent
    assert isinstance(answer, Stats)
    pool = answer.stats["pools"]["p"]
    assert (pool["size"], pool["in_use"], pool["idle"]) == (1500, 1500, 0)
    parts = [msgspec.msgpack.decode(part) for part in answer.resources["p"]]
    assert max(map(len, parts)) <= 200
    assert [entry["id"] for part in parts for entry in part] == numbers
    assert all(entry["state"] == "in_use" for part in parts for entry in part)


def test_a_short_answer_comes_whole_and_at_once(tmp_path: Path) -> None:
    collector, errand, numbers = scene(tmp_path, 3)
    wanting = Connection()
    collector.wanted(wanting, 0.0)  # type: ignore[arg-type]
    say(collector, errand, numbers, 200)
    (answer,) = wanting.sent
    assert len(answer.stats["pools"]["p"]["resources"]) == 3
    assert not answer.resources


def test_who_has_gone_is_not_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(collecting, "STEP_S", 0.0)
    collector, errand, numbers = scene(tmp_path, 1500)
    wanting = Connection()
    collector.wanted(wanting, 0.0)  # type: ignore[arg-type]
    say(collector, errand, numbers, 200)
    collector.ended(wanting)  # type: ignore[arg-type]
    assert collector.deadline() == math.inf
    collector.tick(0.0)
    assert not wanting.sent


def test_a_report_that_breaks_off_leaves_nothing_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    collector, errand, numbers = scene(tmp_path, 3)
    wanting = Connection()
    collector.wanted(wanting, 0.0)  # type: ignore[arg-type]
    lost = [
        PoolReport(
            "p", 0, 0, 0, {}, {}, [ResourceReport(7, "k", "idle", 1, 1.0, 1.0, None, "", {})]
        )
    ]
    collector.reported(errand, Report(1, lost, more=True), 0.0)  # type: ignore[arg-type]
    collector.tick(1.0)  # it has not reported in time
    collector.wanted(wanting, 1.0)  # type: ignore[arg-type]
    say(collector, errand, numbers, 2)
    answer = wanting.sent[-1]
    assert [entry["id"] for entry in answer.stats["pools"]["p"]["resources"]] == numbers


def test_a_process_that_is_stopped_is_given_up_before_one_that_is_busy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stopped: set[int] = set()
    monkeypatch.setattr(collecting, "is_stopped", lambda pid: pid in stopped)
    for stopped_pids, answered_at in ((set(), 1.0), ({P.pid}, 0.2)):
        stopped = stopped_pids
        collector, _, _ = scene(tmp_path, 3)
        wanting = Connection()
        collector.wanted(wanting, 0.0)  # type: ignore[arg-type]
        looks = [collector.deadline()]
        while not wanting.sent:
            looks.append(collector.deadline())
            collector.tick(looks[-1])
        assert looks[-1] == answered_at
        assert collector.deadline() == math.inf
        (answer,) = wanting.sent
        (process,) = answer.stats["pools"]["p"]["processes"]
        assert process["stale"]
