"""A model of the world around the books: processes with threads, channels, a server that can be killed.

The books are the real ones. Everything else is as small as it can be while it keeps the rules of the
protocol, each of which can be switched off (`Rules`) to show that the explorer then finds the hole.

    worker.py   one process: shelf, table of resources, side table, local waiters, threads step by step
    server.py   the real books behind channels, with a journal; may be killed between any two decisions
    world.py    all of them, the steps that are possible now, and what must never be
"""
