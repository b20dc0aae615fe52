"""The example of docs/hosting.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_python


def test_the_example(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/hosting.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    assert run_python(example).stdout == "[('bolt',), ('nut',)]\n"
