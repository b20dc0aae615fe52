"""Old and new code at once: changed bounds, a changed connection string, two releases of mppool (rule 11)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.helpers import ROOT, wait_until
from tests.integrations.customer import Customer
from tests.integrations.witness import Witness

TIMED_OUT = "CheckoutTimeout"


class Start(Protocol):
    def __call__(self, *, path: str = ..., **settings: object) -> Customer: ...


@pytest.fixture
def witness(runtime_dir: Path) -> Iterator[Witness]:
    with Witness(runtime_dir / "db") as witness:
        yield witness


@pytest.fixture
def start(witness: Witness) -> Iterator[Start]:
    with ExitStack() as running:

        def start(*, path: str = "", **settings: object) -> Customer:
            environment = {key: str(value) for key, value in settings.items()}
            return running.enter_context(
                Customer({"WITNESS": str(witness.path), **environment}, path=path)
            )

        yield start


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
def test_the_newest_bounds_win_with_one_warning_that_names_both(
    before: int, after: int, start: Start, witness: Witness
) -> None:
    old = [start(APP_CAP=before), start(APP_CAP=before)]
    for customer in old:
        assert customer.do("take") == "main"
        assert customer.do("bounds")[0] == before
    new = [start(APP_CAP=after), start(APP_CAP=after)]
    for customer in (*new, *old):
        customer.do("take 0")
        assert customer.do("bounds")[0] == after
    if after > before:
        assert len(witness.sessions()) == after
    else:
        assert len(witness.sessions()) == 2  # what is out stays out; nothing new is opened
    for customer in old:
        customer.do("release")
    wait_until(lambda: len(witness.sessions()) <= after, "no more sessions than the new bound")
    said = "".join(customer.end() for customer in (*new, *old))
    warning = f"max_size={before} became {after}"
    assert said.count(warning) == 1
    assert "replaces an older one" in said
    assert witness.peak <= max(before, after)


def test_a_changed_connection_string_shares_the_cap_and_is_never_mixed(
    start: Start, witness: Witness
) -> None:
    old = start(APP_CAP=2, APP_DATABASE="old")
    assert old.do("take") == old.do("take") == "old"
    new = start(APP_CAP=2, APP_DATABASE="new")
    assert new.do("take 0.2").startswith(TIMED_OUT)
    old.do("release")
    # The idle session of the old string makes way; it is not handed to the new code.
    assert new.do("take") == "new"
    assert sorted(seen.database for seen in witness.sessions()) == ["new", "old"]
    new.do("release")
    assert old.do("take") == "old"
    assert old.do("ask") == 2
    assert witness.peak == 2


def release(directory: Path, protocol: int, spoken: str) -> str:
    """Another release of mppool: a copy that speaks other protocols. Where to find it."""
    shutil.copytree(
        ROOT / "mppool", directory / "mppool", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, old, new in [
        ("wire/messages.py", "\nPROTOCOL = 2\n", f"\nPROTOCOL = {protocol}\n"),
        (
            "server/handshake.py",
            "SPOKEN = frozenset({PROTOCOL - 1, PROTOCOL})",
            f"SPOKEN = frozenset({spoken})",
        ),
    ]:
        path = directory / "mppool" / name
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
    return str(directory)


def test_an_older_server_makes_way_for_a_newer_client_and_nothing_is_lost(
    start: Start, witness: Witness, tmp_path: Path
) -> None:
    newer = release(tmp_path, 3, "{2, 3}")
    old = start(APP_CAP=2)
    assert old.do("take") == "main"
    assert old.do("take") == "main"
    first, epoch = old.do("server"), old.do("epoch")
    new = start(path=newer, APP_CAP=2)
    # The old server's books go on: both sessions count, though their process has not attached yet.
    wait_until(
        lambda: new.do("take 3").startswith(TIMED_OUT),
        "the newer server to refuse, once it is ready",
    )
    second = new.do("server")
    assert second not in (None, first)
    assert new.do("epoch") > epoch
    assert old.do("ask") == 2
    old.do("release")
    assert new.do("take") == "main"
    # The newer server speaks the old protocol, too.
    assert old.do("take 0.2").startswith(TIMED_OUT)
    assert new.do("processes") == sorted([old.pid, new.pid])
    new.do("release")
    assert old.do("take") == "main"
    assert old.do("server") == new.do("server") == second
    assert witness.peak == 2
    assert new.end().count("asked to leave") == 1


def test_many_newer_clients_at_once_ask_once(
    start: Start, witness: Witness, tmp_path: Path
) -> None:
    newer = release(tmp_path, 3, "{2, 3}")
    old = start(APP_CAP=3)
    assert old.do("take") == "main"
    epoch = old.do("epoch")
    new = [start(path=newer, APP_CAP=3) for _ in range(3)]
    for customer in new:  # all at once
        assert customer.process.stdin is not None
        customer.process.stdin.write("take 15\n")
        customer.process.stdin.flush()
    assert old.do("ask") == 1
    answers = []
    for customer in new:
        assert customer.process.stdout is not None
        answers.append(customer.process.stdout.readline())
    assert answers.count('"main"\n') == 2, answers
    assert {customer.do("epoch") for customer in (*new, old)} == {epoch + 1}
    assert witness.peak == 3


def test_an_older_client_of_a_newer_server_is_told_and_keeps_what_it_has(
    start: Start, witness: Witness, tmp_path: Path
) -> None:
    far_newer = release(tmp_path, 4, "{3, 4}")
    old = start(APP_CAP=2)
    assert old.do("take") == "main"
    new = start(path=far_newer, APP_CAP=2)
    assert new.do("take") == "main"
    second = new.do("server")
    assert old.do("ask") == 1
    # It cannot ask for more, and does not send the newer server away.
    answer = old.do("take 1")
    assert answer.startswith("ProtocolError"), answer
    assert "two releases of mppool" in answer
    assert new.do("server") == second
    assert new.do("take 0.2").startswith(TIMED_OUT)  # the cap counts what the old one holds
    old.do("release")
    assert "Traceback" not in old.end()
    assert new.do("take") == "main"  # its death is seen, although it never attached
    assert witness.peak == 2


def test_newer_command_lines_speak_to_older_servers(
    start: Start, witness: Witness, tmp_path: Path
) -> None:
    newer = release(tmp_path, 3, "{2, 3}")
    old = start(APP_CAP=2)
    old.do("take")
    new = start(path=newer, APP_CAP=2)
    assert new.do("processes") == [old.pid]
    assert new.do("server") == old.do("server")
