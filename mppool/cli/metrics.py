"""`mppool metrics`: the figures of a manager for Prometheus, printed once or served."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mppool.cli.failing import FAULT, OK, CommandFailed
from mppool.cli.finding import running_manager

if TYPE_CHECKING:
    import argparse


def metrics(options: argparse.Namespace) -> int:
    """`mppool metrics NAME [--serve HOST:PORT]`: with --serve until Ctrl-C, which is how it is meant to end."""
    from mppool.integrations.prometheus import PoolCollector  # says what is missing
    from mppool.manager import PoolManager

    from prometheus_client import CollectorRegistry, generate_latest, start_http_server  # isort: skip

    registry = CollectorRegistry()
    if options.serve is None:
        manager = running_manager(options.name, options.runtime_dir)
        registry.register(PoolCollector(manager))
        print(generate_latest(registry).decode(), end="")
        return OK
    # No server is needed now: it may come and go while this process serves.
    registry.register(PoolCollector(PoolManager(options.name, runtime_dir=options.runtime_dir)))
    host, port = options.serve
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise CommandFailed(f"{host}:{port} cannot be served: {error.strerror}", FAULT) from error
    print(f"metrics of {options.name}: http://{host}:{server.server_port}/metrics", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return OK
    finally:
        server.shutdown()
        server.server_close()
    return OK
