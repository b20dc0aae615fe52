"""In which order a forked child renews its parts."""

from __future__ import annotations

import gc

from mppool.process import fork
from mppool.process.fork import Turn, call_around_forks, call_in_children, renew_in_children
from tests.helpers import Fork


class Part:
    """Notes when it is renewed."""

    def __init__(self, name: str, noted: list[str]) -> None:
        self._name = name
        self._noted = noted

    def after_fork_in_child(self) -> None:
        self._noted.append(self._name)


def test_parts_are_renewed_from_below_and_in_the_order_of_their_registration() -> None:
    noted: list[str] = []
    users = [Part(f"user {number}", noted) for number in range(20)]
    members = [Part(f"member {number}", noted) for number in range(20)]
    for user, member in zip(users, members, strict=True):
        renew_in_children(user)
        renew_in_children(member, Turn.MEMBER)
    call_in_children(lambda: noted.append("module"))
    expected = ["module", *(f"member {n}" for n in range(20)), *(f"user {n}" for n in range(20))]
    assert Fork(lambda: noted).result() == expected
    assert noted == []


def test_a_part_that_is_gone_is_not_renewed_and_leaves_nothing_behind() -> None:
    noted: list[str] = []
    before = len(fork._forkables)
    part = Part("gone", noted)
    renew_in_children(part)
    assert len(fork._forkables) == before + 1
    del part
    gc.collect()
    assert len(fork._forkables) <= before
    assert Fork(lambda: noted).result() == []


def test_what_is_called_around_a_fork_is_called_in_the_parent_once() -> None:
    noted: list[str] = []
    call_around_forks(lambda: noted.append("before"), lambda: noted.append("after"))
    assert Fork(lambda: noted).result() == ["before"]
    assert noted == ["before", "after"]
