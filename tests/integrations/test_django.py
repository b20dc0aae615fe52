"""Django's backends over a pool of all processes, in interpreters of their own: settings are made once."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import sysconfig
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from tests.helpers import ROOT, free_port, run_python, wait_until
from tests.integrations.postgresql import Database
from tests.integrations.test_sqlalchemy_pages import counted
from tests.integrations.webserver import Load, WebServer, control_socket
from tests.secrecy import MARK
from tests.tds.double import TdsDouble

CAP = 5

HEAD = """
import os, sys, json
from django.conf import settings
settings.configure(
    DATABASES={{"default": {database!r}}}, SECRET_KEY="x", USE_TZ=True, INSTALLED_APPS=[],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField", **{more!r},
)
import django
django.setup()
from django.db import connection, connections, transaction
from django.db.utils import OperationalError

def one(query="SELECT 1", *parameters):
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchone()[0]
"""


def settings_of(backend: str, pool: Any = True, **more: Any) -> dict[str, Any]:
    return {"ENGINE": f"mppool.integrations.django.{backend}", "OPTIONS": {"pool": pool}, **more}


def say(database: dict[str, Any], code: str, **more: Any) -> str:
    """What the code prints."""
    head = HEAD.format(database=database, more=more)
    return run_python(head + textwrap.dedent(code), timeout=50).stdout


@pytest.fixture
def postgres(postgresql: Database, runtime_dir: Path) -> dict[str, Any]:
    return settings_of(
        "postgresql", {"manager": "shop", "max_size": 2, "timeout": 20},
        NAME=postgresql.name, USER="postgres", HOST="127.0.0.1", PORT=postgresql.port, PASSWORD=f"{MARK}!",
    )  # fmt: skip


@pytest.fixture(params=["sqlite3", "postgresql", "mysql"])
def database(request: pytest.FixtureRequest, runtime_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """Each backend in turn; MySQL's through PyMySQL, over MariaDB."""
    pool = {"manager": "shop", "max_size": 2, "timeout": 20}
    if request.param == "sqlite3":
        return settings_of("sqlite3", pool, NAME=str(tmp_path / "shop.db"))
    if request.param == "postgresql":
        found: dict[str, Any] = request.getfixturevalue("postgres")
        return found
    address = request.getfixturevalue("mariadb_server")
    return settings_of(
        "mysql", pool, NAME="shop", USER=address["user"], PASSWORD=address["password"], HOST="127.0.0.1",
        PORT=address["port"],
    )  # fmt: skip


INSTALL = "import pymysql; pymysql.install_as_MySQLdb()\n"


def test_a_request_has_a_connection_and_gives_it_back(database: dict[str, Any]) -> None:
    said = run_python(
        INSTALL + HEAD.format(database=database, more={}) + textwrap.dedent(
            """
            pool = connection.shared_pool
            for _ in range(3):
                assert one() == 1
                assert (pool.in_use_here, pool.idle_here) == (1, 0)
                django.db.close_old_connections()
                assert connection.connection is None
                assert (pool.in_use_here, pool.idle_here) == (0, 1)
            with transaction.atomic():
                one()
            print(pool.name, pool.stats()["counters"]["opened"], pool.stats()["resources"][0]["description"])
            connection.close()
            """
        ),
        timeout=50,
    ).stdout  # fmt: skip
    assert said.startswith("default 1 ")


def test_what_was_not_committed_is_rolled_back_and_the_wrapper_is_empty(
    database: dict[str, Any],
) -> None:
    run_python(
        INSTALL + HEAD.format(database=database, more={}) + textwrap.dedent(
            """
            with connection.cursor() as cursor:
                cursor.execute("DROP TABLE IF EXISTS t")
                cursor.execute("CREATE TABLE t (x INTEGER)")
            transaction.set_autocommit(False)
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO t VALUES (1)")
            connection.close()
            assert one("SELECT count(*) FROM t") == 0
            try:
                with transaction.atomic():
                    with connection.cursor() as cursor:
                        cursor.execute("INSERT INTO t VALUES (2)")
                    connection.close()
                    one()
            except django.db.utils.ProgrammingError:
                pass
            else:
                raise AssertionError("a connection that was given back was used again")
            assert one("SELECT count(*) FROM t") == 0
            connection.close()
            """
        ),
        timeout=50,
    )  # fmt: skip


def test_threads_beyond_the_cap_get_djangos_error(postgres: dict[str, Any]) -> None:
    said = say(
        {**postgres, "OPTIONS": {"pool": {"manager": "shop", "max_size": 2, "timeout": 3}}},
        """
        import threading
        held, done = threading.Barrier(3), threading.Event()
        def hold():
            one()
            held.wait()
            done.wait()
            connection.close()
        threads = [threading.Thread(target=hold) for _ in range(2)]
        [thread.start() for thread in threads]
        held.wait()
        try:
            one()
        except OperationalError as error:
            print(error)
        done.set()
        [thread.join() for thread in threads]
        assert one() == 1
        connection.close()
        """,
    )
    assert "max_size=2" in said


