"""One pool for the children of concurrent.futures and multiprocessing, whatever the start method.

A pool may be sent to a child like any argument: it travels as its name, its options and its recipe.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pyodbc

from mppool import Pool, PoolManager
from mppool.odbc import OdbcRecipe

database = os.environ.get("SHOP_DATABASE", "shop.db")
manager = PoolManager("shop")
orders = manager.pool("orders", OdbcRecipe(f"Driver=SQLite3;Database={database}"), max_size=2)


def square(number: int) -> int:
    """Runs in a child: its module-level pool is the same pool as its parent's."""
    with orders.checkout(timeout=10.0) as connection:
        return int(connection.execute("select ? * ?", (number, number)).fetchval())


def print_cube(pool: Pool[pyodbc.Connection], number: int) -> None:
    """Runs in a child that was given the pool."""
    with pool.checkout(timeout=10.0) as connection:
        cube = connection.execute("select ? * ? * ?", (number,) * 3).fetchval()
    print(f"{number} cubed is {cube}", flush=True)


def main() -> None:
    with ProcessPoolExecutor(max_workers=4) as executor:
        print("squares:", list(executor.map(square, range(10))))
    for context in (multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")):
        child = context.Process(target=print_cube, args=(orders, 3))
        child.start()
        child.join()


if __name__ == "__main__":
    main()
