"""Plain data as JSON and back, with its types kept: a tuple is not a list, 1 is not the key "1".

``None``, bool, float, str and small int are written as they are; everything else is a list ``[tag, ...]``. What the
sender sends is data and nothing else: :func:`unpack` makes values of the types below, and of no others.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

Other = Callable[[Any], Any]
SMALL = 2**62
TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
"""Types that may themselves be values."""
_CONTAINERS: dict[str, type] = {"l": list, "t": tuple, "s": set, "f": frozenset}
_TAGS: dict[type, str] = {kind: tag for tag, kind in _CONTAINERS.items()}
# A subclass's number or text passes as the plain one.
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__int__), (float, float.__float__), (str, str.__str__),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
)  # fmt: skip
# Types of the standard library by "module.name": the plain arguments that make one, and how they make it.
_LIBRARY: dict[str, tuple[Callable[[Any], Any], Callable[[type, Any], Any]]] = {
    "collections.Counter": (dict, lambda kind, value: kind(value)),
    "collections.OrderedDict": (dict, lambda kind, value: kind(value)),
    "collections.defaultdict": (dict, lambda kind, value: kind(None, value)),
    "collections.deque": (list, lambda kind, value: kind(value)),
    "datetime.date": (lambda it: it.isoformat(), lambda kind, value: kind.fromisoformat(value)),  # type: ignore[attr-defined]
    "datetime.datetime": (lambda it: it.isoformat(), lambda kind, value: kind.fromisoformat(value)),  # type: ignore[attr-defined]
    "datetime.time": (lambda it: it.isoformat(), lambda kind, value: kind.fromisoformat(value)),  # type: ignore[attr-defined]
    "datetime.timedelta": (lambda it: (it.days, it.seconds, it.microseconds), lambda kind, value: kind(*value)),
    "decimal.Decimal": (str, lambda kind, value: kind(value)),
    "fractions.Fraction": (lambda it: (it.numerator, it.denominator), lambda kind, value: kind(*value)),
}


def refuse(value: Any) -> Any:
    """The default for what is not plain data. Raises TypeError."""
    raise TypeError(f"no plain data: {type(value).__name__}")


def pack(value: Any, other: Other = refuse) -> Any:
    """``value`` as JSON can hold it; ``other`` packs what is none of the types here.
    Raises RecursionError for what nests too deeply, or holds itself."""
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is str:
        return value
    if kind is int:
        return value if -SMALL < value < SMALL else ["i", hex(value)]
    if kind in _TAGS:
        return [_TAGS[kind], *(pack(item, other) for item in value)]
    if kind is dict:
        return ["d", *([pack(key, other), pack(item, other)] for key, item in value.items())]
    if kind is bytes or kind is bytearray:
        return ["b" if kind is bytes else "a", value.hex()]
    if kind is complex:
        return ["c", value.real, value.imag]
    if kind is range:
        return ["r", *(pack(end, other) for end in (value.start, value.stop, value.step))]
    for name, known in TYPES.items():
        if value is known:
            return ["y", name]
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _LIBRARY and getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind:
        return ["m", name, pack(_LIBRARY[name][0](value), other)]
    for base, plain in _BASES:
        if isinstance(value, base):
            return pack(plain(value))
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == ():
        return pack(value.item(), other)
    return other(value)


def unpack(value: Any, other: Other = refuse) -> Any:
    """The value that :func:`pack` was given. Raises ValueError, or whatever a type's constructor raises, where it is
    none of :func:`pack`'s; ``other`` unpacks lists with tags that are not of this module."""
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise ValueError("a JSON object is none of the forms here")
        return value
    match value:
        case ["l" | "t" | "s" | "f" as tag, *items]:
            return _CONTAINERS[tag](unpack(item, other) for item in items)
        case ["i", str(text)]:
            return int(text, 16)
        case ["d", *pairs]:
            return {unpack(key, other): unpack(item, other) for key, item in pairs}
        case ["b", str(text)]:
            return bytes.fromhex(text)
        case ["a", str(text)]:
            return bytearray.fromhex(text)
        case ["c", float(real), float(imag)]:
            return complex(real, imag)
        case ["r", *ends]:
            return range(*(unpack(end) for end in ends))
        case ["y", str(name)] if name in TYPES:
            return TYPES[name]
        case ["m", str(name), arguments] if name in _LIBRARY:
            module, _, kind = name.rpartition(".")
            return _LIBRARY[name][1](getattr(import_module(module), kind), unpack(arguments, other))
    return other(value)
