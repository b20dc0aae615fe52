"""The picture of the house in CONTRIBUTING.md, and those of docs/pictures, are the ones that the code's tables give."""

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


def test_the_pictures_of_how_it_works_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "pictures", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"run tools/pictures\n{done.stdout}{done.stderr}"
