"""Redis behind TLS, sentinels and as a cluster: real ones, asked as a server asks."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from mppool.machines.address import AddressError, parsed, secrets_in
from mppool.machines.calling import Caller, key_of
from mppool.machines.needs import PoolSaid, Said, Told
from mppool.machines.settings import Settings
from tests.helpers import PATIENCE, free_port, wait_until
from tests.machines.redis_server import RedisServer

Servers = Callable[..., RedisServer]


# --- what URLs mean ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "service", "plain"),
    [
        ("redis://host", "one", [("host", 6379)], "", "redis://host:6379"),
        ("rediss://u:p@host:1/2?a=b", "one", [("host", 1)], "", "rediss://u:p@host:1/2?a=b"),
        ("redis://[::1]:7/0", "one", [("::1", 7)], "", "redis://[::1]:7/0"),
        ("unix:///run/r.sock?db=1", "one", [], "", "unix:///run/r.sock?db=1"),
        (
            "redis+sentinel://:p@a,b:5/main/3", "sentinel",
            [("a", 26379), ("b", 5)], "main", "redis://:p@a:26379/3",
        ),
        ("rediss+cluster://a,b", "cluster", [("a", 6379), ("b", 6379)], "", "rediss://a:6379"),
    ],
)  # fmt: skip
def test_what_a_url_means(
    url: str, kind: str, nodes: list[tuple[str, int]], service: str, plain: str
) -> None:
    assert parsed(url) == (kind, tuple(nodes), service, plain)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://a,b", "several hosts"),
        ("redis+sentinel://a,b", "names no service"),
        ("redis+sentinel://a,/main", "names no host"),
        ("redis+cluster://a/2", "names a database"),
        ("redis+cluster://a:port", "cannot be read"),
        ("sentinel://a/main", "does not begin with"),
    ],
)
def test_urls_that_mean_nothing(url: str, said: str) -> None:
    with pytest.raises(AddressError, match=said):
        parsed(url)


def test_passwords_are_found_wherever_they_stand() -> None:
    url = "redis+sentinel://u:p%40ss@a/main?sentinel_password=other&ssl_password=third"
    assert set(secrets_in(url)) == {"p%40ss", "p@ss", "other", "third"}


# --- real ones ---------------------------------------------------------------------------------------


class Asking:
    """A caller, and what it was answered."""

    def __init__(self, url: str, lease_s: float = 15.0) -> None:
        self.answers: queue.SimpleQueue[tuple[int, Told | None, str]] = queue.SimpleQueue()
        self.settings = Settings(url, None, lease_s)
        self.caller = Caller(self.settings, "shop", lambda *answer: self.answers.put(answer))
        self._number = 0

    def ask(self) -> tuple[Told | None, str]:
        self._number += 1
        pools = [PoolSaid("orders", 6, 1, 0, 0)]
        fresh = f"f{self._number}"
        said = Said("m", 1, self._number, 15_000, "", 0, fresh, "here", 1, pools)
        self.caller.submit(said)
        _, told, trouble = self.answers.get(timeout=PATIENCE)
        return told, trouble

    def is_answered(self) -> bool:
        return self.ask()[0] is not None


@pytest.fixture
def asking() -> Iterator[Callable[[str], Asking]]:
    all_of_them: list[Asking] = []

    def one(url: str) -> Asking:
        all_of_them.append(Asking(url))
        return all_of_them[-1]

    yield one
    for each in all_of_them:
        each.caller.stop(PATIENCE)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    all_of_them: list[RedisServer] = []

    def one(*arguments: str, **more: Any) -> RedisServer:
        directory = tmp_path / f"redis{len(all_of_them)}"
        directory.mkdir()
        all_of_them.append(RedisServer(directory, *arguments, **more))
        return all_of_them[-1]

    yield one
    for each in all_of_them:
        each.kill()


def test_over_tls_with_an_authority_of_ones_own(
    servers: Servers, asking: Callable[[str], Asking], tmp_path: Path
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    port = free_port()
    servers(
        "--tls-port", str(port), "--tls-cert-file", str(tmp_path / "cert.pem"),
        "--tls-key-file", str(tmp_path / "key.pem"), "--tls-auth-clients", "no",
    )  # fmt: skip
    trusting = asking(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path}/ca.pem")
    wait_until(trusting.is_answered, "an answer over TLS")
    told, trouble = asking(f"rediss://127.0.0.1:{port}/0").ask()
    assert told is None
    assert f"rediss://127.0.0.1:{port}/0: ConnectionError: " in trouble
    assert "certificate verify failed" in trouble


def test_sentinels_name_the_primary_and_after_a_failover_its_successor(
    servers: Servers, asking: Callable[[str], Asking], tmp_path: Path
) -> None:
    first = servers()
    second = servers("--replicaof", "127.0.0.1", str(first.port))
    wait_until(
        lambda: (
            second.ask("INFO")["master_link_status"] == "up"
            and first.ask("INFO")["connected_slaves"] == 1
        ),
        "the replica follows",
    )
    rules = tmp_path / "sentinel.conf"
    rules.write_text(
        f"sentinel monitor main 127.0.0.1 {first.port} 1\n"
        "sentinel down-after-milliseconds main 500\n"
        "sentinel failover-timeout main 5000\n"
    )
    sentinel = servers(rules=rules)
    seeing = sentinel.client(decode_responses=True)
    wait_until(
        lambda: any(one["master-link-status"] == "ok" for one in seeing.sentinel_slaves("main")),
        "the sentinel sees the replica",
    )
    nobody = free_port()
    one = asking(f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{sentinel.port}/main/0")
    before, trouble = one.ask()
    assert before is not None, trouble
    assert first.ask("EXISTS", key_of("shop"))
    first.kill()
    assert one.ask()[0] is None
    wait_until(one.is_answered, "the successor answers")
    after, _ = one.ask()
    assert after is not None
    assert after.incarnation != before.incarnation
    assert second.ask("EXISTS", key_of("shop"))
    told, trouble = asking(f"redis+sentinel://127.0.0.1:{sentinel.port}/other").ask()
    assert told is None
    assert "No master found for 'other'" in trouble
    told, trouble = asking(f"redis://127.0.0.1:{sentinel.port}").ask()
    assert "this is a sentinel: give redis+sentinel://" in trouble
    seeing.close()


def test_a_cluster_answers_wherever_the_key_lies(
    servers: Servers, asking: Callable[[str], Asking]
) -> None:
    buses = [free_port() for _ in range(3)]
    nodes = [servers("--cluster-enabled", "yes", "--cluster-port", str(bus)) for bus in buses]
    for node, begin, end in zip(nodes, (0, 5461, 10923), (5460, 10922, 16383), strict=True):
        node.ask("CLUSTER", "ADDSLOTSRANGE", begin, end)
        node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, buses[0])

    def is_whole(node: RedisServer) -> bool:
        said = node.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in said and b"cluster_known_nodes:3" in said

    wait_until(lambda: all(map(is_whole, nodes)), "the nodes are a cluster")
    for node in nodes:  # whichever is asked first
        told, trouble = asking(
            f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{node.port}"
        ).ask()
        assert told is not None or "later call" in trouble, trouble
    plain = [asking(node.url).ask()[1] for node in nodes]
    assert sum("is part of a cluster: give redis+cluster://" in one for one in plain) == 2, plain


def test_a_primary_that_has_become_a_replica_is_not_asked_for_ever(
    servers: Servers, asking: Callable[[str], Asking]
) -> None:
    first, second = servers(), servers()
    one = asking(first.url)
    assert one.is_answered()
    first.ask("REPLICAOF", "127.0.0.1", second.port)
    wait_until(lambda: "read only replica" in one.ask()[1], "it is told so")
    connections = first.ask("INFO", "stats")["total_connections_received"]
    one.ask()
    assert (
        first.ask("INFO", "stats")["total_connections_received"] >= connections + 2
    )  # its own, and this look
