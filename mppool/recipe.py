"""How a resource is opened, looked after and closed: the part of a pool that its user writes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Generic, TypedDict, TypeVar

from mppool.errors import ConfigurationError

T = TypeVar("T")

HOOKS = ("configure", "on_checkout", "reset", "check", "close", "stats", "describe", "cancel")

SETTINGS = (*HOOKS, "open_in_caller")
"""Keyword arguments of `manager.pool` that go with a plain callable, and are no options of the pool."""


class LoopIsOver(BaseException):
    """The event loop of a resource runs no hook any more. That says nothing about what the resource connects to."""


class Survey(TypedDict):
    """What a database says of its sessions. limit: so many it lets in. ours: those that bear the pool's label."""

    limit: int | None
    sessions: int
    ours: int | None


class Opening:
    """What the open hook is told.

    number: how many resources the pool has opened before this one, over all processes.
    identity: the identity that the resource is opened for, or None if there is none.
    token: a TokenInfo if the recipe names a `token_scope`, else None.
    expires_on: set by the recipe if it knows when what it opens with ends (seconds since 1970). The resource is
        replaced 300 seconds earlier. Not needed for `token`.
    label: what the database may show of the session: application (the manager's name), pool and pid, and the machine
        if machines share caps; "" if no pool asks.
    login: set by the recipe if it logs in with a secret that may change: a digest of that. Resources that this
        process opened with another one end within a minute, each when it is idle or released.
    timeout: seconds that the waiting caller has left, if the recipe opens in the caller's thread
        (`open_in_caller`); else None. Nobody interrupts `open`. A recipe that can bound its own work (a login
        timeout) should do so.
    """

    __slots__ = (
        "asked",
        "expires_on",
        "identity",
        "label",
        "login",
        "login_at",
        "number",
        "timeout",
        "token",
    )

    def __init__(
        self,
        number: int,
        identity: str | None = None,
        token: Any = None,
        timeout: float | None = None,
    ) -> None:
        self.number = number
        self.identity = identity
        self.token = token
        self.timeout = timeout
        self.expires_on: float | None = None
        self.label = ""
        self.login = ""
        self.login_at = 0.0  # when a refused login was asked for again (monotonic clock)
        self.asked: Any = None  # the recipe's own: what callables have said for this opening

    def __repr__(self) -> str:
        # The token is a secret: say only whether there is one.
        token = "None" if self.token is None else "<hidden>"
        return (
            f"Opening(number={self.number}, identity={self.identity!r}, token={token}, "
            f"timeout={self.timeout})"
        )


