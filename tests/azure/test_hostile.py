"""Pools in front of issuers that misbehave: the caller gets a clear error in time, and nobody gets a secret."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from azure.identity import ClientSecretCredential, ManagedIdentityCredential

from mppool import CheckoutTimeout, OpenFailed, Opening, Pool, PoolManager, Recipe
from tests.azure.crowd import SCOPE
from tests.azure.endpoints import CLIENT, SECRET, TENANT, Answer, Endpoint
from tests.helpers import Fork, wait_until
from tests.secrecy import MARK


class Sessions(Recipe[str]):
    token_scope = SCOPE

    def open(self, opening: Opening) -> str:
        return str(opening.token.token_struct[4:].decode("utf-16-le").split(".")[1])


@pytest.fixture
def pool(manager: PoolManager) -> Iterator[Pool[str]]:
    made = manager.pool("p", Sessions(), max_size=8)
    yield made
    made.close()


def application(entra: tuple[Endpoint, str]) -> ClientSecretCredential:
    endpoint, certificate = entra
    return ClientSecretCredential(
        TENANT,
        CLIENT,
        SECRET,
        authority=endpoint.url,
        disable_instance_discovery=True,
        connection_verify=certificate,
        retry_total=0,
    )


def refused(pool: Pool[str], credential: Any, timeout: float = 10.0) -> str:
    """The error of a checkout, as a log would show it."""
    with pytest.raises(OpenFailed) as caught:
        pool.checkout(timeout, credential=credential)
    return "".join(traceback.format_exception(caught.value))


def test_an_issuer_that_repeats_secrets(entra: tuple[Endpoint, str], pool: Pool[str]) -> None:
    """Neither the one who asked, nor the others who are told, nor a log, nor statistics show them."""
    entra[0].behaviour = lambda asked: Answer(
        401,
        {
            "error": "invalid_client",
            "error_description": f"AADSTS7000215: not {SECRET}, nor {MARK}.{'x' * 80}",
        },
    )
    credential = application(entra)
    shown = [refused(pool, credential) for _ in range(3)]
    shown.append(Fork(lambda: refused(pool, credential)).result())
    for text in shown:
        assert MARK not in text
        assert "AADSTS7000215" in text
    assert entra[0].count <= 2  # at most once in each process: the secret may be wrong in one alone


class Talkative(Sessions):
    """Its driver repeats the token when it is refused."""

    def open(self, opening: Opening) -> str:
        token = opening.token.token_struct[4:].decode("utf-16-le")
        try:
            raise OSError(f"18456: {token}")
        except OSError as error:
            raise ValueError(f"login failed for {token}, sorry") from error


def test_a_driver_that_repeats_the_token(msi: Endpoint, manager: PoolManager) -> None:
    pool = manager.pool("talkative", Talkative(), max_size=2)
    credential = ManagedIdentityCredential()
    shown = [refused(pool, credential) for _ in range(2)]
    shown.append(Fork(lambda: refused(pool, credential)).result())
    for text in shown:
        assert MARK not in text
        assert "ValueError: login failed for <hidden>, sorry" in text
    pool.close()


def test_an_issuer_that_answers_html(msi: Endpoint, pool: Pool[str]) -> None:
    page = (
        f"<html><head><script>{'var x;' * 2000}</script></head><body>Log in, {MARK}!</body></html>"
    )
    msi.behaviour = lambda asked: Answer(200, page)
    text = refused(pool, ManagedIdentityCredential(retry_total=0))
    assert "no token could be fetched" in text
    assert "<html" not in text
    assert "answered something other than JSON" in text


def test_an_issuer_that_hangs_keeps_nobody_beyond_his_time(msi: Endpoint, pool: Pool[str]) -> None:
    """The one that fetches waits as long as its credential says, the others as long as they said themselves."""
    msi.behaviour = msi.hang
    credential = ManagedIdentityCredential(retry_total=0, read_timeout=6)
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(refused, pool, credential)
        wait_until(lambda: msi.count == 1, "the request")
        for timeout in (0.0, 0.5):
            with pytest.raises((CheckoutTimeout, OpenFailed)):
                pool.checkout(timeout, credential=credential)
            assert not asking.done()
        assert "no token could be fetched" in asking.result(20)
    assert msi.count == 1
    msi.let_go.set()
    wait_until(lambda: pool.stats()["size"] == 0, "the end of what was being opened")


@pytest.mark.parametrize("life", [-3600, 0, 1, 10**9])
def test_an_issuer_that_lies_about_expiry(life: int, msi: Endpoint, pool: Pool[str]) -> None:
    """The server's refusal tells, not the issuer's word: the session is used, and no storm follows."""
    msi.behaviour = lambda asked: asked.token(life)
    credential = ManagedIdentityCredential(retry_total=0)
    for _ in range(50):
        with pool.checkout(10.0, credential=credential):
            pass
    assert msi.count <= 4
