"""What credentials cost whose tokens are not shared: `stats()["token_costs"]`, and `mppool doctor`."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from azure.identity import AzureCliCredential, ChainedTokenCredential, OnBehalfOfCredential

from mppool import PoolManager
from mppool.recipe import Opening, Recipe
from tests.azure.endpoints import CLIENT, SECRET, TENANT, Answer, Asked, Endpoint
from tests.cli.test_commands import mppool


class Sessions(Recipe[Any]):
    token_scope = "https://database.windows.net/.default"

    def open(self, opening: Opening) -> Any:
        return object()


def slowly(asked: Asked) -> Answer:
    answer = asked.token()
    answer.delay = 0.05
    return answer


def costs(manager: PoolManager) -> dict[str, Any]:
    return {one["kind"]: one for one in manager.stats()["token_costs"]}


def test_on_behalf_of_credentials_made_for_each_request(
    entra: tuple[Endpoint, str], manager: PoolManager
) -> None:
    endpoint, certificate = entra
    endpoint.behaviour = slowly
    pool = manager.pool("p", Sessions(), max_size=2)
    manager.start()
    for number in range(6):
        credential = OnBehalfOfCredential(
            TENANT,
            CLIENT,
            client_secret=SECRET,
            user_assertion=f"user {number}",
            authority=endpoint.url,
            disable_instance_discovery=True,
            connection_verify=certificate,
        )
        with pool.checkout(credential=credential):
            pass
    (one,) = costs(manager).values()
    assert (one["kind"], one["fetches"]) == ("OnBehalfOfCredential", 6)
    done = mppool("doctor", "--plain")
    assert done.returncode == 0
    assert "6 tokens of OnBehalfOfCredential" in done.stdout
    assert "identity=" in done.stdout


def test_the_azure_cli_in_a_chain(
    manager: PoolManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    az = tmp_path / "az"
    az.write_text(
        "#!/bin/sh\nsleep 0.05\n"
        'echo \'{"accessToken": "a token", "expires_on": 4000000000, "tokenType": "Bearer"}\'\n'
    )
    az.chmod(az.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    pool = manager.pool("p", Sessions(), max_size=2)
    manager.start()
    for _ in range(5):
        with pool.checkout(credential=ChainedTokenCredential(AzureCliCredential())):
            pass
    assert costs(manager)["ChainedTokenCredential"]["fetches"] == 5
    assert "perhaps a program" in mppool("doctor", "--plain").stdout
