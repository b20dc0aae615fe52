"""The shared credential in one process: refreshing, failing, signing in, bad use, and what must never be seen."""

from __future__ import annotations

import gc
import json
import logging
import pickle
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from azure.core.credentials import AccessToken, AccessTokenInfo, SupportsTokenInfo, TokenCredential
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import (
    AuthenticationRequiredError,
    ClientSecretCredential,
    CredentialUnavailableError,
    DeviceCodeCredential,
    ManagedIdentityCredential,
)

from mppool import InProcessManager, PoolManager
from mppool.azure import SharedCredential, StaticToken, get_token_info, identity_of
from mppool.errors import ConfigurationError, PoolClosed
from tests.azure.crowd import SCOPE
from tests.azure.endpoints import (
    ACCOUNT_UID,
    CLIENT,
    MARK,
    SECRET,
    TENANT,
    Answer,
    Asked,
    Endpoint,
)
from tests.helpers import wait_until

HOUR = 3600


class Issuer:
    """A credential that counts, and does what it is told."""

    def __init__(self, life: float = HOUR, refresh_in: float | None = None) -> None:
        self.life = life
        self.refresh_in = refresh_in
        self.asked: list[dict[str, Any]] = []
        self.closed = 0
        self.before: Callable[[int], None] = lambda number: None

    def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
        self.asked.append({"scopes": scopes, **(options or {})})
        number = len(self.asked)
        self.before(number)
        now = time.time()
        refresh_on = None if self.refresh_in is None else int(now + self.refresh_in)
        return AccessTokenInfo(f"{MARK}-{number}", int(now + self.life), refresh_on=refresh_on)

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        info = self.get_token_info(*scopes, options=options)
        return AccessToken(info.token, info.expires_on)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def local() -> Iterator[InProcessManager]:
    with InProcessManager() as manager:
        yield manager


def together(work: Callable[[], Any], threads: int = 8) -> list[Any]:
    results: list[Any] = []
    barrier = threading.Barrier(threads)

    def one() -> None:
        barrier.wait()
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    running = [threading.Thread(target=one) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return results


# --- what it is -------------------------------------------------------------------------------------------


def test_it_is_what_azure_clients_want(local: InProcessManager) -> None:
    shared = local.credential(Issuer())
    assert isinstance(shared, TokenCredential)
    assert isinstance(shared, SupportsTokenInfo)
    token = shared.get_token(SCOPE)
    assert isinstance(token, AccessToken)
    info = shared.get_token_info(SCOPE)
    assert isinstance(info, AccessTokenInfo)
    assert (info.token, info.expires_on) == tuple(token)
    assert info.token_type == "Bearer"


def test_azure_cores_own_policy_works_with_it(local: InProcessManager) -> None:
    from azure.core.pipeline import Pipeline
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy
    from azure.core.pipeline.transport import HttpTransport
    from azure.core.rest import HttpRequest

    seen: list[str] = []

    class Transport(HttpTransport):  # type: ignore[type-arg]
        def send(self, request: Any, **options: Any) -> Any:
            seen.append(request.headers["Authorization"])
            return type("Response", (), {"status_code": 200, "headers": {}})()

        def open(self) -> None: ...
        def close(self) -> None: ...
        def __exit__(self, *exception: object) -> None: ...

    issuer = Issuer()
    policy = BearerTokenCredentialPolicy(local.credential(issuer), SCOPE)
    pipeline: Any = Pipeline(Transport(), [policy])
    for _ in range(5):
        pipeline.run(HttpRequest("GET", "https://127.0.0.1/"))
    assert seen == [f"Bearer {MARK}-1"] * 5
    assert len(issuer.asked) == 1


@pytest.mark.parametrize("identity", [None, "me"])
def test_threads_make_one_fetch(local: InProcessManager, identity: str | None) -> None:
    issuer = Issuer()
    issuer.before = lambda number: time.sleep(0.1)
    shared = local.credential(issuer, identity=identity)
    tokens = together(lambda: shared.get_token(SCOPE).token, 16)
    assert set(tokens) == {f"{MARK}-1"}


def test_scopes_tenants_and_cae_are_kept_apart(local: InProcessManager) -> None:
    issuer = Issuer()
    shared = local.credential(issuer, identity="me")
    requests: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        ((SCOPE,), {}),
        ((SCOPE, "more"), {}),
        ((SCOPE,), {"tenant_id": TENANT}),
        ((SCOPE,), {"enable_cae": True}),
    ]
    tokens = [shared.get_token(*scopes, **options).token for scopes, options in requests]
    assert len(set(tokens)) == 4
    assert tokens == [shared.get_token(*scopes, **options).token for scopes, options in requests]
    assert [shared.get_token_info(*s, options=o).token for s, o in requests] == tokens
    assert issuer.asked == [{"scopes": scopes, **options} for scopes, options in requests]


