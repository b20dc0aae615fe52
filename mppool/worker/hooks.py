"""A recipe's hooks. All that block are called here, and each call says how it went.

Nothing here knows a pool, an entry or the books: who calls owns the resource, and decides what becomes of it. While a
hook runs its thread is `inside`, so that a hook that uses the pool itself does not wait for its own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mppool.logs import Log
from mppool.recipe import Opening, Recipe, Survey, overrides
from mppool.worker.inside import inside

log = Log("mppool")


class Hooks:
    """Those of one pool's recipe. It has no state; any thread may call.

    on_checkout, reset, check, cancel: None where the recipe has none, so that nothing is called in vain.
    """

    def __init__(self, recipe: Recipe[Any], pool: str, count: Callable[[str], None]) -> None:
        """pool: its name, for messages. count: counts something rare, by the name of its counter."""
        self._recipe, self._pool, self._count = recipe, pool, count
        self.on_checkout = recipe.on_checkout if overrides(recipe, "on_checkout") else None
        self.reset = recipe.reset if overrides(recipe, "reset") else None
        self.check = recipe.check if overrides(recipe, "check") else None
        self.cancel = recipe.cancel if overrides(recipe, "cancel") else None

    def open(self, opening: Opening, into: list[Any]) -> None:
        """Open a resource; what the hook returns is in `into`, also where an interrupt follows. Raises what the hook raises.

        In one call of C: no interrupt can strike between the hook's return and the storing, which would leave an open
        resource to which nothing refers.
        """
        _call(into.extend, map(self._recipe.open, (opening,)))

    def configure(self, resource: Any) -> None:
        """Make what has just been opened ready for its first use. Raises what the hook raises, which is counted."""
        try:
            _call(self._recipe.configure, resource)
            self._recipe.opened(resource)
        except BaseException:
            self._count("hook_errors")
            raise

    def run(self, name: str, call: Callable[[Any], Any], resource: Any) -> Exception | None:
        """Run `on_checkout` or `reset`. What it raised, logged and counted; None: nothing."""
        try:
            _call(call, resource)
        except Exception as error:
            self._count("hook_errors")
            log.warning("pool %r: the hook %s raised", self._pool, name, exc_info=True)
            return error
        return None

    def outcome_of_check(self, resource: Any, limit_s: float | None) -> bool | Exception:
        """What the check says, or what it raised: the owner of the resource judges, logs and counts that.

        limit_s: how long it may take, for recipes that can tell their driver.
        """
        try:
            if limit_s is None:
                assert self.check is not None
                return bool(self.check(resource))
            return bool(self._recipe.check_within(resource, limit_s))
        except Exception as error:  # noqa: BLE001  # it is the outcome
            return error

    def run_cancel(self, resource: Any) -> bool:
        """Have what runs on the resource end with an error. False where the hook failed, or could not."""
        if self.cancel is None:
            return False
        try:
            return _call(self.cancel, resource) is not False
        except Exception:
            self._count("hook_errors")
            log.warning("pool %r: the cancel hook raised", self._pool, exc_info=True)
            return False

    def look(self, name: str, resource: Any) -> Any:
        """What `stats` or `describe` says of a resource, which may be in use. Raises what the hook raises."""
        return _call(getattr(self._recipe, name), resource)

    def survey(self, resource: Any, prefix: str) -> Survey | None:
        """What the database says of its sessions; None also where it does not tell."""
        try:
            found: Survey | None = _call(lambda it: self._recipe.survey(it, prefix), resource)
            return found
        except Exception:
            log.debug("pool %r: the database does not tell", self._pool, exc_info=True)
            return None

    def end_sessions(self, resource: Any, labels: Sequence[str], older_than_s: float) -> int:
        """How many sessions of another machine were ended; 0 also where that failed, which is logged."""
        try:
            ended: int = _call(
                lambda it: self._recipe.end_sessions(it, labels, older_than_s), resource
            )
            return ended
        except Exception:
            self._count("hook_errors")
            log.warning(
                "pool %r: sessions of a machine whose lease has run out could not be ended",
                self._pool,
                exc_info=True,
            )
            return 0

    def close(self, resource: Any, problem: str = "closing a resource raised; it is gone") -> None:
        """Close it. An Exception is logged, as this problem, and counted; anything else passes through."""
        try:
            _call(self._recipe.close, resource)
        except Exception:
            self._count("hook_errors")
            log.warning("pool %r: %s", self._pool, problem, exc_info=True)

    def close_again(self, resource: Any) -> None:
        """Close what may be closed already: then an error says nothing."""
        try:
            _call(self._recipe.close, resource)
        except Exception:
            log.debug("pool %r: it was closed already", self._pool, exc_info=True)


def _call(hook: Callable[[Any], Any], argument: Any) -> Any:
    inside.hooks += 1
    try:
        return hook(argument)
    finally:
        inside.hooks -= 1  # no call here: an interrupt could strike in it
