"""Tests of the way from a process to its server, without a server."""