class Recipe(Generic[T]):
    """Subclass it and write `open`; everything else has a default that does nothing.

    A hook that raises never breaks the books. After `on_checkout`, `stats` and `describe` the resource
    stays; after `configure` and `reset`, or a check that says no, it is discarded; after `close` it is
    gone. Hooks run in the process that holds the resource, with no lock held.
    """

    token_scope: str | None = None
    """Scope of the token that `open` wants in `opening.token`; None: no token is fetched."""

    open_in_caller: bool = False
    """Whether `open` must run in the thread that checks out, for resources that belong to a thread.

    Otherwise it runs in a thread of the pool's own, in a copy of the context (`contextvars`) of the checkout that
    asked for it, while the caller takes whatever comes first: this resource, or one that is given back.
    """

    belongs_to_loop: bool = False
    """Whether its resources belong to event loops, and are lent by an AsyncPool."""

    guard: bool = False
    """What `guard=None`, the default of that option, means for a pool of this kind: True for recipes whose users hand
    resources around, and can live with a proxy."""

    credential: Any = None
    """Whose token that is where a checkout names no credential; None: nobody's, `opening.token` is None."""

    def open(self, opening: Opening) -> T:
        """Open one resource. An Exception becomes OpenFailed; a BaseException passes through."""
        raise ConfigurationError(f"{type(self).__name__} does not say how to open: override open()")

    def refuses_login(self, error: Exception) -> bool:
        """Whether what `open` raised means that the login was refused. Then another token is fetched.

        It is only asked if `opening.token` was given.
        """
        return False

    def fills(self) -> bool:
        """Whether resources can be opened here for which nobody waits (`min_size`)."""
        return True

    def asks_in(self) -> Any:
        """The event loop in which an asynchronous credential is asked for a token; None: there is none."""
        return None

    def opened(self, resource: T) -> None:
        """Called once, when the resource is open and configured. Note here what `reset` has to put back."""

    def leaves_behind(self, name: str, arguments: tuple[Any, ...]) -> bool:
        """Whether a call of this method, or setting this attribute, leaves something that `reset` cannot put back.

        Asked with `guard=True`, for the resource and its cursors. If so, the resource is closed at its release.
        """
        return False

    def configure(self, resource: T) -> None:
        """Prepare a resource once, after it was opened."""

    def on_checkout(self, resource: T) -> None:
        """Called at every checkout, before the caller gets the resource."""

    def reset(self, resource: T) -> None:
        """Undo what the caller left behind, before the resource is given back.

        A ConnectionError means the same as in `check`.
        """

    def check(self, resource: T) -> bool:
        """True if the resource still works.

        A ConnectionError says more than False: the backend is gone, and with it everything that was opened
        for the same identity before now. All processes replace it. A TimeoutError says the same, of a backend that
        does not answer at all, so closing may hang too.
        """
        return True

    def check_within(self, resource: T, seconds: float) -> bool:
        """Like `check`, but bounded to this many seconds (`check_timeout`) if that is possible.

        Override it if the driver has a timeout, and raise TimeoutError then. Otherwise the pool abandons the
        check, and a thread may be left hanging.
        """
        return self.check(resource)

    def close(self, resource: T) -> None:
        """Close the resource. The default calls its `close` method, if it has one."""
        close = getattr(resource, "close", None)
        if callable(close):
            close()

    def stats(self, resource: T) -> Mapping[str, Any]:
        """JSON-compatible facts about the resource, shown in the pool's statistics."""
        return {}

    def describe(self, resource: T) -> str:
        """A short text for people, without secrets."""
        return type(resource).__name__

    def cancel(self, resource: T) -> bool | None:
        """Make the call that runs on the resource, in another thread, end with an error. False: it cannot be done.

        Called by `Lease.cancel`, and before an overdue lease's resource is closed. The resource is closed when its
        lease ends, because a database that acts late would end the next user's call.
        """
        return False

    def survey(self, resource: T, prefix: str) -> Survey | None:
        """What the database says about its sessions; None: it cannot be asked, or does not tell.

        Called on an idle resource when somebody wants advice (`pool.advice()`, `mppool doctor`).
        prefix: what `opening.label` begins with in all processes.
        """
        return None

    def end_sessions(self, resource: T, labels: Sequence[str], older_than_s: float) -> int:
        """End sessions of another machine at the database, and return how many there were.

        Called on a resource that nobody else uses, with `PoolManager(..., end_expired=True)`, when the lease of a
        machine has run out. What it raises is logged.
        labels: what `opening.label` began with there. older_than_s: only sessions that are older are ended.
        """
        return 0

    def fingerprint(self) -> str:
        """What this recipe opens, as a text without secrets that is the same in all processes.

        It is part of the key of every resource: two processes that open different things under one
        pool name share the cap and are never handed each other's resources.
        """
        return name_of(type(self))


class CallableRecipe(Recipe[T]):
    """A recipe made of a plain callable and, as keyword arguments, hooks."""

    def __init__(
        self,
        opener: Callable[..., T],
        *,
        open_in_caller: bool = False,
        **hooks: Callable[..., Any] | None,
    ) -> None:
        self._opener = opener
        self.open_in_caller = open_in_caller
        self._wants_opening = takes_an_argument(opener)
        self._hooks = {name: hook for name, hook in hooks.items() if hook is not None}
        # A hook that was given shadows the method of the same name, so that a pool can see from the
        # recipe alone which hooks there are, and skip the others.
        for name, hook in self._hooks.items():
            setattr(self, name, hook)

    def __reduce__(self) -> tuple[Any, ...]:
        refuse_nameless({"open": self._opener, **self._hooks})
        return (_rebuild, (self._opener, {"open_in_caller": self.open_in_caller, **self._hooks}))

    def open(self, opening: Opening) -> T:
        return self._opener(opening) if self._wants_opening else self._opener()

    def fingerprint(self) -> str:
        return name_of(self._opener)


