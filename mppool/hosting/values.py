"""How values travel. To a host: msgpack, with extensions for what it does not know; no pickle, unless the pool says so.

Back: pickle. A host was started by this application, from its own code, and is at the other end of a socket that nobody else
can listen on; it could do nothing that it cannot do anyway.
"""

from __future__ import annotations

import datetime as dt
import io
import pickle
from collections.abc import Callable, Iterable
from decimal import Decimal
from itertools import chain
from typing import Any
from uuid import UUID

import msgspec

from mppool.errors import ConfigurationError, PoolError

PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""What msgpack carries as it is (integers of up to 64 bits, text without surrogates)."""

_BY_VALUE = frozenset(
    {
        *PLAIN, complex, bytearray, tuple, list, dict, set, frozenset, range, slice, type(Ellipsis),
        Decimal, UUID, dt.datetime, dt.date, dt.time, dt.timedelta, dt.timezone,
    }
)  # fmt: skip
"""What leaves a host by value; everything else stays there, and a handle leaves instead."""

(
    _TUPLE, _INT, _TEXT, _DECIMAL, _DATETIME, _DATE, _TIME, _DELTA, _UUID, _SET, _FROZENSET, _BYTEARRAY, _COMPLEX,
    _HANDLE, _TYPE, _PICKLE, _VIEW, _DICT, _ROWS, _OFFSET, _ZONED,
) = range(1, 22)  # fmt: skip

_TYPES: dict[str, Any] = {
    one.__name__: one
    for one in (
        int, float, str, bytes, bool, complex, bytearray, tuple, list, dict, set, type(None), Decimal, UUID,
        dt.datetime, dt.date, dt.time, dt.timedelta,
    )
}  # fmt: skip
_TYPE_NAMES = {one: name for name, one in _TYPES.items()}

_BASES: tuple[Any, ...] = (str, int, float, bytes, tuple, dict, list)

_encoder = msgspec.msgpack.Encoder()


class CannotTravel(ConfigurationError):
    """A value cannot be sent to a host without pickle."""


class ToHost:
    """Encodes requests. handle_of: the handle of a proxy, None for anything else."""

    def __init__(
        self, pool: str, handle_of: Callable[[Any], int | None], *, may_pickle: bool
    ) -> None:
        self._pool = pool
        self._handle_of = handle_of
        self._may_pickle = may_pickle

    def encode(self, head: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """A request that ends with arguments. Raises CannotTravel."""
        if not kwargs and PLAIN.issuperset(map(type, args)):
            try:
                return _encoder.encode([*head, args, kwargs])
            except (OverflowError, UnicodeEncodeError):
                pass  # packed below
        return _encoder.encode(
            [
                *head,
                [self.packed(one) for one in args],
                {k: self.packed(v) for k, v in kwargs.items()},
            ]
        )

    def packed(self, value: Any) -> Any:
        """The same value, of things that msgpack knows."""
        kind = type(value)
        if kind in PLAIN:
            if kind is int and not -(2**63) <= value < 2**64:
                return _ext(_INT, str(value))
            if kind is str and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    return msgspec.msgpack.Ext(_TEXT, value.encode("utf-8", "surrogatepass"))
            return value
        pack = _PACKERS.get(kind)
        if pack is not None:
            return pack(self, value)
        return self._special(value)

    def _special(self, value: Any) -> Any:
        handle = self._handle_of(value)
        if handle is not None:
            return _ext(_HANDLE, str(handle))
        if isinstance(value, type) and value in _TYPE_NAMES:
            return _ext(_TYPE, _TYPE_NAMES[value])
        if self._may_pickle:
            return msgspec.msgpack.Ext(_PICKLE, pickle.dumps(value, 5))
        for base in _BASES:  # enumerations, named tuples, a driver's own texts
            if isinstance(value, base):
                return self.packed(str.__str__(value) if base is str else base(value))
        raise CannotTravel(
            f"pool {self._pool!r}: a {type(value).__module__}.{type(value).__qualname__} cannot be sent to a host "
            "without pickle; pass values of Python's own types, do it in the recipe's configure hook, or declare "
            "the pool with values='pickle'"
        )

    def _list(self, value: list[Any]) -> Any:
        is_rows = len(value) > 3 and set(map(type, value)) == {tuple}
        if is_rows and set(map(type, chain.from_iterable(value))) <= PLAIN:
            # Many rows of parameters: looked at by C, and made tuples again at the other end.
            try:
                return msgspec.msgpack.Ext(_ROWS, _encoder.encode(value))
            except (OverflowError, UnicodeEncodeError):
                pass  # each by itself, below
        return [self.packed(one) for one in value]

    def _inner(self, code: int, values: Iterable[Any]) -> Any:
        return msgspec.msgpack.Ext(code, _encoder.encode([self.packed(one) for one in values]))

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        if PLAIN.issuperset(map(type, value)):
            try:
                return msgspec.msgpack.Ext(_TUPLE, _encoder.encode(value))
            except (OverflowError, UnicodeEncodeError):
                pass  # each by itself
        return self._inner(_TUPLE, value)

    def _dict(self, value: dict[Any, Any]) -> Any:
        if all(type(key) is str for key in value):
            return {key: self.packed(one) for key, one in value.items()}
        return self._inner(_DICT, chain.from_iterable(value.items()))

    def _with_zone(self, code: int, value: Any) -> Any:
        zone = value.tzinfo
        naive = value.replace(tzinfo=None).isoformat()
        if zone is None:
            return self._inner(code, [naive, value.fold])
        name = getattr(zone, "key", None)  # of zoneinfo
        if type(zone) is dt.timezone:
            return self._inner(_OFFSET, [code, naive, value.fold, zone.utcoffset(None)])
        if isinstance(name, str):
            return self._inner(_ZONED, [code, naive, value.fold, name])
        if self._may_pickle:
            return msgspec.msgpack.Ext(_PICKLE, pickle.dumps(value, 5))
        return self._inner(_OFFSET, [code, naive, value.fold, value.utcoffset()])


def _ext(code: int, text: str) -> Any:
    return msgspec.msgpack.Ext(code, text.encode())


_PACKERS: dict[type, Callable[[ToHost, Any], Any]] = {
    list: ToHost._list,
    tuple: ToHost._tuple,
    dict: ToHost._dict,
    Decimal: lambda self, value: _ext(_DECIMAL, str(value)),
    UUID: lambda self, value: msgspec.msgpack.Ext(_UUID, value.bytes),
    dt.datetime: lambda self, value: self._with_zone(_DATETIME, value),
    dt.time: lambda self, value: self._with_zone(_TIME, value),
    dt.date: lambda self, value: _ext(_DATE, value.isoformat()),
    dt.timedelta: lambda self, value: self._inner(
        _DELTA, [value.days, value.seconds, value.microseconds]
    ),
    set: lambda self, value: self._inner(_SET, value),
    frozenset: lambda self, value: self._inner(_FROZENSET, value),
    bytearray: lambda self, value: msgspec.msgpack.Ext(_BYTEARRAY, bytes(value)),
    memoryview: lambda self, value: msgspec.msgpack.Ext(_VIEW, bytes(value)),
    complex: lambda self, value: self._inner(_COMPLEX, [value.real, value.imag]),
}


class FromWorker:
    """Decodes requests. handles: what the lease has been given, by handle."""

    def __init__(self, handles: dict[int, Any], *, may_pickle: bool) -> None:
        self._handles = handles
        self._may_pickle = may_pickle
        self._decoder = msgspec.msgpack.Decoder(Any, ext_hook=self._unpack)
        self.decode: Callable[[Any], Any] = self._decoder.decode

    def _unpack(self, code: int, data: memoryview) -> Any:
        if code == _HANDLE:
            found = self._handles.get(int(bytes(data)))
            if found is None:
                raise PoolError("what this proxy stands for is gone from the host")
            return found
        if code == _PICKLE:
            if not self._may_pickle:
                raise ConfigurationError("this pool takes no pickles from workers: values='plain'")
            return pickle.loads(data)  # noqa: S301  # the pool says that it may
        if code == _ROWS:
            rows: Any = self._decoder.decode(data)
            return [tuple(row) for row in rows]
        simple = _TEXTS.get(code)
        if simple is not None:
            return simple(bytes(data))
        values: Any = self._decoder.decode(data)
        return _unpacked(code, values)


_TEXTS: dict[int, Callable[[bytes], Any]] = {
    _INT: int,
    _TEXT: lambda data: data.decode("utf-8", "surrogatepass"),
    _DECIMAL: lambda data: Decimal(data.decode()),
    _DATE: lambda data: dt.date.fromisoformat(data.decode()),
    _UUID: lambda data: UUID(bytes=data),
    _BYTEARRAY: bytearray,
    _VIEW: memoryview,
    _TYPE: lambda data: _TYPES[data.decode()],
}


def _unpacked(code: int, values: list[Any]) -> Any:
    if code == _TUPLE:
        return tuple(values)
    if code == _DICT:
        return dict(zip(values[::2], values[1::2], strict=True))
    if code == _DELTA:
        return dt.timedelta(*values)
    if code in (_DATETIME, _TIME):
        kind: Any = dt.datetime if code == _DATETIME else dt.time
        return kind.fromisoformat(values[0]).replace(fold=values[1])
    if code == _OFFSET:
        offset = values[3]
        zone = dt.timezone.utc if not offset else dt.timezone(offset)
        return _unpacked(values[0], values[1:3]).replace(tzinfo=zone)
    if code == _ZONED:
        from zoneinfo import ZoneInfo

        return _unpacked(values[0], values[1:3]).replace(tzinfo=ZoneInfo(values[3]))
    if code == _SET:
        return set(values)
    if code == _FROZENSET:
        return frozenset(values)
    if code == _COMPLEX:
        return complex(*values)
    raise ConfigurationError(f"a value of the unknown kind {code} has come from a worker")


encode: Callable[[Any], bytes] = _encoder.encode
"""A request of plain values only."""


# --- back to the worker ------------------------------------------------------------------------------------------


class ToWorker(pickle.Pickler):
    """Pickles an answer; what does not leave by value leaves as a handle."""

    def __init__(self, file: io.BytesIO, keep: Callable[[Any], Any]) -> None:
        """keep: keeps an object here, and says what stands for it."""
        super().__init__(file, 5)
        self._keep = keep

    def persistent_id(self, obj: Any) -> Any:
        """What stands for an object; None: it leaves by value."""
        kind = type(obj)
        if kind in _BY_VALUE or isinstance(obj, (type, BaseException)):
            return None
        if isinstance(obj, (dt.tzinfo, tuple)) or _is_function(obj) or _is_small(kind):
            return None
        return self._keep(obj)


def _is_small(kind: type) -> bool:
    """Numbers, texts and enumerations of others: they leave by value."""
    import enum

    return issubclass(kind, (enum.Enum, int, float, str, bytes, Decimal))


def _is_function(obj: Any) -> bool:
    """Of a module or a class, so that it is found by its name."""
    import sys
    from types import BuiltinFunctionType, FunctionType, ModuleType

    if isinstance(obj, BuiltinFunctionType):
        return isinstance(obj.__self__, (type, ModuleType, type(None)))
    if not isinstance(obj, FunctionType):
        return False
    found: Any = sys.modules.get(obj.__module__)
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


class FromHost(pickle.Unpickler):
    """Reads an answer. stands_for: the proxy of what was kept."""

    def __init__(self, data: Any, stands_for: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._stands_for = stands_for

    def persistent_load(self, pid: Any) -> Any:
        """The proxy of what was kept in the host."""
        return self._stands_for(pid)
