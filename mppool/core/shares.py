"""How many of a number of slots each of several claimants gets: max-min by what they want. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    """What one claimant has and wants.

    has: what it holds and keeps unless it must give. wants: that, and what it would take beside it.
    floor: so much is its own before anything is shared, as far as it wants it.
    """

    has: int
    wants: int
    floor: int = 0


def max_min(total: int, claims: Sequence[Claim]) -> list[int]:
    """The share of each claim. Nobody gets more than it wants, and a claim that gets less than it wants gets no less than any other.

    What is left where all have as much, and there is not enough for one more each, goes to those who hold it already:
    it does not wander. Floors that are more than there is count for nothing.
    """
    floors = [min(claim.floor, claim.wants) for claim in claims]
    if sum(floors) > total:
        floors = [0] * len(claims)
    level = _level(total, claims, floors)
    shares = _at_level(level, claims, floors)
    left = total - sum(shares)
    hungry = [place for place, claim in enumerate(claims) if shares[place] == level < claim.wants]
    hungry.sort(key=lambda place: (claims[place].has <= level, claims[place].has))
    for place in hungry[: max(0, left)]:
        shares[place] += 1
    return shares


def _level(total: int, claims: Sequence[Claim], floors: Sequence[int]) -> int:
    """The highest level to which all can be raised, as far as they want."""
    low, high = 0, max((claim.wants for claim in claims), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(_at_level(middle, claims, floors)) <= total:
            low = middle
        else:
            high = middle - 1
    return low


def _at_level(level: int, claims: Sequence[Claim], floors: Sequence[int]) -> list[int]:
    return [
        max(floor, min(claim.wants, level)) for claim, floor in zip(claims, floors, strict=True)
    ]
