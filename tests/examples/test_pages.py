"""README and pages: the code of README runs as it stands, and every link leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mppool import PoolManager
from tests.helpers import ROOT

PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md")
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)

CALL = """
def start_response(status, headers):
    print(status)
for _ in range(3):
    print(b"".join(application({}, start_response)).decode(), end="")
print(manager.stats()["pools"]["db"]["size"])
"""


def examples_of_readme() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(script: str, place: Path) -> list[str]:
    # Its timeouts are those of a person who tries it on a machine that does nothing else: the server runs already.
    with PoolManager("shop") as manager:
        manager.start()
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=place, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_application_of_readme(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    said = run(examples_of_readme()[0] + CALL, tmp_path)
    assert said[0:-1:2] == ["200 OK"] * 3
    assert all(re.fullmatch(r"42 from worker \d+", line) for line in said[1:-1:2])
    assert said[-1] == "1"


def test_the_driver_of_readme(runtime_dir: Path, tmp_path: Path) -> None:
    (example,) = examples_of_readme()[1:]
    assert run(example + "print(orders.idle_here)", tmp_path) == ["1"]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in LINK.findall(CODE.sub("", page.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            lost.append(link)
    assert not lost


def test_every_page_can_be_found() -> None:
    """From the list of pages, which README names."""
    linked = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not pages - {link.partition("#")[0] for link in linked}
