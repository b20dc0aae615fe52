"""Connection attributes that are set before connecting, the access token among them.

Nothing here shows a value: it may be a token.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

from mppool.credentials.loading import adapter
from mppool.errors import ConfigurationError

Attributes = Mapping[int, Any]
AttributeSource = Attributes | Callable[[], Attributes | tuple[Attributes, float | None]] | None

ACCESS_TOKEN = 1256
"""Microsoft's SQL_COPT_SS_ACCESS_TOKEN."""

AZURE_SQL_SCOPE = "https://database.windows.net/.default"
"""What a token for Azure SQL is asked for."""

NOT_BESIDE_A_TOKEN = ("uid", "pwd", "authentication", "trusted_connection")
"""Microsoft's drivers refuse these keywords beside an access token."""

_LONGEST_TOKEN_BYTES = 64 * 1024


def checked(attributes: object) -> dict[int, Any]:
    """A copy of connection attributes. Raises ConfigurationError for what a driver must not see."""
    if not isinstance(attributes, Mapping):
        raise ConfigurationError(
            f"attrs_before is, or returned, a {type(attributes).__name__}; give a mapping of "
            "attribute numbers to values"
        )
    for number, value in attributes.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConfigurationError(
                "attrs_before: each key is the number of a connection attribute (int)"
            )
        if not isinstance(value, int | str | bytes | bytearray):
            raise ConfigurationError(
                f"attrs_before: attribute {number} is a {type(value).__name__}; allowed: int, str, bytes"
            )
        if number == ACCESS_TOKEN:
            check_token_structure(value)
    return dict(attributes)


def check_token_structure(value: object) -> None:
    """Raises ConfigurationError for anything but an access token.

    A driver believes the length in the structure and reads on beyond its end; from a str it crashes.
    """
    well_formed = (
        isinstance(value, bytes | bytearray)
        and 6 <= len(value) <= _LONGEST_TOKEN_BYTES + 4
        and len(value) % 2 == 0
        and struct.unpack_from("<I", value)[0] == len(value) - 4
    )
    if not well_formed or not _is_text(text_of(value)):
        raise ConfigurationError(
            "attrs_before, or a credential: attribute 1256 (access token) must be bytes: the byte count of the token as a "
            "little-endian uint32, then the token in UTF-16-LE, at most 64 KiB and without NUL "
            "(mppool.azure.token_struct makes it)"
        )


def _is_text(token: str) -> bool:
    return "\0" not in token and "\ufffd" not in token


def text_of(structure: Any) -> str:
    """The token in a well-formed structure."""
    return bytes(structure[4:]).decode("utf-16-le", errors="replace")


def asked_for(source: AttributeSource) -> tuple[dict[int, Any], float | None]:
    """What `attrs_before` says now, checked, and when it ends (seconds since 1970), where it says so."""
    if source is None:
        return {}, None
    if isinstance(source, Mapping):
        return dict(source), None
    result, expires_on = source(), None
    if isinstance(result, tuple):
        if len(result) != 2:
            raise ConfigurationError(
                f"attrs_before returned a tuple of {len(result)}; give the mapping, or "
                "(mapping, expires_on)"
            )
        result, expires_on = result
    return checked(result), _checked_instant(expires_on)


def _checked_instant(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(
            "attrs_before returned an expires_on that is not a point in time; give seconds since 1970, "
            "or None"
        )
    return float(value)


def described(source: AttributeSource) -> list[str]:
    """attrs_before as texts, equal in all processes. Only ever hashed: they hold secrets."""
    if source is None:
        return []
    if isinstance(source, Mapping):
        return [f"{number}={source[number]!r}" for number in sorted(source)]
    named = source if hasattr(source, "__qualname__") else type(source)
    return [f"{named.__module__}:{named.__qualname__}"]


def mark_of(structure: Any) -> str:
    """Tells sessions of different tokens apart, for a driver manager that takes them for the same."""
    return f"mppool-{hashlib.sha256(structure).hexdigest()[:16]}"


def lasting_name(credential: object) -> str:
    """Whose credential it is, as far as that is known from the first declaration on."""
    identity = adapter().identity_of(credential)
    if identity is not None and not identity.startswith("acct:"):
        return identity
    return f"{type(credential).__module__}.{type(credential).__qualname__}"
