"""The documentation as a site: it builds without a warning and without a network, and every link leads somewhere."""

from __future__ import annotations

import functools
import html.parser
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers import ROOT
from tests.made_once import made_once

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")

# The build may ask for nothing: whatever opens a connection fails.
OFFLINE = """
import socket, sys
def refuse(*arguments): raise OSError("the build may not use the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(sys.argv[1:])
"""


class Page(html.parser.HTMLParser):
    """The links, the anchors and what the browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(filter(None, (given.get("id"), given.get("name"))))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img") and "src" in given:
            self.fetched.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preload"):
            self.fetched.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(place: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE, "build", "--strict", "--site-dir", str(place)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "site", build)


@functools.cache
def parsed(path: Path) -> Page:
    return Page(path.read_text())


@pytest.mark.timeout(300)
def test_every_link_leads_somewhere(site: Path) -> None:
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) > 30
    lost = []
    for path in pages:
        for link in parsed(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if there.is_dir():
                there /= "index.html"
            if not there.exists() or (
                parts.fragment
                and there.suffix == ".html"
                and unquote(parts.fragment) not in parsed(there).anchors
            ):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert not lost


@pytest.mark.timeout(300)
def test_readers_fetch_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not [one for one in parsed(path).fetched if urlsplit(one).netloc], path


@pytest.mark.timeout(300)
def test_the_reference_has_what_users_call(site: Path) -> None:
    anchors = parsed(site / "api.html").anchors
    for name in (
        "manager.PoolManager",
        "worker.pool.Pool.checkout",
        "errors.CheckoutTimeout",
        "recipe.Recipe.open",
    ):
        assert f"mppool.{name}" in anchors
    assert (site / "search" / "search_index.json").stat().st_size > 100_000