def test_a_thread_that_ends_without_closing_costs_no_slot(postgres: dict[str, Any]) -> None:
    said = say(
        {**postgres, "OPTIONS": {"pool": {"manager": "shop", "max_size": 1, "timeout": 20}}},
        """
        import gc, threading
        for _ in range(3):
            thread = threading.Thread(target=one)
            thread.start()
            thread.join()
            gc.collect()  # a wrapper of Django's refers to itself
        print(one())
        connection.close()
        """,
    )
    assert said == "1\n"


def test_a_dead_session_is_replaced_unseen(postgres: dict[str, Any], postgresql: Database) -> None:
    said = say(
        {**postgres, "CONN_HEALTH_CHECKS": True},
        """
        import psycopg
        one()
        connection.close()
        with psycopg.connect("host=127.0.0.1 user=postgres dbname=postgres port=%s" % connection.settings_dict["PORT"]) as admin:
            admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                          [connection.settings_dict["NAME"]])
        print(one(), connection.shared_pool.stats()["counters"]["unhealthy"])
        connection.close()
        """,
    )
    assert said == "1 1\n"


def test_a_child_never_speaks_on_its_parents_connection(postgres: dict[str, Any]) -> None:
    said = say(
        postgres,
        """
        mine = one("SELECT pg_backend_pid()")
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE t AS SELECT 1 AS x")
        pid = os.fork()
        if pid == 0:
            try:
                assert one("SELECT pg_backend_pid()") != mine
                connection.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert (one("SELECT pg_backend_pid()"), one("SELECT x FROM t")) == (mine, 1)
        with transaction.atomic():
            one()
            pid = os.fork()
            if pid == 0:
                try:
                    one()
                except django.db.utils.ProgrammingError:
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            assert one("SELECT x FROM t") == 1
        connection.close()
        print("unharmed")
        """,
    )
    assert said == "unharmed\n"


def test_a_failing_login_is_djangos_error_without_the_password_elsewhere(runtime_dir: Path) -> None:
    database = settings_of(
        "postgresql",
        {"manager": "shop"},
        NAME="x",
        USER="shop",
        HOST="127.0.0.1",
        PORT=1,
        PASSWORD=f"{MARK}!",
    )
    said = say(
        database,
        """
        for _ in range(2):
            try:
                one()
            except OperationalError as error:
                print(type(error.__cause__).__module__)
        print(json.dumps(connection.shared_pool.stats()))
        """,
    )
    assert said.startswith("psycopg")


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"CONN_MAX_AGE": 60}, "persistent connections"),
        ({"OPTIONS": {"pool": {"max_sise": 1}}}, "did you mean 'max_size'"),
        ({"OPTIONS": {"pool": {"manager": "a b"}}}, "manager"),
    ],
)
def test_bad_settings_are_improperly_configured(
    tmp_path: Path, runtime_dir: Path, more: dict[str, Any], what: str
) -> None:
    database = {**settings_of("sqlite3", NAME=str(tmp_path / "x.db")), **more}
    said = say(
        database,
        """
        from django.core.exceptions import ImproperlyConfigured
        try:
            one()
        except ImproperlyConfigured as error:
            print(error)
        """,
    )
    assert what in said


def test_without_the_option_and_in_memory_it_is_djangos_own(tmp_path: Path) -> None:
    for database in (
        {"ENGINE": "mppool.integrations.django.sqlite3", "NAME": str(tmp_path / "x.db")},
        settings_of("sqlite3", NAME=":memory:"),
    ):
        assert say(database, "print(one(), connection.shared_pool)") == "1 None\n"


def test_test_databases_are_made_used_and_dropped(
    postgres: dict[str, Any], postgresql: Database
) -> None:
    said = say(
        postgres,
        """
        production = connection.settings_dict["NAME"]
        one()
        connection.close()
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        assert one("SELECT current_database()") == "test_" + production
        print(connection.shared_pool.name)
        connection.creation.destroy_test_db(production, verbosity=0)
        assert one("SELECT current_database()") == production
        print(connection.shared_pool.name)
        connection.close()
        """,
    )
    test_pool, pool = said.split()
    assert pool == "default"
    assert test_pool.startswith("default-")


def test_oracle_as_far_as_it_goes_without_a_server(runtime_dir: Path) -> None:
    database = settings_of(
        "oracle", {"manager": "shop"}, NAME="127.0.0.1:1/shop", USER="shop", PASSWORD=f"{MARK}!"
    )
    said = say(
        database,
        """
        try:
            one()
        except OperationalError as error:
            print(error)
        """,
    )
    assert "DPY-6005" in said


