"""DbApiRecipe: how a connection of any PEP 249 driver is opened, given back clean, checked and closed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from mppool.dbapi import autocommit as mode
from mppool.dbapi.arguments import Arguments
from mppool.dbapi.ending import end_sessions
from mppool.dbapi.labels import LONGEST_APPLICATION, takes_application_name
from mppool.dbapi.secrets import scrubbed, without
from mppool.dbapi.sessions import cancel, is_closed, is_dead, module_of, refuses_login
from mppool.dbapi.settings import Settings
from mppool.dbapi.statements import leaves_behind
from mppool.dbapi.survey import database_of, survey
from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.recipe import Opening, Recipe, Survey, checked_flag
from mppool.secret import Asked, log_in

logger = Log("mppool.dbapi")


class DbApiRecipe(Recipe[Any]):
    """Opens connections with the `connect` function of any driver that follows PEP 249.

    connect: the driver's function, such as `psycopg.connect`, `pymysql.connect`, `sqlite3.connect`.
    args, kwargs: what it is called with. A `mppool.Secret` among them, and a callable for a user, a password, a token
        or a connection string, is asked when a connection is opened. Where a login is refused with what it has
        said, it is asked once more before the attempt counts as failed. What it says is not part of the pool's key.
    check_query: what `check` executes.
    autocommit: mode of a fresh connection, and again after each lease; None: the one that `connect` gives.
    label_sessions: PostgreSQL shows each session under application (the manager's name), pool and pid, as
        `application_name` of pg_stat_activity, unless the arguments or $PGAPPNAME name one. False: it does not.
    module: the driver, where it cannot be told from `connect` (a function of the application's own).

    On release an open transaction is rolled back, and the autocommit mode, a query timeout and, where the driver
    has them, encodings and output converters are put back as `open` and `configure` have left them. Other settings
    of the session (`SET`, temporary tables) stay: override `reset`, call this one, and undo them; or give the
    pool `guard=True`, which sees them and closes the connection.

    Connections go from thread to thread, one at a time, so `check_same_thread` of sqlite3 is False unless
    it is given. Raises ConfigurationError for what can be seen at once to be unusable. Opening raises the
    driver's error with secrets taken out. Secrets are not in `repr`; a pickled recipe holds those that were given as text.
    """

    def __init__(
        self,
        connect: Callable[..., Any],
        *args: Any,
        check_query: str = "SELECT 1",
        autocommit: bool | None = None,
        module: ModuleType | None = None,
        label_sessions: bool = True,
        **kwargs: Any,
    ) -> None:
        if not callable(connect):
            raise ConfigurationError(
                f"connect is {_named(connect)}; give the driver's function, such as sqlite3.connect"
            )
        if not isinstance(connect, type) and callable(getattr(connect, "cursor", None)):
            # Some can be called: sqlite3's is.
            raise ConfigurationError(
                "connect is an open connection; give the function and its arguments apart: "
                "DbApiRecipe(sqlite3.connect, 'shop.db')"
            )
        if autocommit is not None and not isinstance(autocommit, bool):
            raise ConfigurationError(
                f"autocommit is {autocommit!r}; allowed are True, False and None"
            )
        if not isinstance(check_query, str) or not check_query.strip():
            raise ConfigurationError(
                f"check_query is {check_query!r}; give a statement, such as 'SELECT 1'"
            )
        found = module or module_of(connect)
        if found is None:
            raise ConfigurationError(
                f"no PEP 249 module is known for {connect!r:.80}; give it: DbApiRecipe(..., module=psycopg)"
            )
        if not isinstance(getattr(found, "Error", None), type):
            raise ConfigurationError(
                f"module={found.__name__} is not a PEP 249 module: it has no Error"
            )
        if found.__name__ == "sqlite3":
            kwargs.setdefault("check_same_thread", False)
        self._connect = connect
        self._check_query = check_query
        self._autocommit = autocommit
        self._mode: Any = autocommit
        # By id, for not all drivers' connections can be referred to weakly. An entry ends with `close`, or with
        # the next connection at the address.
        self._left: dict[int, Settings] = {}
        self._arguments = Arguments(args, kwargs)
        self._labels = checked_flag("label_sessions", label_sessions)
        # By name: modules do not pickle.
        self._module_name = found.__name__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._module_name}, {', '.join(self._arguments.keywords)})"

    @property
    def module(self) -> ModuleType:
        """The driver."""
        import importlib

        return importlib.import_module(self._module_name)

    def open(self, opening: Opening) -> Any:
        """Connect. Raises the driver's error without secrets."""
        outcome: Any = log_in(
            opening, lambda: self.ask(opening), partial(self._attempt, opening), self.refuses_login
        )
        opening.asked = None
        if isinstance(outcome, Exception):
            # Outside of the handler: in it the original, with all its text, would be this one's __context__.
            raise scrubbed(outcome, self._arguments.secrets)
        self._take_mode(outcome)
        return outcome

    def ask(self, opening: Opening) -> Asked:
        """Ask all callables. `connect` finds the answers in `opening.asked`."""
        return self._arguments.ask()

    def _attempt(self, opening: Opening, asked: Any) -> Any:
        opening.asked = asked
        try:
            return self.connect(opening)
        except Exception as error:  # noqa: BLE001  # raised by `open`, without secrets
            return error

    def refuses_login(self, error: Exception) -> bool:
        """Whether the driver says so: see sessions.py."""
        return refuses_login(error)

    def opened(self, connection: Any) -> None:
        """Note how the connection is, so that it is so again after each lease."""
        self._left[id(connection)] = Settings(connection, self.module)

    def leaves_behind(self, name: str, arguments: tuple[Any, ...]) -> bool:
        """See Recipe.leaves_behind."""
        if name == "set_attr":
            return True
        if (
            name not in ("execute", "executemany", "executescript", "batch_execute")
            or not arguments
        ):
            return False
        first = arguments[0]
        statements = first if isinstance(first, list) else [first]
        return any(leaves_behind(one, resets=False) for one in statements)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_left": {}}

    def connect(self, opening: Opening) -> Any:
        """Call the driver's function. For recipes that add to its arguments at each opening."""
        args, kwargs = self.arguments(opening)
        return self._connect(*args, **kwargs)

    def arguments(self, opening: Opening) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the driver's function is called with for this opening: callables have been asked."""
        asked = opening.asked or self._arguments.ask()
        kwargs = dict(asked.kwargs)
        if (
            self._labels
            and opening.label
            and takes_application_name(self._module_name, asked.args, kwargs)
        ):
            kwargs["application_name"] = opening.label[-LONGEST_APPLICATION:]
        return asked.args, kwargs

    def reset(self, connection: Any) -> None:
        """Roll back, and put back what `open` and `configure` have left, overridden or not.

        Raises the driver's error if that fails, ConnectionError if it does because the session is dead.
        """
        # Before autocommit is touched: turning it on commits.
        self.roll_back(connection)
        try:
            left = self._left.get(id(connection))
            if left is not None:
                left.put_back(connection)
            elif mode.read(connection) != self._mode:
                mode.write(connection, self._mode)
        except self.module.Error as error:
            self._raise_if_dead(error, connection)
            raise

    def roll_back(self, connection: Any) -> None:
        """Roll back. Raises the driver's error, or ConnectionError if the session is dead."""
        try:
            connection.rollback()
        except self.module.Error as error:
            self._raise_if_dead(error, connection)
            raise

    def check(self, connection: Any) -> bool:
        """True if the check query can be executed.

        An error of the query itself says nothing about the connection, and is raised. ConnectionError if the
        session is dead: whatever ended it has likely ended the others too, so the pool replaces all of them.
        """
        module = self.module
        try:
            cursor = connection.cursor()
            try:
                cursor.execute(self._check_query)
                if cursor.description is not None:
                    cursor.fetchall()
            finally:
                cursor.close()
            # Else the check itself would leave a transaction open, for as long as the connection is idle.
            connection.rollback()
        except module.Error as error:
            self._raise_if_dead(error, connection)
            if isinstance(error, (module.ProgrammingError, module.NotSupportedError)):
                raise
            logger.info(
                "%s does not answer: %s",
                self.describe(connection),
                without(str(error), self._arguments.secrets),
            )
            return False
        return True

    def survey(self, connection: Any, prefix: str) -> Survey | None:
        """See Recipe: of PostgreSQL, MySQL, MariaDB and SQL Server, where the user may look."""
        return survey(connection, database_of(self._module_name), prefix)

    def end_sessions(self, connection: Any, labels: Sequence[str], older_than_s: float) -> int:
        """See Recipe: of PostgreSQL, where sessions bear labels."""
        database = database_of(self._module_name) if self._labels else ""
        return end_sessions(connection, database, labels, older_than_s)

    def cancel(self, connection: Any) -> bool:
        """Have the statement that runs in another thread end with an error; False where the driver cannot."""
        return cancel(connection)

    def close(self, connection: Any) -> None:
        """Close the connection, unless that has happened already."""
        self._left.pop(id(connection), None)
        if is_closed(connection):
            return
        try:
            connection.close()
        except self.module.Error as error:
            if not is_dead(error, connection):
                raise
            logger.debug("%s had ended already", self.describe(connection), exc_info=True)

    def describe(self, connection: Any) -> str:
        """The driver, and what the arguments name: host, port, database."""
        wanted = ("host", "server", "port", "dbname", "database", "db")
        named = [self._arguments.named(name) for name in wanted]
        return " ".join((self._module_name, *filter(None, named)))

    def fingerprint(self) -> str:
        """A keyed hash of the function and of its arguments."""
        digest = hashlib.blake2b(person=b"mppool.dbapi", digest_size=16)
        for part in (
            self._module_name,
            shown(self._connect),
            *self._arguments.described(shown),
            *self.opens(),
        ):
            encoded = part.encode("utf-8", errors="surrogatepass")
            digest.update(struct.pack("<Q", len(encoded)) + encoded)
        return f"dbapi:{digest.hexdigest()}"

    def opens(self) -> list[str]:
        """What else tells apart what is opened; only ever hashed. For recipes with arguments of their own."""
        return []

    def _take_mode(self, connection: Any) -> None:
        if self._autocommit is not None and mode.read(connection) != self._autocommit:
            mode.write(connection, self._autocommit)
        self._mode = mode.read(connection)  # that of all: they are opened the same way

    def _raise_if_dead(self, error: Exception, connection: Any) -> None:
        if is_dead(error, connection):
            raise ConnectionError(without(str(error), self._arguments.secrets)) from None


def _named(value: object) -> str:
    return f"the module {value.__name__}" if isinstance(value, ModuleType) else type(value).__name__


def shown(value: object, opaque: Callable[[object], str] | None = None) -> str:
    """An argument as a text that is equal in all processes. Only ever hashed: it may be a secret.

    opaque: says something else than the type of what cannot be looked into.
    """
    if value is None or isinstance(value, str | bytes | int | float):
        return repr(value)
    if isinstance(value, Mapping):
        items = sorted((str(key), shown(item, opaque)) for key, item in value.items())
        return f"{{{','.join(f'{key}:{item}' for key, item in items)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(shown(item, opaque) for item in value)}]"
    if isinstance(value, partial):
        return f"partial({shown([value.func, value.args, value.keywords], opaque)})"
    if isinstance(value, type):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        held = [value.__defaults__, value.__kwdefaults__, cells]
        return f"{value.__module__}:{value.__qualname__}{shown(held, opaque) if any(held) else ''}"
    if isinstance(value, MethodType):
        return f"{value.__func__.__qualname__} of {shown(value.__self__, opaque)}"
    if isinstance(value, BuiltinFunctionType):
        return f"{value.__module__}:{value.__qualname__}"
    return (
        f"{type(value).__module__}:{type(value).__qualname__}" if opaque is None else opaque(value)
    )
