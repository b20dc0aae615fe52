"""All tables, one after the other."""

from benchmarks import cold, footprint, scale, sharing, storm, tokens, warm
from benchmarks.command import command

if __name__ == "__main__":
    modules = (warm, cold, sharing, storm, tokens, footprint, scale)
    command({module.__name__: module.run for module in modules})
