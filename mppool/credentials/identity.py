"""Whose credential is this? A text that is equal in all processes, or None where only the token can tell.

A key that two identities share would hand one the other's connection, so whatever is not known for sure has
none: its tokens tell (their hash), or the application does (`identity=`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mppool.errors import ConfigurationError
from mppool.ids import sha256_of
from mppool.logs import Log

log = Log("mppool")

KINDS = ("msi", "interactive", "devicecode", "default", "token")

LONGEST_IDENTITY = 1024
"""In characters. An identity is part of the keys of tokens and pools, and travels with every checkout."""

_PUBLIC_CLOUD = ("https://login.microsoftonline.com", "login.microsoftonline.com")


def compute_identity_key(
    kind: str | None,
    *,
    client_id: str | None = None,
    home_account_id: str | None = None,
    token_struct: bytes | None = None,
) -> str | None:
    """The key under which connections of an identity are pooled.

    kind: "msi", "interactive", "devicecode", "default", "token", or None where no token is involved.
    client_id: of a user-assigned managed identity; None: the system-assigned one.
    home_account_id: of the account that is signed in, once it is known.
    token_struct: the token, where only that can tell.

    None from a kind that uses tokens means: fetch one, then ask again. It is never used as a key.
    Raises ConfigurationError for an unknown kind, and for ids that could pass for another identity.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigurationError(
            f"identity kind {kind!r:.60} is not known; allowed are {', '.join(KINDS)} and None"
        )
    if kind == "msi":
        client = _checked_id("client_id", client_id)
        if client is not None and client.strip().lower() == "system":
            raise ConfigurationError(
                f"client_id={client!r} would pass for the system-assigned identity; give the client id, or "
                "None for the system-assigned one"
            )
        return "msi:system" if client is None else f"msi:{client}"
    if kind in ("interactive", "devicecode"):
        account = _checked_id("home_account_id", home_account_id)
        if account is not None:
            return f"acct:{account}"
    if token_struct is None:
        return None
    if not isinstance(token_struct, bytes | bytearray) or not token_struct:
        raise ConfigurationError(
            f"token_struct must be bytes that are not empty, and is a {type(token_struct).__name__} of "
            f"length {len(token_struct) if hasattr(token_struct, '__len__') else 'unknown'}"
        )
    return f"tok:{sha256_of(token_struct)}"


def _checked_id(name: str, value: str | None) -> str | None:
    """The id, or None for none (azure-identity takes "" for none too)."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is a {type(value).__name__}; give a str or None")
    if "\0" in value:
        raise ConfigurationError(
            f"{name} holds a NUL character, which ends the connection string in keys"
        )
    return value


def is_identity(identity: object) -> bool:
    """Whether this may name an identity: a text that can be told to other processes, of 1 to 1024 characters."""
    if not isinstance(identity, str) or not 0 < len(identity) <= LONGEST_IDENTITY:
        return False
    return "\0" not in identity and not has_half_surrogate(identity)


def checked_identity(identity: object, where: str = "") -> str | None:
    """The identity, or None for none. Raises ConfigurationError for what cannot be one.

    where: begins the message, for instance "pool 'orders': ".
    """
    if identity is None or is_identity(identity):
        return identity  # type: ignore[return-value]
    raise ConfigurationError(
        f"{where}identity={identity!r:.80} is not allowed; give a text of 1 to {LONGEST_IDENTITY} characters, "
        "without NUL and without half surrogates, that is the same in all processes and names this identity "
        "alone, or None"
    )


def has_half_surrogate(text: str) -> bool:
    """Whether the text cannot be encoded, so that it can be told to nobody."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def identity_of(credential: object) -> str | None:
    """A text that names whom the credential stands for, equal in all processes; None: only a token can tell.

    Known are azure-identity's own classes; one that is derived from them counts only where it does not
    replace `get_token` or `get_token_info`. An interactive credential has an identity once somebody has
    signed in.
    """
    own = getattr(type(credential), "mppool_identity", None)
    if own is not None:
        named: str | None = own(credential)
        return named
    name = azure_class_of(credential)
    if name == "DefaultAzureCredential":
        _warn_of_default()
    finder = _FINDERS.get(name)
    if finder is None:
        return None
    try:
        return finder(credential)
    except (AttributeError, KeyError, TypeError, ConfigurationError):
        # Another release of azure-identity keeps it elsewhere: then the token tells.
        log.warning(
            "no identity can be read from a %s of this release of azure-identity; its tokens are not "
            "shared between processes unless you name it with identity=",
            name,
            exc_info=log.isEnabledFor(logging.DEBUG),
        )
        return None


def azure_class_of(credential: object) -> str:
    """Name of the azure-identity class whose behaviour the credential has, or "" for any other."""
    methods = ("get_token", "get_token_info")
    if any(method in getattr(credential, "__dict__", ()) for method in methods):
        return ""
    for cls in type(credential).__mro__:
        if cls.__module__.split(".")[:2] == ["azure", "identity"]:
            return cls.__name__
        if any(method in vars(cls) for method in methods):
            return ""
    return ""


