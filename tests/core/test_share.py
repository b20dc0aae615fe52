"""Where machines share a cap: what the books do with the share of this one."""

from __future__ import annotations

from mppool.core.books import Books
from mppool.core.decisions import Close, EndLeases, Grant, Queued, Reclaim, Record
from mppool.core.events import Closed, Opened, Remembered, Share
from mppool.core.share import of_budget
from mppool.options import PoolOptions
from tests.core.desk import Desk, P, Q
from tests.core.model.house import BUDGET, House
from tests.core.model.parts import POOL
from tests.core.test_sharing import LOGIN_S


def take(desk: Desk, size: int | None, **more: object) -> None:
    share = Share(POOL, size, **more)  # type: ignore[arg-type]
    desk.note(desk.books.take_shares([share], share, desk.clock()))


def test_before_the_first_share_nothing_is_opened_and_the_refusal_says_why() -> None:
    desk = Desk(max_size=4)
    take(desk, 0, why="Redis has not answered yet")
    desk.attach(P)
    assert "share of this machine is 0 at present (Redis has not" in desk.ask(P, timeout=0).text
    ticket = desk.queue(P)
    take(desk, 2)
    assert [grant.ticket for grant in desk.hears(P, Grant)] == [ticket]


def test_a_share_bounds_a_pool_below_its_cap_and_never_above_it() -> None:
    desk = Desk(P, max_size=2)
    take(desk, 1)
    desk.opened(P)
    assert isinstance(desk.ask(P), Queued)
    take(desk, 5)
    assert len(desk.hears(P, Grant)) == 1
    assert isinstance(desk.ask(P), Queued)
    shot = desk.books.snapshot()["pools"][POOL]
    assert (shot["max_size"], shot["share"]) == (2, 2)


def test_when_a_share_falls_idle_resources_are_asked_for_at_once_and_closed() -> None:
    desk = Desk(P, max_size=4)
    take(desk, 4)
    mine = [desk.opened(P) for _ in range(3)]
    take(desk, 1)
    assert desk.hears(P, Reclaim)[-1].sweep == 2
    assert isinstance(desk.brings_back(P, mine[0]), Close)
    assert isinstance(desk.brings_back(P, mine[1]), Close)
    desk.say(P, Closed(mine[0], "retired"))
    desk.say(P, Closed(mine[1], "retired"))
    assert desk.books.demands()[POOL][:4] == (4, 1, 0, 1)
    assert not desk.hears(P, EndLeases)


def test_while_nothing_may_be_opened_what_is_open_stays() -> None:
    desk = Desk(P, Q, max_size=4)
    take(desk, 4)
    mine = desk.opened(P)
    desk.note(desk.books.take_shares([Share(POOL, 4, opens=False)], None, desk.clock()))
    ticket = desk.queue(P)
    assert not desk.hears(P, Reclaim)
    answer = desk.brings_back(P, mine)
    assert isinstance(answer, Grant)
    assert answer.ticket == ticket


def test_a_lost_share_ends_leases_also_of_what_is_opened_a_moment_later() -> None:
    desk = Desk(P, Q, max_size=4)
    take(desk, 4)
    desk.opened(P)
    late = desk.granted(Q)
    take(desk, 0, ends=True, why="Redis is lost")
    assert [(one.count, one.why) for one in desk.hears(P, EndLeases)] == [(1, "Redis is lost")]
    desk.hears(Q, EndLeases)
    desk.say(Q, Opened(late, LOGIN_S))
    assert [one.count for one in desk.hears(Q, EndLeases)] == [1]


def test_a_share_is_no_resize() -> None:
    desk = Desk(P, max_size=4)
    desk.journal.clear()
    take(desk, 1)
    assert not desk.journal
    assert desk.pool.control.record().max_size == 4


def test_other_machines_leave_so_much_of_a_budget_to_this_one() -> None:
    house = House(4, {name: PoolOptions(budget=BUDGET) for name in ("orders", "reports")})
    name = of_budget(BUDGET)
    house.books.take_shares([Share(name, 1)], None, house.now)
    for pool in ("orders", "reports"):
        house.want(house.living[0], pool)
    assert house.held() == 1
    demand = house.books.demands()[name]
    assert (demand.has, demand.waiting, demand.may_have) == (1, 1, 1)
    assert set(demand.pools) == {"orders", "reports"}
    house.books.take_shares([Share(name, 2)], None, house.now)
    assert house.books.demands()[name].may_have == 2
    assert house.books.demands()[name].has == 2


def test_what_was_said_of_a_pool_before_it_is_declared_counts_when_it_is() -> None:
    desk = Desk(max_size=4)
    nothing = Share("", 0)
    desk.books.take_shares([Share(POOL, 3)], nothing, desk.clock())
    desk.attach(P)
    assert desk.books.demands()[POOL].may_have == 3


def test_a_pool_of_which_nothing_was_said_has_what_new_ones_have() -> None:
    desk = Desk(max_size=4)
    desk.books.take_shares([], Share("", 1), desk.clock())
    desk.attach(P)
    desk.opened(P)
    assert isinstance(desk.ask(P), Queued)
    assert desk.books.snapshot()["pools"][POOL]["share"] == 1


def test_of_what_only_the_journal_tells_nobody_knows_the_cap() -> None:
    desk = Desk(P, max_size=4)
    number = desk.opened(P)
    (record,) = [one for one in desk.journal if isinstance(one, Record) and one.number == number]
    books = Books(2)
    slot = Remembered(POOL, record.key, number, P, record.generation)
    books.restore([desk.pool.control.record()], [slot], set(), desk.clock())
    assert books.demands()[POOL][:2] == (None, 1)
    assert not books.demands()[POOL].known
