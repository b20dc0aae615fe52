"""Who may come in. Each refusal says to the peer what is wrong and what to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mppool.ids import ProcessId
from mppool.rendezvous import liveness
from mppool.rendezvous.paths import ManagerPaths, fingerprint_secret
from mppool.wire.messages import PROTOCOL, Hello, Rejected

if TYPE_CHECKING:
    from mppool.machines.settings import Settings

SPOKEN = frozenset({PROTOCOL - 1, PROTOCOL})
"""Protocols that this release speaks: the newest and the one before it."""


def user_is_allowed(peer: liveness.Peer) -> Rejected | None:
    """None for a process of the same effective user or of root, else the refusal."""
    if peer.uid in {os.geteuid(), 0}:
        return None
    return Rejected(
        "user",
        f"this server belongs to user {os.geteuid()}, and you are user {peer.uid}: processes that share a "
        "pool must run as the same user",
    )


def refusal(hello: Hello, peer: liveness.Peer, manager: str) -> Rejected | None:
    """None if the peer may come in, else the refusal."""
    if hello.protocol not in SPOKEN:
        spoken = ", ".join(map(str, sorted(SPOKEN)))
        return Rejected(
            "protocol",
            f"this server speaks protocol {spoken}, you speak {hello.protocol}: two releases of mppool "
            "share one runtime directory; ask this server to leave, or upgrade the older side",
            max(SPOKEN),
        )
    if hello.manager != manager:
        return Rejected(
            "manager", f"this server is manager {manager!r}, not {hello.manager!r:.100}"
        )
    if hello.process.pid != peer.pid:
        return _other_namespace(hello.process, peer)
    return None


def _other_namespace(claimed: ProcessId, peer: liveness.Peer) -> Rejected:
    if peer.pid == 0:
        text = (
            f"you say that you are pid {claimed.pid}, but the server cannot see your process at all: it lives "
            "in another pid namespace (container); give each container its own MPPOOL_RUNTIME_DIR, or "
            "share one pid namespace between them"
        )
    else:
        text = (
            f"you say that you are pid {claimed.pid}, but the server sees pid {peer.pid} at the other end: "
            "either you live in another pid namespace (container; give each its own MPPOOL_RUNTIME_DIR, "
            "or share one pid namespace), or this connection was inherited over a fork"
        )
    return Rejected("namespace", text)


class Admission:
    """Whether a process shares its caps with the same machines as this server does, over the same Redis.

    _expected: the fingerprint of the server's own settings, once it was needed.
    """

    def __init__(self, paths: ManagerPaths, machines: Settings | None) -> None:
        self._paths, self._machines = paths, machines
        self._expected: str | None = None if machines is not None else ""

    def refusal(self, hello: Hello) -> Rejected | None:
        """None if it does, or only looks, else the refusal."""
        if hello.role == "control":
            return None
        if self._expected is None:
            assert self._machines is not None
            self._expected = self._machines.fingerprint(fingerprint_secret(self._paths))
        if hello.machines == self._expected:
            return None
        here = "none" if self._machines is None else str(self._machines)
        given = (
            "another one, or another on_redis_lost= or end_expired=" if hello.machines else "none"
        )
        return Rejected(
            "manager",
            f"the server of this machine shares its caps with other machines over redis= as it was given to the "
            f"process that started it ({here}), and this process was given {given}. Give all processes of a "
            "manager the same redis= and on_redis_lost=, then end the server (`mppool shutdown`): the next checkout "
            "starts a new one",
        )


def birth_refusal(claimed: ProcessId) -> Rejected:
    """For a peer whose pid is right and whose birth is not, or who died while connecting."""
    return Rejected(
        "namespace",
        f"the server knows no living process {claimed.pid} that was born at clock tick {claimed.birth}: either "
        "you live in another time or pid namespace, or /proc shows another namespace's processes",
    )
