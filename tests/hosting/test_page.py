"""The example of docs/hosting.md runs as it stands; and an application of one script, with spawned children."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mppool import PoolManager
from tests.helpers import ROOT, run_python


def test_the_example(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/hosting.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    with PoolManager("shop") as manager:
        manager.start()  # its timeout is that of a person whose machine does nothing else
        assert run_python(example).stdout == "[('bolt',), ('nut',)]\n"


SCRIPT = """
import multiprocessing, os

from mppool import PoolManager

class Thing:
    def pid(self):
        return os.getpid()

def opener():
    return Thing()

def work(pool):
    with pool.checkout() as thing:
        return thing.pid(), os.getpid()

if __name__ == "__main__":
    pool = PoolManager("script").pool("p", opener, max_size=1, placement="host")
    with multiprocessing.get_context("spawn").Pool(2) as children:  # one of these starts the host
        answers = [*children.map(work, [pool] * 4), work(pool)]
    assert len({host for host, _ in answers}) == 1
    assert os.getpid() not in {host for host, _ in answers}
    print("done")
"""


def test_a_recipe_of_the_applications_script_travels(runtime_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