def is_interactive(credential: object) -> bool:
    """Whether the credential may ask somebody to sign in."""
    return azure_class_of(credential) in ("InteractiveBrowserCredential", "DeviceCodeCredential")


def has_account(credential: object) -> bool:
    """Whether the credential stands for the account that has signed in to it."""
    return is_interactive(credential) or azure_class_of(credential) == "UsernamePasswordCredential"


def home_account_of(credential: object) -> str | None:
    """The account that is signed in, where the credential knows one."""
    record = getattr(credential, "_auth_record", None)
    account = getattr(record, "home_account_id", None)
    return account if isinstance(account, str) and account else None


def last_response_of(credential: Any, message: str) -> Any:
    """The response in which the issuer refused a token to this thread, if the message of the error is from it.

    azure-identity's classes over MSAL throw it away, and with it that the issuer throttles, and for how long.
    """
    for owner in (credential, getattr(credential, "_credential", None)):
        local = getattr(getattr(owner, "_client", None), "_local", None)
        _, response = getattr(local, "error", (None, None))
        if response is None:
            continue
        try:
            said = response.json()
            texts = [said.get("error_description"), said.get("error")]
        except (AttributeError, ValueError):
            continue
        if any(isinstance(text, str) and text and text in message for text in texts):
            return response
    return None


# --- where azure-identity's classes keep it ---------------------------------------------------------------


def _of_managed(credential: Any) -> str | None:
    """ManagedIdentityCredential is a shell around what the environment offers."""
    return _of_managed_kind(credential._credential) if credential._credential else None


def _of_managed_kind(inner: Any) -> str | None:
    if azure_class_of(inner) == "WorkloadIdentityCredential":
        return _of_workload(inner)
    settings = getattr(inner, "_settings", None)
    if settings is not None:  # over MSAL
        named = {"client_id": settings["client_id"], **(settings["identity_config"] or {})}
    else:
        named = dict(inner._client._identity_config)
    given = {name: value for name, value in named.items() if value}
    if set(given) <= {"client_id", "clientid"}:
        client = next(iter(given.values()), None)
        return compute_identity_key("msi", client_id=client)
    parts = [f"{name}={_checked_id(name, value)}" for name, value in sorted(given.items())]
    return "msi-by-" + ",".join(parts)


def _of_application(kind: str) -> Callable[[Any], str | None]:
    """A service principal: by kind, tenant and client id, not by its secret, which is rotated."""

    def find(credential: Any) -> str | None:
        # The classes over MSAL have it themselves, the others in their client.
        owner = credential if hasattr(credential, "_tenant_id") else credential._client
        return _application(kind, owner._tenant_id, owner._client_id, owner._authority)

    return find


def _of_pipelines(credential: Any) -> str | None:
    client = credential._client_assertion_credential._client
    return _application("pipelines", client._tenant_id, client._client_id, client._authority)


def _application(kind: str, tenant: str, client: str, authority: str) -> str:
    if not _checked_id("tenant_id", tenant) or not _checked_id("client_id", client):
        raise ConfigurationError("a service principal without tenant or client id")
    where = "" if authority in _PUBLIC_CLOUD else f"@{_checked_id('authority', authority)}"
    return f"{kind}:{tenant}:{client}{where}"


def _of_account(credential: Any) -> str | None:
    return compute_identity_key("interactive", home_account_id=home_account_of(credential))


def _of_environment(credential: Any) -> str | None:
    return identity_of(credential._credential)


_of_workload = _of_application("workload")

_FINDERS: dict[str, Callable[[Any], str | None]] = {
    "ManagedIdentityCredential": _of_managed,
    "ImdsCredential": _of_managed_kind,
    "AppServiceCredential": _of_managed_kind,
    "ClientSecretCredential": _of_application("secret"),
    "CertificateCredential": _of_application("certificate"),
    "ClientAssertionCredential": _of_application("assertion"),
    "WorkloadIdentityCredential": _of_workload,
    "AzurePipelinesCredential": _of_pipelines,
    "InteractiveBrowserCredential": _of_account,
    "DeviceCodeCredential": _of_account,
    "UsernamePasswordCredential": _of_account,
    "EnvironmentCredential": _of_environment,
}

# Taken by the thread that warns: one atomic step, because many threads may come at once.
_unwarned = ["DefaultAzureCredential"]


def _warn_of_default() -> None:
    if not _unwarned:
        return
    try:
        _unwarned.pop()
    except IndexError:
        return  # another thread was faster
    log.warning(
        "DefaultAzureCredential is one ambient identity: the one that this machine, container or developer is "
        "signed in as. All its users get connections of that one identity. Only its tokens show which one "
        "it is, so they are not shared between processes; name it with identity=, or use "
        "ManagedIdentityCredential, WorkloadIdentityCredential or ClientSecretCredential"
    )
