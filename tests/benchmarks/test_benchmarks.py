"""Every benchmark runs, and says what it is meant to say. How fast anything is, is no test's business."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

from benchmarks import (
    __main__,
    asynchronous,
    brake,
    cold,
    contention,
    engines,
    footprint,
    goodput,
    hosting,
    scale,
    shares,
    sharing,
    spike,
    storm,
    warm,
)
from benchmarks.command import command
from benchmarks.peers import FLOOR, OURS
from benchmarks.plotting import svg
from benchmarks.tables import Spread, Table, number
from tests.helpers import component_is_missing

pytestmark = pytest.mark.timeout(240)  # a machine that is busy takes many times as long

TABLES = {
    warm: {"warm", "warm_threads"},
    engines: {"engines"},
    cold: {"cold", "cold_1", "cold_2"},
    contention: {
        f"contention_{crowd}_{held}_us"
        for crowd in ("4_on_2", "16_on_4")
        for held in (0, 200, 2000)
    },
    sharing: {  # a quick run has fewer logins, and shorter ones
        *(f"sharing_uniform_{login}" for login in (1, 15)),
        "sharing_scarce_15",
        "sharing_skewed_20",
        "sharing_shifting_20",
        "sharing_shifting_15",
    },
    spike: {"spike_short_1", "spike_long_1", "spike_short_4", "spike_long_4", "spike_impatient"},
    goodput: {"goodput"},
    storm: {"storm"},
    brake: {"brake"},
    shares: {"shares_5"},
    hosting: {
        "hosting_calls_on_one_CPU",
        "hosting_calls_on_all_CPUs",
        "hosting_rows",
        "hosting_alone",
        "hosting_crowd_5_0",
        "hosting_crowd_100_10",
        "hosting_many",
        *(f"hosting_encoding_{kind}_{count}" for kind in ("simple", "rich") for count in (1, 100)),
    },
    footprint: {
        "footprint_import",
        "footprint_start",
        "footprint_server",
        "footprint_worker",
        "footprint_idle",
    },
    scale: {
        "scale_slots",
        "scale_waiters",
        "scale_identities",
        "scale_waiting_identities",
        *(f"simulation_{kind}" for kind in scale.KINDS),
    },
}


@pytest.mark.parametrize("module", TABLES, ids=lambda module: module.__name__.split(".")[1])
def test_a_quick_run_gives_all_tables_as_text_json_and_plots(
    module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "figures.json"
    tables = command(
        {"it": module.run}, ["--quick", "--json", str(where), "--plots", str(tmp_path)]
    )
    assert {table.name for table in tables} == TABLES[module]
    printed = capsys.readouterr().out
    written = json.loads(where.read_text())
    for table, as_json in zip(tables, written["tables"], strict=True):
        assert table.title in printed
        assert as_json["name"] == table.name
        assert set(as_json["rows"]) == set(table.samples)
        assert len(set(map(len, table.samples.values()))) == 1, "every round has everybody"
        if table.name != "footprint_idle":  # there nothing is what should be
            assert all(max(samples) > 0 for samples in table.samples.values())
            drawing = ET.parse(tmp_path / f"{table.name}.svg").getroot()
            assert "".join(drawing.itertext()).count(table.title) == 1


def test_what_needs_a_server_is_left_out_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(asynchronous.VARIABLE, raising=False)
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert __main__.main(["asynchronous", "machines", "--quick"]) == []
    said = capsys.readouterr().err
    assert "asynchronous: left out; $MPPOOL_BENCH_POSTGRES names no database" in said
    assert "machines: left out; it needs redis-server" in said


def test_machines_are_measured_over_a_real_redis(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        component_is_missing("there is no redis-server (Debian: redis-server)")
    (table,) = __main__.main(["machines", "--quick"])
    assert set(table.samples) == {"10 machines", "100 machines"}
    assert all(min(samples) > 0 for samples in table.samples.values())


def test_peers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ProxyPatternPool", None)
    table = warm.one_thread(quick=True)
    assert any("left out: ProxyPatternPool" in note for note in table.notes)
    assert FLOOR in table.samples
    assert OURS in table.samples


def test_ratios_are_made_within_a_round() -> None:
    table = Table("t", "T", "s", {"a": [1.0, 10.0, 3.0], "b": [2.0, 20.0, 3.0]}, ("a",))
    assert table.ratio("b", "a") == Spread(1.0, 2.0, 2.0)
    assert table.spread("b") == Spread(2.0, 3.0, 20.0)


def test_a_table_is_aligned() -> None:
    table = Table("t", "T", "s", {"a": [1.0], "longer": [2000.0]}, ("a",), notes=["a note"])
    lines = table.as_text().splitlines()
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    assert lines[-1] == "  a note"


def test_a_plot_of_very_different_rows_is_logarithmic_and_stays_within_its_frame() -> None:
    text = svg(Table("t", "T & co", "s", {"a": [1e-3, 2e-3], "b": [1e3, 2e3], "c": [0.0, 0.0]}))
    assert "logarithmic" in text
    assert "T &amp; co" in text
    for bar in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(bar.get("width", "nan")) <= 760


def test_numbers_have_three_figures() -> None:
    values = (0.0, 0.01234, 1.234, 123.4, 1234567.0, math.inf, 3, "x")
    assert [*map(number, values)] == ["0", "0.0123", "1.23", "123", "1,234,567", "inf", "3", "x"]


@pytest.mark.parametrize("kind", scale.KINDS)
@pytest.mark.parametrize("login_s", [0.02, 0.3])
def test_a_simulated_crowd_keeps_the_cap_and_starves_nobody(kind: str, login_s: float) -> None:
    world = scale.simulated(kind, 8, login_s, 0.02, 2000)
    summary = world.summary()
    assert world.peak <= world.load.slots
    assert len(world.books.pools["p"].slots) <= world.load.slots
    assert summary["least served"] > (0.1 if kind == "bursty" else 0.5)
    assert summary["longest wait"] < 20


@pytest.mark.parametrize("login_s", [0.02, 0.1, 0.3, 1.0])
def test_a_simulated_uniform_load_moves_nothing(login_s: float) -> None:
    world = scale.simulated("uniform", 4, login_s, 0.02, 2000)
    assert world.summary()["open %"] == 0
    assert world.done() > 0.95


@pytest.mark.parametrize("login_s", [0.02, 0.1, 0.3, 1.0])
def test_with_fewer_slots_than_processes_moving_costs_less_than_a_fifth(login_s: float) -> None:
    world = scale.simulated("scarce", 8, login_s, 0.02, 2000)
    assert world.done() > 0.8
    assert world.summary()["longest wait"] < 20
