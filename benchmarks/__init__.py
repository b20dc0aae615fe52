"""Figures beside those of other pools, measured in one run: `python -m benchmarks`, or one table at a time.

    python -m benchmarks.warm        checkout and release of a resource that lies on the shelf
    python -m benchmarks.cold        a checkout that has to ask the server
    python -m benchmarks.contention  more threads of one process than connections, each held very briefly
    python -m benchmarks.sharing     4 processes x 4 threads on 8 connections, logins of 20 to 1,000 ms
    python -m benchmarks.spike       50 threads want a connection at once, and a login is slow
    python -m benchmarks.goodput     three times the load that can be served, with timeouts near the wait
    python -m benchmarks.storm       16 processes want a connection at once
    python -m benchmarks.brake       64 processes, and four logins at a time
    python -m benchmarks.footprint   memory, threads, import and start times, wake-ups when idle
    python -m benchmarks.scale       the books with up to 100,000 slots; 1,000 simulated processes

    measuring.py   rounds that take turns (ABAB), so that a noisy moment hits everybody
    tables.py      a table: samples, their spread, ratios to peers; as text and as JSON
    plotting.py    the same as SVG
    command.py     what all of these commands have in common
    peers.py       the other pools, warm
    contestants.py all pools under a load, in threads and processes
    load.py        processes and threads, with an independent witness

Ratios are made within a round and then compared: a machine that was busy for a moment slowed both.
Nothing here is a test: nothing fails because of a figure.
"""
