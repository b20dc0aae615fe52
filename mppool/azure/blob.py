"""Blob Storage: one BlobServiceClient per credential and account, for all threads of a process."""

from __future__ import annotations

import functools
import re
import threading
from sys import getrefcount
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mppool.azure.clients import MAX_CLIENTS, ClientPool
from mppool.azure.keys import configured_ttl, digest
from mppool.azure.temporary import UNKEPT
from mppool.credentials.extra import needed_for
from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.process.fork import renew_in_children

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure.storage.blob import BlobServiceClient
    from azure.storage.blob.aio import BlobServiceClient as AsyncBlobServiceClient

log = Log("mppool")

C = TypeVar("C")

IDLE_TTL_VARIABLE = "BLOB_SERVICE_POOL_IDLE_TTL_SECONDS"

DEFAULT_MANAGER = "azure"
"""The manager of the pool behind the module functions: one token cache for all processes of the user."""

_AND_SECONDARY = " and secondary "
"""Between the two endpoints of a target that names both. No URL has a blank in it."""

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}(-secondary)?")

# What the SDK sets where it makes the transport itself (azure.storage.blob._shared.constants, 12.31).
_TRANSPORT_DEFAULTS = {
    "connection_timeout": 20,
    "read_timeout": 60,
    "connection_data_block_size": 256 * 1024,
}
_TRANSPORT_OPTIONS = frozenset(
    (
        *_TRANSPORT_DEFAULTS,
        "connection_verify",
        "connection_cert",
        "use_env_settings",
    )
)


class BlobServicePool(ClientPool["BlobServiceClient"]):
    """Hands out BlobServiceClients that threads share. See ClientPool for what holds for all such pools.

    manager: whose shared tokens the clients use.
    idle_ttl: seconds after which a client that nobody has asked for is let go; None: what
        $BLOB_SERVICE_POOL_IDLE_TTL_SECONDS says, else 1800.
    connections, max_clients: see ClientPool.
    client_options: for every client: keyword arguments of BlobServiceClient (`connection_verify`,
        `retry_total`, `max_block_size`, ...).

    Costs nothing before its first client: no process, no thread, no I/O.
    """

    def __init__(
        self,
        manager: Any,
        *,
        idle_ttl: float | None = None,
        connections: int | None = None,
        max_clients: int = MAX_CLIENTS,
        **client_options: Any,
    ) -> None:
        for refused in ("transport", "credential", "session"):
            if refused in client_options:
                raise ConfigurationError(
                    f"BlobServicePool({refused}=...) is not allowed: each client has its own"
                )
        transport = {
            name: value for name, value in client_options.items() if name in _TRANSPORT_OPTIONS
        }
        super().__init__(
            manager,
            functools.partial(_blob_service_client, client_options),
            async_factory=functools.partial(_async_blob_service_client, client_options),
            name="blob-service",
            idle_ttl=idle_ttl,
            transport_options={**_TRANSPORT_DEFAULTS, **transport},
            connections=connections,
            max_clients=max_clients,
        )
        self._bounds = (connections, max_clients)
        self._client_options = client_options

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.manager, self.idle_ttl, self._client_options, self._bounds))

    # `client` is the inherited one: a frame more would hide who keeps the credential.

    def aclient(self, credential: Any, account: str) -> AsyncBlobServiceClient:
        """The client of azure.storage.blob.aio, for the event loop that is running.

        credential: as for `client`; token credentials of either kind.
        """
        temporary = getrefcount(credential) <= UNKEPT
        made: AsyncBlobServiceClient = self._aclient(credential, account, temporary)
        return made

    def client_from_connection_string(self, connection_string: str) -> BlobServiceClient:
        """The client for a storage connection string with a key or a SAS in it.

        Raises ConfigurationError, which never shows it, for anything else.
        """
        credential, url = _parsed(connection_string)
        return self.client(credential, url)

    def target_of(self, target: str) -> str:
        """The URL of an account, however it is written."""
        if not isinstance(target, str):
            raise ConfigurationError(
                f"the account is a {type(target).__name__}; give its name or URL"
            )
        primary, _, secondary = target.partition(_AND_SECONDARY)
        if not secondary:
            return account_url(target)
        return account_url(primary) + _AND_SECONDARY + account_url(secondary)

    def effective_ttl(self) -> float:
        """Seconds. Raises ConfigurationError where the environment variable says none."""
        return configured_ttl(self.idle_ttl, IDLE_TTL_VARIABLE)


def _rebuild(
    manager: Any,
    idle_ttl: float | None,
    options: dict[str, Any],
    bounds: tuple[int | None, int] = (None, MAX_CLIENTS),
) -> BlobServicePool:
    connections, max_clients = bounds
    return BlobServicePool(
        manager, idle_ttl=idle_ttl, connections=connections, max_clients=max_clients, **options
    )


def _blob_service_client(
    options: dict[str, Any], target: str, *, credential: Any, transport: Any
) -> BlobServiceClient:
    with needed_for("blob clients"):
        from azure.storage.blob import BlobServiceClient as Client
    return _made(Client, options, target, credential, transport)


