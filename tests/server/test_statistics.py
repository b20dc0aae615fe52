"""The shape of statistics, and where each figure comes from."""

from __future__ import annotations

import json
from typing import Any

from mppool.core.books import Books
from mppool.core.decisions import Grant
from mppool.core.events import Attach, Checkout, Declaration, Opened
from mppool.ids import ProcessId, Session, Ticket
from mppool.options import PoolOptions
from mppool.stats.merge import ProcessFigures, Totals, merged
from mppool.stats.names import BOUNDS, SERVER_COUNTERS, WORKER_COUNTERS
from mppool.stats.report import PoolReport, ResourceReport

ONE, TWO = ProcessId(1, 10), ProcessId(2, 20)
KEY = "fingerprint\0acct:alice"


def books() -> tuple[Books, int]:
    """Books of one pool with two processes, the first of which has one resource open; its number."""
    made = Books(7)
    for number, process in enumerate((ONE, TWO), 1):
        attach = Attach(f"web {number}", [Declaration("pool", PoolOptions(max_size=3), 0.0)], [])
        made.apply(process, Session(number), attach, 100.0)
    answers = made.apply(ONE, Session(1), Checkout("pool", KEY, Ticket(1), 1.0), 100.0)
    grant = next(decision for _, decision in answers if isinstance(decision, Grant))
    made.apply(ONE, Session(1), Opened(grant.number, 0.1), 100.1)
    return made, grant.number


def resource(number: int, **extra: Any) -> ResourceReport:
    return ResourceReport(number, KEY, "in_use", 4, 9.0, None, 0.5, "a connection", extra)


def report(pool: str = "pool", resources: tuple[ResourceReport, ...] = ()) -> PoolReport:
    counters = {"checkouts": 5, "opened": 999}
    histograms = {"wait": [1] * (len(BOUNDS) + 1), "use": [1, 2]}
    return PoolReport(pool, 1, 2, 3, counters, histograms, list(resources))


def statistics(figures: list[ProcessFigures], totals: Totals | None = None) -> dict[str, Any]:
    made, _ = books()
    return merged(
        made.snapshot(), figures, totals or Totals(), name="shop", server_pid=4, uptime=1.5
    )


def test_all_promised_names_are_there_and_json_takes_them() -> None:
    _, number = books()
    figures = [ProcessFigures(ONE, "web 1", {"pool": report(resources=(resource(number),))}, False)]
    stats = statistics(figures)
    assert json.loads(json.dumps(stats)) == stats
    assert set(stats) == {
        "name",
        "epoch",
        "server_pid",
        "uptime",
        "processes",
        "pools",
        "budgets",
        "tokens",
        "token_costs",
        "machines",
    }
    pool = stats["pools"]["pool"]
    promised = (
        "name placement max_size min_size size opening in_use idle waiting breaker identities "
        "counters histograms processes resources"
    )
    assert set(promised.split()) <= set(pool)
    assert set(pool["counters"]) == {*SERVER_COUNTERS, *WORKER_COUNTERS}
    assert set(pool["histograms"]) == {"wait", "use", "open"}
    assert set(pool["histograms"]["wait"]) == {"bounds", "counts"}
    in_process = "pid label in_use idle waiting checkouts"
    assert set(in_process.split()) <= set(pool["processes"][0])
    in_resource = "id pid state identity_key uses age idle_for held_for description label thread"
    assert set(in_resource.split()) == set(pool["resources"][0])


def test_the_books_counters_are_not_overruled_by_what_a_process_says() -> None:
    pool = statistics([ProcessFigures(ONE, "", {"pool": report()}, False)])["pools"]["pool"]
    assert pool["counters"]["opened"] == 1
    assert pool["counters"]["checkouts"] == 5


def test_figures_of_all_processes_living_and_dead_are_added_up() -> None:
    totals = Totals()
    totals.bury([report(), report("another")])
    totals.bury([report()])
    figures = [ProcessFigures(process, "", {"pool": report()}, False) for process in (ONE, TWO)]
    pool = statistics(figures, totals)["pools"]["pool"]
    assert pool["counters"]["checkouts"] == 20
    assert pool["histograms"]["wait"]["counts"] == [4] * (len(BOUNDS) + 1)


def test_gauges_that_were_reported_at_different_moments_never_exceed_the_books() -> None:
    figures = [ProcessFigures(process, "", {"pool": report()}, False) for process in (ONE, TWO)]
    pool = statistics(figures)["pools"]["pool"]
    assert pool["in_use"] + pool["idle"] + pool["opening"] <= pool["size"] == 1


def test_a_histogram_with_other_bounds_is_left_out() -> None:
    pool = statistics([ProcessFigures(ONE, "", {"pool": report()}, False)])["pools"]["pool"]
    assert pool["histograms"]["use"]["counts"] == [0] * (len(BOUNDS) + 1)


def test_a_process_that_has_said_nothing_is_stale() -> None:
    stats = statistics([ProcessFigures(ONE, "web 1", {}, True)])
    assert [entry["stale"] for entry in stats["processes"]] == [True, True]
    assert [entry["label"] for entry in stats["processes"]] == ["web 1", "web 2"]


def test_a_process_that_has_slots_and_has_said_nothing_of_the_pool_is_shown_as_stale() -> None:
    for figures in ([], [ProcessFigures(ONE, "web 1", {}, True)]):
        (shown,) = statistics(figures)["pools"]["pool"]["processes"]
        assert (shown["pid"], shown["slots"], shown["stale"]) == (ONE.pid, 1, True)
        assert shown["label"] == ("web 1" if figures else "")
    said = [ProcessFigures(process, "", {"pool": report()}, False) for process in (ONE, TWO)]
    processes = statistics(said)["pools"]["pool"]["processes"]
    assert [one["pid"] for one in processes] == [ONE.pid, TWO.pid]
    assert set(processes[0]) == set(shown)


def test_two_members_of_one_process_show_their_own_slots() -> None:
    """A subinterpreter, or a second copy of the library: each row showed the slots of both."""
    made = Books(7)
    members = [ProcessId(1, 10, 3), ProcessId(1, 10, 5)]
    for number, member in enumerate(members, 1):
        attach = Attach("", [Declaration("pool", PoolOptions(max_size=3), 0.0)], [])
        made.apply(member, Session(number), attach, 100.0)
        for ticket in range(number):
            checkout = Checkout("pool", KEY, Ticket(ticket + 1), 1.0)
            made.apply(member, Session(number), checkout, 100.0)
    figures = [ProcessFigures(member, "", {"pool": report()}, False) for member in members]
    for known in (figures, figures[:1], []):
        stats = merged(made.snapshot(), known, Totals(), name="", server_pid=4, uptime=0.0)
        shown = stats["pools"]["pool"]["processes"]
        assert [(one["pid"], one["slots"]) for one in shown] == [(1, 1), (1, 2)]


def test_a_resource_shows_what_the_books_know_and_what_its_hook_gave() -> None:
    _, number = books()
    given = resource(number, server="db1", state="nonsense")
    figures = [ProcessFigures(ONE, "", {"pool": report(resources=(given,))}, False)]
    (shown,) = statistics(figures)["pools"]["pool"]["resources"]
    assert shown["identity_key"] == "acct:alice"
    assert (shown["id"], shown["pid"], shown["state"]) == (number, ONE.pid, "in_use")
    assert shown["server"] == "db1"
    (unknown,) = statistics([])["pools"]["pool"]["resources"]
    assert (unknown["state"], unknown["uses"], unknown["age"]) == ("open", 0, None)