@pytest.mark.parametrize("driver", ["pyodbc", "mssql_python"])
def test_sql_server(
    driver: str, tds: TdsDouble, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The double knows no SQL: what mssql-django asks of a server at its first connection is answered here."""
    options: dict[str, Any] = {"pool": {"manager": "shop", "max_size": 1}}
    options["extra_params"] = "Encrypt=yes;TrustServerCertificate=yes"
    if driver != "pyodbc":
        if int(importlib.metadata.version("mssql-django").split(".")[0]) < 2:
            pytest.skip("mssql-django knows mssql-python from 2.0 on")
        options["python_driver"] = driver
    # mssql-django looks for Microsoft's driver by its name.
    (tmp_path / "odbcinst.ini").write_text(
        f"[ODBC Driver 18 for SQL Server]\nDriver={tds.driver}\n"
    )
    monkeypatch.setenv("ODBCSYSINI", str(tmp_path))
    database = {
        "ENGINE": "mppool.integrations.django.mssql", "NAME": "shop", "HOST": f"127.0.0.1,{tds.port}",
        "USER": "sa", "PASSWORD": f"{MARK}!", "OPTIONS": options,
    }  # fmt: skip
    said = say(
        database,
        """
        wrapper = type(connections["default"])
        wrapper.get_system_datetime, wrapper._get_trancount = 1, lambda self: 0
        wrapper.sql_server_version, wrapper.to_azure_sql_db = 2022, False
        spids = set()
        for _ in range(3):
            spids.add(one("SELECT spid"))
            connection.close()
        print(len(spids), connection.shared_pool.stats()["counters"]["opened"])
        """,
    )
    assert said == "1 1\n"
    assert [session.user for session in tds.sessions()] == ["sa"]


APPLICATION = """
import os
from django.conf import settings
settings.configure(
    DATABASES={"default": {
        "ENGINE": "mppool.integrations.django.postgresql", "NAME": os.environ["NAME"], "USER": "postgres",
        "HOST": "127.0.0.1", "PORT": os.environ["PORT"], "OPTIONS": {"pool": {"manager": "shop", "max_size": 5}},
    }},
    SECRET_KEY="x", ROOT_URLCONF="shop", ALLOWED_HOSTS=["*"], DEBUG=False,
)
import django
django.setup()
from django.core.handlers.wsgi import WSGIHandler
from django.core.handlers.asgi import ASGIHandler
from django.db import connection
from django.http import JsonResponse
from django.urls import path
from asgiref.sync import sync_to_async

def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42 FROM pg_sleep(0.02)")
        return {"answer": cursor.fetchone()[0], "pid": os.getpid()}

def index(request):
    return JsonResponse(query())

async def asynchronous(request):
    return JsonResponse(await sync_to_async(query)())

urlpatterns = [path("", index), path("async", asynchronous)]
wsgi, asgi = WSGIHandler(), ASGIHandler()
"""


@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_workers_and_threads_share_one_cap(
    server: str, postgresql: Database, runtime_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    port = free_port()
    environment = {
        **os.environ, "NAME": postgresql.name, "PORT": str(postgresql.port),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), sysconfig.get_path("purelib")]),
    }  # fmt: skip
    if server == "gunicorn":
        command = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "4", "--threads", "4",
                   *control_socket(tmp_path / "ctl"), "shop:wsgi"]  # fmt: skip
    else:
        command = [
            "-m",
            "uvicorn",
            "--workers",
            "4",
            "--port",
            str(port),
            "--lifespan",
            "off",
            "shop:asgi",
        ]
    address = "/" if server == "gunicorn" else "/async"
    with WebServer(
        [sys.executable, *command], directory=tmp_path, environment=environment, address=port
    ) as web:
        web.ask_until(address)
        with counted(postgresql) as seen, Load(web, address, threads=16) as load:
            load.more(60)
            if server == "gunicorn":
                wait_until(lambda: max(seen, default=0) >= CAP, "the whole capacity to be used")
            wait_until(lambda: len(load.pids) > 1, "several processes to answer")
            load.more(60)
        assert load.refused == []
    assert 2 <= max(seen) <= CAP
    PoolManager("shop").shutdown()


def test_runservers_reloader(postgres: dict[str, Any], tmp_path: Path) -> None:
    """Its parent never connects; the child that serves does, and a reload starts with a pool that is whole."""
    (tmp_path / "manage.py").write_text(
        APPLICATION.replace("DEBUG=False", "DEBUG=True, WSGI_APPLICATION='shop.wsgi'")
        + "\nif __name__ == '__main__':\n"
        "    from django.core.management import execute_from_command_line\n"
        "    execute_from_command_line()\n"
    )
    (tmp_path / "shop.py").write_text("from __main__ import *  # noqa\n")
    port = free_port()
    environment = {
        **os.environ, "NAME": postgres["NAME"], "PORT": str(postgres["PORT"]),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), sysconfig.get_path("purelib")]),
    }  # fmt: skip
    with WebServer(
        [sys.executable, "manage.py", "runserver", "--skip-checks", str(port)],
        directory=tmp_path, environment=environment, address=port,
    ) as web:  # fmt: skip
        first = web.ask_until("/")
        path = tmp_path / "manage.py"
        path.write_text(path.read_text() + "\n# changed\n")
        second = web.ask_until("/", lambda answer: answer["pid"] != first["pid"])
        assert second["answer"] == 42
    stats = PoolManager("shop").stats()
    assert json.dumps(stats)
    PoolManager("shop").shutdown()
