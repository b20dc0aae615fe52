"""The double's own tests use its fixtures."""

from tests.tds.fixtures import microsoft_driver, tds

__all__ = ["microsoft_driver", "tds"]
