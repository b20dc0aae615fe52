"""The page of budgets and lanes: its code runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT

BEFORE = """
class Connection:
    def use(self):
        print("used")
    def close(self):
        pass
connect_to_orders = connect_to_reports = Connection
"""
AFTER = """
with orders.checkout(), reports.checkout():
    print(server.stats()["size"], orders.stats()["budget"])
server.resize(50)
print(server.stats()["max_size"], sorted(jobs.stats()["lanes"]))
manager.shutdown()
"""


def test_the_page(runtime_dir: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "budgets.md").read_text()
    blocks = re.findall(r"```python title=\w+\n(.*?)```", page, re.DOTALL)
    script = "\n".join([BEFORE, *blocks, AFTER])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["used", "used", "3 db-server", "50 ['', 'web']"]
