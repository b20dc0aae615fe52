"""What a worker does with an answer that is no value: a token that is wanted, an error to be raised."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NoReturn

from mppool.errors import PoolError

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
