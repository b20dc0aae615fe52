"""The pages of docs/sqlalchemy.md, run with the real programs; PostgreSQL says how many sessions there are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mppool import PoolManager
from tests.helpers import ROOT, component_is_missing, free_port, wait_until
from tests.integrations.postgresql import Database
from tests.integrations.webserver import Load, WebServer, control_socket

CAP = 5


def block(title: str) -> str:
    """The code of that title on the page."""
    page = (ROOT / "docs" / "sqlalchemy.md").read_text()
    found = re.search(rf"```python title={title}\n(.*?)```", page, re.DOTALL)
    assert found, title
    return found[1]


@pytest.fixture
def environment(postgresql: Database, runtime_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Of the programs: where the database is, and where processes meet."""
    return {
        **os.environ,
        "DATABASE_URL": f"postgresql+psycopg://postgres@127.0.0.1:{postgresql.port}/{postgresql.name}",
        "BROKER_URL": "filesystem://",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), sysconfig.get_path("purelib")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@contextmanager
def counted(database: Database) -> Iterator[list[int]]:
    """How many sessions had a client, looked at again and again."""
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            seen.append(database.held())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def under_load(
    command: list[str], environment: dict[str, str], place: Path, port: int, database: Database
) -> int:
    """The most sessions while a web server with several processes has much to do."""
    with WebServer(command, directory=place, environment=environment, address=port) as server:
        server.ask_until("/")
        with counted(database) as seen, Load(server, "/", threads=16) as load:
            load.more(60)
            wait_until(lambda: len(load.pids) > 1, "several processes to answer")
            wait_until(lambda: max(seen, default=0) >= CAP, "the whole capacity to be used")
            load.more(60)
        assert load.refused == []
    return max(seen)


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_flask_under_gunicorn_has_five_sessions_not_twenty(
    kind: str, environment: dict[str, str], tmp_path: Path, postgresql: Database
) -> None:
    (tmp_path / "shop.py").write_text(block("flask"))
    port = free_port()
    workers = [
        "--workers",
        "8" if kind == "sync" else "4",
        *(["--threads", "4"] if kind == "gthread" else []),
    ]
    command = [
        sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--worker-class", kind, *workers,
        *control_socket(tmp_path / "ctl"), "--worker-tmp-dir", str(tmp_path), "shop:app",
    ]  # fmt: skip
    assert under_load(command, environment, tmp_path, port, postgresql) == CAP


def test_uvicorn_workers(environment: dict[str, str], tmp_path: Path, postgresql: Database) -> None:
    (tmp_path / "shop.py").write_text(block("uvicorn"))
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", "--workers", "4", "--port", str(port), "--lifespan", "off", "shop:app",
    ]  # fmt: skip
    assert under_load(command, environment, tmp_path, port, postgresql) == CAP


