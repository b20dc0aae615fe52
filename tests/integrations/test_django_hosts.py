"""Django over hosts: a project of its own, its workers, and what ends."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from tests.helpers import ROOT, free_port
from tests.integrations.postgresql import Database
from tests.integrations.test_django import say, settings_of
from tests.integrations.test_sqlalchemy_pages import counted
from tests.integrations.webserver import Load, WebServer, control_socket

SETTINGS = """
SECRET_KEY = "x"
USE_TZ = True
TIME_ZONE = "Europe/Vienna"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "orders"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "urls"
ALLOWED_HOSTS = ["*"]
DATABASES = {{"default": {database!r}}}
"""

MODELS = """
from django.db import models

class Order(models.Model):
    name = models.CharField(max_length=30, unique=True, db_index=True)
    price = models.DecimalField(max_digits=10, decimal_places=2, default=0)
    at = models.DateTimeField(null=True)
    day = models.DateField(null=True)
    details = models.JSONField(default=dict)
    number = models.UUIDField(null=True)
    blob = models.BinaryField(default=b"")

    class Meta:
        constraints = [models.CheckConstraint(condition=~models.Q(name="100%"), name="no_percent")]
"""

URLS = """
import os
from django.core.handlers.wsgi import WSGIHandler
from django.http import JsonResponse
from django.urls import path
from django.db import connection

def index(request):
    from orders.models import Order
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42 FROM pg_sleep(0.01)")
        answer = cursor.fetchone()[0]
    return JsonResponse({"answer": answer, "orders": Order.objects.count(), "pid": os.getpid()})

urlpatterns = [path("", index)]
"""

WSGI = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "project_settings"
import django
django.setup()
from django.core.handlers.wsgi import WSGIHandler
application = WSGIHandler()
"""


def environment(project: Path) -> dict[str, str]:
    search_path = [str(project), str(ROOT), sysconfig.get_path("purelib")]
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "project_settings",
        "PYTHONPATH": os.pathsep.join(search_path),
    }


def run(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=["sqlite3", "postgresql"])
def database(request: pytest.FixtureRequest, runtime_dir: Path, tmp_path: Path) -> dict[str, Any]:
    pool = {
        "manager": "shop", "max_size": 2, "timeout": 30.0, "placement": "host", "values": "pickle",
    }  # fmt: skip
    if request.param == "sqlite3":
        return settings_of("sqlite3", pool, NAME=str(tmp_path / "shop.db"))
    found: Database = request.getfixturevalue("postgresql")
    return settings_of(
        "postgresql", pool, NAME=found.name, USER="postgres", HOST="127.0.0.1", PORT=found.port
    )


@pytest.fixture
def project(database: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "project_settings.py").write_text(SETTINGS.format(database=database))
    (tmp_path / "urls.py").write_text(URLS)
    (tmp_path / "wsgi.py").write_text(WSGI)
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "__init__.py").write_text("")
    (tmp_path / "orders" / "models.py").write_text(MODELS)
    return tmp_path


HEAD = """
import datetime as dt, os, signal, uuid
from decimal import Decimal
import django
django.setup()
from django.db import connection, transaction
from django.db.utils import IntegrityError, OperationalError
from orders.models import Order
"""

