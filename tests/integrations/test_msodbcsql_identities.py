"""No session ever serves two identities: under load, with the driver manager's own pooling switched on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_python, wait_until
from tests.integrations.identities_under_load import NAMES, THREADS, token_of
from tests.tds.double import TdsDouble

CHECKOUTS = 1000


@pytest.fixture
def pooling(microsoft_driver: Path, tmp_path: Path) -> dict[str, str]:
    """The environment in which unixODBC pools the sessions of the driver `pooled`."""
    directory = tmp_path / "ini"
    directory.mkdir()
    (directory / "odbcinst.ini").write_text(
        f"[ODBC]\nPooling=Yes\n\n[pooled]\nDriver={microsoft_driver}\nCPTimeout=60\n"
    )
    return {"ODBCSYSINI": str(directory)}


@pytest.fixture
def string(tds: TdsDouble) -> Iterator[str]:
    """The double by the name of that driver."""
    return tds.connection_string().replace(f"Driver={tds.driver};", "Driver=pooled;")


def test_the_driver_manager_would_hand_bob_the_session_of_alice(
    tds: TdsDouble, pooling: dict[str, str], string: str
) -> None:
    """Hazard 19: without this the tests below would show nothing."""
    code = f"""
import pyodbc
from mppool.azure import token_struct
for name in ("alice", "bob"):
    connection = pyodbc.connect({string!r}, attrs_before={{1256: token_struct(name)}}, autocommit=True)
    connection.execute(f"SELECT '{{name}}'").fetchval()
    connection.close()
"""
    run_python(code, environment=pooling)
    (session,) = tds.sessions()
    assert session.token == "alice"
    assert session.statements == ["SELECT 'alice'", "SELECT 'bob'"]


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", ["in time", "too late"])
def test_no_session_serves_two_identities(
    tds: TdsDouble, pooling: dict[str, str], string: str, runtime_dir: Path, when: str
) -> None:
    """`too late`: the process used ODBC before mppool could turn the driver manager's pooling off."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integrations.identities_under_load",
         string, str(CHECKOUTS), "8", *(["too late"] if when == "too late" else [])],
        env={**os.environ, **pooling},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["failures"] == []
    assert result["counters"]["checkouts"] == THREADS * CHECKOUTS
    assert ("APP of their own" in done.stderr) == (when == "too late")
    sessions = tds.sessions()
    owners = {token_of(name): name for name in NAMES}
    said = 0
    for session in sessions:
        assert session.token is not None
        own = f"SELECT '{owners[session.token]}'"
        end = "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION"
        assert set(session.statements) <= {own, "SELECT 1", end}, session
        said += session.statements.count(own)
    assert said == THREADS * CHECKOUTS
    # Each use but the first of a session began with a reset of the session.
    if when == "in time":
        resets = sum(len(session.resets) for session in sessions)
        assert resets >= said - len(sessions)
    assert {session.token for session in sessions} == set(owners)
    wait_until(lambda: not tds.open_sessions(), "all sessions to be closed")


def test_no_secret_is_left_anywhere(
    tds: TdsDouble, pooling: dict[str, str], string: str, runtime_dir: Path
) -> None:
    """Logs at DEBUG, statistics, reprs, errors, journal, everything on disk; of a process and of the server."""
    tds.refuse("secret-refused-token")
    code = f"""
import glob, json, logging, pickle, sys, time, traceback
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from mppool import PoolManager
from mppool.azure import StaticToken, get_token_info, token_struct
from mppool.odbc import OdbcRecipe

class Named:
    life = 100
    def __init__(self, *tokens):
        self.tokens = list(tokens)
    def get_token(self, *scopes, **options):
        from azure.core.credentials import AccessToken
        token = self.tokens.pop(0)
        if token is None:
            raise OSError("no more")
        return AccessToken(token, int(time.time() + self.life))

manager = PoolManager("secrets")
recipe = OdbcRecipe({string!r} + "UID=sa;PWD=secret-password", credential=StaticToken("secret-own-token"))
pool = manager.pool("p", recipe, max_size=4, track_leaks=True, min_size=1)
static, named = StaticToken("secret-brought-token"), Named("secret-first-token", "secret-second-token", None)
shown = [recipe, pool, manager, static, named, get_token_info(static, "x")]
for arguments in (
    dict(), dict(credential=static), dict(identity="me", credential=named),
    dict(identity="me", credential=named), dict(identity="me", credential=named),
    dict(credential=StaticToken("secret-refused-token")),
    dict(identity="x", credential=StaticToken("secret-refused-token")),
    dict(credential=Named("secret\\0nul")), dict(credential=Named(b"secret-bytes")), dict(credential=Named(None)),
):
    try:
        with pool.checkout(**arguments) as connection:
            connection.execute("SELECT 1").fetchval()
            shown += [connection]
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        shown += [error, error.args]
        while error := error.__cause__ or error.__context__:
            shown += [error, error.args, vars(error)]
print(*map(repr, shown), *map(str, shown))
print(json.dumps(manager.stats()), json.dumps(pool.stats()))
for local in manager._member.local_pools.values():
    print(repr(vars(local)))
    for entry in local.entries():
        print([getattr(entry, name) for name in entry.__slots__])
pool.close()
"""
    text = run_python(code, environment=pooling, timeout=50.0).stdout
    assert "opening a resource failed" in text  # it was really tried
    assert '"reopened": 1' in text
    files = [path for path in runtime_dir.rglob("*") if path.is_file()]
    assert any(path.stat().st_size for path in files)
    for path in files:
        text += f"\n{path}: " + path.read_bytes().replace(b"\0", b"").decode(errors="replace")
    for number, line in enumerate(text.replace("\0", "").splitlines()):
        for secret in ("own", "brought", "first", "second", "refused", "bytes", "password"):
            assert f"secret-{secret}" not in line, f"line {number}: {line[:2000]}"
    tokens = {session.token for session in tds.sessions()}
    assert {"secret-own-token", "secret-brought-token", "secret-first-token"} <= tokens
