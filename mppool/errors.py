"""Every error that mppool raises, in one tree.

Each class pickles (errors cross process boundaries in executors and test runners), and each message
says what happened, to which pool, and what to do about it. No message ever holds a secret.
"""

from __future__ import annotations


class PoolError(Exception):
    """Root of all errors raised by mppool."""


class CheckoutTimeout(PoolError, TimeoutError):
    """No resource became available within the timeout of a checkout."""


class TooManyWaiting(PoolError):
    """The pool already has `max_waiting` waiting checkouts; this one was refused at once."""


class OpenFailed(PoolError):
    """A resource could not be opened; `__cause__` is what the recipe raised, where it was raised here."""


class PoolClosed(PoolError):
    """The pool was closed; it no longer hands out anything."""


class StaleLease(PoolError):
    """The lease was ended from outside, for example because it was overdue; its resource is closed."""


class LeaseReleased(PoolError):
    """The resource of a lease was asked for after the lease had been given back."""


class ForkedLease(PoolError):
    """A lease was used in a child of the process that took it; the resource belongs to the parent."""


class ServerUnavailable(PoolError):
    """No server could be reached or started in the time that was left."""


class ProtocolError(PoolError):
    """A peer sent what the protocol does not allow, or speaks another version of it."""


class ConfigurationError(PoolError, ValueError):
    """An option, a name or an environment is not usable; the message says what is allowed."""


class ConfigurationMismatch(ConfigurationError):
    """The same pool was declared twice in one process, with different options."""
