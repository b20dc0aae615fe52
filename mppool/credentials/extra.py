"""Where Azure's packages are missing: the error says how they come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mppool.errors import ConfigurationError

_PACKAGES = ("azure", "msal", "aiohttp")


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Around an import. Raises ConfigurationError with the way out where the extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise ConfigurationError(
            f"{what} need mppool's extra for Azure ({error}): pip install 'mppool[azure]'"
        ) from error
