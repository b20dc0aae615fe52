"""The command line, as argparse understands it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mppool._version import __version__
from mppool.cli import (
    bench,
    cleaning,
    commanding,
    completion,
    demo,
    doctor,
    looking,
    metrics,
    probing,
    top,
)
from mppool.cli.values import (
    host_and_port,
    number,
    positive_number,
    positive_seconds,
    seconds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_DRAIN_S = 30.0
DEFAULT_INTERVAL_S = 1.0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; `options.run` is the function that carries them out. SystemExit(2) for bad usage."""
    parser = argparse.ArgumentParser(
        prog="mppool",
        description="One pool for all the processes of an application: look at it, command it.",
        epilog=_examples("mppool list", "mppool top shop", "mppool stats --help"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mppool {__version__}")
    _add_runtime_dir(parser, default=None)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    parser.set_defaults(commands=commands.choices)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], help_text: str, *examples: str
    ) -> _Command:
        return _Command(commands, name, run, help_text, examples)

    _add_looking(command)
    _add_commanding(command)
    demo.add_options(
        command(
            "demo", demo.run, "watch gunicorn workers share connections while processes are killed",
            "mppool demo", "mppool demo --workers 8 --cap 3 --seconds 40",
        )
        .plain()
        .parser
    )  # fmt: skip
    bench.add_options(
        command(
            "bench", bench.bench, "compare mppool with other pools; needs a clone",
            "mppool bench warm --quick",
        ).parser
    )  # fmt: skip
    return parser.parse_args(arguments)


def _add_looking(command: Callable[..., _Command]) -> None:
    command(
        "list",
        looking.list_managers,
        "the managers that are in use, with their servers and pools",
        "mppool list",
        "mppool list --all --runtime-dir /run/shop",
    ).listed().plain()
    command(
        "stats",
        looking.stats,
        "the figures of a manager, once",
        "mppool stats shop",
        "mppool stats shop --json | jq .pools.orders.in_use",
    ).manager().json().plain()
    command(
        "top",
        top.top,
        "what the pools of a manager do, live; the key ? shows help",
        "mppool top shop",
        "mppool top shop --plain --count 1",
    ).manager().repeated().plain()
    command(
        "leases",
        looking.leases,
        "who has what, the oldest lease first",
        "mppool leases shop",
        "mppool leases shop --pool orders --json",
    ).manager().of_pool().json().plain()
    command(
        "health",
        probing.health,
        "whether the pools can serve, for probes",
        "mppool health shop",
        "mppool health shop --strict --json",
    ).manager().probed()
    command(
        "metrics",
        metrics.metrics,
        "figures for Prometheus, printed or served",
        "mppool metrics shop",
        "mppool metrics shop --serve 127.0.0.1:9464",
    ).manager().served()
    command(
        "doctor", doctor.doctor, "whether mppool can work here, and what is wrong", "mppool doctor",
    ).plain()  # fmt: skip


def _add_commanding(command: Callable[..., _Command]) -> None:
    command(
        "drain",
        commanding.drain,
        "close what is idle, wait for leases to come back",
        "mppool drain shop orders --timeout 60",
    ).manager().pool().waiting()
    command(
        "resize",
        commanding.resize,
        "change the bounds of a pool or budget, in all processes at once",
        "mppool resize shop orders --max-size 20",
        "mppool resize shop orders --max-size none",
        "mppool resize shop db --budget --max-size 40",
    ).manager().pool().bounds()
    command(
        "reset",
        commanding.reset,
        "replace everything that is open, as soon as it is idle or released",
        "mppool reset shop orders",
        "mppool reset shop orders --over 60",
    ).manager().pool().paced()
    command(
        "reopen",
        commanding.reopen,
        "open a pool that was closed in all processes",
        "mppool reopen shop orders",
    ).manager().pool()
    command(
        "forget-tokens",
        commanding.forget_tokens,
        "have all processes fetch new tokens",
        "mppool forget-tokens shop",
        "mppool forget-tokens shop --identity msi:system",
    ).manager().identity()
    command(
        "shutdown",
        commanding.shutdown,
        "end a manager's server cleanly",
        "mppool shutdown shop",
    ).manager()
    command(
        "clean",
        cleaning.clean,
        "remove files of managers that nobody uses",
        "mppool clean",
        "mppool clean --runtime-dir /run/shop",
    )
    command(
        "completion", completion.completion, "print the script with which a shell completes commands",
        'eval "$(mppool completion bash)"', "mppool completion fish | source",
    ).shell()  # fmt: skip


