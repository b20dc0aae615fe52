"""Run as a process of its own: threads check out for random identities, and say to the session who they are.

    python -m tests.integrations.identities_under_load <connection string> <checkouts> <max_size> [too late]

The last line that it prints is JSON. Whether sessions were mixed up is for the TDS double to say.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import threading

from mppool import PoolManager
from mppool.azure import StaticToken
from mppool.odbc import OdbcRecipe
from tests import secrecy
from tests.secrecy import MARK

NAMES = ("alice", "bob", "carol", "dave", "erin", "frank")
THREADS = 4


class Named:
    """A credential of a class that nobody knows, for an identity that the application names."""

    def __init__(self, name: str) -> None:
        self._brought = StaticToken(token_of(name))

    def get_token(self, *scopes: str, **options: object) -> object:
        return self._brought.get_token(*scopes)


def token_of(name: str) -> str:
    return f"{MARK}-of-{name}"


def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    secrecy.install()
    string, checkouts, max_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if sys.argv[4:] == ["too late"]:
        import pyodbc

        pyodbc.drivers()  # now the driver manager has read that it shall pool
    manager = PoolManager("load")
    pool = manager.pool("load", OdbcRecipe(string, autocommit=True), max_size=max_size)
    brought = {name: StaticToken(token_of(name)) for name in NAMES[:3]}
    named = {name: Named(name) for name in NAMES[3:]}
    failures: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(checkouts):
                name = chance.choice(NAMES)
                if name in brought:
                    lease = pool.checkout(credential=brought[name])
                else:
                    lease = pool.checkout(identity=name, credential=named[name])
                with lease as connection:
                    said = connection.execute(f"SELECT '{name}'").fetchval()
                    assert said == name, (said, name)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = pool.stats()
    secrecy.WATCH.see_objects()
    failures += secrecy.WATCH.take()
    pool.close()
    manager.shutdown()
    print(json.dumps({"failures": failures, "counters": stats["counters"], "size": stats["size"]}))


if __name__ == "__main__":
    main()