def refuse_nameless(hooks: Mapping[str, Any]) -> None:
    """Pickle finds a function by its name, and its own error names neither the hook nor the way out.

    Raises ConfigurationError where one of these functions cannot be found so.
    """
    for hook, function in hooks.items():
        inner = getattr(function, "func", function)  # functools.partial
        name = getattr(inner, "__qualname__", "")
        nameless = "<lambda>" in name or "<locals>" in name
        if nameless and callable(inner) and not _somebody_pickles_functions_whole():
            kind = "a lambda" if "<lambda>" in name else f"defined within a function ({name})"
            raise ConfigurationError(
                f"the hook {hook} is {kind}, which pickle cannot send to another process; define it at the top "
                "of a module, or declare the pool in the other process too"
            )


def _somebody_pickles_functions_whole() -> bool:
    """Whether cloudpickle or dill is at work, which send functions by value."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if {"cloudpickle", "dill"} & set(frame.f_globals.get("__name__", "").split(".")):
            return True
        frame = frame.f_back
    return False


def _rebuild(opener: Callable[..., T], settings: dict[str, Any]) -> CallableRecipe[T]:
    return CallableRecipe(opener, **settings)


def as_recipe(recipe: Any, hooks: dict[str, Any]) -> Recipe[Any]:
    """The Recipe for what was given to `manager.pool`: itself, or a callable with hooks.

    Raises ConfigurationError for anything else, and for hooks beside a Recipe, which has its own.
    """
    if isinstance(recipe, Recipe):
        _refuse_coroutine("open", recipe.open)
        if hooks:
            raise ConfigurationError(
                f"{', '.join(sorted(hooks))}: hooks as keyword arguments go with a plain callable; "
                f"override the method in {type(recipe).__name__} instead"
            )
        return recipe
    if isinstance(recipe, type) and issubclass(recipe, Recipe):
        raise ConfigurationError(
            f"the recipe is the class {recipe.__name__} itself; give an instance: {recipe.__name__}(...)"
        )
    if isinstance(recipe, str):  # likely a connection string, so its text is not repeated
        raise ConfigurationError(
            "the recipe is text; give a recipe that opens with it, such as OdbcRecipe(text), or a callable"
        )
    if not isinstance(recipe, type) and callable(getattr(recipe, "cursor", None)):
        raise ConfigurationError(  # sqlite3's connections can be called
            "the recipe is an open connection; give the function that opens one, such as "
            "DbApiRecipe(sqlite3.connect, 'shop.db')"
        )
    if not callable(recipe):
        raise ConfigurationError(
            f"the recipe is {recipe!r:.80}, which cannot be called; give a mppool.Recipe or a callable "
            "that opens a resource"
        )
    _refuse_coroutine("open", recipe)
    in_caller = hooks.pop("open_in_caller", False)
    if not isinstance(in_caller, bool):
        raise ConfigurationError(
            f"open_in_caller={in_caller!r:.80} is not allowed: give True or False"
        )
    for name, hook in hooks.items():
        _refuse_coroutine(name, hook)
        if hook is not None and not callable(hook):
            raise ConfigurationError(
                f"the hook {name} is {hook!r:.80}, which cannot be called; give a callable that takes "
                "the resource"
            )
    return CallableRecipe(recipe, open_in_caller=in_caller, **hooks)


def _refuse_coroutine(name: str, hook: object) -> None:
    """What it returns would be taken for the resource, or for an answer."""
    if inspect.iscoroutinefunction(hook):
        raise ConfigurationError(
            f"the hook {name} is the coroutine function {name_of(hook)}: hooks run in threads, also for "
            "acheckout; give a plain function"
        )


def overrides(recipe: Recipe[Any], hook: str) -> bool:
    """Whether the recipe has this hook itself, so that calling it does something."""
    return hook in vars(recipe) or getattr(type(recipe), hook) is not getattr(Recipe, hook)


def takes_an_argument(opener: Callable[..., Any]) -> bool:
    """Whether it cannot be called without one."""
    try:
        parameters = inspect.signature(opener).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature: call it plainly
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(
        parameter.kind in positional and parameter.default is inspect.Parameter.empty
        for parameter in parameters
    )


def checked_flag(name: str, value: object) -> bool:
    """True or False, or ConfigurationError."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} is {value!r:.40}; allowed are True and False")
    return value


def name_of(thing: Any) -> str:
    """Module and name of a callable, the same in a parent and in a spawned child."""
    inner = getattr(thing, "func", thing)  # functools.partial
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    module = getattr(named, "__module__", None) or "builtins"
    if module == "__mp_main__":  # multiprocessing's name for __main__ in a spawned child
        module = "__main__"
    return f"{module}:{named.__qualname__}"
