"""Texts without secrets: what errors of other people's code say travels to other processes and into logs.

By form, because nobody says what is secret in them: the password of a URL, values with telling names, and tokens. Rather too
much is hidden than too little.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

HIDDEN = "<hidden>"

_NAMES = (
    r"(?<![a-z])(?:pass|pwd?|sig)(?![a-z])|pass(?:word|wd|phrase|code)|secret|token|credentials?|authorization|"
    r"signature|api[_\- ]?key|(?:account|access|private|shared|secret|encryption|master|subscription)[_\- ]?(?:access[_\- ]?)?key"
)
# Every repetition that may fail at its end has a bound: a text as long as somebody else likes takes no time that grows
# with its square.
_VALUE = (
    r"\{(?:[^}]|\}\})*\}?"  # as ODBC quotes
    r"|b?\"(?:[^\"\\]|\\.)*\"?|b?'(?:[^'\\]|\\.)*'?"
    r"|[^;=\n\"']{0,1000}(?=;)"  # up to the next setting of a connection string: blanks are part of it
    r"|[^\s;&]+"
)
_RULES = (
    # scheme://user:password@host, also where the password holds @ or /
    (re.compile(r"(\w[\w+.\-]{0,30}://[^\s:/@]{0,200}):\S{0,4000}@"), rf"\1:{HIDDEN}@"),
    # scheme://token@host
    (re.compile(r"(\w[\w+.\-]{0,30}://)[^\s:/@]{16,4000}@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=\-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    # name=value, name: value, "name": "value", ("name", "value")
    (
        re.compile(
            rf"((?:{_NAMES})\w{{0,60}}(?:\\?[\"']\s*[,:=]|\s*(?::|=>|=(?!>)))\s*)(?!{HIDDEN})(?:{_VALUE})",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    # a JSON Web Token
    (re.compile(r"eyJ[\w\-]{6,}(?:\.[\w\-]*){0,4}"), HIDDEN),
    (
        re.compile(r"(-----BEGIN [^-]*PRIVATE KEY-----).*?(?:-----END[^-]*-----|\Z)", re.DOTALL),
        rf"\1{HIDDEN}",
    ),
)


def without_secrets(text: str) -> str:
    """The text, with what could be a secret replaced."""
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def forget_locals(error: BaseException) -> None:
    """Clear the local variables that the tracebacks of an error keep, from the first frame of our own recipes and clients on.

    Reporters that show them (Sentry, rich, Django's debug page) would show connection strings and tokens. The
    application's own hooks keep theirs: what they hold is the application's.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        pending += [current.__cause__, current.__context__]
        _forget_below(current.__traceback__)


_HOLDERS = tuple(
    f"mppool.{name}."
    for name in ("odbc", "azure", "credentials", "dbapi", "mssql", "psycopg", "integrations")
)


def _forget_below(trace: TracebackType | None) -> None:
    within = False
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        within = within or f"{name}.".startswith(_HOLDERS)
        if within:
            try:
                trace.tb_frame.clear()
            except RuntimeError:
                pass  # it is still running, and clears itself what it must
        trace = trace.tb_next
