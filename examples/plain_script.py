"""A script that uses a pool. Start it as often as you like: all of them share two connections."""

import os

from mppool import PoolManager
from mppool.odbc import OdbcRecipe

database = os.environ.get("SHOP_DATABASE", "shop.db")
manager = PoolManager("shop")
orders = manager.pool("orders", OdbcRecipe(f"Driver=SQLite3;Database={database}"), max_size=2)


def main() -> None:
    with orders.checkout(timeout=10.0) as connection:
        connection.execute("create table if not exists orders (article text, pieces integer)")
        connection.execute("insert into orders values (?, ?)", ("apples", 3))
        connection.commit()  # what is not committed is rolled back when the lease ends
    with orders.checkout(timeout=10.0) as connection:
        pieces = connection.execute("select sum(pieces) from orders").fetchval()
    print(f"{pieces} pieces ordered; connections opened here: {orders.stats()['size']}")


if __name__ == "__main__":
    main()
