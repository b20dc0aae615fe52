"""Pools and proxies that are shut down at the end of their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mppool.compat.proxypatternpool import Pool, Proxy
from tests.helpers import PATIENCE


class Thing:
    """Like most connections: hashable, and it can be referred to weakly."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def __str__(self) -> str:
        return f"thing {self.number}"


@pytest.fixture
def make_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pool]]:
    """Makes pools of Things, or of whatever `fun` makes. No thread of theirs outlives the test."""
    monkeypatch.delenv("PPP_WERKZEUG_WORKAROUND", raising=False)
    made: list[Pool] = []

    def make(fun: Callable[[int], Any] = Thing, **parameters: Any) -> Pool:
        pool = Pool(fun, **parameters)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        thread = pool._housekeeper
        pool.shutdown(5.0)
        if thread is not None:
            thread.join(PATIENCE)


@pytest.fixture
def make_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Proxy]]:
    """Makes proxies, whose pools are shut down."""
    monkeypatch.delenv("PPP_WERKZEUG_WORKAROUND", raising=False)
    made: list[Proxy] = []

    def make(*arguments: Any, **parameters: Any) -> Proxy:
        proxy = Proxy(*arguments, **parameters)
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        if proxy._pool is not None:
            proxy._pool.shutdown(5.0)