def _async_blob_service_client(
    options: dict[str, Any], target: str, *, credential: Any, transport: Any
) -> AsyncBlobServiceClient:
    with needed_for("blob clients"):
        from azure.storage.blob.aio import BlobServiceClient as Client
    return _made(Client, options, target, credential, transport)


def _made(
    kind: Callable[..., C], options: dict[str, Any], target: str, credential: Any, transport: Any
) -> C:
    target, _, secondary = target.partition(_AND_SECONDARY)
    if secondary:
        options = {"secondary_hostname": secondary.partition("://")[2], **options}
    try:
        return kind(target, credential=credential, transport=transport, **options)
    except (ValueError, TypeError) as error:
        # The SDK's own text shows neither keys nor tokens: an http URL with a token credential, and such.
        raise ConfigurationError(f"no client for {target}: {error}") from error


@functools.lru_cache(maxsize=1024)
def account_url(account: str) -> str:
    """The URL of an account by name or URL. Raises ConfigurationError for anything else."""
    if _ACCOUNT.fullmatch(account):
        return f"https://{account}.blob.core.windows.net"
    try:
        parts = urlsplit(account)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    # Behind a question mark and before an @ there is usually a secret: it is not shown, and not kept in URLs.
    if _holds_secrets(account):
        raise ConfigurationError(
            "the account's URL has more than scheme, host and path; give a SAS as credential "
            "(AzureSasCredential, or str) instead of within the URL"
        )
    if not host or parts.scheme.lower() not in ("https", "http"):
        raise ConfigurationError(
            f"account={account!r:.80} is neither a name (3 to 24 lower-case letters and digits) nor a URL "
            "like 'https://name.blob.core.windows.net'"
        )
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def _holds_secrets(url: str) -> bool:
    """Whether a URL has a query, a fragment or user information."""
    return any(mark in url for mark in "?#@")


def _both(endpoint: str, secondary: str) -> str:
    return endpoint + _AND_SECONDARY + secondary if secondary else endpoint


def _parsed(connection_string: str) -> tuple[Any, str]:
    """Credential and URL. Source: "Configure Azure Storage connection strings" in Microsoft's documentation."""
    with needed_for("blob clients"):
        from azure.core.credentials import AzureNamedKeyCredential

    if not isinstance(connection_string, str):
        raise ConfigurationError(
            f"the connection string is a {type(connection_string).__name__}; give a str"
        )
    pairs = [part.partition("=") for part in connection_string.strip().strip(";").split(";")]
    settings = {name.strip().lower(): value for name, _, value in pairs}
    if settings.get("usedevelopmentstorage", "").lower() == "true":
        with needed_for("blob clients"):
            from azure.storage.blob._shared.base_client import parse_connection_str

        url, _, key = parse_connection_str("UseDevelopmentStorage=true", None, "blob")
        return key, url
    secondary = settings.get("blobsecondaryendpoint", "")
    name = settings.get("accountname", "")
    suffix = settings.get("endpointsuffix", "core.windows.net")
    protocol = settings.get("defaultendpointsprotocol", "https")
    endpoint = settings.get("blobendpoint") or (name and f"{protocol}://{name}.blob.{suffix}")
    if endpoint and name and settings.get("accountkey"):
        return AzureNamedKeyCredential(name, settings["accountkey"]), _both(endpoint, secondary)
    if endpoint and settings.get("sharedaccesssignature"):
        # As text: nobody has the object, so nobody updates it.
        return settings["sharedaccesssignature"].lstrip("?"), _both(endpoint, secondary)
    raise ConfigurationError(
        f"the connection string ({len(connection_string)} characters, not shown; {digest(connection_string)[:8]}"
        " in this process) needs AccountName and AccountKey, or BlobEndpoint (or AccountName) and "
        "SharedAccessSignature"
    )


# --- one pool for the whole process -----------------------------------------------------------------------


class _Default:
    """The pool behind the module functions, made when it is first wanted."""

    def __init__(self) -> None:
        self.pool: BlobServicePool | None = None
        self._making = threading.Lock()
        renew_in_children(self)

    def after_fork_in_child(self) -> None:
        """The thread that was making it does not exist here."""
        self._making = threading.Lock()

    def get(self) -> BlobServicePool:
        with self._making:
            if self.pool is None:
                from mppool.manager import PoolManager

                self.pool = BlobServicePool(PoolManager(DEFAULT_MANAGER))
            return self.pool


_default = _Default()


def blob_service(credential: Any, account: str) -> BlobServiceClient:
    """`BlobServicePool.client` of a pool that the whole process shares (its manager is called "azure")."""
    pool = _default.pool or _default.get()
    if getrefcount(credential) <= UNKEPT:
        return pool.client_of_its_own(credential, account)
    return pool.client(credential, account)


def prune_idle_blob_service_clients(*, idle_ttl_seconds: float | None = None) -> int:
    """`BlobServicePool.prune_idle` of that pool. How many clients were let go."""
    pool = _default.pool
    return 0 if pool is None else pool.prune_idle(idle_ttl_seconds)


def reset_blob_service_pool() -> None:
    """`BlobServicePool.reset` of that pool. The next use makes another one, in the runtime directory of then."""
    pool, _default.pool = _default.pool, None
    if pool is not None:
        pool.reset()
