"""Resources of many identities in real pools: any recipe with a `token_scope`, idle identities, what is kept."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import ConfigurationError, InProcessManager, OpenFailed, PoolManager
from mppool.azure import StaticToken, TokenInfo, token_struct
from mppool.recipe import Opening, Recipe
from tests.helpers import Fork, wait_until
from tests.secrecy import MARK

SCOPE = "https://example.org/.default"


class Thing:
    """A resource that knows for whom it was opened."""

    def __init__(self, opening: Opening) -> None:
        self.identity = opening.identity
        self.token = opening.token


class Things(Recipe[Thing]):
    token_scope = SCOPE

    def __init__(self, credential: Any = None) -> None:
        self.credential = credential
        self.closed: list[Thing] = []

    def open(self, opening: Opening) -> Thing:
        return Thing(opening)

    def close(self, resource: Thing) -> None:
        self.closed.append(resource)


class Known:
    """A credential of a class that knows whom it stands for, as azure-identity's do."""

    def __init__(self, name: str, life: float = 3600.0) -> None:
        self.name = name
        self.life = life
        self.asked = 0

    def mppool_identity(self) -> str:
        return self.name

    def get_token(self, *scopes: str, **options: Any) -> Any:
        from azure.core.credentials import AccessToken

        assert scopes == (SCOPE,)
        self.asked += 1
        return AccessToken(f"{MARK} {self.asked} of {self.name}", int(time.time() + self.life))


@pytest.fixture(params=["one process", "many processes"])
def manager(request: pytest.FixtureRequest, runtime_dir: Path) -> Iterator[Any]:
    """Each kind of manager in turn."""
    if request.param == "one process":
        yield InProcessManager()
    else:
        made = PoolManager("test")
        yield made
        made.shutdown()


def use(pool: Any, **whose: Any) -> Any:
    with pool.checkout(**whose) as thing:
        return thing


def test_any_recipe_that_names_a_scope_is_given_tokens(manager: Any) -> None:
    pool = manager.pool("p", Things(), max_size=4)
    alice = Known("alice")
    thing = use(pool, credential=alice)
    assert thing.identity == "alice"
    assert thing.token == TokenInfo(token_struct(f"{MARK} 1 of alice"), thing.token.expires_on)
    assert use(pool, credential=alice) is thing
    assert use(pool, credential=Known("alice")) is thing
    assert use(pool).token is None
    assert use(pool, identity="bob").token is None
    assert alice.asked == 1
    pool.close()


def test_the_recipes_own_credential(manager: Any) -> None:
    own = Known("own")
    pool = manager.pool("p", Things(own), max_size=4, min_size=1)
    assert pool.wait_ready(20.0)
    thing = use(pool)
    assert thing.identity == "own"
    assert use(pool, credential=own) is thing
    assert use(pool, identity="own") is thing
    assert use(pool, credential=Known("alice")).identity == "alice"
    assert own.asked == 1
    pool.close()


def test_a_credential_without_a_scope_is_refused_at_declaration() -> None:
    class Aimless(Things):
        token_scope = None

    with pytest.raises(ConfigurationError, match="token_scope"):
        InProcessManager().pool("p", Aimless(Known("own")))


def test_a_failing_credential_is_an_open_that_failed(manager: Any) -> None:
    class Broken(Known):
        def get_token(self, *scopes: str, **options: Any) -> Any:
            raise OSError("no endpoint here")

    pool = manager.pool("p", Things(), max_size=4)
    with pytest.raises(OpenFailed, match="no endpoint here") as failed:
        pool.checkout(credential=Broken("broken"))
    assert isinstance(failed.value.__cause__, OSError)
    assert pool.stats()["counters"]["open_failed"] == 1
    assert use(pool, credential=Known("other")).identity == "other"  # it blocks nobody else
    pool.close()


def test_an_interrupted_credential_loses_nothing(manager: Any) -> None:
    class Interrupted(Known):
        def get_token(self, *scopes: str, **options: Any) -> Any:
            if not self.asked:
                self.asked = 1
                raise KeyboardInterrupt
            return super().get_token(*scopes, **options)

    pool = manager.pool("p", Things(), max_size=1)
    credential = Interrupted("me")
    with pytest.raises(KeyboardInterrupt):
        pool.checkout(credential=credential)
    assert use(pool, credential=credential).identity == "me"
    pool.close()


