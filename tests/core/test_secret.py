"""Secret: fetched once for all threads, again when it is old or refused, and shown to nobody."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import ConfigurationError, Secret
from mppool.recipe import Opening
from mppool.secret import log_in, newer_than
from tests.helpers import Fork, wait_until
from tests.secrecy import MARK


class Vault:
    """Gives texts that can be told apart, and counts."""

    def __init__(self) -> None:
        self.fetches = 0
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self) -> str:
        self.fetches += 1
        number = self.fetches
        self.hold.wait(20)
        return f"{MARK}-{number}"


def fixed() -> str:
    return f"{MARK}-fixed"


def test_it_is_fetched_when_it_is_first_called_and_not_before() -> None:
    vault = Vault()
    secret = Secret(vault)
    assert vault.fetches == 0
    assert [secret(), secret()] == [f"{MARK}-1"] * 2
    assert vault.fetches == 1


def test_after_its_time_it_is_fetched_again() -> None:
    vault = Vault()
    secret = Secret(vault, ttl=0.01)
    assert secret() == f"{MARK}-1"
    wait_until(lambda: secret() != f"{MARK}-1", "another text")
    lasting = Secret(Vault(), ttl=3600)
    assert lasting() == lasting()


def test_threads_that_want_it_at_the_same_time_share_one_fetch() -> None:
    vault = Vault()
    secret = Secret(vault)
    vault.hold.clear()
    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.append(secret())) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: vault.fetches, "the fetch")
    vault.hold.set()
    for thread in threads:
        thread.join(20)
    assert got == [f"{MARK}-1"] * 8
    assert vault.fetches == 1


def test_where_the_fetch_fails_the_next_thread_tries_itself() -> None:
    answers: list[Any] = [OSError("the vault is away"), "text"]

    def fetch() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    secret = Secret(fetch)
    with pytest.raises(OSError, match="away"):
        secret()
    assert secret() == "text"


def test_one_that_was_fetched_after_an_instant_is_new_enough() -> None:
    vault = Vault()
    secret = Secret(vault)
    secret()
    began = time.monotonic()
    with newer_than(began):
        assert secret() == f"{MARK}-2"
        assert secret() == f"{MARK}-2"
    with newer_than(began):  # another thread that was refused as well
        assert secret() == f"{MARK}-2"
    assert secret() == f"{MARK}-2"
    assert vault.fetches == 2


def test_a_fetch_that_asks_for_itself_is_told() -> None:
    secret: Secret = Secret(lambda: secret())
    with pytest.raises(ConfigurationError, match="the very secret that it fetches"):
        secret()


@pytest.mark.parametrize("answer", [None, 7, b"bytes", ""], ids=repr)
def test_what_is_not_a_text_is_refused(answer: Any) -> None:
    with pytest.raises(ConfigurationError, match="it must return a text"):
        Secret(lambda: answer)()


@pytest.mark.parametrize(
    "make",
    [lambda: Secret("text"), lambda: Secret(fixed, 0), lambda: Secret(fixed, True)],  # type: ignore[arg-type]
)
def test_arguments_are_checked(make: Callable[[], Secret]) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_it_is_neither_shown_nor_pickled() -> None:
    secret = Secret(fixed, ttl=60)
    secret()
    assert MARK not in repr(secret)
    pickled = pickle.dumps(secret)
    assert MARK.encode() not in pickled
    assert pickle.loads(pickled)() == f"{MARK}-fixed"
    with pytest.raises(ConfigurationError, match="lambda"):
        pickle.dumps(Secret(lambda: "text"))


def test_a_child_that_was_forked_during_a_fetch_fetches_itself() -> None:
    vault = Vault()
    secret = Secret(vault)
    vault.hold.clear()
    thread = threading.Thread(target=secret)
    thread.start()
    wait_until(lambda: vault.fetches, "the fetch")

    def in_child() -> bool:
        vault.hold = threading.Event()
        vault.hold.set()
        return secret() == f"{MARK}-2"

    child = Fork(in_child)
    assert child.result()
    vault.hold.set()
    thread.join(20)


class Answer:
    def __init__(self, digest: str) -> None:
        self.digest = digest


@pytest.mark.parametrize(
    ("digests", "refused", "attempts"),
    [
        (["a", "b"], 1, ["a", "b"]),  # it has changed
        (["a", "a"], 1, ["a"]),  # it has not
        (["a", "b"], 0, ["a"]),  # it was not refused
        (["a", "b"], 2, ["a", "b"]),  # the new one neither: once is enough
        (["", ""], 1, [""]),  # nothing was asked
    ],
)
def test_a_refused_login_is_tried_once_more_where_there_is_something_new(
    digests: list[str], refused: int, attempts: list[str]
) -> None:
    answers = [Answer(digest) for digest in digests]
    tried: list[str] = []

    def attempt(answer: Answer) -> str | Exception:
        tried.append(answer.digest)
        return PermissionError("no") if len(tried) <= refused else "open"

    opening = Opening(0, timeout=10.0)
    outcome = log_in(
        opening,
        lambda: answers.pop(0),
        attempt,
        lambda error: isinstance(error, PermissionError),
    )
    assert tried == attempts
    assert isinstance(outcome, Exception) == (refused >= len(attempts))
    assert opening.login == tried[-1]
    assert opening.timeout is not None
    assert 0 < opening.timeout <= 10.0
