"""What 10 to 1,000 machines that share caps cost their Redis: the real script, with two pools, in a real Redis.

Redis says itself how long it was at it (`INFO commandstats`). Each machine calls every 2.25 seconds on average, and more
often where somebody waits.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import msgspec

from benchmarks.command import command
from benchmarks.tables import Table
from mppool.machines.calling import key_of
from mppool.machines.needs import PoolSaid, Said
from mppool.machines.script import SCRIPT
from mppool.machines.timing import Timing

CROWDS = (10, 100, 300, 1000)
REFRESH_S = Timing().next_refresh_s(0.5)


def run(quick: bool) -> list[Table]:
    """Microseconds of Redis for one call, by the number of machines; nothing where there is no Redis."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None or importlib.util.find_spec("redis") is None:
        print(
            "machines: left out; it needs redis-server (Debian: redis-server) and mppool[redis]",
            file=sys.stderr,
        )
        return []
    import redis

    rounds, calls, crowds = (1, 20, CROWDS[:2]) if quick else (5, 200, CROWDS)
    directory = tempfile.mkdtemp(prefix="mppool-benchmark-")
    path = f"{directory}/socket"
    server = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory],
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait(path)
        client = redis.Redis(unix_socket_path=path)
        samples = {f"{crowd} machines": _measure(client, crowd, rounds, calls) for crowd in crowds}
        details = {
            f"{crowd} machines": {
                "calls/s": f"{crowd / REFRESH_S:.0f}",
                "of one core": f"{crowd / REFRESH_S * sorted(samples[f'{crowd} machines'])[rounds // 2] / 1e4:.2g} %",
                "bytes of the key": client.memory_usage(key_of(str(crowd)), samples=0),
            }
            for crowd in crowds
        }
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(directory)
    return [
        Table(
            "machines",
            "One call of a machine for two pools",
            "µs of Redis",
            samples,
            details=details,
            notes=[f"each machine calls every {REFRESH_S:.2g} s where nobody waits"],
        )
    ]


def _wait(path: str) -> None:
    """Not with a client: one that cannot connect leaves a socket open (redis 5.0)."""
    for _ in range(1000):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return
        time.sleep(0.01)
    raise SystemExit("redis-server does not listen")


def _measure(client: Any, crowd: int, rounds: int, calls: int) -> list[float]:
    script, key = client.register_script(SCRIPT), key_of(str(crowd))
    began = time.time()
    number = 0

    def call(machine: int, seconds: float) -> None:
        nonlocal number
        number += 1
        pools = [
            PoolSaid(pool, 4 * crowd, machine % 7, machine % 5, machine % 5)
            for pool in ("orders", "reports")
        ]
        said = Said(
            f"{machine:016x}", 1, number, 15_000, "", 0, "first", f"web-{machine}", 4, pools
        )
        # The instant is said, for nobody waits for leases here; the instance as Redis would.
        now = round((began + seconds) * 1000)
        script(keys=[key], args=[msgspec.json.encode(said), now, "one"])

    for machine in range(crowd):
        call(machine, 0.0)
    found = []
    for turn in range(rounds):
        client.config_resetstat()
        for n in range(calls):
            call(n % crowd, 15.0 + turn / 1000 if turn else 1.0)
        if not turn:
            for machine in range(crowd):  # all of them once more, before their leases end
                call(machine, 14.9)
        found.append(client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])
    return found


if __name__ == "__main__":
    command({"machines": run})
