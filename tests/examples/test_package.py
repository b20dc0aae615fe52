"""A release: source archive and wheel are built, installed and tried."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mppool import __version__
from tests.helpers import ROOT
from tests.made_once import made_once

TRY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import mppool
from mppool import PoolManager
from mppool.dbapi import DbApiRecipe
import sqlite3
assert mppool.__file__.startswith(sys.argv[1]), mppool.__file__
with PoolManager("shop") as manager:
    pool = manager.pool("orders", DbApiRecipe(sqlite3.connect, ":memory:"), max_size=2)
    with pool.checkout() as connection:
        print(connection.execute("select 6 * 7").fetchone()[0], mppool.__version__)
"""


def run(*command: str | Path, **more: object) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=100, **more
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built of it."""
    pytest.importorskip("build")
    place = made_once(
        tmp_path_factory,
        "dist",
        lambda place: run(sys.executable, "-m", "build", "--no-isolation", "--outdir", place, ROOT),
    )
    (source,), (wheel,) = place.glob("*.tar.gz"), place.glob("*.whl")
    return source, wheel


def test_the_source_archive_has_all_that_is_needed_to_work_on_it(
    release: tuple[Path, Path],
) -> None:
    with tarfile.open(release[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        *("README.md", "LICENSE", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "Makefile"),
        *("tox.ini", "mkdocs.yml", "benchmarks/warm.py", "tests/helpers.py", "docs/options.md"),
        *("tools/system-packages", "examples/README.md", "mppool/py.typed"),
    ):
        assert wanted in names


def test_the_wheel_says_what_it_is(release: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(release[1]) as wheel:
        names = wheel.namelist()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        said = email.message_from_bytes(wheel.read(metadata))
    assert {name.partition("/")[0] for name in names} == {
        "mppool",
        f"mppool-{__version__}.dist-info",
    }
    assert said["Version"] == __version__
    assert {url.partition(",")[0] for url in said.get_all("Project-URL", [])} >= {
        "Changelog",
        "Documentation",
        "Issues",
        "Source",
    }
    links = re.findall(r"\]\(([^)]+)\)", str(said.get_payload()))
    assert len(links) > 20
    assert all(link.startswith("https://") for link in links), links


def test_every_extra_has_a_feature(release: tuple[Path, Path]) -> None:
    """It stands in README's table of extras."""
    with zipfile.ZipFile(release[1]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        said = email.message_from_bytes(wheel.read(metadata))
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert set(said.get_all("Provides-Extra", [])) <= named


def test_the_wheel_works_where_it_is_installed(
    release: tuple[Path, Path], tmp_path: Path, runtime_dir: Path
) -> None:
    place = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--target", place, release[1])
    said = run(sys.executable, "-I", "-c", TRY, place, cwd=tmp_path)
    assert said == f"42 {__version__}\n"
    environment = {**os.environ, "PYTHONPATH": str(place)}
    assert "demo" in run(
        sys.executable, place / "bin" / "mppool", "--help", cwd=tmp_path, env=environment
    )


def test_the_address_of_the_project_stands_in_two_files_only() -> None:
    """There is no public repository yet: the one that comes is written there."""
    (source,) = re.findall(
        r'^Source = "https://(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    listed = subprocess.run(
        ["git", "grep", "-l", "-F", source], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 128:
        pytest.skip("no clone of the repository: git knows no files here")
    assert listed.stdout.split() == [".github/ISSUE_TEMPLATE/config.yml", "pyproject.toml"]


def test_the_oldest_dependencies_are_those_of_the_extras_that_are_asked_for(tmp_path: Path) -> None:
    """With a comment behind its bracket, an extra was read as far as the next one without."""
    (tmp_path / "tools").mkdir()
    tool = shutil.copy(ROOT / "tools" / "oldest-dependencies", tmp_path / "tools")
    (tmp_path / "pyproject.toml").write_text(
        'dependencies = [\n    "one>=1.0",  # with [a] "reason>=0"\n]\n'
        'two = ["two[more]>=2.1"]  # why\nthree = ["three>=3", "mppool[two]"]\n'
    )
    assert run(sys.executable, tool) == "one==1.0\n"
    assert run(sys.executable, tool, "two") == "one==1.0\ntwo==2.1\n"
    assert run(sys.executable, tool, "three") == "one==1.0\nthree==3\n"
