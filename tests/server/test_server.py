"""The server as its clients see it: handshake, routing, bad guests, leaving."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from mppool import __version__
from mppool.core.decisions import Close, Draining, Grant, Keep, PoolChanged, Queued, Refuse
from mppool.core.events import (
    Abandoned,
    Attach,
    Checkout,
    Closed,
    Declaration,
    Declare,
    Drain,
    Opened,
    Resize,
    Returned,
)
from mppool.ids import GrantNumber, ProcessId, Session, Ticket, own_process
from mppool.options import PoolOptions
from mppool.rendezvous import launch
from mppool.rendezvous.paths import ManagerPaths
from mppool.server import acceptor, loop
from mppool.server import journal as journal_module
from mppool.server.connection import Connection
from mppool.server.journal import HEADER_BYTES
from mppool.server.loop import Server
from mppool.server.poller import Poller
from mppool.stats.report import PoolReport
from mppool.wire.framing import encode, process_side_reader
from mppool.wire.messages import (
    PROTOCOL,
    Done,
    Failed,
    Goodbye,
    Hello,
    Leave,
    Rejected,
    Report,
    Stats,
    WantReport,
    WantStats,
    Welcome,
)
from tests.helpers import Fork, wait_until
from tests.server.clients import Background, Client, Holder, Member


def reason(message: object) -> str:
    assert isinstance(message, Rejected), message
    return message.reason


# --- handshake ----------------------------------------------------------------------------------------


def test_welcome_says_who_serves(paths: ManagerPaths) -> None:
    with Background(paths):
        client = Client(paths)
        welcome = client.hello("control")
        assert isinstance(welcome, Welcome)
        assert welcome.protocol == PROTOCOL
        assert welcome.server == own_process()
        assert welcome.version == __version__
        client.close()


def test_the_version_is_that_of_the_package() -> None:
    assert (
        f'version = "{__version__}"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
    )


def test_each_errand_channel_gets_a_session_of_its_own(paths: ManagerPaths) -> None:
    with Background(paths), Member(paths) as one, Member(paths) as two:
        assert two.welcome.session > one.welcome.session
        assert one.errand.is_closed()  # the process has attached again
        assert reason(one.checkout()) == "session"
        assert isinstance(two.checkout(), Grant)


def test_bad_hellos_are_told_what_is_wrong(paths: ManagerPaths) -> None:
    own = own_process()
    stranger = ProcessId(own.pid + 1, own.birth)
    changeling = ProcessId(own.pid, own.birth + 1)
    with Background(paths):
        cases = [
            ("protocol", Client(paths).hello("control", protocol=PROTOCOL + 1)),
            ("protocol", Client(paths).hello("control", protocol=-(2**63))),
            ("manager", Client(paths).hello("control", manager="other")),
            ("namespace", Client(paths).hello("errand", process=stranger)),
            ("namespace", Client(paths).hello("errand", process=changeling)),
            ("session", Client(paths).hello("call", Session(12345))),
        ]
        for expected, message in cases:
            assert reason(message) == expected
        assert "1" in cases[0][1].text  # type: ignore[union-attr]


def test_a_rejected_connection_is_closed(paths: ManagerPaths) -> None:
    with Background(paths):
        client = Client(paths)
        client.hello("control", manager="other")
        assert client.is_closed()


def test_a_connection_inherited_over_a_fork_is_refused(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_S", 600.0)  # a busy machine may fork for seconds
    with Background(paths):
        client = Client(paths)
        answer = Fork(lambda: client.hello("errand", process=own_process())).result()
        assert reason(answer) == "namespace"
        assert "inherited over a fork" in answer.text
        client.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused(paths: ManagerPaths) -> None:
    def as_nobody() -> object:
        # The directories let it through: the server looks for itself.
        for directory in (paths.runtime_dir, paths.directory):
            directory.chmod(0o777)
        Path(server.address).chmod(0o777)
        paths.address.chmod(0o644)
        os.seteuid(65534)
        client = socket.socket(socket.AF_UNIX)
        client.connect(server.address)
        return process_side_reader().feed(client.recv(65536))[0]

    with Background(paths) as server:
        answer = Fork(as_nobody).result()
        for directory in (paths.runtime_dir, paths.directory):
            directory.chmod(0o700)
    assert reason(answer) == "user"
    assert "65534" in answer.text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "first",
    [Leave(), WantStats(), Checkout("pool", "key", Ticket(1), 1.0)],
    ids=lambda message: type(message).__name__,
)
def test_nobody_says_anything_before_hello(paths: ManagerPaths, first: object) -> None:
    with Background(paths):
        client = Client(paths)
        assert reason(client.call(first)) == "malformed"  # type: ignore[arg-type]
        assert client.is_closed()


def test_what_has_no_place_on_a_connection_ends_only_that_connection(paths: ManagerPaths) -> None:
    hello = Hello(PROTOCOL, "shop", own_process(), "control", Session(0), 0.1)
    attach = Attach("x", [], [])
    checkout = Checkout("pool", "key", Ticket(1), 1.0)
    bad = Declare(Declaration("a/b", PoolOptions(), 0.0))
    worse = Declare(Declaration("pool", PoolOptions(max_size=-5), 0.0))
    with Background(paths), Member(paths) as member:
        for message in (attach, checkout, hello, Report(0, [])):
            control = Client(paths)
            control.hello("control")
            assert reason(control.call(message)) == "malformed"
            assert control.is_closed()
        for message in (attach, hello, Report(0, []), bad, worse):
            call = Client(paths)
            call.hello("call", member.welcome.session)
            assert reason(call.call(message)) == "malformed"
            assert call.is_closed()
        assert isinstance(member.checkout(), Grant)


# --- routing ------------------------------------------------------------------------------------------


def test_a_checkout_is_answered_on_its_connection_and_errands_go_to_the_channel(
    paths: ManagerPaths,
) -> None:
    with Background(paths), Member(paths, max_size=1) as member:
        grant = member.checkout()
        assert isinstance(grant, Grant)
        assert grant.ticket == member.ticket
        member.errand.send(Opened(grant.number, 0.01))
        assert member.checkout() == Queued(member.ticket)
        member.errand.send(Returned(grant.number))
        again = member.errand.hear_a(Grant)
        assert (again.ticket, again.fresh, again.number) == (member.ticket, False, grant.number)
        member.errand.send(Closed(grant.number, "discarded"))
        assert isinstance(member.checkout(timeout=0), Grant)
        assert isinstance(member.checkout(timeout=0), Refuse)


def test_what_is_said_on_the_errand_channel_first_is_taken_in_before_a_call(
    paths: ManagerPaths,
) -> None:
    with Background(paths), Member(paths, max_size=1) as member:
        for _ in range(300):
            grant = member.checkout(timeout=0)
            assert isinstance(grant, Grant)
            member.errand.send(Closed(grant.number, "discarded"))


def test_a_waiter_is_refused_when_its_time_is_up(paths: ManagerPaths) -> None:
    with Background(paths), Member(paths, max_size=1) as member:
        assert isinstance(member.checkout(), Grant)
        begin = time.monotonic()
        assert isinstance(member.checkout(timeout=0.05), Queued)
        refused = member.errand.hear_a(Refuse)
        assert (refused.ticket, refused.reason) == (member.ticket, "timeout")
        assert time.monotonic() - begin > 0.04


def test_other_events_on_a_call_connection_are_done(paths: ManagerPaths) -> None:
    with Background(paths), Member(paths) as member:
        grant = member.checkout()
        assert isinstance(grant, Grant)
        for event in (
            Opened(grant.number, 0.1),
            Closed(grant.number, "discarded"),
            Abandoned(Ticket(1)),
        ):
            assert member.call.call(event) == Done()
        declare = Declare(Declaration("other", PoolOptions(), 0.0))
        assert member.call.call(declare) == Done()
        stats = member.call.call(WantStats())
        while not isinstance(stats, Stats):
            stats = member.call.hear()
        assert set(stats.stats["pools"]) == {"pool", "other"}


def test_commands_come_from_anybody_who_may_come_in(paths: ManagerPaths) -> None:
    with Background(paths), Member(paths, max_size=1) as member:
        assert isinstance(member.checkout(), Grant)
        control = Client(paths)
        control.hello("control")
        assert control.call(Resize("pool", 2, True, None)) == Done()
        assert isinstance(member.checkout(), Grant)
        draining = control.call(Drain("pool", None))
        assert isinstance(draining, Draining)
        assert (draining.generation, draining.left) == (1, 2)
        assert member.errand.hear_a(PoolChanged).generation == 0  # from attaching
        assert member.errand.hear_a(PoolChanged).generation == 1
        failed = control.call(Resize("unheard-of", 2, True, None))
        assert isinstance(failed, Failed)
        assert "unheard-of" in failed.text
        control.close()


def test_the_end_of_a_call_cancels_its_waiter_and_nothing_else(paths: ManagerPaths) -> None:
    with Background(paths), Member(paths, max_size=1) as member:
        grant = member.checkout()
        assert isinstance(grant, Grant)
        member.errand.send(Opened(grant.number, 0.01))
        assert isinstance(member.checkout(), Queued)
        member.call.close()
        wait_until(lambda: not _stats(paths)["pools"]["pool"]["waiting"], "the waiter's end")
        assert _stats(paths)["pools"]["pool"]["size"] == 1
        member.errand.send(Returned(grant.number))
        answer = member.errand.hear()
        while not isinstance(answer, (Grant, Keep, Close)):
            answer = member.errand.hear()
        assert not isinstance(answer, Grant)


def _stats(paths: ManagerPaths) -> dict:  # type: ignore[type-arg]
    client = Client(paths)
    client.hello("control")
    stats = client.call(WantStats())
    assert isinstance(stats, Stats)
    client.close()
    return stats.stats


def test_a_dead_holder_is_replaced_at_once(paths: ManagerPaths) -> None:
    """Not at one of the looks that the server takes every few seconds: the best of three is quicker."""
    took = []
    with Background(paths), Member(paths) as member:
        for _ in range(3):
            with Holder(paths, 2) as holder:
                assert isinstance(member.checkout(), Queued)
                begin = time.monotonic()
                os.kill(holder.pid, signal.SIGKILL)
                grant = member.errand.hear_a(Grant)
                took.append(time.monotonic() - begin)
                assert grant.ticket == member.ticket
                own = {f"{own_process().pid}-{own_process().birth}"}
                wait_until(lambda: _member_files(paths) == own, "the end of the dead one's file")  # noqa: B023
                member.errand.send(Closed(grant.number, "discarded"))
                assert member.call.call(Abandoned(Ticket(1))) == Done()  # that is done
    assert min(took) < 1.0, took


def test_the_death_of_a_holder_is_seen_though_a_grandchild_has_its_sockets(
    paths: ManagerPaths,
) -> None:
    reading, writing = os.pipe()

    def hold_and_fork() -> None:
        member = Member(paths)
        for _ in range(2):
            assert isinstance(member.checkout(), Grant)
        grandchild = os.fork()
        if grandchild == 0:
            signal.pause()  # holds copies of all sockets
        os.write(writing, str(grandchild).encode())
        signal.pause()

    with Background(paths), Member(paths) as member:
        child = Fork(hold_and_fork)
        grandchild = int(os.read(reading, 100))
        try:
            assert isinstance(member.checkout(), Queued)
            child.kill()
            assert member.errand.hear_a(Grant).ticket == member.ticket
        finally:
            os.kill(grandchild, signal.SIGKILL)
            os.close(reading)
            os.close(writing)


def test_hazard_7_the_end_of_an_errand_channel_is_not_the_death_of_its_process(
    paths: ManagerPaths,
) -> None:
    with Background(paths):
        one = Member(paths)
        numbers = []
        for _ in range(2):
            grant = one.checkout()
            assert isinstance(grant, Grant)
            numbers.append(grant.number)
        one.close()
        with Holder(paths, 0) as other:
            wait_until(lambda: len(_stats(paths)["processes"]) == 1, "the end of the channel")
            assert _stats(paths)["pools"]["pool"]["size"] == 2
            assert other.pid


# --- bad guests ---------------------------------------------------------------------------------------


def test_two_hundred_silent_connections_hold_up_nobody(paths: ManagerPaths) -> None:
    with Background(paths) as server:
        silent = [Client(paths) for _ in range(200)]
        with Member(paths, max_size=1000) as member:
            for _ in range(100):
                assert isinstance(member.checkout(), Grant)
            assert all(client.is_closed() for client in silent)
        wait_until(lambda: not server._connections, "the end of all connections")


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x00",
        b"\xff" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,
        b"\x00\x00\x00\x05\x94\xa5Hello",
    ],
)
def test_garbage_is_told_so_and_dropped(paths: ManagerPaths, garbage: bytes) -> None:
    with Background(paths), Member(paths) as member:
        client = Client(paths)
        client.socket.sendall(garbage)
        assert reason(client.hear()) == "malformed"
        assert client.is_closed()
        assert isinstance(member.checkout(), Grant)


def test_half_a_frame_waits_for_its_other_half(paths: ManagerPaths) -> None:
    frame = encode(Hello(PROTOCOL, "shop", own_process(), "control", Session(0), 0.1))
    with Background(paths), Member(paths) as member:
        client = Client(paths)
        for byte in frame:
            client.socket.sendall(bytes([byte]))
        assert isinstance(client.hear(), Welcome)
        client.socket.sendall(b"\x00\x00\x01\x00half")
        client.close()
        slow = Client(paths)
        slow.socket.sendall(frame[:-1])
        assert isinstance(member.checkout(), Grant)
        assert slow.is_closed()  # after the handshake's deadline


def test_a_stranger_cannot_make_the_server_buffer_much(paths: ManagerPaths) -> None:
    with Background(paths):
        client = Client(paths)
        client.socket.sendall((1 << 20).to_bytes(4, "big"))
        assert reason(client.hear()) == "malformed"


def test_a_peer_that_does_not_read_is_dropped(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mppool.server.connection.MAX_UNSENT_BYTES", 10_000)
    with Background(paths) as server, Member(paths) as member:
        deaf = Client(paths)
        deaf.hello("control")
        deaf.socket.settimeout(0.2)
        request = bytes(encode(WantStats()))
        wait_until(lambda: _cannot_send(deaf, request * 10), "the server to drop it")
        wait_until(lambda: len(server._connections) == 2, "the end of the deaf one")
        assert isinstance(member.checkout(), Grant)


def _cannot_send(client: Client, data: bytes) -> bool:
    try:
        client.socket.sendall(data)
    except TimeoutError:
        return False
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def test_running_out_of_descriptors_delays_but_does_not_end(paths: ManagerPaths) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Background(paths) as server:
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, before[1]))
        silent: list[socket.socket] = []
        try:
            # Each takes two, for both ends are ours; the last ones wait in the backlog.
            while True:
                try:
                    end = socket.socket(socket.AF_UNIX)
                except OSError:
                    break
                silent.append(end)
                end.connect(server.address)
            assert len(silent) > 15
            for end in silent[10:]:
                end.close()
            del silent[10:]
            assert isinstance(Client(paths).hello("control"), Welcome)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for end in silent:
                end.close()


def holds_nothing(paths: ManagerPaths) -> bool:
    """Whether the journal names no slot and no pool: behind its header there is nothing."""
    return not any(paths.journal.read_bytes()[HEADER_BYTES:])


def fail_epoll_once(monkeypatch: pytest.MonkeyPatch, what: str, kind: type | None) -> list[int]:
    """The next epoll_ctl of this sort fails, as where fs.epoll.max_user_watches is reached."""
    real = getattr(Poller, what)
    failed: list[int] = []

    def failing(self: Poller[Any], descriptor: int, *arguments: Any) -> None:
        fits = kind is None or isinstance(arguments[0], kind)
        if fits and not failed:
            failed.append(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, descriptor, *arguments)

    monkeypatch.setattr(Poller, what, failing)
    return failed


def test_a_connection_that_cannot_be_heard_is_refused_and_the_others_are_served(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_S", 0.1)
    Background(paths)
    failed = fail_epoll_once(monkeypatch, "register", Connection)
    refused = Client(paths)
    answer = refused.hear()
    assert isinstance(answer, Rejected)
    assert answer.reason == "capacity"
    assert "No space left" in answer.text
    assert refused.is_closed()
    assert failed
    with Member(paths) as member:
        assert isinstance(member.checkout(), Grant)


def test_a_process_that_cannot_be_watched_is_refused_and_the_others_are_served(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    Background(paths)
    errand = Client(paths)
    welcome = errand.hello("errand")
    assert isinstance(welcome, Welcome)
    fail_epoll_once(monkeypatch, "register", type(lambda: None))
    errand.send(Attach("test", [], []))
    assert isinstance(failed := errand.hear(), Failed)
    assert "cannot watch this process" in failed.text
    assert errand.is_closed()
    with Member(paths) as member:  # the same process, once there is room again
        assert isinstance(member.checkout(), Grant)


def test_a_connection_that_cannot_be_written_to_later_is_dropped_alone(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    Background(paths)
    deaf = Client(paths)
    assert isinstance(deaf.hello("control"), Welcome)
    failed = fail_epoll_once(monkeypatch, "modify", None)
    frame = encode(WantStats())
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while not failed:  # answers pile up, for nobody reads them
            deaf.socket.sendall(frame * 64)
    assert failed
    with Member(paths) as member:
        assert isinstance(member.checkout(), Grant)


def test_a_failure_of_ours_ends_one_connection(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Background(paths) as server, Member(paths) as member:

        def bug(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(server._service.collector, "wanted", bug)
            client = Client(paths)
            client.hello("control")
            client.send(WantStats())
            assert client.is_closed()
        assert "a bug" in caplog.text
        assert isinstance(member.checkout(), Grant)


def test_a_grant_that_cannot_be_written_down_is_refused(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Background(paths), Member(paths) as member:
        with monkeypatch.context() as patch:
            patch.setattr(journal_module.os, "pwrite", full)
            refused = member.checkout()
        assert isinstance(refused, Refuse)
        assert refused.reason == "journal"
        assert "No space left" in refused.text
        assert isinstance(member.checkout(), Grant)
        assert isinstance(member.checkout(), Grant)


# --- statistics ---------------------------------------------------------------------------------------


def test_statistics_wait_for_reports_but_not_for_long(paths: ManagerPaths) -> None:
    report = PoolReport("pool", 1, 2, 3, {"checkouts": 7}, {}, [])
    with Background(paths), Member(paths, label="web") as member:
        control = Client(paths)
        control.hello("control")
        control.send(WantStats())
        wanted = member.errand.hear_a(WantReport)
        member.errand.send(Report(wanted.request, [report]))
        stats = control.hear_a(Stats).stats
        pool = stats["pools"]["pool"]
        assert pool["counters"]["checkouts"] == 7
        assert pool["processes"][0]["in_use"] == 1
        assert pool["processes"][0]["label"] == "web"
        assert stats["processes"][0]["stale"] is False
        begin = time.monotonic()
        stats = control.call(WantStats()).stats  # type: ignore[union-attr]
        assert time.monotonic() - begin > 0.15
        assert stats["processes"][0]["stale"] is True
        assert stats["pools"]["pool"]["processes"][0]["in_use"] == 1
        control.close()


def test_the_figures_of_the_dead_stay_in_the_totals(paths: ManagerPaths) -> None:
    def work() -> None:
        member = Member(paths)
        report = PoolReport("pool", 0, 0, 0, {"checkouts": 5}, {"wait": [1] * 15}, [])
        member.errand.send(Report(0, [report]))
        assert member.call.call(Abandoned(Ticket(1))) == Done()

    with Background(paths):
        for _ in range(2):
            Fork(work).result()
        wait_until(lambda: not _stats(paths)["processes"], "both deaths")
        pool = _stats(paths)["pools"]["pool"]
        assert pool["counters"]["checkouts"] == 10
        assert pool["histograms"]["wait"]["counts"] == [2] * 15


# --- leaving ------------------------------------------------------------------------------------------


def test_it_leaves_when_nobody_has_needed_it_for_the_longest_linger(paths: ManagerPaths) -> None:
    background = Background(paths, linger=0.0)
    # A process that only looks, with whatever settings, does not make it stay.
    for role, linger in [("errand", 0.3), ("errand", 0.1), ("control", 30.0)]:
        client = Client(paths, linger=linger)
        client.hello(role)  # type: ignore[arg-type]
        client.close()
    begin = time.monotonic()
    background.join()
    assert 0.2 < time.monotonic() - begin < 30.0  # what the control connection said
    assert holds_nothing(paths)
    assert not paths.address.exists()


def test_whoever_started_it_has_time_to_connect_whatever_linger_says(paths: ManagerPaths) -> None:
    background = Background(paths, linger=0.0)
    client = Client(paths, linger=0.0)
    assert isinstance(client.hello("control"), Welcome)
    client.close()
    background.join()


def test_it_does_not_linger_out_while_a_living_process_holds_slots(paths: ManagerPaths) -> None:
    background = Background(paths, linger=0.0)
    reading, writing = os.pipe()

    def hold_without_connections() -> None:
        member = Member(paths, linger=0.0)
        assert isinstance(member.checkout(), Grant)
        member.close()
        os.write(writing, b"x")
        signal.pause()

    child = Fork(hold_without_connections)
    os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    wait_until(lambda: not background.server._connections, "the end of its connections")
    for _ in range(3):  # several lingers pass
        seen = background.server._idle_since
        wait_until(lambda seen=seen: background.server._idle_since != seen, "a look at who is left")
    assert not holds_nothing(paths)
    child.kill()
    background.join()
    assert holds_nothing(paths)


def test_an_orderly_leave_says_goodbye_and_leaves_nothing(paths: ManagerPaths) -> None:
    background = Background(paths)
    member = Member(paths)
    control = Client(paths)
    control.hello("control")
    assert control.call(Leave()) == Done()
    assert isinstance(member.errand.hear_a(Goodbye), Goodbye)
    background.join()
    assert member.errand.is_closed()
    left = {path.name for path in paths.directory.iterdir()}
    assert left == {"alive.lock", "members", "journal", "address.spare"}
    assert holds_nothing(paths)
    assert list(paths.members.iterdir()) == []
    member.close()


def test_what_is_closed_at_the_goodbye_is_still_written_down(paths: ManagerPaths) -> None:
    background = Background(paths)
    member = Member(paths)
    grant = member.checkout()
    assert isinstance(grant, Grant)
    background.server.leave()
    member.errand.hear_a(Goodbye)
    member.errand.send(Closed(grant.number, "drained"))
    background.join()
    assert holds_nothing(paths)
    member.close()


def test_calls_at_a_leaving_server_are_sent_to_the_next_one(paths: ManagerPaths) -> None:
    background = Background(paths)
    member = Member(paths)
    assert isinstance(member.checkout(), Grant)
    background.server.leave()
    member.errand.hear_a(Goodbye)
    assert reason(member.checkout()) == "leaving"
    background.join()
    member.close()


def test_the_journal_stays_while_a_living_process_holds_slots(paths: ManagerPaths) -> None:
    background = Background(paths)
    member = Member(paths)
    grant = member.checkout()
    assert isinstance(grant, Grant)
    background.server.leave()
    background.join()
    assert not holds_nothing(paths)
    assert _member_files(paths) == {f"{own_process().pid}-{own_process().birth}"}
    member.close()


def test_whoever_holds_nothing_need_not_be_heard_by_the_next_server(paths: ManagerPaths) -> None:
    background = Background(paths)
    member = Member(paths)
    assert isinstance(member.checkout(), Grant)
    reading, writing = os.pipe()

    def idle() -> None:
        attached = Member(paths, start=False)
        os.write(writing, b"x")
        attached.errand.hear_a(Goodbye)

    child = Fork(idle)
    assert os.read(reading, 1)
    assert len(_member_files(paths)) == 2
    background.server.leave()
    background.join()
    # With a torn journal, the idle one would keep everybody from opening until it attaches again.
    assert _member_files(paths) == {f"{own_process().pid}-{own_process().birth}"}
    child.result()
    os.close(reading)
    os.close(writing)
    member.close()


def _rm_rf(directory: Path) -> None:
    """Once more, where the server has put something back into what was just being emptied."""
    while True:
        try:
            return shutil.rmtree(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
            if not directory.exists():
                return None


def _member_files(paths: ManagerPaths) -> set[str]:
    return {path.name for path in paths.members.iterdir()}


def test_files_that_vanish_are_put_back(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_AROUND_S", 0.05)
    with Background(paths) as server, Member(paths) as member:
        assert isinstance(member.checkout(), Grant)
        vanishing = [
            paths.address, paths.alive_lock, paths.journal, Path(server.address),
            paths.members / f"{own_process().pid}-{own_process().birth}",
        ]  # fmt: skip
        for path in vanishing:
            path.unlink()
            wait_until(path.exists, f"{path.name} to come back")
            assert isinstance(Client(paths).hello("control"), Welcome)
            assert isinstance(member.checkout(timeout=0), (Grant, Refuse))
        for path in vanishing:
            path.unlink()
        wait_until(lambda: all(path.exists() for path in vanishing), "all of them to come back")
        assert isinstance(Client(paths).hello("control"), Welcome)


@pytest.mark.parametrize("how", ["rm -rf of all", "rm -rf of the manager", "mv", "one file"])
def test_what_is_removed_is_put_back_at_once(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(loop, "LOOK_AROUND_S", 600.0)
    with Background(paths) as server, Member(paths) as member:
        assert isinstance(member.checkout(), Grant)
        for _ in range(2):  # also what was put back is watched
            if how == "one file":
                paths.journal.unlink()
            elif how == "mv":
                paths.directory.rename(paths.runtime_dir / "aside")
                shutil.rmtree(paths.runtime_dir / "aside")
            else:
                _rm_rf(paths.runtime_dir if how == "rm -rf of all" else paths.directory)
            files = [paths.address, paths.alive_lock, paths.journal, Path(server.address)]
            wait_until(lambda files=files: all(map(Path.exists, files)), "all to come back")
        assert isinstance(Client(paths).hello("control"), Welcome)
        assert not holds_nothing(paths)


def test_a_directory_that_is_removed_under_its_server_gets_no_second_one(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It notices, and does not only look every few seconds. The start of another takes longer than that."""
    monkeypatch.setattr(loop, "LOOK_AROUND_S", 1000.0)
    with Background(paths), Member(paths, linger=5.0) as member:
        for _ in range(3):
            _rm_rf(paths.runtime_dir)
            wait_until(paths.address.exists, "the address to come back")
            other = Client(paths, start=True, linger=5.0)
            welcome = other.hello("control")
            assert isinstance(welcome, Welcome)
            assert welcome.server == member.welcome.server
            other.close()


