"""AsyncRecipe: how a resource of an event loop is opened, looked after and closed."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import CoroutineType
from typing import Any, Generic, TypeVar

from mppool.errors import ConfigurationError
from mppool.recipe import HOOKS, Opening, Recipe, name_of, refuse_nameless, takes_an_argument

T = TypeVar("T")


class AsyncRecipe(Generic[T]):
    """Subclass it and write `open`; everything else has a default that does nothing.

    All hooks run as tasks of the event loop that opens the resource. A hook that raises has the same effect as in
    `mppool.Recipe`. A method that does not wait for anything may be a plain one.
    """

    token_scope: str | None = None
    """See Recipe.token_scope."""

    credential: Any = None
    """See Recipe.credential."""

    async def open(self, opening: Opening) -> T:
        """Open one resource. An Exception becomes OpenFailed."""
        raise ConfigurationError(f"{type(self).__name__} does not say how to open: override open()")

    async def configure(self, resource: T) -> None:
        """Prepare a resource once, after it was opened."""

    async def on_checkout(self, resource: T) -> None:
        """Called at every checkout, before the caller gets the resource."""

    async def reset(self, resource: T) -> None:
        """Undo what the caller left behind, before the resource is given back.

        A ConnectionError means the same as in `check`. If it takes longer than `check_timeout`, the resource is closed.
        """

    def needs_reset(self, resource: T) -> bool:
        """Whether `reset` has anything to do, as far as that is known without waiting. A plain method."""
        return True

    async def check(self, resource: T) -> bool:
        """True if the resource still works.

        A ConnectionError means that the backend is gone, and with it everything that is as old; see `Recipe.check`.
        """
        return True

    async def close(self, resource: T) -> None:
        """Close the resource. The default calls its `aclose` or `close` method, and awaits what that returns."""
        close = getattr(resource, "aclose", None) or getattr(resource, "close", None)
        if callable(close):
            await settled(close())

    async def cancel(self, resource: T) -> bool | None:
        """Make what its user is doing with the resource end early; see Recipe.cancel. Runs in the same loop."""

    def abandon(self, resource: T) -> None:
        """End a resource whose event loop no longer runs. A plain method, because nothing can be awaited.

        When it returns the connection must be gone, because its slot is free then. Called in any thread.
        """

    async def stats(self, resource: T) -> Mapping[str, Any]:
        """JSON-compatible facts about the resource, shown in the pool's statistics."""
        return {}

    async def describe(self, resource: T) -> str:
        """A short text for people, without secrets."""
        return type(resource).__name__

    def refuses_login(self, error: Exception) -> bool:
        """See Recipe.refuses_login. A plain method."""
        return False

    def fingerprint(self) -> str:
        """See Recipe.fingerprint. A plain method."""
        return name_of(type(self))


class CoroutineRecipe(AsyncRecipe[T]):
    """A recipe made of a coroutine function and, as keyword arguments, hooks."""

    def __init__(
        self, opener: Callable[..., Awaitable[T]], **hooks: Callable[..., Any] | None
    ) -> None:
        self._opener = opener
        self._wants_opening = takes_an_argument(opener)
        self._hooks = {name: hook for name, hook in hooks.items() if hook is not None}
        for name, hook in self._hooks.items():
            setattr(self, name, hook)  # so that `has_hook` sees from the recipe which there are

    def __reduce__(self) -> tuple[Any, ...]:
        refuse_nameless({"open": self._opener, **self._hooks})
        return (_rebuild, (self._opener, self._hooks))

    async def open(self, opening: Opening) -> T:
        return await (self._opener(opening) if self._wants_opening else self._opener())

    def fingerprint(self) -> str:
        return name_of(self._opener)


def _rebuild(opener: Callable[..., Awaitable[T]], hooks: dict[str, Any]) -> CoroutineRecipe[T]:
    return CoroutineRecipe(opener, **hooks)


def settled(value: Any) -> Coroutine[Any, Any, Any]:
    """What a hook gives, to be awaited: whether it is a coroutine function or a plain one."""
    return value if type(value) is CoroutineType else _settled(value)


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def has_hook(recipe: AsyncRecipe[Any], hook: str) -> bool:
    """Whether the recipe has this hook itself, so that calling it does something."""
    return hook in vars(recipe) or getattr(type(recipe), hook) is not getattr(AsyncRecipe, hook)


def as_async_recipe(recipe: Any, hooks: dict[str, Any]) -> AsyncRecipe[Any]:
    """The AsyncRecipe for what was given to `manager.apool`: itself, or a coroutine function with hooks.

    Raises ConfigurationError for anything else.
    """
    if isinstance(recipe, AsyncRecipe):
        if hooks:
            raise ConfigurationError(
                f"{', '.join(sorted(hooks))}: hooks as keyword arguments go with a coroutine function; "
                f"override the method in {type(recipe).__name__} instead"
            )
        return recipe
    if isinstance(recipe, Recipe):
        raise ConfigurationError(
            f"{type(recipe).__name__} opens resources that block; declare it with manager.pool(...) and use "
            "`async with pool.acheckout()`"
        )
    if isinstance(recipe, type) and issubclass(recipe, (AsyncRecipe, Recipe)):
        raise ConfigurationError(
            f"the recipe is the class {recipe.__name__} itself; give an instance: {recipe.__name__}(...)"
        )
    if not gives_awaitables(recipe):
        kind = type(recipe).__name__ if not callable(recipe) else name_of(recipe)
        raise ConfigurationError(
            f"the recipe is {kind}, which is not a coroutine function; give a mppool.AsyncRecipe, or a function "
            "that is defined with `async def`"
        )
    for name, hook in hooks.items():
        if hook is not None and not callable(hook):
            raise ConfigurationError(
                f"the hook {name} is {hook!r:.80}, which cannot be called; give a coroutine function that takes "
                "the resource"
            )
    return CoroutineRecipe(recipe, **hooks)


def gives_awaitables(recipe: Any) -> bool:
    """Whether it is a coroutine function, or an object that is called like one."""
    inner = recipe
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    call = getattr(inner, "__call__", None)  # noqa: B004  # its kind is asked for, not whether there is one
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(call)


ASYNC_HOOKS = (*HOOKS, "abandon")
"""Keyword arguments of `manager.apool` that go with a coroutine function, and are no options of the pool."""