def test_children_fetch_no_token_that_is_there(runtime_dir: Path) -> None:
    manager = PoolManager("test")
    pool = manager.pool("p", Things(), max_size=8)
    alice = Known("alice")
    mine = use(pool, credential=alice)

    def in_child() -> tuple[int, bytes]:
        asked = alice.asked
        return alice.asked - asked, use(pool, credential=alice).token.token_struct

    children = [Fork(in_child) for _ in range(3)]
    assert [child.result() for child in children] == [(0, mine.token.token_struct)] * 3
    assert use(pool, credential=alice) is mine
    pool.close()
    manager.shutdown()


def test_a_credential_that_speaks_for_whoever_is_there(runtime_dir: Path) -> None:
    """The recipe's own credential looks at a context, to see for whom it is asked: in a child too."""

    class Contextual:
        whose = "alice"

        def get_token(self, *scopes: str, **options: Any) -> Any:
            from azure.core.credentials import AccessToken

            return AccessToken(f"{MARK} of {self.whose}", int(time.time() + 3600))

    manager = PoolManager("test")
    credential = Contextual()
    pool = manager.pool("p", Things(credential), max_size=8, min_size=1)

    def both() -> bool:
        for whose in ("alice", "bob", "bob", "alice"):
            credential.whose = whose
            for _ in range(2):
                assert use(pool).token.token_struct == token_struct(f"{MARK} of {whose}")
        return True

    assert both()
    assert Fork(both).result()
    assert both()
    pool.close()
    manager.shutdown()


def test_an_account_that_signs_in_later_gets_none_of_the_earlier_ones(manager: Any) -> None:
    pool = manager.pool("p", Things(), max_size=8)
    credential = Known("acct:alice")
    alice = use(pool, credential=credential)
    credential.name = "acct:bob"
    bob = use(pool, credential=credential)
    assert (alice.identity, bob.identity) == ("acct:alice", "acct:bob")
    assert bob.token.token_struct == token_struct(f"{MARK} 2 of acct:bob")
    credential.name = "acct:alice"
    assert use(pool, credential=credential) is alice
    pool.close()


def test_a_credential_that_changes_hands_while_a_token_is_fetched(manager: Any) -> None:
    class Changing(Known):
        def get_token(self, *scopes: str, **options: Any) -> Any:
            if self.name == "acct:alice":
                self.name = "acct:bob"
            return super().get_token(*scopes, **options)

    pool = manager.pool("p", Things(), max_size=8)
    credential = Changing("acct:alice")
    with pytest.raises(OpenFailed, match="somebody else"):
        pool.checkout(credential=credential)
    assert use(pool, credential=credential).identity == "acct:bob"
    pool.close()


# --- idle identities --------------------------------------------------------------------------------


def figures(pool: Any) -> tuple[int, int]:
    stats = pool.stats()
    return stats["identities"], stats["counters"]["evicted_identities"]


def test_idle_identities_go_and_the_own_one_stays(manager: Any) -> None:
    recipe = Things(Known("own"))
    pool = manager.pool("p", recipe, max_size=8, min_size=1, max_idle=0.2)
    use(pool)
    with pool.checkout(identity="busy"):
        for name in ("alice", "bob", "carol"):
            use(pool, identity=name)
        wait_until(lambda: figures(pool) == (2, 3), "the idle identities to be evicted")
        assert {thing.identity for thing in recipe.closed} == {"alice", "bob", "carol"}
    wait_until(lambda: figures(pool) == (1, 4), "the last one to be evicted")
    assert use(pool).identity == "own"
    pool.close()


