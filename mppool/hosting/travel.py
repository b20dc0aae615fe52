"""How a recipe gets to a host: by pickle, functions by the names under which modules have them; and why one cannot.

A credential stays where it is. A host that needs a token asks the worker on whose behalf it opens (see asked.py).
"""

from __future__ import annotations

import copy
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from mppool.errors import ConfigurationError, OpenFailed
from mppool.options import PoolOptions
from mppool.recipe import Opening, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable


class Luggage(msgspec.Struct, array_like=True):
    """What a host is told at its start. It is sent once, through a pipe.

    recipe: pickled, without its credential; has_credential: whether it had one. budget: the cap of the budget that the
        options name. main: the script of the application; ""
        where there is none.
    """

    pool: str
    options: PoolOptions
    recipe: bytes
    main: str
    arguments: list[str]
    linger: float
    has_credential: bool
    budget: int | None = None


class WithTokens(Recipe[Any]):
    """In a host: a recipe that opens with tokens, of which only workers have any.

    ask: asks the worker on whose behalf this thread opens. It is told whether the last token was refused, and gives a
        TokenInfo, or None where no credential is involved.
    """

    def __init__(
        self, recipe: Recipe[Any], ask: Callable[[bool], Any], *, had_credential: bool
    ) -> None:
        self._recipe = recipe
        self._ask = ask
        self._had_credential = had_credential
        self.guard = recipe.guard
        # A hook that is there shadows the method of the same name, so that the pool sees which there are.
        for name in ("configure", "on_checkout", "reset", "check", "cancel"):
            if name in vars(recipe) or getattr(type(recipe), name) is not getattr(Recipe, name):
                setattr(self, name, getattr(recipe, name))
        for name in ("check_within", "close", "stats", "describe", "opened", "leaves_behind"):
            setattr(self, name, getattr(recipe, name))

    def fills(self) -> bool:
        """Not where a token is needed, and nobody asks for a resource."""
        return not self._had_credential and self._recipe.fills()

    def fingerprint(self) -> str:
        """Of the recipe."""
        return self._recipe.fingerprint()

    def open(self, opening: Opening) -> Any:
        """Open with a token of the worker that asks; once more with another, where it was refused."""
        token = self._ask(False)
        if token is None and self._had_credential:
            raise OpenFailed(
                "a token is needed, and no worker is there that could be asked for one"
            )
        try:
            return self._open_with(opening, token)
        except Exception as error:
            if token is None or not self._recipe.refuses_login(error):
                raise
            other = self._ask(True)
            if other is None or other.token_struct == token.token_struct:
                raise
        return self._open_with(opening, other)

    def _open_with(self, opening: Opening, token: Any) -> Any:
        opening.token = token
        try:
            resource = self._recipe.open(opening)
        finally:
            opening.token = None  # else the pool would take it for one that it has fetched itself
        if token is not None and token.expires_on is not None:
            opening.expires_on = token.expires_on
        return resource


def pickled(pool: str, recipe: Recipe[Any]) -> bytes:
    """The recipe without its credential. Raises ConfigurationError, which says what to do, where it cannot travel."""
    if recipe.open_in_caller:
        raise ConfigurationError(
            f"pool {pool!r}: placement='host' is not possible with open_in_caller=True: in a host no resource "
            "belongs to a thread of the caller"
        )
    travels = recipe
    if recipe.credential is not None:
        travels = copy.copy(recipe)
        travels.credential = None
    try:
        data = pickle.dumps(travels, 5)
    except Exception as error:
        raise ConfigurationError(
            f"pool {pool!r}: with placement='host' the recipe is opened in another process, and it cannot be sent "
            f"there ({type(error).__name__}: {error}). Define its functions at the top of a module, and give it "
            "values that pickle; or leave placement out"
        ) from error
    if _is_of_main(data) and main_script() is None:
        raise ConfigurationError(
            f"pool {pool!r}: with placement='host' the recipe is opened in another process, and what it is made of "
            "is defined in __main__, of which there is no file that another process could import; define it in a "
            "module"
        )
    return data


def _is_of_main(data: bytes) -> bool:
    """Whether something in it is defined in the application's script; the second name is multiprocessing's for it."""
    return b"__main__" in data or b"__mp_main__" in data


def main_script() -> str | None:
    """The file of the application's script, for a recipe that is defined in it; None: there is none."""
    main = sys.modules.get("__main__")
    path: str | None = getattr(main, "__file__", None)
    if not path or not path.endswith(".py"):
        return None
    return os.path.abspath(path)


def unpickled(luggage: Luggage) -> Recipe[Any]:
    """The recipe, in the host. Imports what it is made of."""
    sys.argv = list(luggage.arguments)
    if luggage.main and _is_of_main(luggage.recipe):
        _import_main(luggage.main)
    recipe = pickle.loads(luggage.recipe)  # noqa: S301  # from the process that has started this one
    if not isinstance(recipe, Recipe):
        raise ConfigurationError(f"what arrived is not a recipe but a {type(recipe).__name__}")
    return recipe


def _import_main(path: str) -> None:
    """As multiprocessing does it in a spawned child: the script runs once more, under another name."""
    import runpy
    import types

    module = types.ModuleType("__mp_main__")
    module.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
