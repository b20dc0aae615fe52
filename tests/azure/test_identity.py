"""Whose credential is this? A key that two identities share would hand one the other's connection."""

from __future__ import annotations

import gc
import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import azure.identity
import azure.identity.aio
import pytest
from azure.identity import AuthenticationRecord, ClientSecretCredential, ManagedIdentityCredential

from mppool import logs
from mppool.azure import StaticToken, compute_identity_key, identity_of, token_struct
from mppool.credentials import identity as module
from mppool.credentials.objects import serial_of
from mppool.errors import ConfigurationError
from tests.azure.endpoints import CLIENT, SECRET, TENANT
from tests.helpers import run_python

WINGS = [azure.identity, azure.identity.aio]
STRUCT = token_struct("a token")
HASH = f"tok:{hashlib.sha256(STRUCT).hexdigest()}"


@pytest.mark.parametrize(
    ("kind", "given", "key"),
    [
        ("msi", {}, "msi:system"),
        ("msi", {"client_id": ""}, "msi:system"),
        ("msi", {"client_id": CLIENT}, f"msi:{CLIENT}"),
        ("msi", {"client_id": CLIENT, "token_struct": STRUCT}, f"msi:{CLIENT}"),
        ("interactive", {}, None),
        ("interactive", {"home_account_id": "u.t"}, "acct:u.t"),
        ("devicecode", {"home_account_id": "u.t", "token_struct": STRUCT}, "acct:u.t"),
        ("devicecode", {"token_struct": STRUCT}, HASH),
        ("default", {}, None),
        ("default", {"token_struct": STRUCT}, HASH),
        ("default", {"token_struct": STRUCT, "client_id": CLIENT}, HASH),
        ("token", {"token_struct": STRUCT}, HASH),
        ("token", {}, None),
        (None, {}, None),
        (None, {"token_struct": STRUCT}, HASH),
    ],
)
def test_keys(kind: str | None, given: dict[str, Any], key: str | None) -> None:
    assert compute_identity_key(kind, **given) == key


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("kerberos", {}),
        ("", {}),
        ("MSI", {}),
        ("msi", {"client_id": "system"}),
        ("msi", {"client_id": " System "}),
        ("msi", {"client_id": "a\0b"}),
        ("msi", {"client_id": 7}),
        ("interactive", {"home_account_id": "a\0b"}),
        ("token", {"token_struct": "text"}),
        ("token", {"token_struct": b""}),
    ],
)
def test_what_could_pass_for_another_identity_is_refused(kind: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        compute_identity_key(kind, **given)


@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"IDENTITY_ENDPOINT": "http://127.0.0.1:1", "IDENTITY_HEADER": "h"},
        {"MSI_ENDPOINT": "http://127.0.0.1:1", "MSI_SECRET": "s"},
        {"IDENTITY_ENDPOINT": "http://127.0.0.1:1", "IMDS_ENDPOINT": "http://127.0.0.1:1"},
    ],
    ids=["imds", "app service", "machine learning", "arc"],
)
def test_managed_identities(
    wing: Any, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    managed = wing.ManagedIdentityCredential
    assert identity_of(managed()) == "msi:system"
    assert identity_of(managed(client_id=CLIENT)) == f"msi:{CLIENT}"
    named = {
        identity_of(managed(identity_config={"object_id": "one"})),
        identity_of(managed(identity_config={"object_id": "two"})),
        identity_of(managed(identity_config={"resource_id": "one"})),
        identity_of(managed(client_id="one")),
    }
    assert len(named) == 4
    assert None not in named


@pytest.mark.parametrize("wing", WINGS)
def test_a_managed_identity_may_be_a_workload_identity(
    wing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com")
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", "/nowhere")
    made = wing.ManagedIdentityCredential(client_id=CLIENT)
    assert identity_of(made) == f"workload:{TENANT}:{CLIENT}"


@pytest.mark.parametrize("wing", WINGS)
def test_service_principals(wing: Any, tmp_path: Path) -> None:
    secret = wing.ClientSecretCredential(TENANT, CLIENT, SECRET)
    rotated = wing.ClientSecretCredential(TENANT, CLIENT, "another secret")
    assert identity_of(secret) == identity_of(rotated) == f"secret:{TENANT}:{CLIENT}"
    assert SECRET not in str(identity_of(secret))
    others = [
        wing.ClientSecretCredential(TENANT, "another-client", SECRET),
        wing.ClientSecretCredential(CLIENT, TENANT, SECRET),
        wing.ClientSecretCredential(TENANT, CLIENT, SECRET, authority="login.chinacloudapi.cn"),
        wing.ClientAssertionCredential(TENANT, CLIENT, lambda: "assertion"),
        wing.CertificateCredential(TENANT, CLIENT, certificate_data=_certificate()),
        wing.WorkloadIdentityCredential(
            tenant_id=TENANT, client_id=CLIENT, token_file_path=str(tmp_path)
        ),
    ]
    identities = [identity_of(other) for other in others]
    assert len({*identities, identity_of(secret)}) == len(others) + 1
    assert all(TENANT in str(identity) or CLIENT in str(identity) for identity in identities)


def _certificate() -> bytes:
    import trustme

    # PS256 and SHA-1 thumbprints want an RSA key.
    issued = trustme.CA().issue_cert("test", key_type=trustme.KeyType.RSA)
    return issued.private_key_and_cert_chain_pem.bytes()


@pytest.mark.parametrize("wing", WINGS)
def test_pipelines_and_the_environment(wing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEM_OIDCREQUESTURI", "https://127.0.0.1:1")
    pipelines = wing.AzurePipelinesCredential(
        tenant_id=TENANT, client_id=CLIENT, service_connection_id="c", system_access_token=SECRET
    )
    assert identity_of(pipelines) == f"pipelines:{TENANT}:{CLIENT}"
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", CLIENT)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", SECRET)
    assert identity_of(wing.EnvironmentCredential()) == f"secret:{TENANT}:{CLIENT}"


@pytest.mark.parametrize("wing", WINGS)
def test_of_others_only_a_token_can_tell(wing: Any) -> None:
    for credential in (
        wing.AzureCliCredential(),
        wing.AzureDeveloperCliCredential(),
        wing.AzurePowerShellCredential(),
        wing.ChainedTokenCredential(wing.ManagedIdentityCredential()),
        wing.OnBehalfOfCredential(TENANT, CLIENT, client_secret=SECRET, user_assertion="user"),
        wing.AuthorizationCodeCredential(TENANT, CLIENT, "code", "https://127.0.0.1"),
        wing.EnvironmentCredential(),
        StaticToken("token"),
        object(),
    ):
        assert identity_of(credential) is None


def test_interactive_credentials_are_known_once_somebody_has_signed_in() -> None:
    record = AuthenticationRecord(TENANT, CLIENT, "login.microsoftonline.com", "u.t", "name")
    for kind in ("InteractiveBrowserCredential", "DeviceCodeCredential"):
        cls = getattr(azure.identity, kind)
        assert identity_of(cls()) is None
        assert identity_of(cls(authentication_record=record)) == "acct:u.t"


def test_a_class_of_yours_that_asks_elsewhere_has_no_identity() -> None:
    class Logging(ManagedIdentityCredential):
        """It changes nothing about whom it stands for."""

    class Elsewhere(ManagedIdentityCredential):
        def get_token(self, *scopes: str, **options: Any) -> Any:
            raise NotImplementedError

    class Pretender:
        """Of the same name only."""

    Pretender.__name__ = "ManagedIdentityCredential"
    assert identity_of(Logging()) == "msi:system"
    assert identity_of(Elsewhere()) is None
    assert identity_of(Pretender()) is None
    patched: Any = ManagedIdentityCredential()
    patched.get_token = lambda *scopes: None
    assert identity_of(patched) is None


def test_another_release_that_keeps_it_elsewhere_is_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    credential = ClientSecretCredential(TENANT, CLIENT, SECRET)
    del credential._client_id
    with caplog.at_level(logging.WARNING, "mppool"):
        assert identity_of(credential) is None
    assert "identity=" in caplog.text


def test_the_default_credential_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_unwarned", ["DefaultAzureCredential"])
    credentials = [wing.DefaultAzureCredential() for wing in WINGS]
    with caplog.at_level(logging.WARNING, "mppool"), ThreadPoolExecutor(8) as threads:
        assert set(threads.map(identity_of, credentials * 100)) == {None}
        logs.hear_everything()  # it is not left out as an equal line: it is not said
        assert identity_of(credentials[0]) is None
    assert [record.getMessage()[:22] for record in caplog.records] == ["DefaultAzureCredential"]


def test_serials_are_never_used_again() -> None:
    class Odd:
        """Neither hashable nor comparable."""

        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

    kept = Odd()
    first = serial_of(kept)
    seen = {first}
    addresses = set()
    for _ in range(200):
        other = Odd()
        addresses.add(id(other))
        serial = serial_of(other)
        assert serial not in seen
        assert serial == serial_of(other)
        seen.add(serial)
        del other
        gc.collect(0)
    assert len(addresses) < 200, "no address was used again, so this shows nothing"
    assert serial_of(kept) == first


def test_azure_is_imported_where_it_is_used_and_not_before() -> None:
    run_python(
        "import sys, mppool.azure\n"
        "mppool.azure.token_struct('t'); mppool.azure.identity_of(mppool.azure.StaticToken('t'))\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('azure', 'msal')]"
    )
