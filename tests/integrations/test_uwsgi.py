"""uwsgi, which forks by C code, runs several interpreters in one process, and may have no threads."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, component_is_missing
from tests.integrations.webserver import WebServer

APPLICATION = Path(__file__).with_name("uwsgi_app.py")
MAX_SIZE = 2
PROCESSES = 3
REQUESTS = 40

Start = Callable[..., WebServer]


@pytest.fixture
def uwsgi(runtime_dir: Path) -> Iterator[Start]:
    """Starts uwsgi with these options; with `early` and `executable`, see uwsgi_app.py."""
    if importlib.util.find_spec("pyuwsgi") is None:
        component_is_missing("uwsgi is not installed: pip install pyuwsgi")
    (opened := runtime_dir / "open").mkdir()
    started: list[WebServer] = []

    def start(*options: str, early: str = "", executable: str = "") -> WebServer:
        if "--py-call-osafterfork" in options and sys.version_info >= (3, 13):
            pytest.skip("uwsgi's workers crash with it on this Python, without mppool too")
        many = options.count("--mount") > 1 and "--single-interpreter" not in options
        if many and sys.version_info[:2] == (3, 12):
            pytest.skip("msgspec cannot be imported in two interpreters of one process of 3.12")
        socket = runtime_dir / "web.sock"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OPEN_DIRECTORY": str(opened),
            "EARLY": early,
            "PRETEND_EXECUTABLE": executable,
        }
        command = [
            sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()",
            "--http-socket", str(socket), "--master", "--processes", str(PROCESSES), "--die-on-term", *options,
        ]  # fmt: skip
        started.append(
            WebServer(command, directory=runtime_dir, environment=environment, address=socket)
        )
        return started[-1]

    yield start
    for server in started:
        server.stop()
        print(server.text())


def ask_many(server: WebServer, *paths: str) -> list[dict[str, Any]]:
    """The answers to many requests at once."""
    server.ask_until(paths[0])
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(server.ask, [paths[n % len(paths)] for n in range(REQUESTS)]))


def check(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert "error" not in answer, answer
        assert answer["of"] == answer["pid"], "another process's resource"
        assert answer["open"] <= MAX_SIZE
        assert answer["label"] == f"uwsgi worker {answer['number']}"
    assert len({answer["pid"] for answer in answers}) > 1


OPTIONS = [
    (),
    ("--lazy-apps",),
    ("--enable-threads",),
    ("--enable-threads", "--threads", "4"),
    ("--lazy-apps", "--enable-threads"),
    ("--enable-threads", "--py-call-osafterfork"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_workers_share_the_pool(uwsgi: Start, options: tuple[str, ...]) -> None:
    check(ask_many(uwsgi("--wsgi-file", str(APPLICATION), *options), "/"))


# With --enable-threads, uwsgi forks in C while the pool's thread may want the interpreter: such a child can hang in the
# interpreter itself, whatever we do. --lazy-apps and --py-call-osafterfork avoid it.
USED_BEFORE = [
    one
    for one in OPTIONS
    if "--enable-threads" not in one or {"--lazy-apps", "--py-call-osafterfork"} & set(one)
]


@pytest.mark.parametrize("options", USED_BEFORE, ids=" ".join)
def test_a_pool_that_was_used_before_the_fork(uwsgi: Start, options: tuple[str, ...]) -> None:
    check(ask_many(uwsgi("--wsgi-file", str(APPLICATION), *options, early="use"), "/"))


@pytest.mark.parametrize(
    "options",
    [(), ("--enable-threads",), ("--lazy-apps",), ("--single-interpreter",)],
    ids=" ".join,
)
def test_two_mounts_share_the_cap_or_say_why_not(uwsgi: Start, options: tuple[str, ...]) -> None:
    server = uwsgi(
        "--manage-script-name", "--mount", f"/a={APPLICATION}", "--mount", f"/b={APPLICATION}", *options
    )  # fmt: skip
    answers = ask_many(server, "/a/", "/b/")
    check(answers)


def test_without_an_interpreter_the_first_checkout_names_the_variable(uwsgi: Start) -> None:
    server = uwsgi("--wsgi-file", str(APPLICATION), executable="/usr/bin/uwsgi-core")
    for answer in ask_many(server, "/"):
        assert answer["error"].startswith("ConfigurationError: manager 'shop': no server can")
        assert "it runs in uwsgi" in answer["error"]
        assert "MPPOOL_PYTHON" in answer["error"]


def test_who_waits_in_vain_is_told_which_worker_has_it(uwsgi: Start) -> None:
    server = uwsgi("--wsgi-file", str(APPLICATION))
    holder = server.ask_until("/hold")
    for answer in ask_many(server, "/ask"):
        assert answer["error"].startswith("CheckoutTimeout: ")
        assert f"uwsgi worker {holder['number']} (pid {holder['pid']}) has 1" in answer["error"]
