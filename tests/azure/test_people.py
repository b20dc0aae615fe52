"""Pools for people: interactive and device-code credentials of azure-identity, silently first, asked once.

A browser of our own signs in at once, or when it is told to; everything else is azure-identity's.
"""

from __future__ import annotations

import asyncio
import threading
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from azure.identity import (
    DeviceCodeCredential,
    InteractiveBrowserCredential,
    ManagedIdentityCredential,
)

from mppool import (
    CheckoutTimeout,
    ConfigurationError,
    InProcessManager,
    OpenFailed,
    Opening,
    Pool,
    PoolManager,
    Recipe,
)
from tests.azure.crowd import SCOPE
from tests.azure.endpoints import ACCOUNT_UID, CLIENT, TENANT, Answer, Asked, Endpoint
from tests.helpers import Fork, wait_until

# What msal says to releases of azure-identity that are older than itself.
OLDER_IDENTITY = pytest.mark.filterwarnings("ignore:response_mode='form_post' is recommended")
pytestmark = OLDER_IDENTITY

ALICE = f"acct:{ACCOUNT_UID}.{TENANT}"
BOB = f"acct:bob.{TENANT}"


class Session:
    """What was opened, for whom, with which of the endpoint's tokens."""

    def __init__(self, opening: Opening) -> None:
        self.identity = opening.identity
        self.token = str(opening.token.token_struct[4:].decode("utf-16-le")).split(".")[1]


class Sessions(Recipe[Session]):
    token_scope = SCOPE

    def open(self, opening: Opening) -> Session:
        return Session(opening)


class Browser(webbrowser.BaseBrowser):
    """Where somebody signs in. answer: what is sent back beside the state; None: a code.

    signs_in: cleared, nobody does anything until it is set.
    """

    def __init__(self) -> None:
        super().__init__("tests")
        self.asked = 0
        self.answer: dict[str, str] | None = None
        self.signs_in = threading.Event()
        self.signs_in.set()
        self._threads: list[threading.Thread] = []

    def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
        self.asked += 1
        thread = threading.Thread(target=self._sign_in, args=(url,))
        thread.start()
        self._threads.append(thread)
        return True

    def _sign_in(self, url: str) -> None:
        self.signs_in.wait(20)
        query = {name: texts[0] for name, texts in parse_qs(urlsplit(url).query).items()}
        # The nonce stands for the code, for the endpoint has to repeat it.
        answer = self.answer or {"code": query["nonce"]}
        to, said = query["redirect_uri"], urlencode({"state": query["state"], **answer})
        posted = query.get("response_mode") == "form_post"
        request = (to, said.encode()) if posted else (f"{to}?{said}",)
        with urllib.request.urlopen(*request, timeout=10):
            pass

    def end(self) -> None:
        self.signs_in.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    made = Browser()
    monkeypatch.setattr(webbrowser, "open", made.open)
    yield made
    made.end()


class People:
    """Makes credentials, and counts how often a person was asked."""

    def __init__(self, kind: str, entra: tuple[Endpoint, str], browser: Browser) -> None:
        self.kind = kind
        self.browser = browser
        self.endpoint, certificate = entra
        self._codes: list[Any] = []
        self._options: dict[str, Any] = {
            "client_id": CLIENT,
            "tenant_id": TENANT,
            "authority": self.endpoint.url,
            "disable_instance_discovery": True,
            "connection_verify": certificate,
        }

    def credential(self, **more: Any) -> Any:
        if self.kind == "browser":
            return InteractiveBrowserCredential(**self._options, **more)
        # A function: a credential with a method that leads to all this could not be copied in a child.
        codes = self._codes
        return DeviceCodeCredential(
            **self._options, prompt_callback=lambda *said: codes.append(said), **more
        )

    @property
    def asked(self) -> int:
        return self.browser.asked if self.kind == "browser" else len(self._codes)


@pytest.fixture(params=["browser", "device code"])
def people(request: pytest.FixtureRequest, entra: tuple[Endpoint, str], browser: Browser) -> People:
    return People(request.param, entra, browser)


