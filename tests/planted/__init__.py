"""Bugs that are planted into a copy of the core, to see that tests/core finds them.

An invariant counts once it has killed a bug. `python -m tests.planted` plants each one, runs tests/core
against it and says which survived; its exit status is 1 if any did.

    bugs.py      the list
    __main__.py  the runner
"""
