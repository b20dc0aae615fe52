"""`forget_tokens` reaches a process that shares no token: its credential's identity is known to nobody."""

from __future__ import annotations

from pathlib import Path

from mppool import PoolManager
from tests.azure.crowd import SCOPE
from tests.azure.test_shared import Issuer
from tests.helpers import Fork, wait_until


def use_until_forgotten(manager: PoolManager, has_one: Path) -> list[str]:
    """The first token, and the next one that is another."""
    shared = manager.credential(Issuer())
    first = shared.get_token(SCOPE).token
    has_one.touch()
    other = wait_until(
        lambda: (token := shared.get_token(SCOPE).token) != first and token, "another token"
    )
    return [first, str(other)]


def test_a_process_that_shares_no_token_hears_that_all_are_forgotten(
    manager: PoolManager, tmp_path: Path
) -> None:
    manager.start()
    attached = len(manager.stats()["processes"])
    child = Fork(use_until_forgotten, manager, tmp_path / "has one")
    wait_until((tmp_path / "has one").exists, "the child's token")
    wait_until(lambda: len(manager.stats()["processes"]) > attached, "the child at the server")
    manager.forget_tokens()
    first, other = child.result()
    assert first != other
