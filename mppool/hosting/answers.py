"""What a worker does with an answer that is no value: a token that is wanted, an error to be raised."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NoReturn

from mppool.errors import PoolError, ServerUnavailable
from mppool.link.troubles import of_system

if TYPE_CHECKING:
    from collections.abc import Callable


def token_of(token: Callable[[bool], tuple[Any, Any]], refused: bool) -> list[Any]:
    """A token, its end, and what went wrong."""
    try:
        found, expires_on = token(refused)
    except Exception as error:  # noqa: BLE001  # raised where it was wanted, as a failed opening
        return [None, None, f"{type(error).__name__}: {error}"]
    return [found, expires_on, None]


def raise_error(body: Any, pool: str) -> NoReturn:
    """Raise what the host has raised."""
    try:
        error, cause = pickle.loads(body)  # noqa: S301  # see values.py
    except Exception as unreadable:
        raise PoolError(
            f"pool {pool!r}: the host raised an error that cannot be read here: {unreadable}"
        ) from unreadable
    raise error from cause


def raise_refusal(body: Any, pool: str, host_pid: int) -> NoReturn:
    """Raise why a host lets this process in no further."""
    try:
        raise_error(body, pool)
    except OSError as error:
        raise ServerUnavailable(
            f"pool {pool!r}: its host, process {host_pid}, lets no process in: {of_system(error)}"
        ) from error
