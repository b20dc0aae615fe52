"""What goes out on the errand channel."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from mppool.link.channel import Outgoing


@pytest.mark.parametrize("is_ours", [True, False])
def test_in_a_child_nothing_is_sent_and_no_thread_is_started(is_ours: bool) -> None:
    revived: list[bool] = []
    inventory: Any = SimpleNamespace(mark=[is_ours], outbox=deque(["event"]), session=None)
    thread: Any = SimpleNamespace(has_ended=True, revive=lambda: revived.append(True))
    Outgoing(inventory, thread).flush()
    assert bool(revived) is is_ours
    assert list(inventory.outbox) == ["event"]
