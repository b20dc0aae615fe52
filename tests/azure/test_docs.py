"""The examples of docs/tokens.md and docs/identities.md do what they say, on local endpoints."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import azure.identity
import pytest

from mppool import Opening, Pool, PoolManager, Recipe
from mppool.azure import token_struct
from tests.azure.crowd import SCOPE
from tests.azure.endpoints import CLIENT, SECRET, TENANT, Endpoint
from tests.azure.test_people import OLDER_IDENTITY, Browser, browser
from tests.helpers import ROOT
from tests.secrecy import MARK

__all__ = ["browser"]


def examples_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


class Connection:
    """Says for whom it was opened."""

    opened: list[Connection] = []  # noqa: RUF012  # of one test

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.said: list[str] = []
        self.opened.append(self)

    def execute(self, statement: str) -> None:
        self.said.append(statement)


class Connections(Recipe[Connection]):
    token_scope = SCOPE

    def open(self, opening: Opening) -> Connection:
        return Connection(opening)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    monkeypatch.setattr(Connection, "opened", [])
    return Connection.opened


@pytest.fixture
def orders(manager: PoolManager) -> Iterator[Pool[Connection]]:
    made = manager.pool("orders", Connections(), max_size=8)
    yield made
    made.close()


@pytest.fixture
def local_authority(entra: tuple[Endpoint, str], monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """Credentials that an example makes ask the local authority, and nothing else."""
    endpoint, certificate = entra
    for name in ("ClientSecretCredential", "InteractiveBrowserCredential"):
        kind: Any = getattr(azure.identity, name)
        options = {
            "authority": endpoint.url,
            "disable_instance_discovery": True,
            "connection_verify": certificate,
        }
        if name == "InteractiveBrowserCredential":
            options |= {"client_id": CLIENT, "tenant_id": TENANT}

        def make(*arguments: Any, kind: Any = kind, options: Any = options) -> Any:
            return kind(*arguments, **options)

        monkeypatch.setattr(azure.identity, name, make)
    return endpoint


@OLDER_IDENTITY
def test_identities(
    local_authority: Endpoint,
    manager: PoolManager,
    orders: Pool[Connection],
    opened: list[Connection],
    browser: Browser,
) -> None:
    names: dict[str, Any] = {
        "manager": manager,
        "orders": orders,
        "tenant": TENANT,
        "client": CLIENT,
        "secret": SECRET,
        "token": f"{MARK} of a user",
    }
    examples = examples_of("identities.md")
    assert len(examples) == 3
    for example in examples:
        exec(example, names)
    whose = [connection.opening.identity for connection in opened]
    assert whose[0] == "customer 42"
    assert str(whose[1]).startswith("tok:")
    assert str(whose[2]).startswith("acct:")
    assert opened[1].opening.token.token_struct == token_struct(f"{MARK} of a user")
    assert browser.asked == 1
    assert all(connection.said == ["select 1"] for connection in opened)


def test_tokens(msi: Endpoint, runtime_dir: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the Key Vault client, which is no dependency of the tests."""

    class SecretClient:
        def __init__(self, url: str, credential: Any) -> None:
            self.token = credential.get_token("https://vault.azure.net/.default").token

    stand_in = types.ModuleType("azure.keyvault.secrets")
    stand_in.SecretClient = SecretClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "azure.keyvault", types.ModuleType("azure.keyvault"))
    monkeypatch.setitem(sys.modules, "azure.keyvault.secrets", stand_in)
    (example,) = examples_of("tokens.md")
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["secrets"].token.startswith(MARK)
    assert msi.count == 1
    names["manager"].shutdown()
