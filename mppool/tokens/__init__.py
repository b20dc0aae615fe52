"""Tokens that all processes share: each is fetched once, by one thread of one process.

cache.py         TokenCache: the copies of one process, and how it gets new ones
cached_token.py  one copy, where a token comes from, and why there is none
in_process.py    LocalTokenBooks: the books of this process alone, where nobody else may share or no server is there
"""
