"""Logging in from an event loop with what callables say, which may block: `mppool.secret.log_in` for coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any, Protocol, TypeVar

from mppool.aio.recipe import gives_awaitables
from mppool.dbapi.arguments import Arguments
from mppool.dbapi.secrets import scrubbed
from mppool.recipe import Opening
from mppool.secret import Asked, answers_of, checked_text, newer_than

A = TypeVar("A", bound=Asked)
A_co = TypeVar("A_co", bound=Asked, covariant=True)
T = TypeVar("T")


class Source(Protocol[A_co]):
    """Where a login comes from: see `dbapi.arguments.Arguments` and `odbc.login.LoginSource`."""

    def sources(self) -> Mapping[str, Any]:
        """What the login is made of: texts, and callables that are asked for them."""

    def with_answers(self, answers: Mapping[str, str]) -> A_co:
        """The login that is made of these texts."""


async def log_in(
    opening: Opening,
    source: Source[A],
    attempt: Callable[[A], Awaitable[T | Exception]],
    refuses: Callable[[Exception], bool],
) -> T | Exception:
    """Log in; where that is refused with what callables have said, ask them once more.

    attempt: logs in once; returns the error, so that it can be raised where no frame knows a secret.
    refuses: whether an error says that user or password was not accepted.
    """
    asked = source.with_answers(await _answers(source.sources()))
    began = monotonic()
    outcome = await attempt(asked)
    if asked.digest and isinstance(outcome, Exception) and refuses(outcome):
        opening.login_at = monotonic()
        with newer_than(began):
            newer = source.with_answers(await _answers(source.sources()))
        if newer.digest != asked.digest:
            asked, outcome = newer, await attempt(newer)
    opening.login = asked.digest
    return outcome


async def connected(
    opening: Opening,
    arguments: Arguments,
    attempt: Callable[[Asked], Awaitable[Any]],
    refuses: Callable[[Exception], bool],
) -> Any:
    """What `log_in` has opened. Raises the driver's error without secrets."""
    outcome = await log_in(opening, arguments, attempt, refuses)
    if isinstance(outcome, Exception):
        # Outside of the handler: in it the original, with all its text, would be this one's __context__.
        raise scrubbed(outcome, arguments.secrets)
    return outcome


async def _answers(sources: Mapping[str, Any]) -> dict[str, str]:
    """Coroutine functions are awaited here. All else is asked in one thread, because a vault may be far away."""
    awaited = {name: one for name, one in sources.items() if gives_awaitables(one)}
    others = {name: one for name, one in sources.items() if name not in awaited}
    if any(map(callable, others.values())):
        answers = await asyncio.to_thread(answers_of, others)
    else:
        answers = answers_of(others)
    for name, one in awaited.items():
        answers[name] = checked_text(await one(), name)
    return answers
