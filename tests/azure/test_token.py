"""Token structures and expiry: what is malformed never reaches a driver, and is never shown."""

from __future__ import annotations

import pickle
import struct
import time
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mppool.azure import StaticToken, TokenInfo, get_token_info, is_token_near_expiry, token_struct
from mppool.credentials.token_struct import MAX_TOKEN_BYTES
from mppool.errors import ConfigurationError

SECRET = "T0P-S3CRET"


def test_the_structure_is_a_byte_count_and_the_token_in_utf_16() -> None:
    assert token_struct("abc") == b"\x06\0\0\0a\0b\0c\0"


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_the_byte_count_is_always_right(text: str) -> None:
    if not text.strip():
        return
    made = token_struct(text)
    assert struct.unpack_from("<I", made)[0] == len(made) - 4
    assert made[4:].decode("utf-16-le") == text


@pytest.mark.parametrize(
    "token",
    [
        "",
        "  \n",
        f"{SECRET}\0",
        SECRET + "x" * MAX_TOKEN_BYTES,
        f"{SECRET}\ud800",
        SECRET.encode(),
        None,
        7,
        [SECRET],
    ],
    ids=["empty", "blank", "NUL", "giant", "surrogate", "bytes", "None", "int", "list"],
)
@pytest.mark.parametrize("make", [token_struct, StaticToken])
def test_what_is_no_token_is_refused_and_never_shown(make: Any, token: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(token)
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert SECRET not in shown.replace(f'"{SECRET}', "")
    assert caught.value.__context__ is None


def test_the_largest_token_is_64_kib_encoded() -> None:
    assert len(token_struct("x" * (MAX_TOKEN_BYTES // 2))) == MAX_TOKEN_BYTES + 4
    with pytest.raises(ConfigurationError, match="longer"):
        token_struct("x" * (MAX_TOKEN_BYTES // 2 + 1))


@pytest.mark.parametrize(
    ("expires_on", "near"),
    [(None, True), (1300.0, True), (1300.5, False), (999, True), (0, True), (float("nan"), True)],
)
def test_near_expiry(expires_on: float | None, near: bool) -> None:
    assert is_token_near_expiry(expires_on, now=1000.0) is near


def test_near_expiry_by_the_wall_clock_and_another_threshold() -> None:
    assert is_token_near_expiry(time.time() + 100)
    assert not is_token_near_expiry(time.time() + 100, threshold=50)


def test_a_token_info_hides_the_token_and_travels() -> None:
    info = TokenInfo(token_struct(SECRET), 5.0, "account")
    assert "S3CRET" not in repr(info)
    assert pickle.loads(pickle.dumps(info)) == info
    assert info != TokenInfo(token_struct("other"), 5.0, "account")


def test_a_brought_token_is_a_credential() -> None:
    token = StaticToken(SECRET, 12345.5)
    assert token.get_token("any").token == SECRET
    assert token.get_token_info("any").expires_on == 12345
    assert get_token_info(token, "any") == TokenInfo(token_struct(SECRET), 12345.5, None)
    assert SECRET not in repr(token)


def test_of_a_brought_token_the_expiry_may_be_unknown() -> None:
    token = StaticToken(SECRET)
    assert get_token_info(token, "any").expires_on is None
    assert token.get_token("any").expires_on > time.time()


@pytest.mark.parametrize("expires_on", ["soon", True, float("nan"), float("inf"), 10**400, b"1"])
def test_what_is_no_point_in_time_is_refused(expires_on: Any) -> None:
    with pytest.raises(ConfigurationError, match="expires_on"):
        StaticToken(SECRET, expires_on)
