"""The picture of the house in CONTRIBUTING.md is the one that the layers contract gives."""

from __future__ import annotations

import subprocess
import sys

from tests.house.source import ROOT


def test_the_picture_of_the_house_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "house-picture", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"run tools/house-picture\n{done.stderr}"
