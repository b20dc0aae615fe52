"""The client of Redis for each kind of address. Imported only by the thread that calls, in a server that needs it."""

from __future__ import annotations

from typing import Any

from mppool.machines.address import Address

_OF_SENTINELS = "sentinel_"
"""How parameters begin that are meant for the sentinels themselves, such as `sentinel_password`."""


def connected(address: Address, name: str, seconds: float) -> Any:
    """A client. name: as which Redis lists it. seconds: for connecting, and for one answer."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    settings: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "client_name": name,
        "retry": Retry(NoBackoff(), 0),  # whether a call that failed was carried out nobody knows
    }
    if address.kind == "one":
        import redis

        return redis.Redis.from_url(address.plain, **settings)
    if address.kind == "cluster":
        return _of_cluster(address, settings)
    return _of_sentinels(address, settings)


def _of_cluster(address: Address, settings: dict[str, Any]) -> Any:
    from redis import cluster

    client: Any = cluster  # without types in some releases
    nodes = [client.ClusterNode(host, port) for host, port in address.nodes[1:]]
    return client.RedisCluster.from_url(address.plain, startup_nodes=nodes, **settings)


def _of_sentinels(address: Address, settings: dict[str, Any]) -> Any:
    from redis import connection, sentinel

    client: Any = sentinel  # without types in some releases
    parse_url: Any = connection.parse_url
    said = dict(parse_url(address.plain))
    for one in ("host", "port"):
        said.pop(one, None)
    if said.pop("connection_class", None) is not None:
        said["ssl"] = True
    own = {
        name.removeprefix(_OF_SENTINELS): said.pop(name)
        for name in list(said)
        if name.startswith(_OF_SENTINELS)
    }
    own |= {name: value for name, value in said.items() if name.startswith("ssl")}
    # All of them are asked in turn, and the primary after that.
    patience = settings["socket_timeout"] / len(address.nodes)
    own |= {"socket_timeout": patience, "socket_connect_timeout": patience}
    asked = client.Sentinel(list(address.nodes), sentinel_kwargs=own)
    return asked.master_for(address.service, **{**settings, **said})
