"""A thread of the server that calls Redis, for nothing may block the loop.

    the loop --- submit(number, call) ---> jobs ---> this thread ---> Redis
             <-- answered(number, told or None, trouble) --------------

One call is under way at a time. It is never repeated here: whether a call that failed was carried out nobody knows,
and the numbers of the next one begin again.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from mppool.machines.address import parsed, secrets_in
from mppool.machines.needs import Said, Told
from mppool.machines.script import SCRIPT
from mppool.machines.settings import Settings
from mppool.machines.timing import Timing
from mppool.redaction import HIDDEN, without_secrets

log = logging.getLogger(__name__)

OF_SCRIPT = "MPPOOL "
"""How errors begin that the script itself gives."""
_LONGEST_TROUBLE = 300

Answered = Callable[[int, "Told | None", str], None]


def key_of(manager: str) -> str:
    """The key in Redis. The braces have a cluster keep all that is said of a manager in one place."""
    return f"mppool:{{{manager}}}:machines"


def _hint(error: Exception, text: str) -> str:
    """What to do about an error that does not say it itself."""
    kind = type(error).__name__
    if kind in ("MovedError", "AskError") or text.startswith(("MOVED ", "ASK ")):
        return "; this Redis is part of a cluster: give redis+cluster:// in place of redis://"
    if kind == "ResponseError" and "unknown command" in text.lower():
        return "; this is a sentinel: give redis+sentinel://.../SERVICE in place of redis://"
    return ""


class Caller:
    """Calls Redis, one call after the other. Its state belongs to its thread, but for the queue."""

    def __init__(self, settings: Settings, manager: str, answered: Answered) -> None:
        """answered: is told, in this object's thread, what became of each call."""
        self._settings = settings
        self._manager = manager
        self._answered = answered
        self._jobs: queue.SimpleQueue[Said | None] = queue.SimpleQueue()
        self._client: Any = None
        self._script: Any = None
        self._thread = threading.Thread(target=self._run, name="mppool-redis", daemon=True)
        self._thread.start()

    def submit(self, said: Said) -> None:
        """Have it said. Returns at once."""
        self._jobs.put(said)

    def stop(self, patience_s: float) -> None:
        """Say what was submitted, and end; returns after `patience_s` at the latest."""
        self._jobs.put(None)
        self._thread.join(patience_s)

    def _run(self) -> None:
        while (said := self._jobs.get()) is not None:
            told, trouble = None, ""
            try:
                told = self._ask(said)
            except Exception as error:  # noqa: BLE001  # told to the machine, which logs it when it changes
                trouble = self._text_of(error)
                if OF_SCRIPT not in str(error):
                    self._disconnect()
            self._answered(said.number, told, trouble)
        self._disconnect()

    def _ask(self, said: Said) -> Told:
        if self._script is None:
            self._client = self._connect()
            self._script = self._client.register_script(SCRIPT)
        call = msgspec.json.encode(said)
        answer = self._script(keys=[key_of(self._manager)], args=[call, "", ""])
        return msgspec.json.decode(answer, type=Told)

    def _disconnect(self) -> None:
        """The next call looks for its Redis again: this one may be a replica by now, and its name may point elsewhere."""
        client, self._client, self._script = self._client, None, None
        if client is not None:
            try:
                client.close()
            except Exception:
                log.debug("a connection to Redis could not be closed", exc_info=True)

    def _connect(self) -> Any:
        from mppool.machines.clients import connected

        seconds = Timing(self._settings.lease_s).answer_s / 2  # a call may have to connect first
        return connected(parsed(self._settings.url), f"mppool-{self._manager}", seconds)

    def _text_of(self, error: Exception) -> str:
        """What happened, for people, without a secret."""
        text = str(error)
        for secret in secrets_in(self._settings.url):
            text = text.replace(secret, HIDDEN)
        text = without_secrets(text)[:_LONGEST_TROUBLE]
        if text.startswith(OF_SCRIPT):
            text = text.removeprefix(OF_SCRIPT)
        else:
            text = f"{type(error).__name__}: {text}{_hint(error, text)}"
        return f"{self._settings.where}: {text}"
