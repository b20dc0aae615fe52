"""Who issues tokens in a simulated world, and the credentials with which processes ask for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.simulation.threads import true_clock

if TYPE_CHECKING:
    from tests.simulation.world import World


class LoginRefused(Exception):
    """The database does not know this token, or not any more."""


class Issuer:
    """Also looks at the tokens with which is logged in. fails, hangs: how likely that is now, when it is asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fails = self.hangs = 0.0
        self._issued: dict[str, tuple[str, float]] = {}
        self._revoked: set[str] = set()
        self._asking: Counter[str] = Counter()

    def give(self, identity: str) -> Any:
        seconds = self._begins(identity)
        self.world.scheduler.sleep(seconds)
        self._asking[identity] -= 1
        return self._issues(identity)

    async def give_in_loop(self, identity: str) -> Any:
        """The same, for a coroutine. Its loop may end, or its task, at that await."""
        seconds = self._begins(identity)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._asking[identity] -= 1
        self.world.outcome.done["tokens of loops"] += 1
        return self._issues(identity)

    def _begins(self, identity: str) -> float:
        """Somebody asks, and is answered after so many seconds."""
        world = self.world
        chance, settings = world.chance, world.settings
        self._asking[identity] += 1
        if self._asking[identity] > 1 and not settings.kinds and not settings.rough:
            world.trouble(f"two fetch a token of {identity}")
        seconds = settings.issuer * chance.uniform(0.5, 1.5)
        if self.hangs and chance.random() < self.hangs:
            world.outcome.faults["hung token"] += 1
            seconds += chance.uniform(1.0, 5.0)
        return float(seconds)

    def _issues(self, identity: str) -> Any:
        world = self.world
        if self.fails and world.chance.random() < self.fails:
            world.outcome.faults["failed token"] += 1
            raise ConnectionError("the issuer does not answer")
        world.outcome.done["tokens"] += 1
        token = f"{identity} {len(self._issued)}"
        expires_on = true_clock() + world.settings.token_life
        self._issued[token] = identity, expires_on
        return SimpleNamespace(token=token, expires_on=expires_on)

    def revoke(self) -> None:
        """No token is good for a login any more."""
        self._revoked.update(self._issued)

    def admit(self, identity: str | None, token_struct: bytes) -> None:
        """Raises LoginRefused."""
        token = token_struct[4:].decode("utf-16-le")
        owner, expires_on = self._issued[token]
        if owner != identity:
            self.world.trouble(f"{identity} logs in with a token of {owner}")
        has_ended = true_clock() > expires_on
        if has_ended and not self.world.settings.kinds:
            self.world.trouble(f"a token of {identity} had ended when it was used")
        if has_ended or token in self._revoked:
            self.world.outcome.faults["refused token"] += 1
            raise LoginRefused


class Credential:
    """Of one identity, in one process. See azure.core.credentials.TokenCredential."""

    def __init__(self, issuer: Issuer, identity: str) -> None:
        self._issuer, self._identity = issuer, identity

    def get_token(self, *scopes: str, **options: Any) -> Any:
        return self._issuer.give(self._identity)


class AsyncCredential:
    """See azure.core.credentials_async.AsyncTokenCredential: for pools of event loops."""

    def __init__(self, issuer: Issuer, identity: str) -> None:
        self._issuer, self._identity = issuer, identity

    async def get_token(self, *scopes: str, **options: Any) -> Any:
        return await self._issuer.give_in_loop(self._identity)

    async def close(self) -> None:
        """Nothing is open."""