def test_identities_are_kept_apart_and_one_identity_is_shared(local: InProcessManager) -> None:
    alice, bob, unknown = Issuer(), Issuer(), Issuer()
    assert local.credential(alice, identity="alice").get_token(SCOPE)
    assert local.credential(bob, identity="bob").get_token(SCOPE)
    assert local.credential(unknown).get_token(SCOPE)
    assert [len(one.asked) for one in (alice, bob, unknown)] == [1, 1, 1]
    again = Issuer()
    assert local.credential(again, identity="alice").get_token(SCOPE).token == f"{MARK}-1"
    assert again.asked == []


def test_wrapping_twice_is_wrapping_once(local: InProcessManager) -> None:
    issuer = Issuer()
    inner = local.credential(issuer, identity="me")
    outer = local.credential(inner)
    assert outer.get_token(SCOPE) == inner.get_token(SCOPE)
    assert identity_of(outer) == "me"
    assert outer.unshared is issuer
    assert len(issuer.asked) == 1


def test_options_that_nobody_knows_go_to_the_credential_itself(local: InProcessManager) -> None:
    issuer = Issuer()
    shared = local.credential(issuer)
    first = shared.get_token_info(SCOPE, options={"pop": {"nonce": "n"}})  # type: ignore[typeddict-unknown-key]
    second = shared.get_token(SCOPE, pop={"nonce": "n"})
    assert first.token != second.token
    assert shared.get_token(SCOPE).token not in (first.token, second.token)


def test_a_brought_token_is_handed_through(local: InProcessManager) -> None:
    shared = local.credential(StaticToken("brought", 17.0))
    assert shared.get_token(SCOPE) == AccessToken("brought", 17)
    assert shared.get_token_info(SCOPE).token == "brought"


def test_a_credential_with_get_token_alone(local: InProcessManager) -> None:
    class Old:
        def get_token(self, *scopes: str) -> AccessToken:
            return AccessToken("old", int(time.time()) + HOUR)

    assert local.credential(Old()).get_token(SCOPE).token == "old"
    assert get_token_info(Old(), SCOPE).expires_on is not None


def test_what_dies_leaves_nothing(local: InProcessManager) -> None:
    issuer = Issuer()
    shared = local.credential(issuer)
    shared.get_token(SCOPE)
    gone = weakref.ref(issuer)
    del issuer, shared
    gc.collect()
    assert gone() is None


# --- refreshing -------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes half a minute takes half a second."""
    monkeypatch.setattr("mppool.core.tokens.REFRESH_AGAIN_S", 0.3)
    monkeypatch.setattr("mppool.core.token_entry.REFRESH_AGAIN_S", 0.3)
    monkeypatch.setattr("mppool.tokens.cache.ASK_AGAIN_S", 0.05)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("identity", [None, "me"])
def test_a_token_is_refreshed_ahead_while_the_old_one_goes_on(
    local: InProcessManager, identity: str | None
) -> None:
    issuer = Issuer(refresh_in=1)
    shared = local.credential(issuer, identity=identity)
    slow = threading.Event()
    issuer.before = lambda number: None if number == 1 else slow.wait(30) and None
    assert shared.get_token(SCOPE).token == f"{MARK}-1"
    wait_until(lambda: shared.get_token(SCOPE) and len(issuer.asked) == 2, "the refresh begins")
    assert set(together(lambda: shared.get_token(SCOPE).token)) == {f"{MARK}-1"}
    slow.set()
    wait_until(lambda: shared.get_token(SCOPE).token == f"{MARK}-2", "the new token")
    assert len(issuer.asked) == 2


