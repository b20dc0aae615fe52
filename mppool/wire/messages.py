"""Messages that are neither events nor decisions: handshake, statistics, farewell."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mppool.core.decisions import ProcessDecision
from mppool.core.events import ProcessEvent
from mppool.core.tokens import TokenDecision, TokenEvent
from mppool.ids import ProcessId, Session
from mppool.stats.report import PoolReport

PROTOCOL = 2
"""Version of the protocol. A release speaks this one and the one before."""

Role = Literal["errand", "call", "control"]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Anything on the wire that is neither an event nor a decision."""


class Hello(Message, frozen=True, tag=True):
    """First frame on every connection. New fields may only ever be added at the end.

    role: "errand" for the one channel of a process that may hold slots, "call" for a thread's exchanges
        under an existing session, "control" for looking and commanding without ever holding anything.
    linger: seconds that the server is asked to stay when the last client has gone.
    machines: fingerprint of the Redis over which machines share caps; "" without one. Of no interest for "control".
    """

    protocol: int
    manager: str
    process: ProcessId
    role: Role
    session: Session
    linger: float
    machines: str = ""


class Welcome(Message, frozen=True, tag=True):
    """The handshake succeeded. `session` is new on an errand channel, else the one that was named.

    protocol: the newest that the server speaks; the conversation goes on in the one that Hello named.
    """

    protocol: int
    epoch: int
    session: Session
    server: ProcessId
    version: str


class Rejected(Message, frozen=True, tag=True):
    """The peer is not served; the connection is closed behind this message.

    newest_protocol: with the reason "protocol", the newest that the server speaks, so that a newer client
        can ask it, in its own words, to leave.
    """

    reason: Literal[
        "protocol", "manager", "namespace", "session", "malformed", "user", "leaving", "capacity"
    ]
    text: str
    newest_protocol: int | None = None


class Attached(Message, frozen=True, tag=True):
    """The inventory was taken over; calls under this session may begin."""

    session: Session


class Done(Message, frozen=True, tag=True):
    """Answer to an event on a call or control connection that has no other answer."""


class Failed(Message, frozen=True, tag=True):
    """Answer to a command that could not be carried out."""

    text: str


class Leave(Message, frozen=True, tag=True):
    """Asks the server to leave in order. Answered by Done, then Goodbye on all errand channels.

    unless_needed: not where other processes than the one that asks are attached or hold anything; answered by
        Failed then.
    """

    unless_needed: bool = False


class Goodbye(Message, frozen=True, tag=True):
    """The server is leaving in order: close what is idle; the next process that needs a server starts one."""


class WantReport(Message, frozen=True, tag=True):
    """Asks a process, on its errand channel, for a Report.

    brief: without what the hooks say. survey: and to ask its databases first (see Recipe.survey).
    """

    request: int
    brief: bool = False
    survey: bool = False


class EndSessions(Message, frozen=True, tag=True):
    """The lease of another machine has run out: end what it has open at the database.

    machine, epochs: as in the labels of its sessions. age: seconds since then; what has begun later is not meant.
    """

    machine: str
    epochs: list[int]
    age: float


class Report(Message, frozen=True, tag=True):
    """A process's figures. `request` is that of WantReport, or 0 where the process volunteers them.

    more: these are resources only, some of many; the figures, and the last of them, follow.
    """

    request: int
    pools: list[PoolReport]
    more: bool = False


class WantStats(Message, frozen=True, tag=True):
    """Asks the server for the statistics of everything; answered by Stats.

    seen: as in Attach. survey: the databases are asked what they say of their sessions.
    """

    seen: bytes = b""
    survey: bool = False


class Stats(Message, frozen=True, tag=True):
    """JSON-compatible statistics, as `manager.stats()` returns them.

    seen: to be kept, and said to the next server.
    resources: of each pool, the entries that are missing in `stats`, in parts: each a list in MessagePack.
    """

    stats: dict[str, Any]
    seen: bytes = b""
    resources: dict[str, list[bytes]] = {}


ToServer = Hello | ProcessEvent | TokenEvent | Leave | Report | WantStats
ToProcess = (
    Welcome
    | Rejected
    | Attached
    | Done
    | Failed
    | Goodbye
    | WantReport
    | EndSessions
    | Stats
    | ProcessDecision
    | TokenDecision
)
