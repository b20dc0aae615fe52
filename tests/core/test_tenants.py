"""Free slots go max-min between the identities that wait, not to the one that asks for most."""

from __future__ import annotations

from collections import Counter

from mppool.core.decisions import Grant
from mppool.core.events import Closed, Opened
from mppool.ids import GrantNumber
from tests.core.desk import Desk, P, Q


def frees(desk: Desk, number: GrantNumber) -> list[Grant]:
    """The process closes a resource; the grants that follow, opened at once."""
    desk.forget()
    desk.say(P, Closed(number, "discarded"))
    grants = desk.hears(P, Grant)
    for grant in grants:
        desk.say(P, Opened(grant.number, 0.001))
    return grants


def test_a_free_slot_goes_to_an_identity_that_has_nothing_though_another_waits_for_longer() -> None:
    desk = Desk(P, max_size=2)
    first, _ = desk.opened(P, "flood"), desk.opened(P, "flood")
    for _ in range(5):
        desk.queue(P, "flood")
    desk.wait(1.0)
    quiet = desk.queue(P, "quiet")
    assert [(grant.key, grant.ticket) for grant in frees(desk, first)] == [("quiet", quiet)]


def test_identities_that_have_as_many_take_turns_by_arrival() -> None:
    desk = Desk(P, max_size=2)
    first, second = desk.opened(P, "alice"), desk.opened(P, "bob")
    tickets = [desk.queue(P, "carol"), desk.queue(P, "dave")]
    assert [grant.ticket for grant in frees(desk, second)] == tickets[:1]
    assert [grant.ticket for grant in frees(desk, first)] == tickets[1:]


def test_the_poorest_process_comes_first_and_then_the_poorest_identity() -> None:
    desk = Desk(P, Q, max_size=3)
    first, _ = desk.opened(P, "alice"), desk.opened(P, "bob")
    desk.opened(Q, "bob")
    ticket = desk.queue(Q, "bob")
    desk.queue(P, "carol")
    desk.say(P, Closed(first, "discarded"))
    # One slot each now: of two processes that are equally rich the identity without any comes first.
    assert [grant.key for grant in desk.hears(P, Grant)] == ["carol"]
    desk.say(P, Closed(desk.pool.slots.of(P)[0].number, "discarded"))
    assert [grant.ticket for grant in desk.hears(Q, Grant)] == [ticket]


def test_of_two_hundred_tenants_none_waits_for_the_one_that_floods() -> None:
    cap, tenants = 10, 200
    desk = Desk(P, max_size=cap)
    running = [desk.opened(P, "flood") for _ in range(cap)]
    for _ in range(500):
        desk.queue(P, "flood")
    for number in range(1, tenants):
        desk.queue(P, f"tenant {number}")
    served: Counter[str] = Counter()
    # The one that floods has a slot of ten all the time, like an identity that waits.
    rounds = tenants * cap // (cap - 1)
    for _ in range(rounds):
        grants = frees(desk, running.pop(0))
        served.update(grant.key for grant in grants)
        running += [grant.number for grant in grants]
    others = {key for key in served if key != "flood"}
    assert len(others) == tenants - 1
    assert served["flood"] <= rounds // cap + 2


def test_an_identity_whose_level_changes_is_ranked_again() -> None:
    desk = Desk(P, max_size=3)
    alice, bob = desk.opened(P, "alice"), desk.opened(P, "bob")
    other = desk.opened(P, "bob")
    desk.queue(P, "bob")
    desk.queue(P, "alice")
    # Alice has one and bob two: alice comes first, although bob came first.
    assert [grant.key for grant in frees(desk, alice)] == ["alice"]
    desk.queue(P, "alice")
    # Bob has one now, alice one: the one that came first.
    assert [grant.key for grant in frees(desk, other)] == ["bob"]
    assert desk.pool.slots.get(bob) is not None
