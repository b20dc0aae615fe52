"""What a way to the books offers to the process above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mppool.core.events import Checkout, Event


class Link(Protocol):
    """How a member reaches its books.

    seen: what the statistics said last, for the next server to go on counting from; empty where there is none.
    """

    seen: bytes

    def call(self, event: Event, deadline: float | None) -> Any:
        """The books' answer. A Grant is registered with the member already."""

    def ask_at_once(self, event: Checkout) -> Any:
        """The same, by the shortest way, for a checkout that waits for nobody. None: `call` must be used; nothing was said.

        Raises SessionLost; TimeoutError soon after the books were found to be stopped, or after ASK_GRACE_S.
        """

    def fingerprint_secret(self) -> bytes:
        """What fingerprints are hashed with before the books are told; b"": nothing. Raises ConfigurationError."""

    def flush(self, deadline: float | None = None) -> None:
        """Pass on the member's outbox, without waiting for anybody."""

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
        """Carry out a command; what the books answered. deadline: of the caller, who may have less patience."""

    def detach(self, deadline: float) -> bool:
        """Need the books no longer, where nothing is held; False if they could not be told. The next use attaches."""

    def is_stopped(self) -> bool:
        """Whether whoever keeps the books cannot answer now, however little there is to do."""

    def stats(self) -> dict[str, Any]:
        """The statistics of everything."""

    def after_fork_in_child(self) -> None:
        """Forget everything of the parent, without a byte being sent."""
