"""Pools for any driver that follows PEP 249: `DbApiRecipe`."""

from mppool.dbapi.recipe import DbApiRecipe
from mppool.dbapi.sessions import sqlstate_is_dead

__all__ = ["DbApiRecipe", "sqlstate_is_dead"]
