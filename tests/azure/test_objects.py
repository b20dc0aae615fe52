"""Credential objects of this process, and of its children."""

from __future__ import annotations

import gc
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from azure.identity import DeviceCodeCredential, ManagedIdentityCredential

from mppool import PoolManager
from mppool.credentials import objects
from mppool.credentials.objects import fit_for_use, serial_of
from tests.azure.crowd import SCOPE, slowly
from tests.azure.endpoints import CLIENT, TENANT, Endpoint
from tests.azure.test_shared import Issuer
from tests.helpers import Fork


def test_a_process_uses_its_own_credentials_as_they_are() -> None:
    for credential in (ManagedIdentityCredential(), Issuer()):
        assert fit_for_use(credential) is credential


def test_an_entry_of_a_dead_object_says_nothing_of_the_new_one_at_its_address() -> None:
    """However late the collector tells of the old one's end."""
    dead, new = Issuer(), Issuer()
    serial = serial_of(dead)
    objects._known[id(new)] = objects._known[id(dead)]
    del dead
    gc.collect()
    assert serial_of(new) != serial


def test_a_child_uses_one_copy_and_its_own_child_another() -> None:
    inherited: Any = ManagedIdentityCredential()
    serial = serial_of(inherited)

    def child() -> tuple[bool, bool, bool, bool]:
        copied = fit_for_use(inherited)
        again = fit_for_use(inherited) is copied and fit_for_use(copied) is copied
        grandchild = Fork(lambda: fit_for_use(copied) is copied).result()
        return copied is inherited, again, grandchild, serial_of(inherited) == serial

    assert Fork(child).result() == (False, True, False, True)


def test_what_a_child_makes_itself_is_not_copied() -> None:
    def child() -> bool:
        own = ManagedIdentityCredential()
        return fit_for_use(own) is own

    assert Fork(child).result()


def test_a_child_need_not_sign_in_again(entra: tuple[Endpoint, str]) -> None:
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
    serial_of(credential)
    credential.get_token(SCOPE)
    assert len(prompts) == 1

    def child() -> tuple[bool, int]:
        copied = fit_for_use(credential)
        copied.get_token(SCOPE)
        copied.get_token("https://another/.default")
        return copied is credential, len(prompts)

    assert Fork(child).result() == (False, 1)


def test_what_cannot_be_copied_is_used_as_it_is_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn(ManagedIdentityCredential):
        def __deepcopy__(self, memory: Any) -> Any:
            raise TypeError("no copies")

    inherited = Stubborn()
    serial_of(inherited)

    def child() -> tuple[bool, str]:
        with caplog.at_level(logging.WARNING, "mppool"):
            return fit_for_use(inherited) is inherited, caplog.text

    same, warned = Fork(child).result()
    assert same
    assert "after the fork" in warned


def test_a_server_that_does_not_answer_is_done_without(
    msi: Endpoint,
    runtime_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import signal

    monkeypatch.setattr("mppool.tokens.cache.SERVER_PATIENCE_S", 0.3)
    manager = PoolManager("stopped", runtime_dir=runtime_dir)
    manager.start()
    pid = manager.server_pid
    assert pid is not None
    shared = manager.credential(ManagedIdentityCredential())
    os.kill(pid, signal.SIGSTOP)
    try:
        with caplog.at_level(logging.WARNING, "mppool"):
            token = shared.get_token(SCOPE).token
        assert "for this process alone" in caplog.text
        assert shared.get_token(SCOPE).token == token
        assert msi.count == 1
        # Without a server too the threads of a process make one request for each token.
        msi.behaviour = slowly
        other = "https://storage.azure.com/.default"
        with ThreadPoolExecutor(8) as threads:
            tokens = set(threads.map(lambda _: shared.get_token(other).token, range(16)))
        assert len(tokens) == 1
        assert msi.count == 2
    finally:
        os.kill(pid, signal.SIGCONT)
    manager.shutdown()