USES = """
from django.core.management import call_command
call_command("makemigrations", "orders", verbosity=0)
call_command("migrate", verbosity=0)
assert connection.is_hosted
vienna = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.timezone.utc)
number = uuid.uuid4()
Order.objects.create(
    name="a", price=Decimal("12.50"), at=vienna, day=vienna.date(), details={"n": [1, "%s"]}, number=number, blob=b"\\0x",
)
found = Order.objects.get(name="a")
assert (found.price, found.at, found.day) == (Decimal("12.50"), vienna, vienna.date())
assert (found.details, found.number, bytes(found.blob)) == ({"n": [1, "%s"]}, number, b"\\0x")
assert Order.objects.filter(details__n__0=1, name__iregex="^A$").count() == 1

# Transactions and savepoints.
try:
    with transaction.atomic():
        Order.objects.create(name="lost")
        Order.objects.create(name="a")
except IntegrityError:
    pass
with transaction.atomic():
    Order.objects.create(name="b")
    try:
        with transaction.atomic():
            Order.objects.create(name="c")
            Order.objects.create(name="b")
    except IntegrityError:
        pass
    Order.objects.create(name="d")
try:
    Order.objects.create(name="100%")
except IntegrityError:
    pass
else:
    raise AssertionError("the constraint does not hold")
assert [order.name for order in Order.objects.order_by("name")] == ["a", "b", "d"]
Order.objects.bulk_create([Order(name=f"many {n}") for n in range(500)])
assert sum(1 for _ in Order.objects.iterator(chunk_size=100)) == 503
with connection.cursor() as cursor:
    cursor.executemany("UPDATE orders_order SET price = %s WHERE name = %s", [(1, "b"), (2, "d")])
    cursor.execute("SELECT name, price FROM orders_order WHERE name < %s AND name <> '%%' ORDER BY name", ["c"])
    assert [row[0] for row in cursor] == ["a", "b"]
with transaction.atomic():
    assert Order.objects.select_for_update().get(name="b").price == 1

# The end of a request gives back, and what is open is rolled back.
transaction.set_autocommit(False)
Order.objects.create(name="open")
pool = connection.shared_pool
assert pool.stats()["in_use"] == 1
django.db.close_old_connections()
connection.close()
assert connection.connection is None
assert not Order.objects.filter(name="open").exists()
assert connection.get_autocommit()
connection.close()
figures = pool.stats()
assert figures["counters"]["opened"] == 1, figures["counters"]
print("right")
"""

KILLED = """
def kill():
    host = connection.connection._hold.stream.host_pid
    os.kill(host, signal.SIGKILL)
    while True:
        try:
            os.kill(host, 0)
        except ProcessLookupError:
            return

Order.objects.count()
kill()
try:
    Order.objects.count()
except OperationalError as error:
    print("is gone" in str(error))
connection.close()
Order.objects.count()
try:
    with transaction.atomic():
        Order.objects.create(name="x")
        kill()
        Order.objects.create(name="y")
except OperationalError:
    print("again")
assert not Order.objects.filter(name="x").exists()
kill()
django.db.close_old_connections()
connection.close()
print(Order.objects.exists())
connection.close()
"""


def test_a_project_over_hosts(project: Path) -> None:
    (project / "uses.py").write_text(HEAD + USES + KILLED)
    assert run(project, "uses.py") == "right\nTrue\nagain\nTrue\n"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_workers_share_the_connections_of_hosts(project: Path, postgresql: Database) -> None:
    run(project, "-c", HEAD + "from django.core.management import call_command\n"
        "call_command('makemigrations', 'orders', verbosity=0)\ncall_command('migrate', verbosity=0)")  # fmt: skip
    port = free_port()
    command = [
        sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "3", "--threads", "2",
        *control_socket(project / "ctl"), "wsgi:application",
    ]  # fmt: skip
    with WebServer(
        command, directory=project, environment=environment(project), address=port
    ) as web:
        web.ask_until("/")
        with counted(postgresql) as seen, Load(web, "/", threads=8) as load:
            load.more(30)
        assert load.refused == []
    assert 1 <= max(seen) <= 2
    PoolManager("shop").shutdown()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_test_databases_are_made_used_and_dropped(database: dict[str, Any]) -> None:
    said = say(
        database,
        """
        production = connection.settings_dict["NAME"]
        one()
        connection.close()
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        assert one("SELECT current_database()") == "test_" + production
        assert connection.is_hosted
        connection.creation.destroy_test_db(production, verbosity=0)
        print(one("SELECT current_database()") == production)
        connection.close()
        """,
    )
    assert said == "True\n"


def test_other_backends_say_that_they_are_not_offered(runtime_dir: Path) -> None:
    database = settings_of("oracle", {"manager": "shop", "placement": "host"}, NAME="x")
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
    assert "offered for SQLite, and for PostgreSQL" in said
