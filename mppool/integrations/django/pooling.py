"""What the backends have in common: a DatabaseWrapper that takes its connection from a pool of all processes.

A wrapper belongs to one thread, and has a connection from `connect` until `close`; with a pool that is one
request, for persistent connections are refused. So a wrapper holds a lease from `get_new_connection` until
`_close`.
"""

from __future__ import annotations

import copy
import os
import re
import threading
import weakref
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS

from mppool.base_manager import Manager
from mppool.errors import ConfigurationError, ConfigurationMismatch, OpenFailed, PoolError
from mppool.integrations.django.recipe import DjangoRecipe
from mppool.manager import PoolManager
from mppool.process.fork import call_in_children
from mppool.worker.pool import Pool

# Of all threads; the lock guards both. Taken while a pool is declared, which does no I/O.
_declaring = threading.Lock()
_managers: dict[str, PoolManager] = {}
_pools: dict[tuple[int, str, str], tuple[Pool[Any], Any]] = {}

_wrappers: weakref.WeakSet[SharedPoolMixin] = weakref.WeakSet()

_DRAIN_S = 10.0

_COPIED = ("isolation_level", "Database", "_use_python_driver")
"""What some backends note on the wrapper when they connect."""


class SharedPoolMixin:
    """In front of a backend's DatabaseWrapper."""

    # Of Django's own classes.
    alias: str
    connection: Any
    settings_dict: dict[str, Any]
    Database: Any
    wrap_database_errors: Any

    may_be_hosted = False
    """Whether this backend can drive connections that are in a host."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._lease: Any = None
        self.is_hosted = False
        self._is_template = False
        self._found: tuple[Any, Pool[Any], Any] | None = None
        _wrappers.add(self)

    # --- the pool -----------------------------------------------------------------------------------------

    @property
    def pool(self) -> Any:
        """Django's own pool of this process: there is none."""
        return None

    @property
    def is_pool(self) -> bool:
        """Whether Django's own pool of Oracle is used: never."""
        return False

    @property
    def shared_pool(self) -> Pool[Any] | None:
        """The pool of all processes; None where connections are the wrapper's own.

        That is so without OPTIONS["pool"], for an SQLite database in memory, and for the connections without
        a database that make and drop test databases. Raises ImproperlyConfigured.
        """
        found = self._find_pool()
        return None if found is None else found[0]

    def _find_pool(self) -> tuple[Pool[Any], Any] | None:
        settings = self.settings_dict
        options = settings["OPTIONS"].get("pool")
        if self._is_template or not options or self.alias == NO_DB_ALIAS or not settings["NAME"]:
            return None
        in_memory = getattr(self, "is_in_memory_db", None)
        if in_memory is not None and in_memory():
            return None
        where = tuple(settings.get(name) for name in ("NAME", "HOST", "PORT", "USER", "PASSWORD"))
        if self._found is None or self._found[0] != where:
            self._found = (where, *self._declare(options))
        return self._found[1:]

    def _declare(self, options: Any) -> tuple[Pool[Any], Any]:
        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured("Pooling doesn't support persistent connections.")
        template = self.as_template()
        given = {} if options is True else dict(options)
        manager = _manager(given.pop("manager", None))
        name = given.pop("name", self.alias)
        if self.settings_dict.get("CONN_HEALTH_CHECKS"):
            given.setdefault("check_idle_for", 0.0)
        recipe = self._recipe_of(template, given.get("placement") == "host")
        key = (id(manager), name, recipe.fingerprint())
        with _declaring:
            if key not in _pools:
                # A test database is another one than that of the settings: a pool of its own.
                taken = any(one[:2] == key[:2] for one in _pools)
                if taken:
                    name = f"{name}-{recipe.fingerprint()[-8:]}"
                try:
                    _pools[key] = manager.pool(name, recipe, **given), template
                except (ConfigurationError, ConfigurationMismatch) as error:
                    raise ImproperlyConfigured(
                        f"DATABASES[{self.alias!r}]['OPTIONS']['pool']: {error}"
                    ) from error
            return _pools[key]

    def _recipe_of(self, template: Any, in_hosts: bool) -> DjangoRecipe:
        if not in_hosts:
            return DjangoRecipe(template)
        if not self.may_be_hosted:
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['OPTIONS']['pool']: placement='host' is offered for SQLite, and for "
                "PostgreSQL with psycopg 3; leave placement out"
            )
        from mppool.integrations.django.hosted import HostedDjangoRecipe

        return HostedDjangoRecipe(template)

    def as_template(self) -> Any:
        """Another wrapper of the same database, that connects by itself."""
        template = type(self)(_copied(self.settings_dict), self.alias)
        template._is_template = True
        return template

    def serve_workers(self) -> None:
        """In a host: what else workers need of this connection."""

    # --- what Django calls --------------------------------------------------------------------------------

    def get_connection_params(self) -> dict[str, Any]:
        """Without what is meant for the pool."""
        params: dict[str, Any] = super().get_connection_params()  # type: ignore[misc]
        params.pop("pool", None)
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Take a connection from the pool. Raises the driver's errors, which Django makes its own."""
        found = self._find_pool()
        if found is None:
            return super().get_new_connection(conn_params)  # type: ignore[misc]
        pool, template = found
        try:
            lease = pool.checkout()
            connection = lease.resource
        except PoolError as error:
            failure = error
        else:
            self._lease = lease
            self.is_hosted = pool.options.placement == "host" and _is_hosted(lease)
            for name in _COPIED:
                if name in vars(template):
                    setattr(self, name, getattr(template, name))
            return connection
        # Outside of the handler: Django's users know Django's errors, which come of the driver's.
        cause = failure.__cause__
        if isinstance(failure, OpenFailed) and isinstance(cause, Exception):
            raise cause
        raise self.Database.OperationalError(str(failure)) from failure

    def _close(self) -> None:
        lease, self._lease, self.is_hosted = self._lease, None, False
        if lease is None:
            super()._close()  # type: ignore[misc]
            return
        # Somebody else may have it from now on, so nothing may refer to it: see Django's own pools.
        self.connection = None
        with self.wrap_database_errors:
            lease.release()

    def _set_autocommit(self, autocommit: bool) -> None:
        # Each request sets it; a host says with the lease what it is.
        if not self.is_hosted or self._lease.commits is not autocommit:
            super()._set_autocommit(autocommit)  # type: ignore[misc]

    def init_connection_state(self) -> None:
        """A host has done that when it connected."""
        if not self.is_hosted:
            super().init_connection_state()  # type: ignore[misc]

    def close_if_health_check_failed(self) -> None:
        """The pool has checked it."""
        if self._lease is None:
            super().close_if_health_check_failed()  # type: ignore[misc]

    def close_pool(self) -> None:
        """Close what this process holds idle: before a database is copied or dropped, or a time zone changes."""
        found = self._find_pool()
        if found is not None:
            found[0].close_idle()
            if found[0].options.placement == "host":
                found[0].drain(_DRAIN_S)

    def _forget_parents_connection(self) -> None:
        """In a forked child: the connection is the parent's, and so is its transaction."""
        if self._lease is not None:
            self._lease, self.is_hosted = None, False
            self.connection = None
            if self.in_atomic_block:  # type: ignore[attr-defined]
                self.closed_in_transaction = True
                self.needs_rollback = True


def _forget_in_child() -> None:
    global _declaring
    _declaring = threading.Lock()
    for wrapper in list(_wrappers):
        wrapper._forget_parents_connection()


call_in_children(_forget_in_child)


def _is_hosted(lease: Any) -> bool:
    from mppool.integrations.django.hosted import is_hosted

    return is_hosted(lease)


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings for a template: what Django changes in those of a wrapper (test databases) is not meant for it."""
    options = {name: value for name, value in settings["OPTIONS"].items() if name != "pool"}
    return {**settings, "OPTIONS": copy.copy(options)}


def _manager(named: Any) -> Manager:
    if isinstance(named, Manager):
        return named
    if named is None:
        named = re.sub(r"[^A-Za-z0-9._-]", "-", os.environ.get("DJANGO_SETTINGS_MODULE", "django"))[
            :64
        ]
    with _declaring:
        if named not in _managers:
            try:
                _managers[named] = PoolManager(named)
            except ConfigurationError as error:
                raise ImproperlyConfigured(f"OPTIONS['pool']['manager']: {error}") from error
        return _managers[named]
