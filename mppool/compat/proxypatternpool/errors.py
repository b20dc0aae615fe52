"""What this interface raises, beside whatever the factory raises."""

from __future__ import annotations


class PPPException(Exception):
    """Root of the errors of this interface."""


class PoolException(PPPException):
    """The pool cannot serve: it was shut down."""


class TimeOut(PoolException):
    """No object became available within the timeout."""


class ProxyException(PPPException):
    """A proxy is used in a way that its scope or its state does not allow."""


class NothingSetError(ProxyException, AttributeError):
    """The proxy stands for nothing yet.

    Also an AttributeError, so that `hasattr` and other harmless questions get a harmless answer.
    """
