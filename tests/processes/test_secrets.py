"""Secrets stay where they are used: not in what other processes are told, and not in what tracebacks keep."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from mppool import InProcessManager, OpenFailed, Opening, PoolError, PoolManager, Recipe
from mppool.azure import StaticToken
from mppool.odbc import OdbcRecipe
from mppool.secret import log_in
from mppool.worker.opening import LOGIN_CHANGE_S
from tests.helpers import PATIENCE, Fork

PASSWORD, TOKEN = "hunter2-password", "eyJ0TOPSECRETTOKEN"


def refuse() -> None:
    raise RuntimeError(f"could not connect to postgresql://app:{PASSWORD}@db/shop: refused")


def test_what_a_hook_says_reaches_other_processes_without_secrets(
    manager: PoolManager, fork: Callable[..., Fork]
) -> None:
    def told() -> str:
        with pytest.raises(PoolError) as failed:
            manager.pool("orders", refuse, max_size=2).checkout(timeout=5)
        return str(failed.value)

    here = told()
    there = fork(told).result()
    for text in (here, there, str(manager.stats())):
        assert PASSWORD not in text
    assert "postgresql://app:<hidden>@db/shop: refused" in here
    assert "refused" in there


def values_in_frames(error: BaseException | None) -> Iterator[tuple[str, str, Any]]:
    """What a reporter that shows local variables can see of an error."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for name, value in list(frame.f_locals.items()):
                yield frame.f_code.co_name, name, value
        error = error.__cause__ or error.__context__


def assert_not_seen(error: BaseException, *secrets: str) -> None:
    for function, name, value in values_in_frames(error):
        if function.startswith("test_"):
            continue
        shown = repr(value).replace("\\x00", "")
        assert not any(secret in shown for secret in secrets), (function, name)


@pytest.mark.parametrize("how", ["password", "token"])
def test_no_frame_of_a_failed_opening_holds_a_secret(manager: PoolManager, how: str) -> None:
    missing = "Driver={no such driver};Server=db;"
    recipe = OdbcRecipe(missing + (f"UID=sa;PWD={PASSWORD}" if how == "password" else ""))
    pool = manager.pool("orders", recipe, max_size=2)
    credential = StaticToken(TOKEN) if how == "token" else None
    with pytest.raises(OpenFailed) as failed:
        pool.checkout(timeout=5, credential=credential)
    assert PASSWORD not in str(failed.value)
    assert_not_seen(failed.value, PASSWORD, TOKEN)


class Sends:
    """A credential that has its secret in a local variable when it fails, as all do that send it."""

    def get_token(self, *scopes: str, **_: Any) -> Any:
        form = {"client_secret": PASSWORD, "scope": scopes}
        raise ValueError(f"no answer to a form of {len(form)} fields")


def test_no_frame_of_a_credential_that_failed_holds_a_secret(manager: PoolManager) -> None:
    recipe = OdbcRecipe("Driver={no such driver};Server=db")
    pool = manager.pool("orders", recipe, max_size=2)
    with pytest.raises(OpenFailed) as failed:
        pool.checkout(timeout=5, credential=Sends(), identity="app")
    assert isinstance(failed.value.__cause__, ValueError)
    assert_not_seen(failed.value, PASSWORD)


def test_the_applications_own_hook_keeps_its_frames(manager: PoolManager) -> None:
    def opens() -> None:
        attempt = "third"
        raise RuntimeError(f"not at the {attempt} time")

    with pytest.raises(OpenFailed) as failed:
        manager.pool("orders", opens, max_size=2).checkout(timeout=5)
    assert ("opens", "attempt", "third") in list(values_in_frames(failed.value))


class _Asked(NamedTuple):
    digest: str


class _TwoPasswords(Recipe[object]):
    """The first opening is refused with the old password, after others were accepted with it."""

    open_in_caller = True

    def __init__(self) -> None:
        self.began, self.changed = threading.Event(), threading.Event()

    def open(self, opening: Opening) -> object:
        is_first = not self.began.is_set()
        self.began.set()

        def attempt(asked: _Asked) -> object:
            if is_first and asked.digest == "old":
                assert self.changed.wait(PATIENCE)
                return PermissionError("the password has changed")
            return object()

        answers = iter(["old", "new"])
        return log_in(opening, lambda: _Asked(next(answers)), attempt, lambda _: True)


def test_what_was_opened_with_the_old_password_while_another_opening_went_on_ends_too() -> None:
    """The other opening began earlier, so what it found open when it knew the new password was not taken for older."""
    recipe = _TwoPasswords()
    with InProcessManager() as manager:
        pool = manager.pool("p", recipe, max_size=2, max_lifetime=None, max_idle=None)
        with ThreadPoolExecutor() as threads:
            late = threads.submit(pool.checkout)
            assert recipe.began.wait(PATIENCE)
            with pool.checkout():
                (old,) = (one for one in pool._local.entries() if one.state == "open")
                recipe.changed.set()
                late.result().release()
                assert old.retire_at <= time.monotonic() + LOGIN_CHANGE_S
                assert old.retire_reason == "retired"
