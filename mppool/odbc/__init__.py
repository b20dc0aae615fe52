"""ODBC connections for a pool, through pyodbc (the extra `mppool[odbc]`).

    recipe.py              OdbcRecipe: open, reset, check and close one connection
    connection_string.py   the grammar of connection strings, keeping secrets out of messages
    driver_manager.py      pyodbc on first use, with the driver manager's own pooling off

Importing this package imports neither pyodbc nor libodbc: a recipe can be declared anywhere.
"""

from mppool.odbc.recipe import OdbcRecipe

__all__ = ["OdbcRecipe"]