def test_nothing_is_closed_while_a_lock_is_held(manager: Any) -> None:
    done: list[str] = []

    class Reentrant(Things):
        def close(self, resource: Thing) -> None:
            if resource.identity != "alice":
                return
            other = threading.Thread(target=lambda: done.append(use(pool, identity="x").identity))
            other.start()
            other.join(10.0)
            assert not other.is_alive()

    pool = manager.pool("p", Reentrant(), max_size=4, max_idle=0.1)
    use(pool, identity="alice")
    wait_until(lambda: done, "the close hook to have used the pool")
    pool.close()


def test_a_failing_close_is_logged_and_the_identity_is_gone(
    manager: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Things):
        def close(self, resource: Thing) -> None:
            raise OSError("closing failed")

    pool = manager.pool("p", Failing(), max_size=4, max_idle=0.1)
    use(pool, identity="alice")
    wait_until(lambda: figures(pool) == (0, 1), "the idle identity to be evicted")
    assert wait_until(lambda: "closing failed" in caplog.text, "the log line")
    pool.close()


def test_nothing_is_kept_of_what_is_gone(manager: Any) -> None:
    """Thousands of users come and go: neither shelves nor queues nor credentials pile up."""
    pool = manager.pool("p", Things(), max_size=2)
    local = pool._local
    for number in range(100):
        use(pool, credential=Known(f"user {number}"))
        use(pool, credential=StaticToken(f"{MARK} {number}"))
        use(pool, identity=f"name {number}")
        use(pool, identity=f"name {number}")
    wait_until(
        lambda: len(local.idle.shelves.by_key) <= 3,
        "the shelves of those who are gone to be forgotten",
    )
    assert not local.idle.line.waiters
    assert len(local.identities._named) <= 3
    gc.collect()
    assert not local.identities.known
    pool.close()


def test_a_forgotten_shelf_is_found_again(manager: Any) -> None:
    """A credential is remembered for longer than the shelf of its identity."""
    pool = manager.pool("p", Things(), max_size=1)
    alice, bob = Known("alice"), Known("bob")
    for _ in range(5):
        for credential in (alice, bob):
            first = use(pool, credential=credential)
            assert first.identity == credential.name
            for _ in range(3):  # by the long way, and by the short one
                assert use(pool, credential=credential) is first
    pool.close()


def test_threads_with_many_identities_never_meet(manager: Any) -> None:
    """Shelves are made and forgotten all the time here."""
    pool = manager.pool("p", Things(), max_size=3, max_idle=0.05)
    credentials = [Known(f"user {number}") for number in range(6)]
    wrong: list[tuple[str, str]] = []

    def work(seed: int) -> None:
        for turn in range(150):
            credential = credentials[(seed * 7 + turn * (seed + 1)) % len(credentials)]
            with pool.checkout(credential=credential, timeout=30.0) as thing:
                if thing.identity != credential.name:
                    wrong.append((thing.identity, credential.name))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    wait_until(lambda: figures(pool)[0] == 0, "all identities to be evicted")
    # No capacity is lost.
    leases = [pool.checkout(identity=f"late {number}", timeout=10.0) for number in range(3)]
    for lease in leases:
        lease.release()
    pool.close()


def test_a_tenant_that_floods_keeps_no_other_from_its_turn(manager: Any) -> None:
    """Threads of one identity want all there is, without a pause; those of others want one turn each."""
    pool = manager.pool("p", Things(), max_size=2, timeout=None)
    over = threading.Event()
    turns: list[str] = []

    def flood() -> None:
        while not over.is_set():
            with pool.checkout(identity="flood"):
                over.wait(0.001)

    def quiet(name: str) -> None:
        with pool.checkout(identity=name) as thing:
            turns.append(thing.identity)

    floods = [threading.Thread(target=flood) for _ in range(12)]
    names = [f"tenant {number}" for number in range(8)]
    others = [threading.Thread(target=quiet, args=(name,)) for name in names]
    for thread in floods:
        thread.start()
    try:
        wait_until(lambda: pool.stats()["in_use"] == 2, "all there is is taken")
        for thread in others:
            thread.start()
        wait_until(lambda: len(turns) == len(others), "everybody has its turn")
    finally:
        over.set()
        for thread in [*floods, *others]:
            if thread.ident is not None:
                thread.join()
    assert sorted(turns) == sorted(names)