@pytest.fixture(params=["one process", "many processes"])
def pool(request: pytest.FixtureRequest, manager: PoolManager) -> Iterator[Pool[Session]]:
    """Of each kind of manager in turn."""
    kinds: dict[str, Callable[[], Any]] = {
        "one process": InProcessManager,
        "many processes": lambda: manager,
    }
    made: Pool[Session] = kinds[request.param]().pool("p", Sessions(), max_size=8)
    yield made
    made.close()


def use(pool: Pool[Session], credential: Any, timeout: float = 20.0) -> Session:
    with pool.checkout(timeout, credential=credential) as session:
        return session


def test_many_who_want_a_session_ask_the_person_once(people: People, pool: Pool[Session]) -> None:
    credential = people.credential()
    with ThreadPoolExecutor(6) as threads:
        sessions = list(threads.map(lambda _: use(pool, credential), range(12)))
    assert people.asked == 1
    assert {session.identity for session in sessions} == {ALICE}
    assert {session.token for session in sessions} == {"1"}
    # From now on nobody is asked, and a session that is there costs no token.
    pool.reset()
    assert use(pool, credential).token == "1"
    assert (people.asked, people.endpoint.count) == (1, 1)
    assert {resource["identity_key"] for resource in pool.stats()["resources"]} <= {ALICE}


def test_a_token_near_its_end_is_replaced_silently(people: People, pool: Pool[Session]) -> None:
    # The first is fetched again when it is known who has signed in: with so little left it is not kept.
    people.endpoint.behaviour = lambda asked: asked.token(250 if asked.number < 3 else 3600)
    credential = people.credential()
    assert [use(pool, credential).token for _ in range(3)] == ["2", "3", "3"]
    assert people.asked == 1
    assert people.endpoint.asked[2].fields["grant_type"] == "refresh_token"


@pytest.mark.parametrize("people", ["browser"], indirect=True)
def test_who_must_not_be_asked_by_itself_is_asked_for_a_caller(
    people: People, pool: Pool[Session]
) -> None:
    """disable_automatic_authentication: AuthenticationRequiredError, then authenticate(), once."""
    credential = people.credential(disable_automatic_authentication=True)
    with ThreadPoolExecutor(4) as threads:
        sessions = list(threads.map(lambda _: use(pool, credential), range(8)))
    assert people.asked == 1
    assert {session.identity for session in sessions} == {ALICE}


@pytest.mark.parametrize("people", ["browser"], indirect=True)
def test_nobody_waits_for_a_person_beyond_his_timeout(people: People, pool: Pool[Session]) -> None:
    people.browser.signs_in.clear()
    credential = people.credential()
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(use, pool, credential)
        wait_until(lambda: people.asked == 1, "somebody is asked")
        for timeout in (0.0, 0.3):
            with pytest.raises((CheckoutTimeout, OpenFailed)):
                use(pool, credential, timeout)
            assert not asking.done()
        people.browser.signs_in.set()
        assert asking.result(20).identity == ALICE
    assert use(pool, credential, 0.0).identity == ALICE
    assert people.asked == 1


@pytest.mark.parametrize("people", ["browser"], indirect=True)
def test_who_declines_is_a_clear_error(people: People, pool: Pool[Session]) -> None:
    people.browser.answer = {"error": "access_denied", "error_description": "not today"}
    with pytest.raises(OpenFailed, match="not today"):
        use(pool, people.credential())
    assert people.asked == 1


def test_two_people_never_share_a_session(people: People, pool: Pool[Session]) -> None:
    first, second = people.credential(), people.credential()
    one = use(pool, first)
    people.endpoint.account = "bob"
    other = use(pool, second)
    assert (one.identity, other.identity) == (ALICE, BOB)
    assert [use(pool, first) is one, use(pool, second) is other] == [True, True]
    assert people.asked == 2


@pytest.mark.parametrize("people", ["browser"], indirect=True)
def test_somebody_else_signs_in_to_the_same_credential(people: People, pool: Pool[Session]) -> None:
    # With so little left azure-identity asks for another one.
    people.endpoint.behaviour = lambda asked: asked.token(250)
    credential = people.credential()
    alices = use(pool, credential)

    def only_prompts(asked: Asked) -> Answer:
        if asked.fields["grant_type"] == "refresh_token":
            return Answer(400, {"error": "invalid_grant", "error_description": "gone"})
        return asked.token()

    people.endpoint.behaviour = only_prompts
    people.endpoint.account = "bob"
    credential.authenticate(scopes=[SCOPE])
    bobs = use(pool, credential)
    assert (alices.identity, bobs.identity) == (ALICE, BOB)
    assert bobs is not alices


