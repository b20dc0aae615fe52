"""The version of this release; pyproject.toml says the same, kept by a test."""

__version__ = "0.2.0"
