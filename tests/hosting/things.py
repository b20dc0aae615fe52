"""What hosts open in these tests. Importable, so that it travels."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

from mppool.errors import ConfigurationError
from mppool.recipe import Opening, Recipe


class Refused(Exception):
    """An exception with arguments of its own."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


class Part:
    """Something that a thing returns, and that does not leave its host."""

    alive = 0

    def __init__(self, name: str) -> None:
        self.name = name
        Part.alive += 1

    def __del__(self) -> None:
        Part.alive -= 1

    def shout(self) -> str:
        return self.name.upper()


class Thing:
    """A resource that is no database."""

    def __init__(self) -> None:
        self.value = 7
        self.items = {"a": 1}
        self.cancelled = False
        self.resets = 0

    def pid(self) -> int:
        return os.getpid()

    def core_limit(self) -> int:
        return resource.getrlimit(resource.RLIMIT_CORE)[0]

    def is_dumpable(self) -> bool:
        return bool(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))

    def echo(self, *args: Any, **kwargs: Any) -> Any:
        return (*args, kwargs) if kwargs else args[0] if len(args) == 1 else args

    def slow(self, seconds: float, answer: Any = None) -> Any:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.cancelled:
            time.sleep(0.002)
        return answer

    def part(self, name: str) -> Part:
        return Part(name)

    def parts(self) -> list[Part]:
        return [Part("one"), Part("two")]

    def takes(self, part: Any) -> str:
        return f"{type(part).__name__} {part.name}"

    def parts_alive(self) -> int:
        return Part.alive

    def fail(self, code: int) -> None:
        raise Refused(code, "no")

    def die(self, number: int = signal.SIGKILL) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    def commit(self) -> None:
        self.die()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: str) -> int:
        return self.items[key]

    def __setitem__(self, key: str, value: int) -> None:
        self.items[key] = value

    def __enter__(self) -> Thing:  # noqa: PYI034
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.left_by = kind


def reset(thing: Thing) -> None:
    thing.resets += 1


def cancel(thing: Thing) -> None:
    thing.cancelled = True


def cannot_open() -> Thing:
    raise ConfigurationError("there is none")


class Custom:
    """A value of the application's own."""

    def __init__(self, number: int) -> None:
        self.number = number


class WithToken(Recipe[Any]):
    """Opens with a token, of which only workers have any. refused: a file of tokens that are not taken any more."""

    token_scope = "scope"

    def __init__(self, refused: str, credential: Any = None) -> None:
        self.refused = refused
        self.credential = credential

    def open(self, opening: Opening) -> Thing:
        text = "" if opening.token is None else opening.token.token_struct[4:].decode("utf-16-le")
        if text and text in Path(self.refused).read_text().split():
            raise PermissionError("refused")
        thing = Thing()
        thing.items = {"token": text, "has_credential": self.credential is not None}  # type: ignore[dict-item]
        return thing

    def refuses_login(self, error: Exception) -> bool:
        return isinstance(error, PermissionError)
