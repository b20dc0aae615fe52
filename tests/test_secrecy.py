"""The watch over secrets sees what it is there for: each leak is planted, reported, and taken back."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from mppool import InProcessManager, OpenFailed, PoolError
from mppool.azure import token_struct
from tests.conftest import pytest_runtest_teardown
from tests.helpers import Fork
from tests.secrecy import MARK, WATCH, shows_secret

log = logging.getLogger("mppool.somewhere")


def planted() -> str:
    """What was reported since the last look; the test that planted it does not fail of it."""
    return "\n".join(WATCH.take())


def test_nothing_is_reported_where_nothing_is_seen(tmp_path: Path) -> None:
    log.debug("a checkout of %s", "alice")
    (tmp_path / "journal").write_bytes(b"\0" * 100)
    WATCH.see_files(tmp_path)
    WATCH.see_objects()
    assert planted() == ""


def test_the_log_at_debug_and_its_tracebacks() -> None:
    log.debug("a token: %s", MARK)
    assert "a token" in planted()
    try:
        raise OSError(f"refused {MARK}")
    except OSError:
        log.warning("no token", exc_info=True)
    assert "OSError: refused" in planted()


def test_forked_children_are_watched() -> None:
    Fork(lambda: log.info("in a child: %s", MARK)).result()
    assert "in a child" in planted()


def test_errors_and_their_causes() -> None:
    OpenFailed(f"a login with {MARK} was refused")  # nobody ever sees it
    assert "a OpenFailed" in planted()
    with pytest.raises(PoolError):
        raise OpenFailed("no connection") from OSError(f"the driver repeats {MARK}")
    assert "a traceback" in planted()


def test_statistics() -> None:
    manager = InProcessManager()
    pool = manager.pool("p", object, describe=lambda _: MARK)
    with pool.checkout():
        pool.stats()
        manager.stats()
    assert planted().count("stats:") >= 2


class _Careless:
    def __repr__(self) -> str:
        return f"<{MARK}>"


def test_reprs() -> None:
    # Only objects of mppool's classes are looked at.
    _Careless.__module__ = "mppool.careless"
    one: Any = _Careless()
    WATCH.see_objects()
    assert "_Careless" in planted()
    assert MARK in repr(one)


def test_files_and_their_names(tmp_path: Path) -> None:
    (tmp_path / f"of-{MARK}").mkdir()
    WATCH.see_files(tmp_path)
    assert "a name in" in planted()
    (tmp_path / f"of-{MARK}").rmdir()
    (tmp_path / "journal").write_bytes(os.urandom(100) + MARK.encode() + b"\0" * 100)
    WATCH.see_files(tmp_path)
    assert "the file journal" in planted()
    (tmp_path / "journal").write_bytes(token_struct(MARK))
    WATCH.see_files(tmp_path)
    assert "the file journal" in planted()


@pytest.mark.parametrize(
    "text", [f"x{MARK}y", repr(token_struct(MARK)), token_struct(MARK).decode("latin-1")]
)
def test_forms_of_a_token(text: str) -> None:
    assert shows_secret(text)


def test_a_test_in_which_a_secret_is_seen_fails() -> None:
    ending = pytest_runtest_teardown()
    next(ending)
    log.debug("a token: %s", MARK)
    with pytest.raises(pytest.fail.Exception, match="a secret was seen"):
        next(ending)
