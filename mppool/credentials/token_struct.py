"""Tokens as drivers want them, and how long they last. No I/O here."""

from __future__ import annotations

import struct
import time

from mppool.errors import ConfigurationError

MAX_TOKEN_BYTES = 64 * 1024
"""Of a token in UTF-16-LE. Azure's are a few kilobytes; nothing larger is a token."""

NEAR_EXPIRY_S = 300.0
"""A token is near its end so long before it: another one is asked for, and sessions are compared with it."""

UNKNOWN_LIFE_S = 300.0
"""A token whose expiry nobody has said is taken to last so long, so that it counts as near its end."""


class TokenInfo:
    """A token in the structure that ODBC drivers want, and what is known of it.

    token_struct: attribute 1256 of the Microsoft driver; see `token_struct`.
    expires_on: seconds since 1970, or None where nobody has said it.
    account_id: the home account of an interactive sign-in, or None.
    """

    __slots__ = ("account_id", "expires_on", "token_struct")

    def __init__(
        self, token_struct: bytes, expires_on: float | None, account_id: str | None = None
    ) -> None:
        self.token_struct = token_struct
        self.expires_on = expires_on
        self.account_id = account_id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenInfo):
            return NotImplemented
        mine = (self.token_struct, self.expires_on, self.account_id)
        return mine == (other.token_struct, other.expires_on, other.account_id)

    def __hash__(self) -> int:
        return hash((self.token_struct, self.expires_on, self.account_id))

    def __repr__(self) -> str:
        return (
            f"TokenInfo(token_struct=<hidden>, expires_on={self.expires_on!r}, "
            f"account_id={self.account_id!r})"
        )


def token_struct(token: str) -> bytes:
    """The structure that carries an access token to the driver: a little-endian uint32 byte count, then the
    token in UTF-16-LE (Microsoft ODBC driver, SQL_COPT_SS_ACCESS_TOKEN).

    Raises ConfigurationError, which never shows the token, for anything but a token: the driver believes the
    length, and reads on where it is wrong.
    """
    return struct.pack("<I", len(encoded := checked_token(token))) + encoded


def checked_token(token: object) -> bytes:
    """The token in UTF-16-LE. Raises ConfigurationError, which never shows the token, for anything else."""
    if not isinstance(token, str):
        raise ConfigurationError(f"the access token is a {type(token).__name__}; it must be a str")
    if not token.strip():
        raise ConfigurationError("the access token is empty")
    if "\0" in token:
        raise ConfigurationError("the access token holds a NUL character, which no token does")
    # The bound comes first, so that a gigantic string is not copied to find out how large it is.
    encoded = token[: MAX_TOKEN_BYTES + 1].encode("utf-16-le", errors="surrogatepass")
    if len(encoded) > MAX_TOKEN_BYTES:
        raise ConfigurationError(
            f"the access token is longer than {MAX_TOKEN_BYTES} bytes in UTF-16, which no token is"
        )
    if any("\ud800" <= character <= "\udfff" for character in token):
        raise ConfigurationError(
            "the access token holds half a surrogate pair, so it cannot be encoded"
        )
    return encoded


def is_token_near_expiry(
    expires_on: float | None, *, now: float | None = None, threshold: float = NEAR_EXPIRY_S
) -> bool:
    """Whether a token that we fetched ends within `threshold` seconds, or has ended.

    expires_on, now: seconds since 1970; now is the wall clock by default. An unknown expiry counts as near:
    nobody has promised anything.
    """
    if expires_on is None:
        return True
    # Written so that NaN counts as near too.
    return not expires_on - (time.time() if now is None else now) > threshold
