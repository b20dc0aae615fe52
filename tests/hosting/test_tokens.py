"""Tokens: the credential stays in the worker, the token travels to the host."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from mppool.errors import OpenFailed
from tests.helpers import Fork, wait_until
from tests.hosting.things import WithToken


class Issuer:
    """A credential that counts how often it is asked, and that does not pickle."""

    def __init__(self, *tokens: str) -> None:
        self._tokens = list(tokens)
        self.asked = 0
        self.stays = lambda: None

    def get_token(self, *scopes: str, **options: Any) -> Any:
        from azure.core.credentials import AccessToken

        assert scopes == ("scope",)
        self.asked += 1
        token = self._tokens.pop(0) if len(self._tokens) > 1 else self._tokens[0]
        return AccessToken(token, int(time.time()) + 3600)


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    file = tmp_path / "refused"
    file.write_text("")
    return file


def test_the_token_travels_and_the_credential_stays(manager: PoolManager, refused: Path) -> None:
    alice = Issuer("a1")
    pool = manager.pool("p", WithToken(str(refused), alice), max_size=1, placement="host")
    for _ in range(3):
        with pool.checkout() as thing:
            assert (thing["token"], thing["has_credential"]) == ("a1", False)
    assert pool.stats()["counters"]["opened"] == 1


def test_each_identity_has_its_own_and_processes_share_them(
    manager: PoolManager, refused: Path
) -> None:
    alice, bob = Issuer("a1"), Issuer("b1")
    pool = manager.pool("p", WithToken(str(refused)), max_size=2, placement="host")

    def as_both() -> list[Any]:
        seen = []
        for name, credential in (("alice", alice), ("bob", bob)) * 2:
            with pool.checkout(credential=credential, identity=name) as thing:
                seen.append(thing["token"])
        return seen

    assert as_both() == ["a1", "b1"] * 2
    assert Fork(as_both).result() == ["a1", "b1"] * 2
    assert pool.stats()["counters"]["opened"] == 2
    assert (alice.asked, bob.asked) == (1, 1)


def test_a_refused_token_is_asked_for_once_more(manager: PoolManager, refused: Path) -> None:
    refused.write_text("old")
    credential = Issuer("old", "new")
    pool = manager.pool("p", WithToken(str(refused)), max_size=1, placement="host")

    def opened() -> Any:
        try:
            with pool.checkout(credential=credential, identity="alice") as thing:
                return thing["token"]
        except OpenFailed:
            return None  # this login was refused; the next one is tried with another token

    assert wait_until(opened, "a login with another token") == "new"
    assert credential.asked == 2


def test_what_the_credential_raises_is_said(manager: PoolManager, refused: Path) -> None:
    class Broken:
        def get_token(self, *scopes: str, **options: Any) -> Any:
            raise RuntimeError("no token today")

    pool = manager.pool("p", WithToken(str(refused)), max_size=1, placement="host")
    with pytest.raises(OpenFailed, match="no token today"):
        pool.checkout(timeout=20, credential=Broken(), identity="alice")
    with pool.checkout(credential=Issuer("b1"), identity="bob") as thing:
        assert thing["token"] == "b1"
