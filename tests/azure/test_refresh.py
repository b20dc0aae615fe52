"""Tokens that are near their end, wanted by many processes at once: refreshed ahead, by one, in the background."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from azure.identity import DefaultAzureCredential, ManagedIdentityCredential

from mppool import Opening, PoolManager, Recipe
from tests.azure.crowd import SCOPE, crowd, slowly
from tests.azure.endpoints import Answer, Asked, Endpoint
from tests.helpers import Fork, wait_until
from tests.secrecy import MARK

PROCESSES = 8


@pytest.fixture
def hasty_manager(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[PoolManager, Fork]]:
    """A manager whose server uses tokens up to 0.2 s before their end, not 10 s: so they can be short."""
    monkeypatch.setattr("mppool.core.tokens.USABLE_S", 0.2)
    manager = PoolManager("tokens", runtime_dir=runtime_dir)
    server = Fork(lambda: PoolManager("tokens").get_server().serve_forever())
    wait_until(lambda: manager.server_pid == server.pid, "the server")
    yield manager, server
    manager.shutdown()
    server.result()


def test_one_process_refreshes_ahead_while_the_others_go_on(
    hasty_manager: tuple[PoolManager, Fork], msi: Endpoint
) -> None:
    """The second request is answered only when every process has gone on with the first token meanwhile."""
    calls = multiprocessing.get_context("fork").Array("q", PROCESSES, lock=False)
    went_on: list[bool] = []

    def behave(asked: Asked) -> Answer:
        if asked.number == 2:
            before = list(calls)
            ends = time.monotonic() + 1.5  # the first token would live for as long
            while not went_on and time.monotonic() < ends:
                if all(now > then + 20 for then, now in zip(before, calls, strict=True)):
                    went_on.append(True)
                time.sleep(0.005)
        return asked.token(4 if asked.number == 1 else 3600)

    msi.behaviour = behave
    shared = hasty_manager[0].credential(ManagedIdentityCredential())
    places = multiprocessing.get_context("fork").Value("i", 0)

    def use() -> set[str]:
        with places.get_lock():
            place, places.value = places.value, places.value + 1
        seen: set[str] = set()
        while not any(token.startswith(f"{MARK}.2.") for token in seen):
            seen.add(shared.get_token(SCOPE).token)
            calls[place] += 1
            time.sleep(0.002)
        return seen

    seen = crowd(use, processes=PROCESSES)
    assert went_on, f"calls while the refresh was under way: {list(calls)}"
    assert all(len(tokens) == 2 for tokens in seen), seen
    assert msi.count == 2, f"{msi.count} requests for {sum(calls)} calls"


@pytest.mark.parametrize("kind", ["in a pool", "shared"])
def test_threads_with_an_unknown_identity_make_one_request(
    kind: str, msi: Endpoint, manager: PoolManager
) -> None:
    """Nobody knows whose it is, so its tokens stay in this process; they are fetched once all the same."""
    msi.behaviour = slowly
    pool = manager.pool("p", Sessions(), max_size=PROCESSES)
    credential = DefaultAzureCredential()
    shared = manager.credential(credential)

    def use() -> str:
        if kind == "shared":
            return str(shared.get_token(SCOPE).token.split(".")[1])
        with pool.checkout(credential=credential) as session:
            return session

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: use(), range(16))) == {"1"}
    assert msi.count == 1
    credential.close()


class Sessions(Recipe[str]):
    """Opened with a token, of which a session remembers the number."""

    token_scope = SCOPE

    def open(self, opening: Opening) -> str:
        text = opening.token.token_struct[4:].decode("utf-16-le")
        return str(text.split(".")[1])


@pytest.mark.parametrize("issuer", ["another token each time", "the same token again"])
def test_sessions_near_the_end_of_their_token_make_no_storm(
    issuer: str, msi: Endpoint, manager: PoolManager
) -> None:
    """From 300 s before its end on a session's token is asked for again (row C5): by one process, for all.

    Machines' endpoints keep tokens themselves: they give the same one until shortly before its end.
    """

    def behave(asked: Asked) -> Answer:
        answer = asked.token(302 if asked.number == 1 else 3600)
        if issuer == "the same token again":
            answer = asked.token(300)
            answer.body["access_token"] = f"{MARK}.1.{'x' * 80}"
        return answer

    msi.behaviour = behave
    pool = manager.pool("p", Sessions(), max_size=PROCESSES)
    credential = ManagedIdentityCredential()

    def use() -> tuple[int, str]:
        checkouts, ends = 0, time.monotonic() + 4.0
        while time.monotonic() < ends:
            with pool.checkout(credential=credential) as session:
                checkouts += 1
            time.sleep(0.01)
        return checkouts, session

    results = crowd(use, processes=PROCESSES)
    checkouts = sum(count for count, _ in results)
    assert checkouts > PROCESSES * 20
    assert msi.count == 2, f"{msi.count} requests for {checkouts} checkouts"
    last: set[Any] = {session for _, session in results}
    assert last == ({"1"} if issuer == "the same token again" else {"2"})
