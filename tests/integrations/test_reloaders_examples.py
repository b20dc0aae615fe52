"""The Flask and Django examples, run as their first lines say."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.helpers import ROOT, free_port
from tests.integrations.webserver import WebServer, control_socket

EXAMPLES = ROOT / "examples"

COMMANDS: dict[str, tuple[str, str, Callable[[int], Sequence[str]]]] = {
    "flask": ("flask", "flask", lambda port: ["flask", "--app", "app", "run", "--debug", "-p", str(port)]),
    "flask under gunicorn": (
        "flask", "gunicorn", lambda port: ["gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "app:app"],
    ),
    "django": ("django", "django", lambda port: ["shop.py", "runserver", str(port)]),
    "django under gunicorn": (
        "django", "gunicorn",
        lambda port: ["gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "shop:application"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COMMANDS)
def test_example(kind: str, sqlite_odbc: str, runtime_dir: Path, tmp_path: Path) -> None:
    directory, needs, command = COMMANDS[kind]
    pytest.importorskip(directory)
    pytest.importorskip(needs)
    port = free_port()
    arguments = list(command(port))
    if not arguments[0].endswith(".py"):
        arguments.insert(0, "-m")
    if "gunicorn" in kind:
        arguments += control_socket(tmp_path / "control")
    environment = {
        **os.environ,
        "SHOP_DATABASE": str(tmp_path / "shop.db"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with WebServer(
        [sys.executable, *arguments],
        directory=EXAMPLES / directory,
        environment=environment,
        address=port,
        log=tmp_path / "log",
    ) as web:
        assert web.ask_until("/")["sqlite"].startswith("3.")
        pool = web.ask("/pool")
        assert pool["max_size"] == 5
        assert pool["size"] >= 1
