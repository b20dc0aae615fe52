"""What `mppool doctor` says of the clock, of limits, versions and variables."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mppool.cli import environment
from tests.helpers import PATIENCE, ROOT


def test_a_clock_of_the_past_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    found = environment.clock()
    assert found.level == "FAULT"
    assert "set the clock" in found.text


@pytest.mark.parametrize(("is_kept_right", "level"), [(False, "note"), (True, "ok"), (None, "ok")])
def test_a_clock_that_nothing_keeps_right_is_noted(
    monkeypatch: pytest.MonkeyPatch, is_kept_right: bool | None, level: str
) -> None:
    monkeypatch.setattr(environment, "_is_kept_right", lambda: is_kept_right)
    assert environment.clock().level == level


@pytest.mark.parametrize(
    ("hard", "level", "said"),
    [(256, "note", "LimitNOFILE"), (4096, "ok", "4096"), (resource.RLIM_INFINITY, "ok", "any")],
)
def test_few_descriptors_are_noted(
    monkeypatch: pytest.MonkeyPatch, hard: int, level: str, said: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (128, hard))
    found = environment.descriptors()
    assert found.level == level
    assert said in found.text


def test_versions_of_what_mppool_needs_and_works_with_are_said() -> None:
    needs, works_with, *_ = environment.versions()
    assert "msgspec " in needs.text
    assert "filelock " in needs.text
    assert "SQLAlchemy " in works_with.text
    assert "psycopg " in works_with.text


def test_variables_that_reloaders_leave_behind_are_noted() -> None:
    found = list(environment.variables({"RUN_MAIN": "true", "MPPOOL_RUNTIME_DIR": "/run/shop"}))
    assert [one.level for one in found] == ["ok", "note"]
    assert "MPPOOL_RUNTIME_DIR=/run/shop" in found[0].text
    assert "RUN_MAIN=true" in found[1].text
    assert list(environment.variables({})) == []


def test_the_picture_of_the_doctor_is_drawn_by_its_command(tmp_path: Path) -> None:
    file = tmp_path / "doctor.svg"
    subprocess.run(
        [sys.executable, ROOT / "tools" / "doctor-picture", file], check=True, timeout=PATIENCE
    )
    drawn = file.read_text()
    assert "garbage-collected" in drawn.replace("&#160;", " ")
    assert "no&#160;fault&#160;found" in drawn
    assert "@font-face" not in drawn
