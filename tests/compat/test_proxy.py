"""Proxy: what it stands for, its scopes, forwarding."""

from __future__ import annotations

import copy
import inspect
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

from mppool.compat.proxypatternpool import Proxy, ProxyException, TimeOut
from tests.compat.conftest import Thing
from tests.helpers import component_is_missing, wait_until

MakeProxy = Callable[..., Proxy]
Scope = Proxy.Scope


def in_thread(function: Callable[[], Any]) -> Any:
    """What the function returns in a thread that has ended."""
    returned: list[Any] = []
    thread = threading.Thread(target=lambda: returned.append(function()))
    thread.start()
    thread.join()
    return returned[0]


def test_the_parameters_and_scopes_are_those_of_proxypatternpool() -> None:
    original = pytest.importorskip("ProxyPatternPool").Proxy
    mine = inspect.signature(Proxy).parameters
    theirs = inspect.signature(original).parameters
    assert list(mine)[:-1] == list(theirs)[:-1]
    assert [p.kind for p in mine.values()] == [p.kind for p in theirs.values()]
    assert {name: scope.value for name, scope in Scope.__members__.items()} == {
        name: scope.value for name, scope in original.Scope.__members__.items()
    }
    assert Scope.VERSATILE is Scope.WERKZEUG


# --- what it stands for ----------------------------------------------------------------------------------


