"""Local endpoints that answer as Azure's do, or as badly as a test wants: managed identity and an authority.

They run in threads of the test process; children reach them over loopback. What was asked is recorded.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme

from tests.secrecy import MARK

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "99999999-8888-7777-6666-555555555555"
SECRET = f"{MARK}-of-a-client-that-must-never-be-seen-anywhere"
ACCOUNT_UID = "aaaaaaaa-0000-0000-0000-000000000001"


class Answer:
    """What an endpoint says. body: a str is sent as it is, anything else as JSON."""

    def __init__(
        self, status: int, body: Any, headers: dict[str, str] | None = None, delay: float = 0.0
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers or {}
        self.delay = delay


class Asked:
    """A request for a token."""

    def __init__(self, number: int, resource: str, fields: dict[str, str]) -> None:
        self.number = number
        self.resource = resource
        self.fields = fields
        self.at = time.monotonic()

    def token(self, expires_in: float = 3600, **more: Any) -> Answer:
        """A token of its own for each request, in the manner of the endpoint."""
        token = f"{MARK}.{self.number}.{'x' * 80}"
        body = {
            "access_token": token,
            "token_type": "Bearer",
            "resource": self.resource,
            "expires_in": int(expires_in),
            "expires_on": str(int(time.time() + expires_in)),
            **more,
        }
        return Answer(200, body)

    def refusal(self, status: int, **headers: str) -> Answer:
        """An error in the manner of the endpoint."""
        body = {"error": "temporarily_unavailable", "error_description": f"status {status}"}
        return Answer(
            status, body, {name.replace("_", "-"): text for name, text in headers.items()}
        )


Behaviour = Callable[[Asked], Answer]


class Endpoint:
    """behaviour: decides about each request for a token; it may be replaced at any time.

    account: of the person that signs in. asked: the requests for tokens so far. let_go: set at the end, so that what hangs ends with the test.
    """

    def __init__(self) -> None:
        self.behaviour: Behaviour = lambda asked: asked.token()
        self.asked: list[Asked] = []
        self.url = ""
        self.let_go = threading.Event()
        self.device_scope = ""
        self.account = ACCOUNT_UID
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many tokens were asked for."""
        return len(self.asked)

    def hang(self, asked: Asked) -> Answer:
        """A behaviour: say nothing until the test ends."""
        self.let_go.wait(60)
        return asked.refusal(503)

    def answer(self, resource: str, fields: dict[str, str]) -> Answer:
        """Record a request for a token, and decide."""
        with self._lock:
            asked = Asked(len(self.asked) + 1, resource, fields)
            self.asked.append(asked)
        return self.behaviour(asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: Endpoint

    def do_GET(self) -> None:
        query = {name: texts[0] for name, texts in parse_qs(urlsplit(self.path).query).items()}
        if self.path.endswith("/.well-known/openid-configuration") or "openid-config" in self.path:
            self._send(Answer(200, self._configuration()))
        else:
            self._send(self.endpoint.answer(query.get("resource", ""), query))

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        fields = {
            name: texts[0] for name, texts in parse_qs(self.rfile.read(length).decode()).items()
        }
        if self.path.endswith("/devicecode"):
            self.endpoint.device_scope = fields.get("scope", "")
            code = {
                "device_code": "device-code",
                "user_code": "ABCD",
                "verification_uri": "https://127.0.0.1/device",
                "expires_in": 60,
                "interval": 1,
                "message": "sign in, please",
            }
            self._send(Answer(200, code))
            return
        answer = self.endpoint.answer(fields.get("scope", ""), fields)
        if answer.status == 200 and isinstance(answer.body, dict):
            answer.body.setdefault("scope", fields.get("scope", self.endpoint.device_scope))
        if answer.status == 200 and "device" in fields.get("grant_type", ""):
            answer.body.update(_signed_in(self.endpoint.account))
        if answer.status == 200 and fields.get("grant_type") == "refresh_token":
            answer.body.update(_signed_in(self.endpoint.account))
        if answer.status == 200 and fields.get("grant_type") == "authorization_code":
            answer.body.update(_signed_in(self.endpoint.account, nonce=fields["code"]))
        self._send(answer)

    def _configuration(self) -> dict[str, str]:
        base = f"{self.endpoint.url}/{self.path.split('/')[1]}"
        return {
            "issuer": f"{base}/v2.0",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
        }

    def _send(self, answer: Answer) -> None:
        if answer.delay:
            self.endpoint.let_go.wait(answer.delay)
        text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        kind = "text/html" if isinstance(answer.body, str) else "application/json"
        data = text.encode()
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the one that asked has gone

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # the name is given
        """Requests are recorded, not printed."""


def _encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _signed_in(account: str, **more: str) -> dict[str, Any]:
    """What comes with a person's token: who it is, and how to get the next one silently."""
    claims = {
        "iss": f"https://127.0.0.1/{TENANT}/v2.0",
        "tid": TENANT,
        "aud": CLIENT,
        "sub": "subject",
        "preferred_username": f"{account}@example.org",
        "exp": int(time.time()) + 3600,
        "iat": int(time.time()),
        **more,
    }
    return {
        "id_token": f"{_encoded({'alg': 'none'})}.{_encoded(claims)}.",
        "client_info": _encoded({"uid": account, "utid": TENANT}),
        "refresh_token": f"{MARK}-refresh-token",
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no trouble of ours."""


@contextmanager
def serving(endpoint: Endpoint, context: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    """Serve the endpoint on a free port of loopback."""
    handler = type("Handler", (_Handler,), {"endpoint": endpoint})
    server = _Server(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    scheme = "http" if context is None else "https"
    endpoint.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def authority(directory: Path) -> Iterator[tuple[Endpoint, str]]:
    """An https authority, and the path of the certificate to trust."""
    certificate_authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate_authority.issue_cert("127.0.0.1").configure_cert(context)
    path = directory / "ca.pem"
    certificate_authority.cert_pem.write_to_path(str(path))
    with serving(Endpoint(), context) as endpoint:
        yield endpoint, str(path)
