"""What a connect function is called with: values, and callables that are asked at each opening."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mppool.dbapi.secrets import is_secret, secrets_in
from mppool.recipe import refuse_nameless
from mppool.secret import Secret, answers_of, digest_of, source_name

_STRINGS = ("user", "username", "uid", "dsn", "conninfo", "connection_string", "url")
"""Beside secrets, what may be a callable. Other callables are the driver's: row factories, converters."""


class Asked:
    """The arguments of one opening.

    secrets: what must not be seen of them. digest: tells logins apart; "" where nothing can change.
    """

    __slots__ = ("args", "digest", "kwargs", "may_change", "secrets")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], answers: list[str]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.may_change = bool(answers)
        self.secrets = secrets_in(args, kwargs)
        self.digest = digest_of("\0".join(answers)) if answers else ""


class Arguments:
    """Where the arguments come from.

    Asked for are: each Secret, the first positional argument where it is callable (drivers have their connection
    string there), and callables for a user, a secret or a connection string.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._args = args
        self._kwargs = dict(kwargs)
        self._asked_for = {name for name, one in kwargs.items() if _is_asked(name, one)}
        self._asked_positions = {
            place
            for place, one in enumerate(args)
            if isinstance(one, Secret) or (place == 0 and callable(one))
        }
        self._may_change = bool(self._asked_for or self._asked_positions)
        self._hidden: dict[str, str] = {}
        self._last: Asked | None = None
        if not self._may_change:
            self.ask()

    def __getstate__(self) -> dict[str, Any]:
        asked = {name: self._kwargs[name] for name in self._asked_for}
        asked.update((_name_of(place), self._args[place]) for place in self._asked_positions)
        refuse_nameless({name: one for name, one in asked.items() if not isinstance(one, Secret)})
        if not self._may_change:
            return dict(vars(self))
        return {**vars(self), "_last": None, "_hidden": {}}

    @property
    def secrets(self) -> list[str]:
        """What must not be seen of the last ones."""
        last = self._last
        return [*self._hidden.values(), *([] if last is None else last.secrets)]

    def hide(self, name: str, secret: object) -> None:
        """This must not be seen either, until another one of this name comes."""
        if secret:
            self._hidden[name] = str(secret)

    def ask(self) -> Asked:
        """The arguments for one opening. Raises what a callable raises, and ConfigurationError."""
        if not self._may_change and self._last is not None:
            return self._last
        return self.with_answers(answers_of(self.sources()))

    def sources(self) -> dict[str, Any]:
        """What is asked at each opening."""
        asked = {_name_of(place): self._args[place] for place in sorted(self._asked_positions)}
        asked.update((name, one) for name, one in self._kwargs.items() if name in self._asked_for)
        return asked

    def with_answers(self, answers: Mapping[str, str]) -> Asked:
        """The arguments, where this is what was said of `sources`."""
        for name, one in self.sources().items():
            if isinstance(one, Secret):
                self.hide(name, answers[name])
        args = tuple(answers.get(_name_of(place), one) for place, one in enumerate(self._args))
        kwargs = {name: answers.get(name, one) for name, one in self._kwargs.items()}
        self._last = Asked(args, kwargs, list(answers.values()))
        return self._last

    @property
    def keywords(self) -> list[str]:
        """The names of the keyword arguments, in order."""
        return sorted(self._kwargs)

    def named(self, name: str) -> str:
        """A keyword argument for people; "" where it is missing, or asked for at each opening."""
        value = "" if name in self._asked_for else self._kwargs.get(name)
        return str(value) if value else ""

    def described(self, shown: Callable[[Any], str]) -> list[str]:
        """What tells apart what is opened, as texts that are equal in all processes. Only ever hashed.

        Of a callable only its name counts: what it says may change.
        """
        args = [
            f"<{source_name(one)}>" if place in self._asked_positions else shown(one)
            for place, one in enumerate(self._args)
        ]
        kwargs = [
            f"{name}=<{source_name(one)}>" if name in self._asked_for else f"{name}={shown(one)}"
            for name, one in sorted(self._kwargs.items())
        ]
        return [*args, *kwargs]


def _name_of(place: int) -> str:
    """Of a positional argument. No keyword has a space in it."""
    return f"argument {place + 1}"


def _is_asked(name: str, one: Any) -> bool:
    if isinstance(one, Secret):
        return True
    return callable(one) and (is_secret(name) or name.lower() in _STRINGS)
