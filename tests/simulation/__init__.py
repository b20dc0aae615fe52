"""Proof by simulation: the real code of processes and server in a simulated world, in one thread, from one seed.

    settings.py    what a seed draws: the world, and the history of its faults
    world.py       a server, workers, a database; faults.py strikes, healing.py demands that all is well again
    worker.py      checks out, uses, releases, and judges how long it waited; tasks.py: as tasks of event loops
    database.py    counts sessions: the outside witness; recipes.py opens them, with tokens of issuer.py
        |
    modules.py     a copy of mppool over simulated primitives
    threads.py     locks, conditions, threads, clocks      streams.py   sockets, poll, epoll
    kernel.py      processes, `os`, `fcntl`                files.py     files, `pathlib`
    processes.py   descriptors, SIGKILL, SIGSTOP           loop.py      asyncio's event loop
        |
    scheduler.py   greenlets, a clock that jumps, one source of chance

`python -m tests.simulation --hours H --seed S`; runs.py says what it does. A fork is a process with copies of its parent's
descriptors, and nothing else of it: the hooks run for real in tests/processes and tests/stress. Not simulated: hosts.
"""
