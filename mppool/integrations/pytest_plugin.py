"""pytest: scarce resources, shared by all xdist workers of a run, or by all runs that name one manager.

    @pytest.fixture(scope="session")
    def databases(mppool_one_of):
        return mppool_one_of("databases", ["test_0", "test_1", "test_2"])

    def test_orders(databases):
        with databases.checkout() as name: ...

Nothing happens, and nothing is imported, unless one of the fixtures is used.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mppool.manager import PoolManager
    from mppool.worker.pool import Pool

INI_OPTION = "mppool_manager_name"
VARIABLE = "MPPOOL_PYTEST_NAME"
_RUN_LINGER_S = 5.0
_REMOVE_PATIENCE_S = 2.0
_RUN_ATTRIBUTE = "_mppool_run"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The ini option that names a manager for all runs that name the same."""
    parser.addini(
        INI_OPTION,
        f"Name of the mppool manager that all runs with this name share (also ${VARIABLE}); default: one "
        "manager for each run, shared by its xdist workers.",
        default="",
    )


def _shared_name(config: pytest.Config) -> str:
    return os.environ.get(VARIABLE) or str(config.getini(INI_OPTION))


def _run_name(config: pytest.Config) -> str:
    """The same in the controller and in all xdist workers of a run."""
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
    if workerinput is not None:
        return f"run-{workerinput['testrunuid'][:16]}"
    name: str | None = getattr(config, _RUN_ATTRIBUTE, None)
    if name is None:
        name = f"run-{os.getpid()}-{os.urandom(4).hex()}"
        setattr(config, _RUN_ATTRIBUTE, name)
    return name


def _run_directory(name: str) -> Path:
    """The runtime directory of one run; short, because sockets lie in it."""
    return Path("/tmp") / f"mppool-pytest-{os.geteuid()}-{name}"  # noqa: S108  # PoolManager checks the owner


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the xdist controller: remember under which name the workers of this run meet."""
    setattr(node.config, _RUN_ATTRIBUTE, f"run-{node.workerinput['testrunuid'][:16]}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """At the end of a run: the manager that was its own goes, with its directory."""
    if hasattr(config, "workerinput"):
        return
    name = getattr(config, _RUN_ATTRIBUTE, None)
    if name is None:
        return
    directory = _run_directory(name)
    if directory.exists():
        from mppool.manager import PoolManager

        PoolManager(name, runtime_dir=directory).shutdown()
        _remove(directory)


def _remove(directory: Path) -> None:
    """Remove it beside a server that is just leaving and tidies up in it as well."""
    deadline = time.monotonic() + _REMOVE_PATIENCE_S
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def mppool_manager(request: pytest.FixtureRequest) -> PoolManager:
    """A PoolManager that all xdist workers of this run share, or all runs that name the same one."""
    from mppool.manager import PoolManager

    config = request.config
    shared = _shared_name(config)
    if shared:
        return PoolManager(shared)
    name = _run_name(config)
    return PoolManager(name, runtime_dir=_run_directory(name), linger=_RUN_LINGER_S)


@pytest.fixture(scope="session")
def mppool_one_of(
    mppool_manager: PoolManager,
) -> Callable[..., Pool[Any]]:
    """`mppool_one_of(name, items)`: a pool whose resources are these items, each lent once at a time."""
    from mppool.integrations.one_of import OneOf

    def make(name: str, items: Sequence[Any], **options: Any) -> Pool[Any]:
        directory = mppool_manager.directory / "one-of" / name
        options.setdefault("max_size", len(items))
        options.setdefault("timeout", None)
        return mppool_manager.pool(name, OneOf(items, directory), **options)

    return make
