"""What other processes are told of a failure: text without secrets, and for how long not to try again."""

from __future__ import annotations

import email.utils
import pickle
import time
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from azure.identity import AuthenticationRequiredError, CredentialUnavailableError

from mppool.credentials.errors import (
    DEFAULT_PAUSE_S,
    LONGEST_PAUSE_S,
    SHORTEST_PAUSE_S,
    OnlyHere,
    describe,
    pause_after,
    raise_for_others,
    redacted,
)
from mppool.tokens.cached_token import TokenUnavailable


class Response:
    """What azure-core keeps of an answer."""

    status_code = 429
    reason = "Too Many Requests"

    def __init__(self, **headers: str) -> None:
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def text(self, encoding: Any = None) -> str:
        return ""


def failed(**headers: str) -> HttpResponseError:
    error = ClientAuthenticationError(message="no")
    error.response = Response(**headers)  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({}, DEFAULT_PAUSE_S),
        ({"Retry_After": "17"}, 17),
        ({"retry_after": " 17 "}, 17),
        ({"Retry_After": "0"}, SHORTEST_PAUSE_S),
        ({"Retry_After": "999999"}, LONGEST_PAUSE_S),
        ({"Retry_After": "-5"}, DEFAULT_PAUSE_S),
        ({"Retry_After": "soon"}, DEFAULT_PAUSE_S),
        ({"Retry_After": "1e3"}, DEFAULT_PAUSE_S),
        ({"x_ms_retry_after_ms": "2500"}, 2.5),
        ({"Retry_After": email.utils.formatdate(0)}, SHORTEST_PAUSE_S),
    ],
)
def test_pauses(headers: dict[str, str], pause: float) -> None:
    assert pause_after(failed(**headers)) == pause


def test_a_date_is_a_pause() -> None:
    said = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 95 < pause_after(failed(Retry_After=said)) <= 100


def test_the_pause_may_be_in_the_cause() -> None:
    error = CredentialUnavailableError(message="no endpoint")
    error.__cause__ = failed(Retry_After="17")
    assert pause_after(error) == 17
    error.__cause__ = error
    assert pause_after(error) == DEFAULT_PAUSE_S


def test_what_could_be_a_secret_is_hidden() -> None:
    token = "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJodHRwczovL2RhdGFiYXNlIn0.c2lnbmF0dXJl"
    secret = "abC8Q~0123456789abcdefghijklmnopqrstuvwx"
    guid = "11111111-2222-3333-4444-555555555555"
    text = redacted(f"<html><b>Bad</b> {token} and {secret}, trace {guid}. https://aka.ms/help")
    assert text == f"Bad <hidden> and <hidden>, trace {guid}. https://aka.ms/help"
    assert len(redacted("word " * 100000)) < 1000


def test_texts_name_the_class() -> None:
    assert describe(KeyError("x")) == ("KeyError: 'x'", DEFAULT_PAUSE_S, False)
    assert describe(OnlyHere("mine"))[1] == 0.0
    assert describe(AuthenticationRequiredError(("s",)))[1] == 0.0
    assert describe(TokenUnavailable("before", 7.0)) == ("before", 7.0, False)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CredentialUnavailableError: none", CredentialUnavailableError),
        ("ServiceRequestError: none", ClientAuthenticationError),
    ],
)
def test_others_get_what_azures_clients_understand(text: str, kind: type[Exception]) -> None:
    with pytest.raises(
        ClientAuthenticationError, match=r"no token could be fetched: .*: none"
    ) as caught:
        raise_for_others(TokenUnavailable(text, 3.0))
    assert type(caught.value) is kind
    assert "not to be tried again for 3 s" in str(caught.value)


def test_it_travels() -> None:
    error = pickle.loads(pickle.dumps(TokenUnavailable("no", 3.0)))
    assert (str(error), error.retry_in) == ("no", 3.0)
