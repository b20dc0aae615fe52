"""The list of planted bugs still fits the sources."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

planted = pytest.importorskip("tests.planted.bugs")
BUGS = [
    *planted.BUGS,
    *pytest.importorskip("tests.planted.sharing_bugs").SHARING_BUGS,
    *pytest.importorskip("tests.planted.token_bugs").TOKEN_BUGS,
    *pytest.importorskip("tests.planted.worker_bugs").WORKER_BUGS,
    *pytest.importorskip("tests.planted.budget_bugs").BUDGET_BUGS,
    *pytest.importorskip("tests.planted.machine_bugs").MACHINE_BUGS,
    *pytest.importorskip("tests.planted.undone").UNDONE,
]


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_the_text_of_a_planted_bug_stands_in_its_file_once(bug: planted.Bug) -> None:
    source = Path(planted.PACKAGE / bug.file).read_text()
    assert source.count(bug.text) == 1
    assert bug.planted != bug.text
    assert all((planted.PACKAGE.parent / part).exists() for part in bug.tests)
    compile(source.replace(bug.text, bug.planted), bug.file, "exec")


def test_there_are_many_bugs_with_names_of_their_own() -> None:
    assert len(BUGS) >= 20
    assert max(Counter(bug.name for bug in BUGS).values()) == 1