def run(code: str, environment: dict[str, str], place: Path) -> str:
    (place / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=place, env=environment, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sqlmodel(environment: dict[str, str], tmp_path: Path) -> None:
    assert run(block("sqlmodel") + "\nprint(names)", environment, tmp_path) == "['Deadpond']\n"


def test_alembic_stays_within_the_cap_and_keeps_nothing(
    environment: dict[str, str], tmp_path: Path, postgresql: Database
) -> None:
    def alembic(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alembic", *arguments], cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=50, check=False,
        )  # fmt: skip

    assert alembic("init", "migrations").returncode == 0
    script = tmp_path / "migrations" / "env.py"
    imports, _, call = block("alembic").partition("\n\n")
    before = re.compile(r"    connectable = engine_from_config\(.*?\n    \)\n", re.DOTALL)
    assert before.search(script.read_text()), "Alembic's template is another one now"
    template = before.sub(
        lambda _: textwrap.indent(textwrap.dedent(call), "    "), script.read_text()
    )
    script.write_text(
        f"{imports}\n{template}".replace("max_overflow=0", "max_overflow=0, pool_timeout=2")
    )
    ini = tmp_path / "alembic.ini"
    ini.write_text(
        re.sub(
            r"(?m)^sqlalchemy.url = .*$",
            f"sqlalchemy.url = {environment['DATABASE_URL']}",
            ini.read_text(),
        )
    )
    assert alembic("revision", "-m", "first").returncode == 0

    from sqlalchemy import create_engine

    from mppool.integrations.sqlalchemy import shared_pool

    manager = PoolManager("shop")
    engine = create_engine(
        environment["DATABASE_URL"],
        poolclass=shared_pool(manager, "db"),
        pool_size=CAP,
        max_overflow=0,
    )
    connections = [engine.connect() for _ in range(CAP)]
    refused = alembic("upgrade", "head")
    assert refused.returncode != 0
    assert "over all processes" in refused.stderr
    connections.pop().close()
    done = alembic("upgrade", "head")
    assert done.returncode == 0, done.stderr
    for connection in connections:
        connection.close()
    with engine.connect() as connection:
        from sqlalchemy import text

        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    engine.dispose()
    manager.shutdown()


def test_celery_workers_and_a_web_server_share_one_cap(
    environment: dict[str, str], tmp_path: Path, postgresql: Database
) -> None:
    folders = {name: tmp_path / name for name in ("in", "out", "done")}
    for folder in folders.values():
        folder.mkdir()
    options = {
        "data_folder_in": str(folders["in"]), "data_folder_out": str(folders["in"]),
        "processed_folder": str(folders["done"]),
    }  # fmt: skip
    (tmp_path / "tasks.py").write_text(
        block("celery")
        + f"\napp.conf.broker_transport_options = {options!r}\napp.conf.task_ignore_result = True\n"
    )
    (tmp_path / "shop.py").write_text(
        block("flask") + "\n\n@app.get('/done')\n"
        "def done():\n    return {'done': db.session.execute(db.text('SELECT count(*) FROM done')).scalar()}\n"
    )
    port, jobs = free_port(), 200
    with ExitStack() as running:
        run(
            "from tasks import engine, text, work\n"
            "with engine.begin() as connection:\n    connection.execute(text('CREATE TABLE done (number INTEGER)'))\n"
            f"for number in range({jobs}): work.delay(number)\n",
            environment, tmp_path,
        )  # fmt: skip
        web = running.enter_context(
            WebServer(
                [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "4",
                 *control_socket(tmp_path / "ctl"), "shop:app"],
                directory=tmp_path, environment=environment, address=port,
            )
        )  # fmt: skip
        web.ask_until("/")
        seen = running.enter_context(counted(postgresql))
        with Load(web, "/", threads=8) as load:
            running.enter_context(
                WebServer(
                    [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", "4",
                     "--loglevel", "WARNING", "--without-gossip", "--without-mingle"],
                    directory=tmp_path, environment=environment, address=0,
                )
            )  # fmt: skip
            web.ask_until("/done", lambda answer: answer["done"] == jobs, timeout=45)
            labels = {one["label"] for one in PoolManager("shop").stats()["processes"]}
            assert any(re.fullmatch(r"celery worker \d+", label) for label in labels), labels
            assert any(re.fullmatch(r"shop:app worker \d+", label) for label in labels), labels
        assert load.refused == []
        assert load.answers > 10
    assert max(seen) == CAP


def test_uwsgi(environment: dict[str, str], tmp_path: Path, postgresql: Database) -> None:
    """Debian's, whose plugin is for Debian's Python: with another one there is nothing to run."""
    uwsgi, python = shutil.which("uwsgi"), "/usr/bin/python3"
    if uwsgi is None:
        component_is_missing("uwsgi is not installed (Debian: uwsgi uwsgi-plugin-python3)")
    version = subprocess.run(
        [python, "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if version != [str(part) for part in sys.version_info[:2]]:
        pytest.skip(f"uwsgi's plugin is for Python {'.'.join(version)}")
    (tmp_path / "shop.py").write_text(block("flask"))
    port = free_port()
    # Since 3.13 uwsgi's workers crash with the first, without mppool too.
    hooks = "--py-call-osafterfork" if sys.version_info < (3, 13) else "--lazy-apps"
    command = [
        uwsgi, "--plugin", "python3", "--http-socket", f"127.0.0.1:{port}", "--master", "--processes", "4",
        "--threads", "2", "--enable-threads", hooks, "--die-on-term", "--need-app",
        "--disable-logging", "--module", "shop:app",
    ]  # fmt: skip
    settings = {**environment, "MPPOOL_PYTHON": sys.executable}
    assert under_load(command, settings, tmp_path, port, postgresql) == CAP


def test_pandas(environment: dict[str, str], tmp_path: Path) -> None:
    code = """
        import os, pandas
        from sqlalchemy import create_engine
        from mppool import PoolManager
        from mppool.integrations.sqlalchemy import shared_pool
        engine = create_engine(
            os.environ["DATABASE_URL"], poolclass=shared_pool(PoolManager("shop"), "db"), pool_size=1, max_overflow=0
        )
        pandas.DataFrame({"answer": [41, 42]}).to_sql("answers", engine, index=False)
        print(pandas.read_sql("SELECT max(answer) AS most FROM answers", engine)["most"][0], engine.pool.checkedin())
    """
    assert run(textwrap.dedent(code), environment, tmp_path) == "42 1\n"
