"""What checkers say of applications: nothing about the examples, and the misspelt option by its name."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mppool.arguments import PoolArguments
from mppool.options import OPTION_NAMES
from mppool.recipe import SETTINGS
from tests.helpers import ROOT, component_is_missing

EXAMPLES = [
    *(ROOT / "examples").glob("*.py"),
    *(ROOT / "examples" / place for place in ("gunicorn/app.py", "flask/app.py", "django/shop.py")),
]

WRONG = """
from mppool import PoolManager
pool = PoolManager("shop").pool("orders", object, max_sise=3)
"""

WRONG_KEY = """
from mppool import PoolManager
pool = PoolManager("shop").pool("orders", object, max_size=3, order="fifo")
print(pool.stats()["in_use"] + 1)
print(pool.stats()["in_used"])
"""


WRONG_CALL = """
from mppool import AsyncPool, Pool

class Connection:
    def execute(self) -> None: ...

async def use(blocking: Pool[Connection], native: AsyncPool[Connection]) -> None:
    async with blocking.acheckout() as one:
        one.execute()
        one.exekute_in_acheckout()
    lease = await blocking.acheckout()
    lease.resource.execute()
    lease.resource.exekute_of_a_lease()
    async with native.checkout() as other:
        other.execute()
        other.exekute_in_a_native_checkout()
"""


def checked(checker: list[str], *paths: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *checker, *map(str, paths)],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if checker[0] == "pyright" and ("No module named" in done.stderr or "nodeenv" in done.stderr):
        component_is_missing("pyright is not installed, or cannot get the node that it runs on")
    return done.returncode, done.stdout + done.stderr


CHECKERS = pytest.mark.parametrize(
    "checker",
    [["mypy", "--strict"], ["pyright", "--pythonpath", sys.executable]],
    ids=["mypy", "pyright"],
)


@pytest.mark.timeout(300)
@CHECKERS
def test_the_examples(checker: list[str]) -> None:
    alone = EXAMPLES
    if tuple(map(int, version("azure-storage-blob").split(".")[:2])) < (12, 22):
        # Its types are in comments, which mypy reads wrongly.
        alone = [path for path in EXAMPLES if path.name != "blob_workers.py"]
    for path in alone if checker[0] == "mypy" else [None]:
        paths = EXAMPLES if path is None else [path]  # mypy wants one application at a time
        status, said = checked(checker, *paths)
        assert status == 0, said


@pytest.mark.timeout(300)
@CHECKERS
def test_a_misspelt_option_figure_and_method(checker: list[str], tmp_path: Path) -> None:
    texts = {"wrong": WRONG, "wrong_key": WRONG_KEY, "wrong_call": WRONG_CALL}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    status, said = checked(checker, *(tmp_path / f"{name}.py" for name in texts))
    assert status == 1
    assert "max_sise" in said
    assert "in_used" in said
    for place in ("in_acheckout", "of_a_lease", "in_a_native_checkout"):
        assert f"exekute_{place}" in said
    errors = [line for line in said.splitlines() if " error:" in line or " - error:" in line]
    assert len(errors) == 5


def test_every_option_is_known_to_checkers() -> None:
    assert set(PoolArguments.__annotations__) == {*OPTION_NAMES, *SETTINGS}
