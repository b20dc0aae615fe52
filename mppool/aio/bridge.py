"""An AsyncRecipe as the rest of the library knows recipes: its hooks run in the loop that owns the resource.

What opens, checks and closes resources on the pool's behalf are threads of the pool's own. Here such a thread hands the
hook to the loop and waits for its outcome. What a task wants for itself it awaits itself, see hooks.py.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent import futures
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from mppool.aio.homes import Home, Homes, OnLoop, opens_in
from mppool.aio.recipe import AsyncRecipe, has_hook, settled
from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.recipe import HOOKS, LoopIsOver, Opening, Recipe
from mppool.worker.tasks import running_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mppool.worker.local_pool import LocalPool

log = Log("mppool")

_LOOK_S = 1.0
"""So often a thread that waits for a loop looks whether the loop still lives."""

_ASIDE_S = 0.5
"""What only looks at a resource, for the statistics, waits no longer for its loop."""


class LoopRecipe(Recipe[Any]):
    """The bridge. Called in threads that are not the loop's own.

    homes: set when the pool is declared.
    """

    open_in_caller = (
        True  # else checks had a thread more, which waits for them: the loop bounds them itself
    )
    belongs_to_loop = True

    def __init__(self, recipe: AsyncRecipe[Any]) -> None:
        self.asynchronous = recipe
        self.token_scope = recipe.token_scope
        self.credential = recipe.credential
        self.homes: Homes | None = None
        # A pool looks at its recipe for the hooks that there are.
        for hook in HOOKS:
            if hook not in ("configure", "close") and has_hook(recipe, hook):
                setattr(self, hook, getattr(self, f"_{hook}"))

    def homes_of(self, local: LocalPool) -> Homes:
        """The loops of this process that use the pool."""
        if self.homes is None:
            self.homes = Homes(local)
        return self.homes

    def fills(self) -> bool:
        """Whether `min_size` can be opened here: in the first loop, while there is one."""
        return self.homes is not None and self.homes.first() is not None

    def asks_in(self) -> asyncio.AbstractEventLoop | None:
        """See Recipe: the loop of the checkout, or the one in which `min_size` is opened."""
        home = opens_in.get(None) or (self.homes and self.homes.first())
        return home.loop if home else None

    def fingerprint(self) -> str:
        """See Recipe."""
        return f"async {self.asynchronous.fingerprint()}"

    def refuses_login(self, error: Exception) -> bool:
        """See Recipe."""
        return self.asynchronous.refuses_login(error)

    # --- hooks --------------------------------------------------------------------------------------------

    def open(self, opening: Opening) -> OnLoop:
        """Open it in the loop of the checkout that wants it."""
        home = opens_in.get(None) or (self.homes and self.homes.first())
        if not home:
            raise LoopIsOver("no event loop of this process uses the pool any more")
        return OnLoop(in_loop(home, self._open, opening, tasks=home.openings), home)

    async def _open(self, opening: Opening) -> Any:
        resource = await self.asynchronous.open(opening)
        if resource is None:
            raise ConfigurationError(
                "the open hook returned None; return the resource that it opens"
            )
        return resource

    def configure(self, resource: OnLoop) -> None:
        """Prepare it in its loop. Raises LoopIsOver where that has ended by now: it did not know of this resource."""
        if resource.home.is_over:
            raise LoopIsOver("the event loop has ended")
        hook = self.asynchronous.configure
        if has_hook(self.asynchronous, "configure"):
            in_loop(resource.home, _settle, hook, resource.resource)

    def close(self, resource: OnLoop) -> None:
        """Close it in its loop; without it, where that does not run or would wait for itself."""
        home, mine = resource.home, resource.resource
        if home.runs and running_loop() is not home.loop:
            try:
                in_loop(home, self._close, mine)
                return
            except LoopIsOver:
                log.debug("an event loop ended before it had closed a resource")
        self.asynchronous.abandon(mine)

    async def _close(self, resource: Any) -> None:
        await settled(self.asynchronous.close(resource))

    def check_within(self, resource: OnLoop, seconds: float) -> bool:
        """Check it in its loop. A loop that does not run says nothing about the resource."""
        if not resource.home.runs:
            return True
        try:
            return bool(in_loop(resource.home, self._check_in_loop, resource.resource, seconds))
        except LoopIsOver:
            return True

    async def _check_in_loop(self, resource: Any, seconds: float | None) -> bool:
        return bool(await bounded(settled(self.asynchronous.check(resource)), seconds))

    def _check(self, resource: OnLoop) -> bool:
        return bool(in_loop(resource.home, self._check_in_loop, resource.resource, None))

    def _on_checkout(self, resource: OnLoop) -> None:
        raise AssertionError("a task calls its own hooks")

    _reset = _on_checkout

    def _cancel(self, resource: OnLoop) -> bool | None:
        said: bool | None = self._look(resource, self.asynchronous.cancel)
        return said

    def _stats(self, resource: OnLoop) -> Mapping[str, Any]:
        return self._look(resource, self.asynchronous.stats) or {}

    def _describe(self, resource: OnLoop) -> str:
        return self._look(resource, self.asynchronous.describe) or ""

    def describe(self, resource: OnLoop) -> str:
        """See Recipe: where the asynchronous recipe has nothing to say."""
        return type(resource.resource).__name__

    def _look(self, resource: OnLoop, hook: Callable[[Any], Any]) -> Any:
        """What a hook says that only looks; None where its loop is busy."""
        if not resource.home.runs or running_loop() is resource.home.loop:
            return None
        try:
            return in_loop(resource.home, _settle, hook, resource.resource, seconds=_ASIDE_S)
        except LoopIsOver:
            return None


async def _settle(hook: Callable[[Any], Any], resource: Any) -> Any:
    return await settled(hook(resource))


async def bounded(awaitable: Awaitable[Any], seconds: float | None) -> Any:
    """Await it; TimeoutError after so many seconds (None: no bound)."""
    if seconds is None:
        return await awaitable
    if sys.version_info >= (3, 11):
        async with asyncio.timeout(seconds):
            return await awaitable
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except asyncio.TimeoutError as error:
        raise TimeoutError from error


def in_loop(
    home: Home,
    function: Callable[..., Awaitable[Any]],
    *arguments: Any,
    seconds: float | None = None,
    tasks: set[asyncio.Task[Any]] | None = None,
) -> Any:
    """The outcome of a coroutine function, run as a task of the loop. Called in another thread.

    seconds: to wait for that. tasks: where the task is entered until it is done.
    Raises LoopIsOver where the loop ends before, or does not answer in time.
    """
    handed = _Handed(home, lambda: function(*arguments), tasks)
    try:
        home.loop.call_soon_threadsafe(handed.start, context=copy_context())
    except RuntimeError as error:
        raise LoopIsOver("the event loop was closed") from error
    return handed.wait(seconds)


class _Handed:
    """What a thread has handed to a loop. Its outcome is set in the loop, and awaited by the thread."""

    def __init__(
        self,
        home: Home,
        function: Callable[[], Awaitable[Any]],
        tasks: set[asyncio.Task[Any]] | None,
    ) -> None:
        self._home = home
        self._function = function
        self._tasks = tasks
        self._outcome: futures.Future[Any] = futures.Future()

    def start(self) -> None:
        """Make it a task. Called in the loop."""
        if self._home.is_over:
            self._give_up()
            return
        task = self._home.tasks.spawn(self._run())
        if self._tasks is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._give_up)  # cancelled before it began: nothing of it was run

    async def _run(self) -> None:
        try:
            value = await self._function()
        except (asyncio.CancelledError, GeneratorExit):
            # Nobody else knows this task: the loop is being ended, or was closed, and the collector ends what it left.
            self._give_up()
            raise
        except BaseException as error:
            self._outcome.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._outcome.set_result(value)

    def _give_up(self, _: object = None) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(LoopIsOver("the event loop has ended"))

    def wait(self, seconds: float | None) -> Any:
        """The outcome. Called in the thread. Raises LoopIsOver where none comes."""
        waited = 0.0
        while True:
            slice_s = _LOOK_S if seconds is None else min(_LOOK_S, seconds)
            if futures.wait([self._outcome], slice_s).done:
                return self._outcome.result()
            waited += slice_s
            is_over = self._home.loop.is_closed()
            if is_over and self._outcome.done():  # just before it was closed
                return self._outcome.result()
            if is_over or (seconds is not None and waited >= seconds):
                raise LoopIsOver("the event loop has not answered")
