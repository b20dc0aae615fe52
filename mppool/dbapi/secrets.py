"""What must not be seen of the arguments of a connect function."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mppool.redaction import HIDDEN

_NAMES = ("password", "passwd", "pwd", "secret", "token", "passphrase", "apikey", "api_key")
# password=..., PWD={...} in connection strings; scheme://user:password@host in URLs.
_IN_STRINGS = re.compile(
    r"""(?:password|passwd|pwd|secret|token)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|\{((?:[^}]|\}\})*)\}|([^\s;'{]+))""",
    re.IGNORECASE,
)
_IN_URLS = re.compile(r"://[^/@\s:]*:([^@\s]+)@")
_SHORTEST = 3
"""Shorter ones would blot out half of every message."""


def is_secret(name: str) -> bool:
    """Whether the argument of this name must not be seen."""
    return any(one in name.lower() for one in _NAMES)


def secrets_in(arguments: Iterable[Any], keywords: Mapping[str, Any]) -> list[str]:
    """The secrets among the arguments, the longest first."""
    found: set[str] = set()
    for name, value in keywords.items():
        if isinstance(value, str) and is_secret(name):
            found.add(value)
    for value in (*arguments, *keywords.values()):
        if isinstance(value, str):
            for groups in _IN_STRINGS.findall(value):
                found.update(groups)
            found.update(_IN_URLS.findall(value))
    return sorted((one for one in found if len(one) >= _SHORTEST), key=len, reverse=True)


def without(text: str, secrets: Iterable[str]) -> str:
    """The text with each secret replaced."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def scrubbed(error: Exception, secrets: list[str]) -> Exception:
    """The same error, or one of its kind without secrets and without its history where it repeats one."""
    if not secrets or without(str(error), secrets) == str(error):
        return error
    text = without(str(error), secrets)
    for kind in type(error).__mro__:
        try:
            made = kind(text)
        except Exception:  # noqa: BLE001, S112  # its constructor wants more than a text: try its base
            continue
        if isinstance(made, Exception):
            return made
    return RuntimeError(text)