@pytest.mark.usefixtures("hasty")
def test_a_failed_refresh_is_nobodys_problem(
    local: InProcessManager, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer(refresh_in=1)

    def fail(number: int) -> None:
        if number in (2, 3):
            raise ClientAuthenticationError(message=f"not now {'y' * 50}")

    issuer.before = fail
    shared = local.credential(issuer, identity="me")
    with caplog.at_level(logging.DEBUG, "mppool"):
        shared.get_token(SCOPE)
        wait_until(lambda: shared.get_token(SCOPE) and "not be refreshed" in caplog.text, "failing")
    assert shared.get_token(SCOPE).token == f"{MARK}-1"
    assert "not now <hidden>" in caplog.text
    assert "y" * 50 not in caplog.text


def test_refresh_on_is_kept_by_one_method_and_dropped_by_the_other(local: InProcessManager) -> None:
    issuer = Issuer(refresh_in=1000)
    shared = local.credential(issuer)
    refresh_on = shared.get_token_info(SCOPE).refresh_on
    assert refresh_on is not None
    assert abs(refresh_on - time.time() - 1000) < 5
    assert len(shared.get_token(SCOPE)) == 2


@pytest.mark.parametrize("life", [-HOUR, 0, -1.7e9])
def test_a_token_that_is_said_to_have_expired(local: InProcessManager, life: float) -> None:
    """Custom credentials say expires_on=0 for "unknown"; the token is handed out, and not fetched by each call."""
    issuer = Issuer(life)
    shared = local.credential(issuer, identity="me")
    for _ in range(100):
        shared.get_token(SCOPE)
    assert 1 <= len(issuer.asked) <= 3


def test_an_unknown_expiry_counts_as_near(local: InProcessManager) -> None:
    class Silent(Issuer):
        def get_token_info(self, *scopes: str, options: Any = None) -> Any:
            super().get_token_info(*scopes, options=options)
            return type("Answer", (), {"token": "t", "expires_on": None})()

    issuer = Silent()
    shared = local.credential(issuer)
    assert abs(shared.get_token(SCOPE).expires_on - time.time() - 300) < 5
    shared.get_token(SCOPE)
    assert len(issuer.asked) == 1


# --- challenges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [None, "me"])
def test_a_challenge_bypasses_and_replaces_the_token(
    local: InProcessManager, identity: str | None
) -> None:
    issuer = Issuer()
    shared = local.credential(issuer, identity=identity)
    other = local.credential(issuer, identity=identity)
    assert shared.get_token(SCOPE).token == f"{MARK}-1"
    if identity:
        assert other.get_token(SCOPE).token == f"{MARK}-1"
    assert shared.get_token(SCOPE, claims="C").token == f"{MARK}-2"
    assert issuer.asked[-1]["claims"] == "C"
    assert shared.get_token(SCOPE).token == f"{MARK}-2"
    if identity:  # also who holds the refused token at hand
        assert other.get_token(SCOPE).token == f"{MARK}-2"
    assert shared.get_token_info(SCOPE, options={"claims": "D"}).token == f"{MARK}-3"


def test_threads_with_one_challenge_make_one_fetch(local: InProcessManager) -> None:
    issuer = Issuer()
    shared = local.credential(issuer, identity="me")
    shared.get_token(SCOPE)
    tokens = together(lambda: shared.get_token(SCOPE, claims="C").token)
    assert set(tokens) == {f"{MARK}-2"}


# --- failures ---------------------------------------------------------------------------------------------


def test_who_fetches_gets_the_error_itself_and_the_others_its_text(local: InProcessManager) -> None:
    issuer = Issuer()

    def fail(number: int) -> None:
        time.sleep(0.2)
        raise CredentialUnavailableError(message="no endpoint here")

    issuer.before = fail
    shared = local.credential(issuer, identity="me")
    errors = together(lambda: shared.get_token(SCOPE))
    assert len(issuer.asked) == 1
    assert all(isinstance(error, CredentialUnavailableError) for error in errors)
    assert sum("not to be tried again" in str(error) for error in errors) == 7
    assert all(error.__cause__.retry_in > 4 for error in errors if error.__cause__)


def test_a_bug_in_a_credential_is_shown_to_all(local: InProcessManager) -> None:
    issuer = Issuer()
    issuer.before = lambda number: {}["missing"]
    shared = local.credential(issuer, identity="me")
    with pytest.raises(KeyError):
        shared.get_token(SCOPE)
    with pytest.raises(ClientAuthenticationError, match="KeyError"):
        shared.get_token(SCOPE)


def test_an_interrupted_fetch_is_taken_over(local: InProcessManager) -> None:
    issuer = Issuer()
    waiting = threading.Event()

    def interrupt(number: int) -> None:
        if number == 1:
            waiting.wait(5)
            raise KeyboardInterrupt

    issuer.before = interrupt
    shared = local.credential(issuer, identity="me")

    def first() -> str:
        try:
            return shared.get_token(SCOPE).token
        except KeyboardInterrupt:
            return "interrupted"

    one: list[str] = []
    fetching = threading.Thread(target=lambda: one.append(first()))
    fetching.start()
    wait_until(lambda: len(issuer.asked) == 1, "the first fetch")
    two: list[str] = []
    other = threading.Thread(target=lambda: two.append(shared.get_token(SCOPE).token))
    other.start()
    wait_until(lambda: local.stats()["tokens"][0]["waiting"], "somebody waits")
    waiting.set()
    fetching.join()
    other.join()
    assert (one, two) == (["interrupted"], [f"{MARK}-2"])


def test_nobody_waits_for_longer_than_he_said(local: InProcessManager) -> None:
    issuer = Issuer()
    hanging = threading.Event()
    issuer.before = lambda number: hanging.wait(60) and None
    for identity in (None, "me"):
        hanging.clear()
        shared = local.credential(Issuer() if identity else issuer, identity=identity)
        shared.unshared.before = issuer.before
        fetching = threading.Thread(target=shared.get_token, args=(SCOPE,))
        fetching.start()
        wait_until(lambda shared=shared: shared.unshared.asked, "the fetch")
        began = time.monotonic()
        with pytest.raises(ClientAuthenticationError, match="timeout"):
            shared.get_token(SCOPE, timeout=0.2)
        assert time.monotonic() - began < 30.0
        hanging.set()
        fetching.join()


def test_an_endpoint_that_answers_html(msi: Endpoint, local: InProcessManager) -> None:
    page = "<html><body><h1>Sign in to the hotel's network</h1></body></html>"
    msi.behaviour = lambda asked: Answer(200, page)
    shared = local.credential(ManagedIdentityCredential(retry_total=0))
    with pytest.raises(Exception, match=r".") as first:
        shared.get_token(SCOPE)
    assert not isinstance(first.value, ConfigurationError)
    with pytest.raises(ClientAuthenticationError, match="not to be tried again") as second:
        shared.get_token(SCOPE)
    assert "<html>" not in str(second.value)
    assert msi.count == 1


def test_an_endpoint_that_hangs_is_bounded_by_the_credentials_timeout(
    msi: Endpoint, local: InProcessManager
) -> None:
    msi.behaviour = msi.hang
    shared = local.credential(ManagedIdentityCredential(retry_total=0, read_timeout=0.3))
    results = together(lambda: shared.get_token(SCOPE), 4)
    assert all(isinstance(result, Exception) for result in results)
    assert msi.count == 1
    msi.let_go.set()


def test_what_a_hanging_fetch_brings_at_last_replaces_nothing_newer(
    local: InProcessManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mppool.credentials.source.FETCH_PATIENCE_S", 0.1)
    issuer, let_go = Issuer(), threading.Event()
    issuer.before = lambda number: None if number == 2 else let_go.wait(20) and None
    shared = local.credential(issuer, identity="me")
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(shared.get_token, SCOPE)
        wait_until(lambda: len(issuer.asked) == 1, "a fetch that hangs")
        assert shared.get_token(SCOPE).token == f"{MARK}-2"
        let_go.set()
        assert hanging.result(20).token == f"{MARK}-1"  # its own, which is valid
    assert shared.get_token(SCOPE).token == f"{MARK}-2"
    assert len(issuer.asked) == 2


# --- people -----------------------------------------------------------------------------------------------


def test_device_code_asks_once_and_then_silently(
    entra: tuple[Endpoint, str], local: InProcessManager
) -> None:
    endpoint, certificate = entra
    prompts: list[Any] = []
    credential = DeviceCodeCredential(
        client_id=CLIENT,
        tenant_id=TENANT,
        prompt_callback=lambda *said: prompts.append(said),
        authority=endpoint.url,
        disable_instance_discovery=True,
        connection_verify=certificate,
    )
    shared = local.credential(credential)
    assert identity_of(shared) is None
    scopes = [SCOPE, "https://storage.azure.com/.default"]
    tokens = together(lambda: [shared.get_token(scope).token for scope in scopes], 6)
    assert len({tuple(some) for some in tokens}) == 1, tokens
    assert len(prompts) == 1
    assert identity_of(shared) == f"acct:{ACCOUNT_UID}.{TENANT}"
    assert get_token_info(credential, SCOPE).account_id == f"{ACCOUNT_UID}.{TENANT}"
    known = {entry["identity"] for entry in local.stats()["tokens"]}
    assert known == {f"acct:{ACCOUNT_UID}.{TENANT}"}


def test_when_somebody_else_signs_in_nothing_is_mixed(
    entra: tuple[Endpoint, str], local: InProcessManager
) -> None:
    endpoint, certificate = entra
    credential = DeviceCodeCredential(
        client_id=CLIENT,
        tenant_id=TENANT,
        prompt_callback=lambda *said: None,
        authority=endpoint.url,
        disable_instance_discovery=True,
        connection_verify=certificate,
    )
    shared = local.credential(credential)
    alices = shared.get_token(SCOPE).token
    alice = identity_of(shared)

    def only_prompts(asked: Asked) -> Answer:
        if asked.fields["grant_type"] == "refresh_token":
            return Answer(400, {"error": "invalid_grant"})
        return asked.token()

    endpoint.behaviour = only_prompts
    endpoint.account = "bob"
    other = "https://other/.default"
    bobs = shared.get_token(other).token
    assert identity_of(shared) == f"acct:bob.{TENANT}" != alice
    endpoint.behaviour = lambda asked: asked.token()
    assert shared.get_token(other).token == bobs
    assert shared.get_token(SCOPE).token != alices
    keys = {(entry["identity"], *entry["scopes"]) for entry in local.stats()["tokens"]}
    assert (alice, SCOPE) in keys
    entry = next(
        entry
        for entry in local.stats()["tokens"]
        if entry["identity"] == alice and entry["scopes"] == [other]
    )
    assert entry["expires_in"] is None, "bob's token under alice's name"


class Person(Issuer):
    """Wants somebody to sign in first, as azure-identity does with disable_automatic_authentication."""

    signed_in = 0

    def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
        if not self.signed_in:
            raise AuthenticationRequiredError(scopes)
        return super().get_token_info(*scopes, options=options)

    def authenticate(self, **options: Any) -> None:
        time.sleep(0.1)
        self.signed_in += 1


def test_who_must_sign_in_is_asked_once(local: InProcessManager) -> None:
    person = Person()
    shared = local.credential(person, identity="person")
    tokens = together(lambda: shared.get_token(SCOPE).token)
    assert set(tokens) == {f"{MARK}-1"}
    assert person.signed_in == 1


@pytest.mark.usefixtures("hasty")
def test_nobody_is_asked_in_the_background(local: InProcessManager) -> None:
    person = Person(refresh_in=1)
    shared = local.credential(person, identity="person")
    shared.get_token(SCOPE)
    person.signed_in = 0  # the sign-in has expired
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert shared.get_token(SCOPE).token == f"{MARK}-1"
        time.sleep(0.01)
    assert person.signed_in == 0


# --- closing and travelling -------------------------------------------------------------------------------


def test_closing_closes_the_credential_once(local: InProcessManager) -> None:
    issuer = Issuer()
    with local.credential(issuer, identity="me") as shared:
        shared.get_token(SCOPE)
    shared.close()
    assert issuer.closed == 1
    for use in (shared.get_token, shared.get_token_info):
        with pytest.raises(PoolClosed, match="closed"):
            use(SCOPE)
    with pytest.raises(PoolClosed):
        shared.__enter__()
    # The token is still there for the others.
    assert local.credential(Issuer(), identity="me").get_token(SCOPE).token == f"{MARK}-1"


def test_it_travels_with_its_manager(runtime_dir: Any) -> None:
    manager = PoolManager("travel", runtime_dir=runtime_dir)
    shared = manager.credential(ClientSecretCredential(TENANT, CLIENT, SECRET), identity="me")
    there = pickle.loads(pickle.dumps(shared))
    assert isinstance(there, SharedCredential)
    assert identity_of(there) == "me"


# --- bad use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "credential",
    [None, "eyJ-secret", b"eyJ-secret", 7, object(), ManagedIdentityCredential, {"token": "x"}],
    ids=["None", "str", "bytes", "int", "object", "class", "dict"],
)
def test_what_is_no_credential_is_refused_at_once(local: InProcessManager, credential: Any) -> None:
    for make in (local.credential, local.async_credential):
        with pytest.raises(ConfigurationError) as caught:
            make(credential)
        assert "eyJ-secret" not in str(caught.value)


def test_an_asynchronous_credential_is_refused_with_the_right_name(local: InProcessManager) -> None:
    from azure.identity.aio import AzureCliCredential

    with pytest.raises(ConfigurationError, match="async_credential"):
        local.credential(AzureCliCredential())
    with pytest.raises(ConfigurationError, match="asynchronous"):
        get_token_info(_Coroutine(), SCOPE)


class _Coroutine:
    def get_token(self, *scopes: str) -> Any:
        async def answer() -> None: ...

        return answer()


@pytest.mark.parametrize("identity", ["", "a\0b", 7, "x" * 2000, "\ud800", b"me"])
def test_bad_identities(local: InProcessManager, identity: Any) -> None:
    with pytest.raises(ConfigurationError, match="identity"):
        local.credential(Issuer(), identity=identity)


@pytest.mark.parametrize(
    ("scopes", "options"),
    [
        ((), {}),
        (("",), {}),
        ((7,), {}),
        (([SCOPE],), {}),
        (("x" * 100000,), {}),
        (("\ud800",), {}),
        ((SCOPE,) * 100, {}),
        ((SCOPE,), {"tenant_id": 7}),
        ((SCOPE,), {"claims": 7}),
        ((SCOPE,), {"claims": "\ud800"}),
    ],
)
@pytest.mark.parametrize("identity", [None, "me"])
def test_bad_arguments(
    local: InProcessManager, scopes: Any, options: Any, identity: str | None
) -> None:
    issuer = Issuer()
    shared = local.credential(issuer, identity=identity)
    with pytest.raises(ConfigurationError):
        shared.get_token(*scopes, **options)
    assert issuer.asked == []


@pytest.mark.parametrize(
    "token",
    ["", " ", None, 7, b"bytes", f"{MARK}\0", f"{MARK}\ud800", MARK * 100000],
    ids=["empty", "blank", "None", "int", "bytes", "NUL", "surrogate", "giant"],
)
def test_a_credential_that_returns_no_token(local: InProcessManager, token: Any) -> None:
    class Bad:
        def get_token(self, *scopes: str, **options: Any) -> Any:
            return type("Answer", (), {"token": token, "expires_on": 5})()

    for credential in (local.credential(Bad(), identity="me"), local.credential(Bad())):
        with pytest.raises(ConfigurationError, match="Bad returned") as caught:
            credential.get_token(SCOPE)
        assert MARK not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(ClientAuthenticationError) as told:
            credential.get_token(SCOPE)
        assert MARK not in str(told.value)


@pytest.mark.parametrize("answer", [None, "text", 7, AccessToken(f"{MARK}", "soon")])  # type: ignore[arg-type]
def test_a_credential_that_returns_something_else(local: InProcessManager, answer: Any) -> None:
    class Bad:
        def get_token(self, *scopes: str, **options: Any) -> Any:
            return answer

    with pytest.raises(ConfigurationError) as caught:
        local.credential(Bad()).get_token(SCOPE)
    assert MARK not in str(caught.value)


# --- secrets ----------------------------------------------------------------------------------------------


def test_no_token_is_seen_anywhere(
    entra: tuple[Endpoint, str],
    manager: PoolManager,
    runtime_dir: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint, certificate = entra
    credential = ClientSecretCredential(
        TENANT,
        CLIENT,
        SECRET,
        authority=endpoint.url,
        disable_instance_discovery=True,
        connection_verify=certificate,
        retry_total=0,
    )
    shared = manager.credential(credential)
    shown = []
    with caplog.at_level(logging.DEBUG):
        shared.get_token(SCOPE)
        shared.get_token(SCOPE, claims="{}")
        body = {"error": "invalid", "error_description": f"no {MARK}.{'x' * 80} and {SECRET}"}
        endpoint.behaviour = lambda asked: Answer(401, body)
        for _ in range(2):
            try:
                shared.get_token("https://other/.default")
            except ClientAuthenticationError as error:
                shown.append(str(error))
    # What the issuer says to who asked is in azure-identity's error; what goes further is not.
    shown = [*shown[1:], repr(shared), json.dumps(manager.stats())]
    shown += [record.getMessage() for record in caplog.records if record.name == "mppool"]
    for file in runtime_dir.rglob("*"):
        if file.is_file():
            shown.append(file.read_bytes().decode("latin-1"))
    assert len(shown) > 5
    for text in shown:
        assert MARK not in text
        assert SECRET not in text