def test_a_proxy_can_be_set_later(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    assert not proxy._has_obj()
    assert proxy.set("hello") is proxy
    assert proxy._has_obj()
    assert proxy.upper() == "HELLO"
    assert in_thread(proxy._get_obj) == "hello"


@pytest.mark.parametrize("name", ["set", "put"])
def test_the_setters_have_the_name_that_is_asked_for(make_proxy: MakeProxy, name: str) -> None:
    proxy = make_proxy(set_name=name)
    getattr(proxy, f"{name}_obj")([1])
    assert proxy == [1]
    proxy = make_proxy(set_name=name)
    getattr(proxy, f"{name}_fun")(lambda number: number)
    assert proxy == 0


@pytest.mark.parametrize("content", [0, "", [], {}, False], ids=repr)
def test_a_falsy_object_is_an_object(make_proxy: MakeProxy, content: Any) -> None:
    for proxy in (make_proxy(content), make_proxy(content, scope=Scope.SHARED)):
        assert proxy == content
        assert proxy._get_obj() is content
        assert proxy._has_obj()
    with pytest.raises(ProxyException, match="both obj and fun"):
        make_proxy(content, Thing)


def test_object_or_function_but_not_both_and_not_none(make_proxy: MakeProxy) -> None:
    with pytest.raises(ProxyException, match="Proxy cannot set both obj and fun"):
        make_proxy("x", Thing)
    with pytest.raises(ProxyException, match="Proxy must set either obj or fun"):
        make_proxy().set()


def test_a_proxy_of_nothing_says_so(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    with pytest.raises(ProxyException, match="nothing yet"):
        proxy._get_obj()
    with pytest.raises(ProxyException, match="nothing yet"):
        proxy.execute("select 1")
    assert not hasattr(proxy, "execute")
    proxy._ret_obj()


def test_a_function_does_not_go_with_the_scope_shared(make_proxy: MakeProxy) -> None:
    with pytest.raises(ProxyException, match="SHARED"):
        make_proxy(fun=Thing, scope=Scope.SHARED)


def test_set_pool_changes_parameters_until_there_is_a_pool(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(max_size=5)
    proxy._set_pool(max_size=2, min_size=0, timeout=0.5)
    proxy._set_fun(Thing)
    assert proxy._pool is not None
    stats = proxy._pool.stats()
    assert (stats["max_size"], stats["min_size"], stats["timeout"]) == (2, 0, 0.5)
    with pytest.raises(ProxyException, match="cannot override pool parameters"):
        proxy._set_pool(delay=1.0)


# --- scopes ----------------------------------------------------------------------------------------------


def test_scope_auto_is_shared_for_an_object_and_thread_for_a_function(
    make_proxy: MakeProxy,
) -> None:
    assert make_proxy("x")._scope is Scope.SHARED
    assert make_proxy(fun=Thing)._scope is Scope.THREAD


@pytest.mark.parametrize("max_size", [None, 0, 4])
def test_each_thread_has_its_own(make_proxy: MakeProxy, max_size: int | None) -> None:
    proxy = make_proxy(fun=Thing, scope=Scope.THREAD, max_size=max_size)
    mine = proxy._get_obj()
    assert proxy._get_obj() is mine
    assert in_thread(proxy._has_obj) is False
    assert in_thread(proxy._get_obj) is not mine
    assert proxy._get_obj() is mine


def test_without_a_pool_fun_is_called_once_per_thread_with_a_number(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(fun=Thing, max_size=None)
    assert proxy._pool is None
    assert proxy._nobjs == 0
    assert proxy.number == 0
    assert in_thread(lambda: proxy.number) == 1
    assert proxy._nobjs == 2
    mine = proxy._get_obj()
    proxy._ret_obj()
    assert proxy._get_obj() is mine


@pytest.mark.parametrize("scope", [Scope.VERSATILE, Scope.WERKZEUG])
def test_each_context_of_werkzeug_has_its_own(make_proxy: MakeProxy, scope: Any) -> None:
    import contextvars

    if not _is_installed("werkzeug"):
        component_is_missing("werkzeug is not installed")
    proxy = make_proxy(fun=Thing, scope=scope, max_size=4)

    def use() -> int:
        number: int = proxy.number
        proxy._ret_obj()
        return number

    mine = proxy.number
    assert contextvars.Context().run(use) != mine
    assert proxy.number == mine


def test_each_greenlet_of_gevent_has_its_own(make_proxy: MakeProxy) -> None:
    if not _is_installed("gevent"):
        component_is_missing("gevent is not installed")
    import gevent

    proxy = make_proxy(fun=Thing, scope=Scope.GEVENT, max_size=4)
    mine = proxy.number
    other = gevent.spawn(lambda: (proxy.number, proxy._ret_obj()))
    other.join()
    assert other.value[0] != mine
    assert proxy.number == mine


def test_the_scope_eventlet_uses_its_local(
    make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # eventlet is retired, and does not run on every Python that we do: a stand-in with its interface.
    module = types.ModuleType("eventlet.corolocal")
    module.local = threading.local  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "eventlet", types.ModuleType("eventlet"))
    monkeypatch.setitem(sys.modules, "eventlet.corolocal", module)
    proxy = make_proxy(fun=Thing, scope=Scope.EVENTLET)
    assert isinstance(proxy._local, threading.local)
    assert proxy.number == 0


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


# --- the pool --------------------------------------------------------------------------------------------


def test_objects_come_from_the_pool_and_go_back(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(fun=Thing, max_size=1)
    pool = proxy._pool
    assert pool is not None
    mine = proxy._get_obj()
    assert pool.stats()["nusing"] == 1
    with pytest.raises(TimeOut):
        in_thread_raising(lambda: proxy._get_obj(timeout=0))
    proxy._ret_obj()
    proxy._ret_obj()
    assert not proxy._has_obj()
    assert pool.stats()["navail"] == 1
    assert in_thread(lambda: (proxy._get_obj(timeout=0), proxy._ret_obj()))[0] is mine


def in_thread_raising(function: Callable[[], Any]) -> Any:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error


def test_obj_gives_the_object_back_although_the_block_raises(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(fun=Thing, max_size=1)
    with pytest.raises(KeyError), proxy._obj(timeout=1):
        raise KeyError
    assert not proxy._has_obj()
    assert proxy._pool is not None
    assert proxy._pool.stats()["nusing"] == 0


def test_an_object_that_its_pool_gave_can_go_back_by_ret(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(fun=Thing, max_size=1)
    assert proxy._pool is not None
    proxy._pool.ret(proxy._get_obj())
    assert proxy._pool.stats()["navail"] == 1


def test_threads_with_one_and_the_same_object_return_their_own(make_proxy: MakeProxy) -> None:
    one = Thing(0)
    proxy = make_proxy(fun=lambda number: one, max_size=2, min_size=0)
    proxy._get_obj()
    in_thread(lambda: (proxy._get_obj(timeout=0), proxy._ret_obj()))
    proxy._ret_obj()
    assert proxy._pool is not None
    wait_until(lambda: proxy._pool.stats()["navail"] == 2, "both back")


# --- forwarding ------------------------------------------------------------------------------------------


def test_attributes_go_through_the_objects_own_getattr(make_proxy: MakeProxy) -> None:
    class Dynamic:
        def __getattr__(self, name: str) -> str:
            if name.startswith("no_"):
                raise AttributeError(name)
            return f"dynamic {name}"

    proxy = make_proxy(Dynamic())
    assert proxy.anything == "dynamic anything"
    assert not hasattr(proxy, "no_such_thing")


def test_a_class_can_be_the_object(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(Thing)
    assert proxy.__name__ == "Thing"
    assert proxy.close is Thing.close


def test_str_repr_hash_and_equality_are_the_objects_own(make_proxy: MakeProxy) -> None:
    proxy = make_proxy("1")
    assert (str(proxy), repr(proxy), hash(proxy)) == ("1", repr("1"), hash("1"))
    assert proxy == "1"
    assert not proxy != "1"  # noqa: SIM202  # that is another method
    assert proxy != "2"
    with pytest.raises(TypeError):
        hash(make_proxy([]))


def test_copies_of_a_proxy_of_nothing_do_not_recurse(make_proxy: MakeProxy) -> None:
    bare = Proxy.__new__(Proxy)
    assert not hasattr(bare, "anything")
    assert copy.copy(make_proxy(set_name="")) is not None
