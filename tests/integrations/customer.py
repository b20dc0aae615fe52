"""A process with a pool that does what it is told on its standard input, and answers in JSON.

`python -m tests.integrations.customer`: with the settings of witness_app.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, final

from tests.helpers import ROOT


@final
class Customer:
    """The other end: a customer in a process of its own, ended by `with`."""

    def __init__(self, environment: Mapping[str, str], *, path: str = "") -> None:
        """path: searched for packages before everything else."""
        search = os.pathsep.join(filter(None, [path, str(ROOT)]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.customer"],
            env={**os.environ, **environment, "PYTHONPATH": search},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.said = ""

    def do(self, command: str) -> Any:
        """Its answer; a text that begins with an exception's name where it raised."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise AssertionError(f"{command}: the customer ended\n{self.process.communicate()[1]}")
        return json.loads(answer)

    def end(self) -> str:
        """End it; what it wrote to its standard error."""
        if self.process.returncode is None:
            self.said = self.process.communicate(timeout=20)[1]
        return self.said

    def __enter__(self) -> Customer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            said = self.end()
        finally:
            self.process.kill()
            self.process.wait()
        if kind is not None:
            print(said)


def _serve() -> None:
    from tests.integrations import witness_app

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    pool, manager = witness_app.pool, witness_app.manager
    leases: list[Any] = []

    def take(timeout: str = "5") -> str:
        lease = pool.checkout(timeout=float(timeout))
        leases.append(lease)
        lease.resource.ask()
        return str(lease.resource.database)

    def ask() -> int:
        for lease in leases:
            lease.resource.ask()
        return len(leases)

    def release() -> int:
        leases.pop(0).release()
        return len(leases)

    def bounds() -> list[Any]:
        stats = pool.stats()
        return [stats["max_size"], stats["size"]]

    actions = {
        "take": take,
        "ask": ask,
        "release": release,
        "bounds": bounds,
        "server": lambda: manager.server_pid,
        "epoch": lambda: manager.stats()["epoch"],
        "processes": lambda: sorted(one["pid"] for one in manager.stats()["processes"]),
    }
    for line in sys.stdin:
        name, *arguments = line.split()
        try:
            answer: Any = actions[name](*arguments)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
