"""Tokens as secrets: telling them apart without holding them, and finding one where it must not be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mppool.core.tokens import digest_of as digest_of_text

if TYPE_CHECKING:
    from mppool.credentials.token_struct import TokenInfo


def digest_of(token: TokenInfo) -> str:
    """Tells the tokens of sessions apart without holding them."""
    return digest_of_text(secret_of(token))


def secret_of(token: TokenInfo | None) -> str:
    """The token as text; "" for none."""
    if token is None:
        return ""
    return token.token_struct[4:].decode("utf-16-le", errors="surrogatepass")


def repeats(error: BaseException, secret: str) -> bool:
    """Whether an error, or one that led to it, contains the secret."""
    seen: set[int] = set()
    one: BaseException | None = error
    while secret and one is not None and id(one) not in seen:
        seen.add(id(one))
        if any(secret in str(part) for part in one.args):
            return True
        one = one.__cause__ or one.__context__
    return False
