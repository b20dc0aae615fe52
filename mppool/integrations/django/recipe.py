"""How a connection of a Django backend is opened, given back clean, and checked."""

from __future__ import annotations

import hashlib
from types import ModuleType
from typing import Any

from mppool.dbapi.recipe import DbApiRecipe, shown
from mppool.recipe import Opening

_FINGERPRINT_KEY = b"mppool.integrations.django 1"

_CHECK_QUERIES = {"oracle": "SELECT 1 FROM DUAL"}


class DjangoRecipe(DbApiRecipe):
    """Opens connections as the backend does.

    template: a wrapper of that backend which is never used for anything else: connections may be opened in
        any thread, and a wrapper belongs to the thread whose connection it holds.
    """

    def __init__(self, template: Any) -> None:
        super().__init__(
            template.Database.connect,
            module=template.Database,
            check_query=_CHECK_QUERIES.get(template.vendor, "SELECT 1"),
        )
        self._template = template
        self._arguments.hide("password", template.settings_dict.get("PASSWORD"))

    @property
    def module(self) -> ModuleType:
        """The driver; mssql-django chooses between two when it connects."""
        driver: ModuleType = self._template.Database
        return driver

    def opened(self, connection: Any) -> None:
        """Nothing is noted: Django prepares a connection whenever it takes one."""

    def connect(self, opening: Opening) -> Any:
        """Have the backend connect, with the settings as they are now."""
        return self._template.get_new_connection(self._template.get_connection_params())

    def reset(self, connection: Any) -> None:
        """Roll back. Django sets the autocommit mode itself whenever it takes a connection."""
        self.roll_back(connection)
        if self._template.vendor == "sqlite":
            connection.execute("PRAGMA foreign_keys = ON")

    def describe(self, connection: Any) -> str:
        """Vendor, host and database."""
        settings = self._template.settings_dict
        named = [str(settings[name]) for name in ("HOST", "PORT", "NAME") if settings.get(name)]
        return " ".join((str(self._template.vendor), *named))

    def fingerprint(self) -> str:
        """A keyed hash of the settings that say what is opened."""
        settings = self._template.settings_dict
        said = {name: settings.get(name) for name in ("NAME", "HOST", "PORT", "USER", "PASSWORD")}
        options = {name: value for name, value in settings["OPTIONS"].items() if name != "pool"}
        text = shown({"ENGINE": self._template.vendor, **said, "OPTIONS": options})
        digest = hashlib.blake2b(
            text.encode("utf-8", errors="surrogatepass"), key=_FINGERPRINT_KEY, digest_size=16
        )
        return f"django:{digest.hexdigest()}"
