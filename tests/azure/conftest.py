"""Endpoints and managers for tests with Azure's credentials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mppool import PoolManager
from mppool.azure import BlobServicePool
from tests.azure import azurite as emulator
from tests.azure.azurite import Azurite, Credential
from tests.azure.endpoints import Endpoint, authority, serving
from tests.secrecy import WATCH
from tests.sharing import shared

_VARIABLES = (
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
    "IDENTITY_SERVER_THUMBPRINT",
    "IMDS_ENDPOINT",
    "MSI_ENDPOINT",
    "MSI_SECRET",
    "AZURE_POD_IDENTITY_AUTHORITY_HOST",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
    "AZURE_FEDERATED_TOKEN_FILE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
)


@pytest.fixture(autouse=True)
def _no_azure_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment leads out of the machine."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def msi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A managed identity endpoint as App Service has it; the environment names it."""
    with serving(Endpoint()) as endpoint:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{endpoint.url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "header")
        yield endpoint


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A managed identity endpoint as virtual machines have it."""
    with serving(Endpoint()) as endpoint:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", endpoint.url)
        yield endpoint


@pytest.fixture
def entra(tmp_path: Path) -> Iterator[tuple[Endpoint, str]]:
    """An https authority, and the path of the certificate to trust."""
    with authority(tmp_path) as both:
        yield both


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[PoolManager]:
    """A manager of this test alone."""
    made = PoolManager("tokens", runtime_dir=runtime_dir)
    yield made
    made.stats()  # looked at there
    WATCH.see_objects()
    made.shutdown()


@pytest.fixture(scope="session")
def azurite(mppool_manager: PoolManager) -> Iterator[Azurite]:
    """Azurite over https, which all xdist workers of this run share."""
    emulator.installed()  # skips here, where it is missing
    with shared(mppool_manager, "azurite") as address:
        yield Azurite(address["port"], Path(address["certificate"]))


@pytest.fixture
def pool(manager: PoolManager, azurite: Azurite) -> Iterator[BlobServicePool]:
    """Of blob clients that trust that Azurite."""
    made = BlobServicePool(manager, connection_verify=str(azurite.certificate))
    yield made
    made.reset()


@pytest.fixture
def credential() -> Credential:
    """One whose tokens are good for Azurite."""
    return Credential()