def _examples(*lines: str) -> str:
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)


class _Command:
    """One command and its options; each method adds some and returns the command."""

    def __init__(
        self,
        commands: argparse._SubParsersAction[argparse.ArgumentParser],
        name: str,
        run: Callable[[argparse.Namespace], int],
        help_text: str,
        examples: Sequence[str],
    ) -> None:
        self.parser = commands.add_parser(
            name,
            help=help_text,
            description=f"{help_text[0].upper()}{help_text[1:]}.",
            epilog=_examples(*examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.parser.set_defaults(run=run)
        # Where it is not given after the command, what was given before it must stay.
        _add_runtime_dir(self.parser, default=argparse.SUPPRESS)

    def plain(self) -> _Command:
        self.parser.add_argument(
            "--plain", action="store_true", help="plain text, as if rich were not installed"
        )
        return self

    def manager(self) -> _Command:
        self.parser.add_argument("name", metavar="NAME", help="name of the manager")
        return self

    def identity(self) -> _Command:
        self.parser.add_argument(
            "--identity", help="only those of this identity, named as in `stats --json`"
        )
        return self

    def json(self) -> _Command:
        self.parser.add_argument("--json", action="store_true", help="everything, as JSON")
        return self

    def probed(self) -> _Command:
        self.parser.add_argument(
            "--strict", action="store_true", help="exit with 1 if a pool is degraded, too"
        )
        return self.json()

    def served(self) -> _Command:
        self.parser.add_argument(
            "--serve",
            type=host_and_port,
            metavar="HOST:PORT",
            help="serve them over HTTP until Ctrl-C; port 0 takes any free one",
        )
        return self

    def repeated(self) -> _Command:
        self.parser.add_argument(
            "--interval",
            type=positive_seconds,
            default=DEFAULT_INTERVAL_S,
            metavar="SECONDS",
            help="seconds between two updates (default: %(default)g)",
        )
        self.parser.add_argument(
            "--count", type=positive_number, metavar="N", help="end after N updates"
        )
        return self

    def listed(self) -> _Command:
        self.parser.add_argument(
            "--all", action="store_true", help="managers that nobody uses, too"
        )
        self.parser.add_argument("--names", action="store_true", help="only their names")
        return self

    def of_pool(self) -> _Command:
        self.parser.add_argument("--pool", metavar="POOL", help="only leases of this pool")
        return self

    def pool(self) -> _Command:
        self.parser.add_argument("pool", metavar="POOL", help="name of the pool")
        return self

    def waiting(self) -> _Command:
        self.parser.add_argument(
            "--timeout",
            type=seconds,
            default=DEFAULT_DRAIN_S,
            metavar="SECONDS",
            help="how long to wait for leases to come back (default: %(default)g)",
        )
        return self

    def paced(self) -> _Command:
        self.parser.add_argument(
            "--over",
            type=seconds,
            default=0.0,
            metavar="SECONDS",
            help="spread it over this many seconds, so that not all log in at once (default: 0)",
        )
        return self

    def bounds(self) -> _Command:
        self.parser.add_argument(
            "--max-size",
            type=lambda text: text if text == "none" else positive_number(text),
            metavar="N",
            help="the cap over all processes; the word none lifts it",
        )
        self.parser.add_argument("--min-size", type=number, metavar="N", help="how many stay open")
        self.parser.add_argument(
            "--budget", action="store_true", help="POOL names a budget, which several pools share"
        )
        return self

    def shell(self) -> _Command:
        self.parser.add_argument("shell", choices=completion.SHELLS, metavar="SHELL")
        return self


def _add_runtime_dir(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--runtime-dir",
        metavar="DIRECTORY",
        default=default,
        help="where the processes of a manager meet; else $MPPOOL_RUNTIME_DIR, else /tmp/mppool-UID",
    )
