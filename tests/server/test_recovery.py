"""The next server: exact books from journal, inventories and member files."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

import pytest

from mppool.core.decisions import Close, Erase, Grant, PoolChanged, Queued, Record, Refuse
from mppool.core.events import Closed, Held, Opened, Reset, Resize
from mppool.ids import GrantNumber, own_process
from mppool.rendezvous import launch
from mppool.rendezvous.paths import ManagerPaths
from mppool.server.journal import HEADER_BYTES, Journal
from mppool.server.journal_writer import JournalWriter
from mppool.wire.messages import Done, Stats, WantStats
from tests.helpers import wait_until
from tests.server.clients import Background, Client, Holder, Member, kill_server


def pool(paths: ManagerPaths) -> dict[str, Any]:
    control = Client(paths)
    control.hello("control")
    stats = control.call(WantStats())
    assert isinstance(stats, Stats)
    control.close()
    return stats.stats["pools"]["pool"]  # type: ignore[no-any-return]


def held(grant: object) -> Held:
    assert isinstance(grant, Grant)
    return Held("pool", grant.key, grant.number, "open", grant.generation, grant.opened_before)


def test_what_a_living_holder_has_counts_before_it_has_attached_again(paths: ManagerPaths) -> None:
    with Holder(paths, 2) as holder:
        kill_server(paths)
        with Member(paths) as member:
            assert isinstance(member.checkout(timeout=0), Refuse)
            assert isinstance(member.checkout(), Queued)
            holder.kill()
            assert member.errand.hear_a(Grant).ticket == member.ticket


def test_what_the_dead_held_is_free(paths: ManagerPaths) -> None:
    member = Member(paths)
    member.close()
    with Holder(paths, 2) as holder:
        kill_server(paths)
        holder.kill()
        with Member(paths) as member:
            for _ in range(2):
                assert isinstance(member.checkout(timeout=0), Grant)
            assert isinstance(member.checkout(timeout=0), Refuse)


def test_an_inventory_overrules_the_journal(paths: ManagerPaths) -> None:
    before = Member(paths)
    kept, closed = before.checkout(), before.checkout()
    assert isinstance(closed, Grant)
    pid = kill_server(paths)
    before.close()
    with Member(paths, held=[held(kept)]) as member:
        assert member.welcome.server.pid != pid
        assert isinstance(member.checkout(timeout=0), Grant)
        assert isinstance(member.checkout(timeout=0), Refuse)
        # What was said under the old epoch about a number that is no longer in the books is void.
        member.errand.send(Closed(closed.number, "discarded"))
        assert isinstance(member.checkout(timeout=0), Refuse)


def test_resize_and_reset_are_continued(paths: ManagerPaths) -> None:
    with Member(paths) as member:
        assert member.call.call(Resize("pool", 3, True, None)) == Done()
        assert member.call.call(Reset("pool")) == Done()
        assert isinstance(member.checkout(), Grant)
        kill_server(paths)
    with Member(paths) as member:
        assert member.errand.hear_a(PoolChanged).generation == 1
        assert pool(paths)["max_size"] == 3


def test_it_continues_over_many_kills(paths: ManagerPaths) -> None:
    with Holder(paths, 1) as holder:
        for _ in range(5):
            kill_server(paths)
            with Member(paths) as member:
                grant = member.checkout(timeout=0)
                assert isinstance(grant, Grant)
                assert isinstance(member.checkout(timeout=0), Refuse)
                member.errand.send(Closed(grant.number, "discarded"))
                wait_until(lambda: pool(paths)["size"] == 1, "the slot to be free")
        assert holder.pid


def test_an_orderly_leave_keeps_what_living_processes_hold(paths: ManagerPaths) -> None:
    with Holder(paths, 2):
        pid = launch.server_pid(paths)
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: launch.server_pid(paths) is None, "the end of the server")
        assert paths.journal.exists()
        with Member(paths) as member:
            assert isinstance(member.checkout(timeout=0), Refuse)


DAMAGE = {
    "garbage": lambda content: os.urandom(len(content)),
    "empty": lambda _content: b"",
    "cut off": lambda content: content[: HEADER_BYTES + 700],
    "header": lambda content: b"x" * 20 + content[20:],
    "record": lambda content: content[: HEADER_BYTES + 30] + b"xx" + content[HEADER_BYTES + 32 :],
}


@pytest.mark.parametrize("damage", [*DAMAGE, "missing"])
def test_after_damage_nothing_opens_until_every_living_member_is_heard(
    paths: ManagerPaths, damage: str
) -> None:
    with Holder(paths, 2) as holder:
        kill_server(paths)
        if damage == "missing":
            paths.journal.unlink()
        else:
            paths.journal.write_bytes(DAMAGE[damage](paths.journal.read_bytes()))
        with Member(paths) as member:
            assert isinstance(member.checkout(timeout=0), Refuse)
            assert isinstance(member.checkout(), Queued)
            # Also the server after the next one waits for those who were not heard yet.
            kill_server(paths)
        with Member(paths) as member:
            assert isinstance(member.checkout(timeout=0), Refuse)
            assert isinstance(member.checkout(), Queued)
            holder.kill()
            assert member.errand.hear_a(Grant).ticket == member.ticket
            wait_until(lambda: not is_torn(paths), "the journal to be whole again")


def test_after_damage_an_orderly_leave_forgets_nobody_who_was_not_heard(
    paths: ManagerPaths,
) -> None:
    # Found by tests/simulation: the next server knew nothing of who was silent, and granted what that had open.
    with Holder(paths, 2):
        kill_server(paths)
        paths.journal.write_bytes(DAMAGE["empty"](b""))
        with Member(paths) as member:
            assert isinstance(member.checkout(timeout=0), Refuse)
            pid = launch.server_pid(paths)
            assert pid is not None
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: launch.server_pid(paths) is None, "the end of the server")
        with Member(paths) as member:
            assert isinstance(member.checkout(timeout=0), Refuse)


def is_torn(paths: ManagerPaths) -> bool:
    """Whether a server that came now would find the journal torn; looks at a copy."""
    copy = paths.journal.with_name("copy")
    copy.write_bytes(paths.journal.read_bytes())
    journal = Journal(copy)
    journal.close()
    copy.unlink()
    return journal.torn


def test_after_damage_inventories_decide(paths: ManagerPaths) -> None:
    before = Member(paths)
    one = before.checkout()
    assert isinstance(before.checkout(), Grant)  # given up while no server is there
    kill_server(paths)
    before.close()
    paths.journal.write_bytes(os.urandom(2000))
    with Member(paths, held=[held(one)]) as member:
        assert isinstance(member.checkout(timeout=0), Grant)
        assert isinstance(member.checkout(timeout=0), Refuse)


def test_a_stopped_holder_is_not_dead(paths: ManagerPaths) -> None:
    with Holder(paths, 2) as holder:
        os.kill(holder.pid, signal.SIGSTOP)
        kill_server(paths)
        paths.journal.write_bytes(b"")
        with Member(paths) as member:
            assert isinstance(member.checkout(timeout=0.1), Queued)
            assert member.errand.hear_a(Refuse).reason == "timeout"


def test_a_journal_of_another_boot_is_void_and_members_too(paths: ManagerPaths) -> None:
    with Holder(paths, 2):
        kill_server(paths)
        paths.journal.unlink()
        journal = Journal(paths.journal, boot="another")
        journal.close()
        for path in paths.members.iterdir():
            path.write_text("another boot")
        with Member(paths) as member:
            assert isinstance(member.checkout(timeout=0), Grant)


def test_a_resource_in_nobodys_books_is_counted_or_closed(paths: ManagerPaths) -> None:
    with Member(paths, max_size=1) as member:
        grant = member.checkout()
        assert isinstance(grant, Grant)
        member.errand.send(Opened(grant.number, 0.1))
    own = own_process()
    assert own.pid == os.getpid()
    with Member(paths, max_size=1, held=[held(grant)]) as member:
        assert pool(paths)["size"] == 1
        assert isinstance(member.checkout(timeout=0), Refuse | Close)


def test_a_server_leaves_in_order_also_where_its_journal_cannot_be_cleared(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Found by tests/simulation: it ended with a traceback instead, and its descriptors stayed open.
    def fail(_self: Journal) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Background(paths), Member(paths):
        monkeypatch.setattr(Journal, "clear", fail)
        monkeypatch.setattr(Journal, "remove", fail)
    assert "what is on file stays for the next server" in caplog.text
    with Member(paths) as member:
        assert isinstance(member.checkout(timeout=0), Grant)


def _disk_fails(_self: Journal, _place: int, _block: bytes) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_server_that_leaves_in_order_takes_along_what_it_could_not_erase(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by tests/simulation: its process held nothing, did not attach again, and its slot was lost."""
    with Background(paths), Member(paths, max_size=1) as member:
        grant = member.checkout()
        assert isinstance(grant, Grant)
        member.errand.send(Opened(grant.number, 0.1))
        monkeypatch.setattr(Journal, "_write_at", _disk_fails)
        member.errand.send(Closed(grant.number, "retired"))
        wait_until(lambda: pool(paths)["size"] == 0, "the word of the close")
    monkeypatch.undo()
    left = Journal(paths.journal)
    assert left.slots == []
    left.close()


def test_what_could_not_be_erased_is_erased_later(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.prepare()
    journal = Journal(paths.journal)
    writer = JournalWriter(journal)
    record = Record("p", "key", GrantNumber(1), own_process(), 0)
    assert writer.write_down(record) is None
    monkeypatch.setattr(Journal, "_write_at", _disk_fails)
    writer.write_down(Erase(record.number))
    monkeypatch.undo()
    writer.pay()
    journal.close()
    again = Journal(paths.journal)
    assert again.slots == []
    again.close()
