"""Sessions of a machine whose lease has run out are ended over a resource that lies idle, or the next one that is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from mppool import InProcessManager
from mppool.dbapi.ending import end_sessions, statement
from mppool.recipe import Opening, Recipe
from mppool.wire.messages import EndSessions
from tests.helpers import wait_until

SAID = EndSessions("web-3", [17, 18], 4.0)
LABELS = ["alone/orders/web-3.17/", "alone/orders/web-3.18/"]


class Ending(Recipe[object]):
    """Notes what it is to end."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.ended: list[tuple[object, Sequence[str], float]] = []

    def open(self, opening: Opening) -> object:
        return object()

    def end_sessions(self, resource: object, labels: Sequence[str], older_than_s: float) -> int:
        self.ended.append((resource, labels, older_than_s))
        if self.fails:
            raise RuntimeError("not allowed")
        return 2


@pytest.fixture
def alone() -> Iterator[InProcessManager]:
    manager = InProcessManager("alone")
    yield manager
    manager.shutdown()


def say(manager: InProcessManager) -> None:
    member = manager._member
    member.deliver(SAID, member.inventory.session)


def test_where_nothing_lies_idle_the_next_resource_does_it_before_it_is_lent(
    alone: InProcessManager, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Ending()
    pool = alone.pool("orders", recipe)
    first = pool.checkout()
    say(alone)
    assert recipe.ended == []
    with pool.checkout() as resource:
        ((used, labels, age),) = recipe.ended
        assert (used, list(labels)) == (resource, LABELS)
        assert age >= 4.0
    with pool.checkout(), pool.checkout():
        assert len(recipe.ended) == 1
    first.release()
    wait_until(lambda: "2 sessions of machine 'web-3' were ended" in caplog.text, "a log line")


def test_what_lies_idle_does_it_at_once(alone: InProcessManager) -> None:
    recipe = Ending()
    pool = alone.pool("orders", recipe)
    with pool.checkout() as resource:
        pass
    say(alone)
    wait_until(lambda: recipe.ended, "it is done")
    assert recipe.ended[0][0] is resource
    wait_until(lambda: pool.stats()["idle"] == 1, "it lies where it lay")


def test_a_database_that_refuses_costs_nobody_a_checkout(
    alone: InProcessManager, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Ending(fails=True)
    pool = alone.pool("orders", recipe)
    pool.checkout()
    say(alone)
    with pool.checkout():
        assert len(recipe.ended) == 1
    assert pool.stats()["counters"]["hook_errors"] == 1
    wait_until(lambda: "could not be ended" in caplog.text, "a log line")


def test_recipes_that_cannot_are_not_asked(alone: InProcessManager) -> None:
    pool = alone.pool("orders", object)
    with pool.checkout():
        pass
    say(alone)
    with pool.checkout():
        pass
    assert pool.stats()["counters"]["hook_errors"] == 0


def test_a_label_that_postgresql_has_cut_is_found_by_its_end() -> None:
    said = statement(["shop/" + "p" * 64 + "/it's.17/"], 2.5)
    assert "'" + "p" * 47 + "/it''s.17/'" in said
    assert "interval '2.500 seconds'" in said
    assert end_sessions(None, "mysql", ["x"], 1.0) == 0
