"""`mppool demo`: a real gunicorn, a real database, real load, and things that go wrong.

    load.py ---- HTTP ----> gunicorn: application.py ----> the database, at most `cap` connections
                              |  each open and close
    result.py <-----------  witness.py, a process that counts, and observers.py, which look

- kinds.py        what it can show: threads, hosts, SQLAlchemy, asyncio
- stage.py        a temporary directory for everything, and its end
- web_server.py   gunicorn as users start it
- acts.py         a worker is killed, then the server, then gunicorn gets HUP
- screen.py       what is shown meanwhile
- performance.py  all of that in its order
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `mppool demo`."""
    from mppool.cli.values import positive_number, positive_seconds, seconds

    def number(name: str, default: int, text: str) -> None:
        parser.add_argument(
            name, type=positive_number, default=default, metavar="N", help=f"{text} (%(default)d)"
        )

    kinds = parser.add_mutually_exclusive_group()
    for kind, text in (
        ("hosts", "connections are opened in a host, and driven by all workers"),
        ("sqlalchemy", "the application uses SQLAlchemy"),
        ("asyncio", "the application is asynchronous; --threads counts for --clients only"),
    ):
        kinds.add_argument(
            f"--{kind}", dest="kind", action="store_const", const=kind, default="", help=text
        )
    number("--workers", 4, "workers of gunicorn")
    number("--threads", 4, "threads of each worker")
    number("--cap", 5, "connections that all workers together may have open")
    parser.add_argument(
        "--clients", type=positive_number, metavar="N", help="clients (workers x threads + 4)"
    )
    parser.add_argument(
        "--seconds", type=positive_seconds, default=20.0, metavar="S", help="of load (%(default)g)"
    )
    parser.add_argument(
        "--query",
        type=seconds,
        default=0.02,
        metavar="S",
        help="seconds that a request keeps its connection (%(default)g)",
    )
    parser.add_argument(
        "--connection-string",
        metavar="TEXT",
        help="an ODBC connection string; without it a SQLite database is made and removed again",
    )


def run(options: argparse.Namespace) -> int:
    """`mppool demo`: status 1 if a promise broke."""
    from mppool.cli.demo.performance import perform

    return perform(options)
