"""The grammar of ODBC connection strings, and keeping their secrets out of what people read.

A connection string is `keyword=value;keyword=value`. A value that holds `;` stands in braces, in
which `}` is written `}}`. Keywords ignore case. Source: SQLDriverConnect in Microsoft's ODBC
reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mppool.errors import ConfigurationError

HIDDEN = "***"

# A keyword whose name holds one of these names a secret, whatever the driver: PWD, Password,
# SSLPassword, TrustStorePassword, ClientSecret, AccessToken, ...
_SECRET_WORDS = (
    "pwd",
    "passw",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "accountkey",
    "privatekey",
)

# A driver that repeats a piece of the connection string in its message may have cut it off, so that
# the value is not found as a whole. `{` opens a value that may hold `;`; its end may be missing.
_SECRET_PIECE = re.compile(
    r"(?P<keyword>\b[\w ]*(?:" + "|".join(_SECRET_WORDS) + r")[\w ]*=\s*|\buid\s*=\s*)"
    r"(?:\{(?:[^}]|\}\})*\}?|[^;\s]+)",
    re.IGNORECASE,
)


def parse(text: str) -> list[tuple[str, str]]:
    """Keywords and values, in their order, values without their braces.

    Raises ConfigurationError for anything else. It names the place and never the
    text, since what stands in the wrong place is usually half of a password.
    """
    if "\0" in text:
        raise ConfigurationError(
            "the connection string holds a NUL character, which ends it for the driver"
        )
    pieces: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        end_of_keyword = text.find("=", position)
        end_of_piece = text.find(";", position)
        if end_of_piece == -1:
            end_of_piece = len(text)
        if not text[position:end_of_piece].strip():
            position = end_of_piece + 1  # `;;`, or the blank after a last `;`
            continue
        number = len(pieces) + 1
        keyword = text[position:end_of_keyword].strip()
        if end_of_keyword == -1 or end_of_keyword > end_of_piece or not keyword:
            raise ConfigurationError(
                f"part {number} of the connection string is not keyword=value (it begins at "
                f"character {position + 1}); a value that holds ';' must stand in braces: PWD={{a;b}}"
            )
        value, position = _value(text, end_of_keyword + 1, keyword)
        pieces.append((keyword, value))
    return pieces


def _value(text: str, start: int, keyword: str) -> tuple[str, int]:
    """The value that begins at `start`, and where the next piece begins."""
    while start < len(text) and text[start].isspace():
        start += 1
    if not text.startswith("{", start):
        end = text.find(";", start)
        if end == -1:
            end = len(text)
        return text[start:end].strip(), end + 1
    braced = re.compile(r"\{((?:[^}]|\}\})*)\}\s*(?:;|$)").match(text, start)
    if braced is None:
        raise ConfigurationError(
            f"the value of {keyword} in the connection string begins with '{{' and has no end: it "
            "must end with '}' before ';', and a '}' in it is written '}}'"
        )
    return braced.group(1).replace("}}", "}"), braced.end()


def joined(pieces: list[tuple[str, str]]) -> str:
    """The connection string made of these pieces, with all secrets: for the driver alone."""
    return ";".join(f"{keyword}={_braced(value)}" for keyword, value in pieces)


def with_more(text: str, pieces: list[tuple[str, str]]) -> str:
    """A connection string that was parsed before, with these pieces behind it. For the driver alone."""
    return f"{text.rstrip().rstrip(';')};{joined(pieces)}" if pieces else text


def is_secret(keyword: str) -> bool:
    """Whether the value of this keyword must not be shown."""
    plain = keyword.lower().replace(" ", "").replace("_", "")
    return any(word in plain for word in _SECRET_WORDS)


def shown(pieces: list[tuple[str, str]]) -> str:
    """The connection string for people: secrets hidden, values braced only where they need it."""
    return ";".join(
        f"{keyword}={HIDDEN if is_secret(keyword) else _braced(value)}" for keyword, value in pieces
    )


def _braced(value: str) -> str:
    if value.startswith("{") or ";" in value or value != value.strip():
        return "{" + value.replace("}", "}}") + "}"
    return value


class Scrubber:
    """Takes the secrets of one connection string out of messages.

    more: values that are secrets whatever their keywords are.
    """

    def __init__(self, pieces: list[tuple[str, str]], more: Iterable[str] = ()) -> None:
        secrets = {value for keyword, value in pieces if is_secret(keyword) and value}
        secrets.update(more)
        forms = secrets | {value.replace("}", "}}") for value in secrets}
        # Longest first, so that no part of a secret is left beside a shorter one. A very short
        # secret is only taken out where it stands alone: else it would riddle the words around it,
        # and the holes would tell what it was.
        patterns = [
            re.escape(form) if len(form) > 3 else rf"(?<!\w){re.escape(form)}(?!\w)"
            for form in sorted(forms, key=len, reverse=True)
        ]
        self._secrets = re.compile("|".join(patterns)) if patterns else None

    def __repr__(self) -> str:
        return "Scrubber(<hidden>)"

    def scrub(self, message: str) -> str:
        """The message without secrets, also where it repeats pieces of a connection string."""
        message = _SECRET_PIECE.sub(rf"\g<keyword>{HIDDEN}", message)
        if self._secrets is not None:
            message = self._secrets.sub(HIDDEN, message)
        return message
