"""The command line, as argparse understands it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mppool._version import __version__
from mppool.cli import bench, commanding, demo, doctor, looking
from mppool.cli.values import positive_number, positive_seconds, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_DRAIN_S = 30.0
DEFAULT_INTERVAL_S = 1.0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; `options.run` is the function that carries them out. SystemExit(2) for bad usage."""
    parser = argparse.ArgumentParser(
        prog="mppool",
        description="One pool for all the processes of an application: look at it, command it.",
    )
    parser.add_argument("--version", action="version", version=f"mppool {__version__}")
    _add_runtime_dir(parser, default=None)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> _Command:
        return _Command(commands, name, run, help_text)

    command("list", looking.list_managers, "managers, their servers and pools").plain()
    command("stats", looking.stats, "figures of a manager").manager().json().plain()
    command("top", looking.top, "the same, live, until Ctrl-C").manager().repeated().plain()
    command("doctor", doctor.doctor, "whether mppool can work here, and what is wrong").plain()
    command("drain", commanding.drain, "close what is idle, wait for leases").manager().drained()
    command(
        "forget-tokens", commanding.forget_tokens, "have all fetch new tokens"
    ).manager().identity()
    command("shutdown", commanding.shutdown, "end a manager's server cleanly").manager()
    demo.add_options(
        command("demo", demo.run, "gunicorn workers share connections while processes are killed")
        .plain()
        .parser
    )
    bench.add_options(
        command("bench", bench.bench, "compare with other pools; needs the sources").parser
    )
    return parser.parse_args(arguments)


class _Command:
    """One command and its options; each method adds some and returns the command."""

    def __init__(
        self,
        commands: argparse._SubParsersAction[argparse.ArgumentParser],
        name: str,
        run: Callable[[argparse.Namespace], int],
        help_text: str,
    ) -> None:
        self.parser = commands.add_parser(name, help=help_text, description=help_text)
        self.parser.set_defaults(run=run)
        # Where it is not given after the command, what was given before it must stay.
        _add_runtime_dir(self.parser, default=argparse.SUPPRESS)

    def plain(self) -> _Command:
        self.parser.add_argument(
            "--plain", action="store_true", help="plain text, as where rich is not installed"
        )
        return self

    def manager(self) -> _Command:
        self.parser.add_argument("name", metavar="NAME", help="name of the manager")
        return self

    def identity(self) -> _Command:
        self.parser.add_argument(
            "--identity", help="of this identity only, as `stats --json` shows it"
        )
        return self

    def json(self) -> _Command:
        self.parser.add_argument("--json", action="store_true", help="everything, as JSON")
        return self

    def repeated(self) -> _Command:
        self.parser.add_argument(
            "--interval",
            type=positive_seconds,
            default=DEFAULT_INTERVAL_S,
            metavar="SECONDS",
            help="between two looks (default: %(default)g)",
        )
        self.parser.add_argument(
            "--count", type=positive_number, metavar="N", help="end after N looks"
        )
        return self

    def drained(self) -> _Command:
        self.parser.add_argument("pool", metavar="POOL", help="name of the pool")
        self.parser.add_argument(
            "--timeout",
            type=seconds,
            default=DEFAULT_DRAIN_S,
            metavar="SECONDS",
            help="how long to wait for leases to come back (default: %(default)g)",
        )
        return self


def _add_runtime_dir(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--runtime-dir",
        metavar="DIRECTORY",
        default=default,
        help="where the processes of a manager meet; else $MPPOOL_RUNTIME_DIR, else /tmp/mppool-UID",
    )
