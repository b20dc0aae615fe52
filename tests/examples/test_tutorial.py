"""The tutorial, run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mppool import PoolManager
from tests.helpers import ROOT

ASK = {
    "flask": """
client = app.test_client()
print(client.get("/").json["answer"])
""",
    "fastapi": """
from starlette.testclient import TestClient
client = TestClient(app)
print(client.get("/").json()["answer"], client.get("/health").json()["status"])
""",
    "django": """
import django
from django.conf import settings
settings.configure(DATABASES=DATABASES)
django.setup()
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("SELECT 6 * 7")
    print(cursor.fetchone()[0])
""",
}


def block(title: str) -> str:
    page = (ROOT / "docs" / "tutorial.md").read_text()
    found = re.search(rf"```python title={title}\n(.*?)```", page, re.DOTALL)
    assert found, title
    return found[1]


def said(code: str, place: Path) -> str:
    # Its timeouts are those of a person who tries it on a machine that does nothing else: the server runs already.
    with PoolManager("shop") as manager:
        manager.start()
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script(runtime_dir: Path, tmp_path: Path) -> None:
    assert said(block("script"), tmp_path) == "3 pieces\n1 opened\n"
    assert said(block("script"), tmp_path).startswith("6 pieces\n")


@pytest.mark.parametrize(
    ("title", "answer"), [("flask", "42"), ("fastapi", "42 ok"), ("django", "42")]
)
def test_the_applications(runtime_dir: Path, tmp_path: Path, title: str, answer: str) -> None:
    pytest.importorskip(title)
    if title == "fastapi":
        pytest.importorskip("httpx")
    assert said(block(title) + ASK[title], tmp_path).strip() == answer
