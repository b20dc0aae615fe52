"""What a DB-API connection answers to a number of questions, as a list that can be compared."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable
from typing import Any

CHECKS: list[Callable[..., Any]] = []


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    CHECKS.append(function)
    return function


def transcript(
    connection: Any, mark: str, types: dict[str, str], besides: tuple[str, ...] = ()
) -> list[Any]:
    """mark: of parameters, "?" or "%s". types: what the database calls the types that it has. besides: not asked."""
    ask = Ask(connection, mark, types)
    ask.prepare()
    said = []
    for one in CHECKS:
        if one.__name__ in besides:
            continue
        try:
            outcome = shown(one(ask))
        except Exception as error:
            outcome = [type(error).__name__, shown(list(error.args))]
        said.append((one.__name__, outcome))
        try:
            connection.rollback()
        except Exception as error:
            said.append((one.__name__, type(error).__name__))
    return said


def shown(value: Any) -> Any:
    """Values with their types; rows as lists, whatever they are made of."""
    if type(value) in (list, tuple) or hasattr(value, "cursor_description"):
        return [shown(one) for one in value]
    if isinstance(value, type):
        return value.__name__
    return (type(value).__name__, repr(value))


class Ask:
    def __init__(self, connection: Any, mark: str, types: dict[str, str]) -> None:
        self.connection = connection
        self.mark = mark
        self.types = types

    def sql(self, text: str) -> str:
        return text.replace("?", self.mark)

    def prepare(self) -> None:
        cursor = self.connection.cursor()
        columns = ", ".join(f"{name} {kind}" for name, kind in self.types.items())
        cursor.execute(f"create temporary table t (id int primary key, {columns})")
        cursor.execute("create temporary table many (id int, name varchar(50))")
        cursor.executemany(
            self.sql("insert into many values (?, ?)"), [(n, f"name {n}") for n in range(300)]
        )
        self.connection.commit()
        cursor.close()


@check
def rows(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    cursor.execute("select id, name from many order by id")
    first = cursor.fetchone()
    iterator = cursor if hasattr(cursor, "__next__") else iter(cursor)  # psycopg before 3.3
    return [
        first, cursor.fetchmany(2), cursor.fetchmany(100), next(iterator), len(list(cursor)), cursor.fetchone(),
        cursor.fetchmany(3), cursor.fetchall(), cursor.description, first[0], first[-1], first[0:1], len(first),
    ]  # fmt: skip


@check
def all_rows(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    cursor.execute(ask.sql("select id, name from many where id < ? order by id"), (70,))
    return [cursor.rowcount, cursor.fetchall()]


@check
def no_rows(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    cursor.execute("select id from many where id < 0")
    return [cursor.fetchone(), cursor.fetchall(), list(cursor), cursor.description]


@check
def default_of_fetchmany(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    before = cursor.arraysize
    cursor.execute("select id from many order by id")
    one = cursor.fetchmany()
    cursor.arraysize = 4
    return [before, len(one), len(cursor.fetchmany()), cursor.arraysize]


@check
def counts(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    cursor.execute("update many set name = 'x' where id < 7")
    changed = cursor.rowcount
    cursor.execute(ask.sql("delete from many where id = ?"), (1,))
    return [changed, cursor.rowcount, cursor.description]


@check
def transactions(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    cursor.execute("delete from many where id >= 200")
    ask.connection.rollback()
    cursor.execute("select count(*) from many")
    kept = cursor.fetchone()[0]
    cursor.execute("delete from many where id >= 290")
    ask.connection.commit()
    ask.connection.rollback()
    cursor.execute("select count(*) from many")
    return [kept, cursor.fetchone()[0]]


@check
def wrong_statement(ask: Ask) -> Any:
    ask.connection.cursor().execute("selekt nothing")


@check
def twice_the_same_key(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    for _ in range(2):
        cursor.execute(ask.sql("insert into t (id) values (?)"), (5,))


@check
def too_few_parameters(ask: Ask) -> Any:
    ask.connection.cursor().execute(ask.sql("select ?, ?"), (1,))


@check
def fetch_without_a_result(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    cursor.execute("update many set name = 'y' where id < 3")
    return cursor.fetchall()


@check
def fetch_before_anything(ask: Ask) -> Any:
    return ask.connection.cursor().fetchone()


@check
def closed_cursor(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    cursor.execute("select 1")
    cursor.fetchall()
    cursor.close()
    return cursor.execute("select 1")


@check
def cursor_closed_early(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    cursor.execute("select id from many")
    cursor.fetchone()
    cursor.close()
    return cursor.fetchone()


@check
def two_cursors(ask: Ask) -> Any:
    one, two = ask.connection.cursor(), ask.connection.cursor()
    one.execute("select id from many where id < 3 order by id")
    first = one.fetchone()
    two.execute("select name from many where id = 5")
    return [first, two.fetchone(), one.fetchone(), two.fetchone(), one.fetchall()]


@check
def nothing_of_that_name(ask: Ask) -> Any:
    return ask.connection.nothing


@check
def setinputsizes(ask: Ask) -> Any:
    cursor = ask.connection.cursor()
    cursor.setinputsizes([])
    cursor.execute(ask.sql("select ?"), (1,))
    return cursor.fetchone()


VALUES = {
    "whole": [0, -1, 2**31, 2**62, None],
    "text": ["", "plain", "\u00e4\u4e2d\U0001f600", "x" * 5000, None],
    "number": [1.5, -0.0, None],
    "bytes": [b"", b"\0\1\xff", None],
    "exact": [decimal.Decimal("1.10"), decimal.Decimal("-12345678901234567890.12345"), None],
    "stamp": [dt.datetime(2026, 1, 2, 3, 4, 5, 678000), None],  # noqa: DTZ001
    "zoned": [dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc), None],
    "day": [dt.date(2026, 2, 3), None],
    "hour": [dt.time(4, 5, 6), None],
    "guid": [uuid.UUID(int=7), None],
    "yes": [True, False, None],
}


def _values(name: str) -> Callable[[Ask], Any]:
    def run(ask: Ask) -> Any:
        if name not in ask.types:
            return None
        cursor = ask.connection.cursor()
        for number, value in enumerate(VALUES[name]):
            cursor.execute(ask.sql(f"insert into t (id, {name}) values (?, ?)"), (number, value))
        cursor.execute(f"select {name} from t order by id")
        return [cursor.fetchall(), cursor.description]

    run.__name__ = f"values_{name}"
    return run


CHECKS.extend(map(_values, VALUES))
