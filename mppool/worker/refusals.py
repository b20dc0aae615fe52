"""Checkouts that are refused at once, again and again: what they are told, and how many they were."""

from __future__ import annotations

import math
from collections import deque


class Refusals:
    """Of one pool in one process. Any thread uses it, and none waits for another.

    said: until when this is fresh, what the books have said, and the text that says it here.
    uncounted: one for each that was refused and is not counted yet. C appends it, so it takes no lock.
    """

    __slots__ = ("said", "uncounted")

    def __init__(self) -> None:
        self.said = (-math.inf, "", "")
        self.uncounted: deque[None] = deque()

    def take(self) -> int:
        """How many they were since the last time."""
        taken = 0
        try:
            while True:
                self.uncounted.pop()
                taken += 1
        except IndexError:
            return taken
