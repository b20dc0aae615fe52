"""The example of docs/secrets.md is what it says: it can be declared, and asks nobody before it opens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mppool import OpenFailed
from tests.helpers import ROOT


def test_the_example_declares_pools_that_ask_for_the_password_when_they_open(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "secrets.md").read_text(), re.DOTALL
    )
    assert "/run/secrets/shop" in example
    names: dict[str, object] = {}
    exec(example.replace("/run/secrets/shop", str(runtime_dir / "missing")), names)
    stock, manager = names["stock"], names["manager"]
    with pytest.raises(OpenFailed, match="missing"):
        stock.checkout(timeout=5)  # type: ignore[attr-defined]
    manager.shutdown()  # type: ignore[attr-defined]
