"""Chaos, driven by a seed and judged by an independent witness: python -m tests.stress --seconds N --seed S"""
