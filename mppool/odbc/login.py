"""What an ODBC connection is opened with: a connection string, and secrets beside it. Each may be a callable.

A callable is asked when a connection is opened. The key of the pool says its name, and not what it returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from mppool.errors import ConfigurationError
from mppool.odbc import connection_string as grammar
from mppool.odbc.attributes import NOT_BESIDE_A_TOKEN
from mppool.recipe import refuse_nameless
from mppool.secret import answers_of, digest_of, source_name

Pieces = list[tuple[str, str]]
Text = str | Callable[[], str]
AnyText = Text | Callable[[], Awaitable[str]]
"""Coroutine functions are for those who can await them."""

_STRING = "the connection string"


class Login:
    """A connection string with all its secrets, for one opening.

    text: the string as it was given, where that is the whole login; else what its pieces make.
    digest: tells logins apart within this process; "" where no callable was asked.
    """

    __slots__ = ("digest", "pieces", "scrubber", "text")

    def __init__(
        self, text: str, pieces: Pieces, secrets: Collection[str] = (), *, may_change: bool = False
    ) -> None:
        self.text = text
        self.digest = digest_of(text) if may_change else ""
        self.pieces = pieces
        self.scrubber = grammar.Scrubber(pieces, secrets)

    def __repr__(self) -> str:
        return "Login(<hidden>)"


class LoginSource:
    """Where connection strings come from.

    given: the connection string, or a callable that returns one.
    secrets: values of further keywords, such as PWD: texts, or callables. None: there are none.
    check: raises ConfigurationError for pieces that the recipe cannot use.
    """

    def __init__(
        self,
        given: AnyText,
        secrets: Mapping[str, AnyText] | None,
        check: Callable[[Pieces], None],
    ) -> None:
        self._given = given
        self._check = check
        self._fixed: Login | None = None
        self._secrets: dict[str, AnyText] = _checked_secrets(secrets)
        self._last: Login | None = None
        if isinstance(given, str):
            self._fixed = self._last = self._login(given, {})
        elif not callable(given):
            raise ConfigurationError(
                f"the connection string is a {type(given).__name__}; give a str, or a callable that returns one"
            )

    def __getstate__(self) -> dict[str, Any]:
        refuse_nameless(
            {name: one for name, one in self._callables() if getattr(one, "__qualname__", "")}
        )
        return {**vars(self), "_last": self._fixed}

    def ask(self, *, beside_a_token: bool = False) -> Login:
        """The login for one opening. Raises what a callable raises, and ConfigurationError.

        beside_a_token: keywords that are not allowed beside an access token are not asked for.
        """
        if self._fixed is not None and not self._secrets:
            return self._fixed
        return self.with_answers(answers_of(self.sources(beside_a_token=beside_a_token)))

    def sources(self, *, beside_a_token: bool = False) -> dict[str, Any]:
        """What the login is made of: texts, and callables that are asked at each opening."""
        sources = {
            f"the secret {keyword}": one
            for keyword, one in self._secrets.items()
            if not (beside_a_token and keyword.lower() in NOT_BESIDE_A_TOKEN)
        }
        return {_STRING: self._given, **sources}

    def with_answers(self, answers: Mapping[str, str]) -> Login:
        """The login, where this is what was said of `sources`. Raises ConfigurationError."""
        named = ((keyword, f"the secret {keyword}") for keyword in self._secrets)
        values = {keyword: answers[name] for keyword, name in named if name in answers}
        self._last = login = self._login(answers[_STRING], values)
        return login

    def scrub(self, message: str) -> str:
        """A driver's message without the secrets of the last login."""
        last = self._last
        return grammar.Scrubber([]).scrub(message) if last is None else last.scrubber.scrub(message)

    def named(self, keywords: tuple[str, ...]) -> str:
        """The values of these keywords, for people: what the last login named."""
        last = self._last
        named = {} if last is None else {key.lower(): value for key, value in reversed(last.pieces)}
        return " ".join(named[keyword] for keyword in keywords if named.get(keyword))

    def shown(self) -> str:
        """The connection string for people, without secrets."""
        if self._fixed is None:
            return f"<of {source_name(self._given)}>"
        return grammar.shown(
            [*self._fixed.pieces, *((one, grammar.HIDDEN) for one in self._secrets)]
        )

    def described(self) -> list[str]:
        """What tells apart what is opened, as texts that are equal in all processes. Only ever hashed.

        A text counts as a whole. Of a callable, and of `secrets`, only the name counts: what it returns may change.
        """
        text = self._given if isinstance(self._given, str) else f"<{source_name(self._given)}>"
        return [text, *(f"secret={keyword}" for keyword in sorted(self._secrets, key=str.lower))]

    def _login(self, text: str, values: dict[str, str]) -> Login:
        pieces = grammar.parse(text)
        named = {keyword.lower() for keyword, _ in pieces}
        for keyword in self._secrets:
            if keyword.lower() in named:
                raise ConfigurationError(
                    f"{keyword} is in the connection string and in secrets; give it once"
                )
        self._check(pieces)
        whole = [*pieces, *values.items()]
        return Login(
            grammar.joined(whole) if values else text,
            whole,
            values.values(),
            may_change=bool(self._callables()),
        )

    def _callables(self) -> list[tuple[str, Any]]:
        given: list[tuple[str, Any]] = [("connection_string", self._given), *self._secrets.items()]
        return [(name, one) for name, one in given if not isinstance(one, str)]


def _checked_secrets(secrets: object) -> dict[str, AnyText]:
    if secrets is None:
        return {}
    if not isinstance(secrets, Mapping):
        raise ConfigurationError(
            f"secrets is a {type(secrets).__name__}; give a mapping of keywords to texts or callables, such as "
            "{'PWD': mppool.Secret(fetch)}"
        )
    for keyword, value in secrets.items():
        if not isinstance(keyword, str) or not keyword.strip() or set(keyword) & set("=;{}\0"):
            raise ConfigurationError(
                "secrets: each key is a keyword of the connection string, such as 'PWD'"
            )
        if not isinstance(value, str) and not callable(value):
            raise ConfigurationError(
                f"the secret {keyword} is a {type(value).__name__}; give a str, or a callable that returns one"
            )
    return dict(secrets)
