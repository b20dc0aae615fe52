"""Proxy: a name that can be imported before the object exists, and may stand for one object per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from importlib import import_module
from typing import Any
from weakref import WeakSet

from mppool.compat.proxypatternpool.errors import NothingSetError, ProxyException
from mppool.compat.proxypatternpool.forking import start_anew_in_children
from mppool.compat.proxypatternpool.pool import Pool
from mppool.compat.proxypatternpool.recipe import FunHook, log
from mppool.process.fork import make_immortal


class ProxyScope(Enum):
    """Who shares an object.

    AUTO: SHARED where an object is set, THREAD where a function is.
    SHARED: everybody. THREAD: each thread has its own. VERSATILE, WERKZEUG: each context of werkzeug.
    GEVENT, EVENTLET: each greenlet.
    """

    AUTO = 0
    SHARED = 1
    THREAD = 2
    VERSATILE = 3
    WERKZEUG = 3  # noqa: PIE796  # another name of the same
    GEVENT = 4
    EVENTLET = 5


def _local_of(module: str, name: str) -> Callable[[], Any]:
    """Makes storages of a library that need not be installed before its scope is used."""

    def make() -> Any:
        return getattr(import_module(module), name)()

    return make


_LOCALS: dict[ProxyScope, Callable[[], Any]] = {
    ProxyScope.THREAD: threading.local,
    ProxyScope.WERKZEUG: _local_of("werkzeug.local", "Local"),
    ProxyScope.GEVENT: _local_of("gevent.local", "local"),
    ProxyScope.EVENTLET: _local_of("eventlet.corolocal", "local"),
}


class _Held:
    """An object that comes from no pool, where its thread keeps it."""

    def __init__(self, content: Any) -> None:
        self.content = content


class _Storage:
    """Where each thread (greenlet, context) keeps its object; a forked child has none of them.

    In `local`: `obj`, and `holder`, whose end tells that the thread has gone: the lease, or a _Held.
    """

    def __init__(self, make_local: Callable[[], Any]) -> None:
        self._make_local = make_local
        self._lock = threading.RLock()
        self._held: WeakSet[_Held] = WeakSet()
        self.local = make_local()
        self.made = 0
        start_anew_in_children(self)

    def make(self, fun: FunHook) -> tuple[Any, _Held]:
        """An object that comes from no pool."""
        with self._lock:
            number, self.made = self.made, self.made + 1
        held = _Held(fun(number))
        with self._lock:
            self._held.add(held)
        return held.content, held

    def belongings(self) -> list[Any]:
        """See Holder."""
        with self._lock:
            return list(self._held)

    def renew(self) -> None:
        """See Holder."""
        make_immortal((self.local, self._lock, self._held))
        self._lock = threading.RLock()
        self._held = WeakSet()
        self.local = self._make_local()
        self.made = 0


class _Shared:
    """What all threads use, children of a fork included."""

    def __init__(self, content: Any) -> None:
        self.obj = content


class Proxy:
    """Stands for an object, or for one per thread (greenlet, context) that a function makes.

    obj: the object; it can be set later.
    fun: makes an object for a caller that has none; called with the number of those made before.
    set_name: prefix of the public setters; "set" gives `set`, `set_obj` and `set_fun`.
    scope: who shares an object, see ProxyScope.
    max_size: of the pool that the objects come from; 0: no cap; None: no pool.
    log_level: of the logger "ppp".
    pool: further parameters of the Pool.

    An object goes back to the pool by `_ret_obj`, or at the end of a `with proxy._obj()` block. One whose
    thread ends without that is closed, and its place in the pool is free. Attributes, str, repr, hash and
    equality are the object's own.
    """

    Scope = ProxyScope
    Local = _Shared

    # In the class, so that an instance that `copy` or `pickle` is just making has them too.
    _fun: FunHook | None = None
    _pool: Pool | None = None
    _storage: _Storage | None = None
    _shared: _Shared | None = None

    def __init__(
        self,
        obj: Any = None,
        fun: FunHook | None = None,
        set_name: str = "set",
        scope: ProxyScope = ProxyScope.AUTO,
        log_level: int | None = None,
        max_size: int | None = 0,
        **pool: Any,
    ) -> None:
        if log_level is not None:
            log.setLevel(log_level)
        self._scope = scope
        self._pool_parameters = {"max_size": max_size, **pool}
        self._set(obj, fun, mandatory=False)
        if set_name and set_name != "_set":
            setattr(self, set_name, self._set)
            setattr(self, f"{set_name}_obj", self._set_obj)
            setattr(self, f"{set_name}_fun", self._set_fun)

    # --- what the proxy stands for -----------------------------------------------------------------------

    def _set(self, obj: Any = None, fun: FunHook | None = None, mandatory: bool = True) -> Any:
        """Set an object (anything but None, see `_set_obj`) or a function. Returns the proxy."""
        if obj is not None and fun is not None:
            raise ProxyException("Proxy cannot set both obj and fun")
        if obj is not None:
            return self._set_obj(obj)
        if fun is not None:
            return self._set_fun(fun)
        if mandatory:
            raise ProxyException("Proxy must set either obj or fun")
        return None

    def _set_obj(self, obj: Any) -> Proxy:
        """Stand for this object from now on, whatever it is."""
        self._fun, self._pool, self._storage = None, None, None
        self._scope = ProxyScope.SHARED
        self._shared = _Shared(obj)
        return self

    def _set_fun(self, fun: FunHook) -> Proxy:
        """Stand for objects that this function makes, one for each thread (greenlet, context)."""
        scope = ProxyScope.THREAD if self._scope is ProxyScope.AUTO else self._scope
        if scope not in _LOCALS:
            raise ProxyException(
                f"the scope {scope.name} goes with an object; a function needs THREAD, VERSATILE, "
                "WERKZEUG, GEVENT or EVENTLET"
            )
        storage = _Storage(_LOCALS[scope])
        pooled = self._pool_parameters["max_size"] is not None
        pool = Pool(fun, **self._pool_parameters) if pooled else None
        self._scope, self._fun, self._pool, self._storage = scope, fun, pool, storage
        self._shared = None
        return self

    def _set_pool(self, **pool: Any) -> None:
        """Other parameters of the pool, before there is one."""
        if self._pool is not None:
            raise ProxyException("cannot override pool parameters once the pool is there")
        self._pool_parameters.update(pool)

    # --- the object --------------------------------------------------------------------------------------

    @property
    def _local(self) -> Any:
        """Where the object is kept; None if nothing is set."""
        return self._shared if self._storage is None else self._storage.local

    @property
    def _nobjs(self) -> int:
        """How many objects there are; without a pool: how many were made."""
        if self._pool is not None:
            return self._pool._nobjs
        return int(self._shared is not None) if self._storage is None else self._storage.made

    def _get_obj(self, timeout: float | None = None) -> Any:
        """The object; one is taken from the pool, or made, where there is none yet.

        Raises ProxyException where nothing is set, and what `Pool.get` raises.
        """
        local = self._local
        if hasattr(local, "obj"):
            return local.obj
        storage, fun = self._storage, self._fun
        if storage is None or fun is None:
            raise NothingSetError("the proxy stands for nothing yet: set an object or a function")
        if self._pool is not None:
            content, holder = self._pool.lend(timeout, to_proxy=True)
            local.holder = holder
        else:
            content, held = storage.make(fun)
            local.holder = held
        local.obj = content
        return content

    def _has_obj(self) -> bool:
        """Whether there is an object already; asking makes none."""
        return getattr(self._local, "obj", None) is not None

    def _ret_obj(self) -> None:
        """Give the object back to the pool; without a pool nothing happens."""
        local, pool = self._local, self._pool
        if pool is None or not hasattr(local, "obj"):
            return
        content, lease = local.obj, local.holder
        del local.obj, local.holder
        pool.give_back(content, lease)

    @contextmanager
    def _obj(self, timeout: float | None = None) -> Iterator[Any]:
        """The object for the length of a `with` block, at the end of which it goes back to the pool."""
        content = self._get_obj(timeout)
        try:
            yield content
        finally:
            self._ret_obj()

    # --- forwarding --------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get_obj(), name)

    def __str__(self) -> str:
        return str(self._get_obj())

    def __repr__(self) -> str:
        return repr(self._get_obj())

    def __eq__(self, other: object) -> Any:
        return self._get_obj() == other

    def __ne__(self, other: object) -> Any:
        return self._get_obj() != other

    def __hash__(self) -> int:
        return hash(self._get_obj())
