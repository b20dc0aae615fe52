"""Machines that share a cap: alone with a clock of their own, in a simulation over a real Redis, and as real servers."""
