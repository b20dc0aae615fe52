"""Django looks here for the wrapper of the backend."""

from __future__ import annotations

from typing import Any

from mppool.integrations.django.pooling import SharedPoolMixin
from mppool.mssql import turn_pooling_off
from mppool.odbc import driver_manager

driver_manager.load()  # before mssql-django does, so that the driver manager's own pooling is off

from mssql import base  # noqa: E402


class DatabaseWrapper(SharedPoolMixin, base.DatabaseWrapper):  # type: ignore[misc]
    """mssql-django's own, with its connections from the pool."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Without the drivers' own pools."""
        # mssql-django knows mssql-python from 2.0 on.
        chosen = getattr(self, "_uses_mssql_python", None)
        if chosen is not None and chosen(conn_params):
            turn_pooling_off(base._load_mssql_python())
        return super().get_new_connection(conn_params)

    def get_connection_params(self) -> dict[str, Any]:
        """mssql-django takes the settings as they are."""
        params = super().get_connection_params()
        options = {name: value for name, value in params["OPTIONS"].items() if name != "pool"}
        return {**params, "OPTIONS": options}
