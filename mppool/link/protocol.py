"""What a link does for the process above it, and what it needs of that process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sized
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mppool.core.decisions import Grant
from mppool.core.events import Attach, Checkout, Event
from mppool.ids import Session, Ticket
from mppool.process.fork import Mark
from mppool.wire.messages import Report


class Inventory(Protocol):
    """What the process holds, as far as a link is concerned.

    lock: taking the inventory, registering a grant, and the begin and end of a session happen under it (rule 2).
    session: the attachment under which things are said now; None: there is none.
    outbox: events that are not sent yet. The link takes them out, without the lock.
    table: what is held.
    mark: whether this belongs to this process, and not to the one that it was forked from.
    """

    @property
    def lock(self) -> AbstractContextManager[Any]: ...

    @property
    def session(self) -> Session | None: ...

    @property
    def outbox(self) -> deque[Event]: ...

    @property
    def mark(self) -> Mark: ...

    @property
    def table(self) -> Sized: ...

    def begin(self, session: Session) -> None:
        """Attached. Caller holds the lock."""

    def end(self) -> None:
        """Attached no longer. Caller holds the lock."""


class Reporter(Protocol):
    """Answers the server's requests for the figures of this process."""

    def asked(self, request: int, *, brief: bool = False, survey: bool = False) -> None:
        """The server wants a report. brief: without what the hooks say. survey: after the databases were asked."""

    def look(self, now: float) -> None:
        """Answer a request that has waited for hooks for long enough."""

    def on_behalf_of_a_hook(self) -> AbstractContextManager[None]:
        """A block in which this thread, which may be in a hook, asks for statistics."""


class Process(Protocol):
    """What a link needs of the process above it."""

    @property
    def name(self) -> str:
        """Of the manager."""

    @property
    def inventory(self) -> Inventory:
        """What is held. A forked child has another one."""

    def next_ticket(self) -> Ticket:
        """A ticket that this process has never used."""

    def seal(self) -> None:
        """Have ready what the first word needs. The first time it may read a file."""

    def attachment(self) -> Attach:
        """The first word of a new session. Caller holds the inventory's lock."""

    def register(self, grant: Grant, session: Session) -> bool:
        """Enter a grant that has just come; False: it belongs to another session, or came too late (rule 2)."""

    def deliver(self, decision: Any, session: Session) -> None:
        """Do what the books decided. Called in the order of the decisions, by one thread at a time."""

    def retry(self, ticket: Ticket) -> None:
        """The thread that waits with this ticket must ask again."""

    def session_begins(self) -> None:
        """A session is about to begin: what the last server said of others' need is void."""

    def session_lost(self) -> None:
        """Nobody can be told anything now: threads that wait ask again, under the next session."""

    def is_deaf(self) -> None:
        """Nobody hears the server from now on (rule 6)."""

    def server_leaves(self) -> None:
        """The server says goodbye: close what is idle (rule 8)."""

    def needs_books(self) -> bool:
        """Whether anything is held, or any thread waits."""

    # --- background --------------------------------------------------------------------------------------

    def do_soon(self, function: Callable[[], None]) -> None:
        """Call it in another thread."""

    def reporter(self, send: Callable[[Report], None]) -> Reporter:
        """What answers the server; `send` takes the reports."""

    @property
    def report(self) -> Callable[[bool], Report]:
        """What gives the figures of this process to itself; True: after the databases were asked what they say."""

    def look_around(self) -> None:
        """Collect what leaked, and do what is due. Called by the background thread."""

    def seconds_left(self) -> float | None:
        """Until something is due; None: nothing is planned."""


class Link(Protocol):
    """How a process reaches its books.

    seen: what the statistics said last, for the next server to go on counting from; empty where there is none.
    machine: what this machine is called at databases, where machines share caps; else "".
    """

    machine: str

    @property
    def seen(self) -> bytes: ...

    def call(self, event: Event, deadline: float | None) -> Any:
        """The books' answer. A Grant is registered with the member already."""

    def ask_at_once(self, event: Checkout) -> Any:
        """The same, by the shortest way, for a checkout that waits for nobody. None: `call` must be used; nothing was said.

        Raises SessionLost; TimeoutError soon after the books were found to be stopped, or after ASK_GRACE_S.
        """

    def fingerprint_secret(self) -> bytes:
        """What fingerprints are hashed with before the books are told; b"": nothing. Raises ConfigurationError."""

    @property
    def flush(self) -> Callable[[], None]:
        """Passes on the outbox, without waiting for anybody. In a child, not that of its parent."""

    def attend(self) -> None:
        """Be attached to the server that is there, if there is one, so as to hear what it says to all."""

    def wake(self) -> None:
        """Have the background thread look around; safe in a finalizer."""

    def ensure_thread(self) -> None:
        """Have a background thread; it looks around even where there is no server."""

    def tidy(self) -> None:
        """Finish what an interrupted thread has left half done. Called by the background thread."""

    def interrupted(self) -> None:
        """The calling thread was interrupted somewhere in here, and has left."""

    def command(self, event: Event, deadline: float | None = None) -> Any:
        """Carry out a command; what the books answered. deadline: of the caller, which may have less patience."""

    def detach(self, deadline: float) -> bool:
        """Need the books no longer, where nothing is held; False if they could not be told. The next use attaches."""

    def is_stopped(self) -> bool:
        """Whether the server is stopped, so that it cannot answer now, however little there is to do."""

    def stats(self, *, survey: bool = False) -> dict[str, Any]:
        """The statistics of everything. survey: the databases are asked what they say of their sessions."""

    def after_fork_in_child(self) -> None:
        """Forget everything of the parent, without a byte being sent."""
