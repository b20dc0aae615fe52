"""A process has a label in statistics, leases and the message of a timeout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mppool import CheckoutTimeout, ConfigurationError, PoolManager
from mppool.cli.looking import held_in
from mppool.worker import member
from tests.helpers import Fork


@pytest.fixture(autouse=True)
def nameless() -> Iterator[None]:
    """The label is that of the process, which runs other tests, too."""
    yield
    member.name_process("")


def test_a_label_is_shown_wherever_holders_are(runtime_dir: Path) -> None:
    manager = PoolManager("shop", label="web 1")
    orders = manager.pool("orders", object, max_size=1)
    with orders.checkout():
        stats = manager.stats()
        (process,) = stats["processes"]
        assert (process["pid"], process["label"]) == (os.getpid(), "web 1")
        (lease,) = held_in(stats)
        assert lease["process"] == "web 1"

        def told() -> str:
            with pytest.raises(CheckoutTimeout) as error:
                PoolManager("shop", label="batch").pool("orders", object, max_size=1).checkout(
                    timeout=0
                )
            return str(error.value)

        said = Fork(told).result()
    assert f"web 1 (pid {os.getpid()}) has 1" in said


@pytest.mark.parametrize("label", ["", 7, "a" * 101, "a\x1b[2J"])
def test_what_is_no_label_is_refused(runtime_dir: Path, label: object) -> None:
    with pytest.raises(ConfigurationError, match="label="):
        PoolManager("shop", label=label)  # type: ignore[arg-type]
