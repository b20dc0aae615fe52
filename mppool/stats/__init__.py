"""Counters and what is said of them. Pure.

names.py     names of counters, bounds of histograms
report.py    what a process reports of itself
merge.py     what the books know and the processes report becomes what `manager.stats()` returns
words.py     numbers with their words
carried.py   what counters have come to, carried from one server to the next by the processes that saw them
"""
