"""Every benchmark runs, and says what it is meant to say. How fast anything is, is no test's business."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

from benchmarks import cold, engines, footprint, scale, sharing, storm, warm
from benchmarks.command import command
from benchmarks.peers import FLOOR, OURS
from benchmarks.plotting import svg
from benchmarks.tables import Spread, Table, number

TABLES = {
    warm: {"warm", "warm_threads"},
    engines: {"engines"},
    cold: {"cold", "cold_1", "cold_2"},
    sharing: {"sharing_uniform", "sharing_skewed", "sharing_shifting"},
    storm: {"storm"},
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
        "simulation_10",
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


def test_a_simulated_crowd_keeps_the_cap_and_starves_nobody() -> None:
    world = scale.Simulation(processes=12, threads=2, slots=6, seed=7)
    world.run(3.0)
    assert world.peak <= 6
    assert len(world.books.pools["p"].slots) <= 6
    served = [world.served[member.process] for member in world.members]
    assert min(served) > 0
    assert max(world.waits) < 1.5