@pytest.mark.parametrize("people", ["device code"], indirect=True)
@pytest.mark.parametrize("pool", ["many processes"], indirect=True)
def test_children_need_nobody_to_sign_in_again(people: People, pool: Pool[Session]) -> None:
    """The same person in several processes: each has its own sessions, and they share the token."""
    credential = people.credential()
    mine = use(pool, credential)

    def child() -> tuple[str | None, str, int]:
        session = use(pool, credential)
        return session.identity, session.token, people.asked

    for _ in range(2):
        assert Fork(child).result() == (mine.identity, mine.token, 1)
    assert people.endpoint.count == 1


@pytest.mark.parametrize("people", ["device code"], indirect=True)
@pytest.mark.parametrize("pool", ["many processes"], indirect=True)
def test_each_process_asks_its_own_person(people: People, pool: Pool[Session]) -> None:
    use(pool, people.credential())

    def child() -> tuple[str | None, int]:
        credential = people.credential()  # nobody has signed in to this one
        session = use(pool, credential)
        use(pool, credential)
        return session.identity, people.asked

    assert Fork(child).result() == (ALICE, 2)


@pytest.mark.parametrize("people", ["device code"], indirect=True)
@pytest.mark.parametrize("pool", ["many processes"], indirect=True)
def test_who_signs_in_after_the_fork_is_remembered_there(
    people: People, pool: Pool[Session], manager: PoolManager
) -> None:
    """In a child a copy of the credential is asked, for it shares no connection with the parent."""
    credential = people.credential()
    shared = manager.credential(credential)

    def child() -> tuple[set[str | None], int]:
        identities = {use(pool, credential).identity for _ in range(3)}
        shared.get_token(SCOPE)
        return identities, people.asked

    for _ in range(2):
        assert Fork(child).result() == ({ALICE}, 1)


# --- asyncio ----------------------------------------------------------------------------------------------


def test_acheckout_with_a_person(people: People, pool: Pool[Session]) -> None:
    credential = people.credential()

    async def one() -> str | None:
        async with pool.acheckout(credential=credential) as session:
            return str(session.identity)

    async def all_at_once() -> list[str | None]:
        return await asyncio.gather(*(one() for _ in range(10)))

    assert set(asyncio.run(all_at_once())) == {ALICE}
    assert people.asked == 1


def test_acheckout_with_and_without_names(msi: Endpoint, pool: Pool[Session]) -> None:
    """As checkout does: a token only for what is opened, and each person gets their own."""
    system, user = ManagedIdentityCredential(), ManagedIdentityCredential(client_id=CLIENT)

    async def many() -> list[tuple[str | None, str | None]]:
        async def one(credential: Any, identity: str | None) -> tuple[str | None, str | None]:
            whose = identity or ("msi:system" if credential is system else f"msi:{CLIENT}")
            async with pool.acheckout(20.0, identity=identity, credential=credential) as session:
                await asyncio.sleep(0)
                return whose, session.identity

        pairs = [(system, None), (user, None), (user, "tenant-42")] * 10
        return await asyncio.gather(*(one(*pair) for pair in pairs))

    assert all(whose == identity for whose, identity in asyncio.run(many()))
    assert msi.count in (2, 3)  # azure-identity may have kept the one of `user`


def test_acheckout_where_no_token_can_be_had(msi: Endpoint, pool: Pool[Session]) -> None:
    msi.behaviour = lambda asked: asked.refusal(400)

    async def one() -> None:
        await pool.acheckout(credential=ManagedIdentityCredential(retry_total=0))

    with pytest.raises(OpenFailed, match="CredentialUnavailableError"):
        asyncio.run(one())
    assert pool.stats()["in_use"] == 0


def test_an_asynchronous_credential_is_refused_with_the_right_name(pool: Pool[Session]) -> None:
    from azure.identity.aio import ManagedIdentityCredential as Asynchronous

    async def one() -> None:
        credential = Asynchronous()
        try:
            await pool.acheckout(credential=credential)
        finally:
            await credential.close()

    with pytest.raises(ConfigurationError, match="synchronous class of the same name"):
        asyncio.run(one())
