"""The command `mppool`: look at pools, command them, and watch a demonstration.

Looking never starts a server and never makes a directory. Exit statuses:

    0    it is as it should be
    1    it is not: a promise broke, `doctor` found a fault, leases were still out, no answer
    2    the command line cannot be understood
    3    there is no such manager or pool, or no server runs
    130  ended by Ctrl-C
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from mppool.cli.failing import FAULT, INTERRUPTED, NOT_FOUND, USAGE, CommandFailed
from mppool.errors import ConfigurationError, PoolError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. `arguments` as in sys.argv, without the program."""
    if sys.platform != "linux":
        text = f"processes share pools on Linux only, and this is {sys.platform}: there is nothing to look at"
        return _told(text, NOT_FOUND)
    from mppool.cli.arguments import parse

    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="mppool: %(levelname)s: %(message)s")
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except CommandFailed as error:
        return _told(str(error), error.status)
    except ConfigurationError as error:
        return _told(str(error), USAGE)
    except (PoolError, TimeoutError) as error:
        return _told(str(error), FAULT)
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough. What is still buffered must not raise
        # again while the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _told(f"{where}{error.strerror or error}", FAULT)
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _told(text: str, status: int) -> int:
    from mppool.cli.output import printable

    print(f"mppool: {printable(text)}", file=sys.stderr)
    return status