def test_without_inotify_what_vanished_is_put_back_later(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_AROUND_S", 0.05)
    monkeypatch.setattr("mppool.server.removals.watch_removals", lambda: None)
    with Background(paths):
        _rm_rf(paths.runtime_dir)
        wait_until(paths.address.exists, "the address to come back")
        assert isinstance(Client(paths).hello("control"), Welcome)


def test_where_another_server_took_the_place_the_old_one_leaves(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_AROUND_S", 0.05)
    monkeypatch.setattr("mppool.rendezvous.claim.Rendezvous.look_after", lambda _self: True)
    old = Background(paths)
    member = Member(paths, start=False)
    aside = paths.directory.with_name("aside")
    paths.directory.rename(aside)  # somebody cleans up
    monkeypatch.undo()
    monkeypatch.setattr(loop, "LOOK_AROUND_S", 0.05)
    with Background(paths) as new:
        assert isinstance(member.errand.hear_a(Goodbye), Goodbye)
        old.join()
        welcome = Client(paths).hello("control")
        assert isinstance(welcome, Welcome)
        assert str(paths.socket(welcome.epoch)) == new.address
        assert paths.journal.exists()
    member.close()


def test_the_address_is_replaced_by_files_that_have_their_blocks(
    paths: ManagerPaths,
) -> None:
    def files() -> set[int]:
        return {path.stat().st_ino for path in paths.directory.glob("address*")}

    with Background(paths):
        pass
    kept = files()
    assert len(kept) == 1
    for _ in range(3):
        with Background(paths) as background:
            background._rendezvous.publish()
            assert kept <= files()
            assert launch.server_pid(paths) == os.getpid()
            used = files()
        kept = files()
        assert len(kept) == 1
        assert kept <= used


def test_a_spare_address_is_found_again_after_a_kill_in_between(paths: ManagerPaths) -> None:
    with Background(paths) as background:
        spare = paths.directory / "address.spare"
        spare.replace(paths.directory / "address.before")
        background._rendezvous.publish()
        assert launch.server_pid(paths) == os.getpid()
        assert spare.exists()
        assert not (paths.directory / "address.before").exists()


def test_numbers_and_sessions_are_never_given_twice(paths: ManagerPaths) -> None:
    seen: set[int] = set()
    sessions: set[int] = set()
    for _ in range(3):
        with Background(paths), Member(paths) as member:
            grant = member.checkout()
            assert isinstance(grant, Grant)
            assert grant.number not in seen
            assert member.welcome.session not in sessions
            seen.add(grant.number)
            sessions.add(member.welcome.session)
            member.errand.send(Closed(GrantNumber(grant.number), "discarded"))
            assert member.call.call(Abandoned(Ticket(1))) == Done()


def test_ctrl_c_ends_a_server_in_the_foreground(paths: ManagerPaths) -> None:
    def in_the_foreground() -> list[str]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        Server(paths, linger=60).serve_forever()
        return sorted(path.name for path in paths.directory.iterdir())

    child = Fork(in_the_foreground)
    client = Client(paths)
    assert isinstance(client.hello("control"), Welcome)
    os.kill(child.pid, signal.SIGINT)
    assert child.result() == ["address.spare", "alive.lock", "journal", "members"]
    assert client.is_closed()
