"""How a box is made, checked and closed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mppool.compat.proxypatternpool.box import Box
from mppool.compat.proxypatternpool.errors import PoolException
from mppool.compat.proxypatternpool.register import Register
from mppool.recipe import Opening, Recipe

# The name that applications have in their logging configuration.
log = logging.getLogger("ppp")

FunHook = Callable[[int], Any]
PoolHook = Callable[[Any], None]
HealthHook = Callable[[Any], bool]
StatsHook = Callable[[Any], dict[str, Any]]
TraceHook = Callable[[Any], str]


@dataclass(frozen=True)
class Hooks:
    """The user's functions. `call` and `trace` never raise an Exception, whatever these do."""

    fun: FunHook
    opener: PoolHook | None
    getter: PoolHook | None
    retter: PoolHook | None
    closer: PoolHook | None
    health: HealthHook | None
    stats: StatsHook | None
    tracer: TraceHook

    def call(self, name: str, content: Any) -> None:
        """Call a hook that returns nothing. One that raises is logged, and the object stays."""
        hook = getattr(self, name)
        if hook is not None:
            try:
                hook(content)
            except Exception:
                log.exception("exception in %s", name)

    def trace(self, content: Any) -> str:
        """What the tracer says of an object."""
        try:
            return self.tracer(content)
        except Exception:
            log.exception("exception in tracer")
            return f"<{type(content).__name__} of which the tracer can say nothing>"


class BoxRecipe(Recipe[Box]):
    """Calls the hooks, and keeps the register."""

    open_in_caller = (
        True  # as ProxyPatternPool does, which has no other threads than its housekeeper
    )

    def __init__(self, hooks: Hooks, register: Register) -> None:
        self._hooks = hooks
        self._register = register
        self.is_shut_down = False

    def open(self, opening: Opening) -> Box:
        """What `fun` makes, in its box; a failure is logged and kept for `get` to raise again."""
        self._register.count("ncreating")
        try:
            content = self._hooks.fun(opening.number)
        except Exception as error:
            log.error("object creation failed: %s: %s", type(error).__name__, error)
            self._register.last_error = error
            raise
        try:
            self._hooks.call("opener", content)
            if self.is_shut_down:
                raise PoolException("the pool was shut down while an object was created")
        except BaseException:  # nobody gets it
            self._hooks.call("closer", content)
            raise
        box = Box(content)
        self._register.add(box)
        return box

    def check(self, box: Box) -> bool:
        """No says only a hook that returns something false; one that raises has found nothing out."""
        hooks, register = self._hooks, self._register
        assert hooks.health is not None
        register.count("nborrows", "nhealth")
        try:
            healthy = bool(hooks.health(box.content))
        except BaseException:  # this is the housekeeper's thread, where SystemExit ends nothing
            register.count("hc_errors")
            log.exception("health check error")
            healthy = True
        if healthy:
            register.count("nreturns")
        else:
            register.count("bad_health")
            log.error("bad health: %s", hooks.trace(box.content))
        return healthy

    def close(self, box: Box) -> None:
        content, was_dropped = box.content, box.was_dropped
        self._register.remove(box, content)
        try:
            if was_dropped:
                log.warning("an object was dropped instead of being returned: no closer is called")
            else:
                self._hooks.call("closer", content)
        finally:
            self._register.destroyed()
