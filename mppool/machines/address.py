"""Which Redis a URL means: one, the primary that sentinels know, or the nodes of a cluster.

    redis://user:password@host:6379/0              one
    rediss://host:6379/0?ssl_ca_certs=/etc/ca.pem  one, over TLS
    unix:///run/redis.sock                         one
    redis+sentinel://host:26379,host2/service/0    the primary of a service; rediss+sentinel:// over TLS
    redis+cluster://host:6379,host2:6379           a cluster; rediss+cluster:// over TLS

The client of Redis has URLs for one only. Here nobody imports it: processes check their settings without it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

Kind = Literal["one", "sentinel", "cluster"]

_KINDS: dict[str, tuple[Kind, str]] = {
    "redis": ("one", "redis"),
    "rediss": ("one", "rediss"),
    "unix": ("one", "unix"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
_PORTS: dict[Kind, int] = {"one": 6379, "sentinel": 26379, "cluster": 6379}

ALLOWED = (
    "give a URL like redis://host:6379/0, rediss://... (TLS), unix:///path, "
    "redis+sentinel://host:26379,host2:26379/service or redis+cluster://host:6379,host2:6379"
)


class AddressError(ValueError):
    """What is wrong with a URL, without its text: it may hold a password."""


class Address(NamedTuple):
    """nodes: hosts and ports; none for a socket. service: that the sentinels watch. plain: the URL of one of the nodes.

    plain bears user, password, database and parameters, as the client of Redis understands them.
    """

    kind: Kind
    nodes: tuple[tuple[str, int], ...]
    service: str
    plain: str


def parsed(url: object) -> Address:
    """What a URL means, or AddressError."""
    if not isinstance(url, str):
        raise AddressError(f"it is a {type(url).__name__}")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise AddressError("its host or port cannot be read") from None
    if parts.scheme not in _KINDS:
        raise AddressError("it does not begin with redis://, rediss:// or unix://")
    kind, scheme = _KINDS[parts.scheme]
    if scheme == "unix":
        return Address(kind, (), "", url)
    login, at, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_node(host, _PORTS[kind]) for host in hosts.split(","))
    if kind == "one" and len(nodes) > 1:
        raise AddressError(
            "it names several hosts, as only redis+sentinel:// and redis+cluster:// do"
        )
    service, path = "", parts.path
    if kind == "sentinel":
        service, _, database = path.removeprefix("/").partition("/")
        path = f"/{database}"
        if not service:
            raise AddressError("it names no service of the sentinels behind the hosts")
    if kind == "cluster" and path not in ("", "/", "/0"):
        raise AddressError("it names a database, and a cluster has none but 0")
    host, port = nodes[0]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    plain = f"{scheme}://{login}{at}{where}{path}" + (f"?{parts.query}" if parts.query else "")
    return Address(kind, nodes, unquote(service), plain)


def _node(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        found = parts.port
    except ValueError:
        raise AddressError("its host or port cannot be read") from None
    if not parts.hostname or found == 0:
        raise AddressError("it names no host")
    return parts.hostname, found or port


def secrets_in(url: str) -> list[str]:
    """What of a URL nobody may see: its passwords, as they stand there and as they are meant."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    said = [login.partition(":")[2]]
    said += [value for name, value in parse_qsl(parts.query) if "password" in name]
    found = {one for text in said for one in (text, unquote(text)) if one}
    return sorted(found, key=len, reverse=True)
