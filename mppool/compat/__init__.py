"""Interfaces of other pools, over the core of this one."""
