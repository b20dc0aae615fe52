"""A copy of a token, where it comes from, and why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

from mppool.core.tokens import FETCH_PATIENCE_S, Issued
from mppool.errors import PoolError


class TokenUnavailable(PoolError):
    """Another process failed to fetch this token just now; `retry_in` seconds are to be waited."""

    def __init__(self, text: str, retry_in: float) -> None:
        super().__init__(text)
        self.retry_in = retry_in

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.retry_in))


class Failure(NamedTuple):
    """What the other processes are told of an error: text without secrets.

    retry_in: seconds not to try again. 0: this thread cannot, but another one may at once.
    everybody: the issuer said so for all processes; else it is the trouble of this process alone.
    """

    text: str
    retry_in: float
    everybody: bool = False


class Fetched:
    """A token as its issuer gave it. Instants are seconds since 1970, as in azure-core's AccessToken."""

    __slots__ = ("expires_on", "refresh_on", "token")

    def __init__(self, token: str, expires_on: float, refresh_on: float | None = None) -> None:
        self.token = token
        self.expires_on = expires_on
        self.refresh_on = refresh_on


class CachedToken:
    """A copy of a token. Instants are seconds since 1970, but for `ask_at`.

    number: of the fetch that brought it; a higher one is newer.
    ask_at: monotonic: from then on the server is asked for a newer one.
    """

    __slots__ = ("ask_at", "expires_on", "number", "refresh_on", "token", "usable_until")

    def __init__(self, issued: Issued, number: int, ask_at: float) -> None:
        self.token = issued.token
        self.expires_on = issued.expires_on
        self.refresh_on = issued.refresh_on
        self.usable_until = issued.usable_until
        self.number = number
        self.ask_at = ask_at

    def numbered(self, number: int) -> CachedToken:
        """A copy that counts as having come with another fetch."""
        issued = Issued(self.token, self.expires_on, self.refresh_on, self.usable_until)
        return CachedToken(issued, number, self.ask_at)

    def is_usable(self) -> bool:
        """By the wall clock, which goes on while the machine is suspended (rule 14)."""
        return time.time() < self.usable_until

    def is_fresh(self) -> bool:
        """Whether it may be used without asking anybody."""
        return monotonic() < self.ask_at and time.time() < self.usable_until


class Source:
    """Where a token comes from when this process has to fetch it.

    fetch: called in the thread that wants the token, with the claims of a challenge ("" without one).
    insist: like `fetch("")`, but with a token that the credential has in a cache of its own it is not content;
        by default `fetch("")`.
    refresh: called in the background, ahead of time; by default `fetch("")`.
    describe: what the other processes are told of an error.
    patience: seconds that `fetch` may take before another process is appointed beside it.
    """

    __slots__ = ("describe", "fetch", "insist", "patience", "refresh")

    def __init__(
        self,
        fetch: Callable[[str], Fetched],
        describe: Callable[[Exception], Failure],
        *,
        refresh: Callable[[], Fetched] | None = None,
        insist: Callable[[], Fetched] | None = None,
        patience: float = FETCH_PATIENCE_S,
    ) -> None:
        self.fetch = fetch
        self.describe = describe
        self.insist = insist or (lambda: fetch(""))
        self.refresh = refresh or (lambda: fetch(""))
        self.patience = patience
