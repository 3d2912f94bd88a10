"""Calls between a judge's process and a program's: what the tests see of the program.

Requests and replies are lines of JSON over two pipes. Plain data passes by value (wire.py). What else a program has
(its functions, classes and their instances, generators) stays in its process; the judge holds a :class:`Remote`, which
forwards calls, attributes and operators but never compares by the program's rules. Functions of the tests that are
passed to the program can be called back, and nothing else of the judge's can.

- An instance of a program's own subclass of list, tuple, dict or set is compared by its plain content; a subclass's
  number or text arrives as the plain number or text.
- Any other object of the program's equals no plain data. What would let the program say how it compares is
  refused (:class:`Unsupported`): comparing it with another such object, arithmetic with plain data (``f(x) - 2.0``),
  methods that ask plain data a question (``f(x).startswith("a")``). ``in`` asks for its items and compares them here.
- Arguments that a call changed in place are copied back when it returns None, as such functions do by custom. A
  function that returns something cannot change what the tests compare its result with.
"""

import builtins
import json
import operator
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, BinaryIO

from wire import pack, unpack

LONGEST_LINE = 64 * 2**20
MAX_ITEMS = 100_000
"""Of an iterator that the tests pass: it is passed as a list."""
_BINARY = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul", "lshift", "rshift",
)  # fmt: skip
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg, "pos": operator.pos, "invert": operator.invert, "abs": abs, "len": len, "iter": iter,
    "next": next, "bool": bool, "str": str, "repr": repr, "int": int, "float": float, "index": operator.index,
}  # fmt: skip
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **_UNARY,
    **{name: getattr(operator, f"__{name}__") for name in _BINARY},
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr, "setattr": setattr, "delattr": delattr, "isinstance": isinstance, "issubclass": issubclass,
    "getitem": operator.getitem, "setitem": operator.setitem, "delitem": operator.delitem,
    "itself": lambda value: value,
    "enter": lambda manager: manager.__enter__(), "exit": lambda manager, *_: manager.__exit__(None, None, None),
}  # fmt: skip
_CONTENT: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (list, lambda value: list(list.__iter__(value))), (tuple, lambda value: list(tuple.__iter__(value))),
    (dict, lambda value: list(dict.items(value))), (set, lambda value: list(set.__iter__(value))),
    (frozenset, lambda value: list(frozenset.__iter__(value))),
)  # fmt: skip


QUESTIONS = frozenset((
    "startswith", "endswith", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier",
    "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "issubset", "issuperset",
    "isdisjoint", "is_integer",
))  # fmt: skip
"""Methods of the built-in types that answer yes or no."""


class Unsupported(BaseException):
    """The tests do something impossible from another process. Not an Exception: tests may catch those."""


class Ended(BaseException):
    """The program's process is gone, or sends nonsense. Not an Exception either."""


class Peer:
    """One end. Requests are ``[operation, args, kwargs]``; replies ``["ok", value, {place: changed argument}]`` or
    ``["raise", names of the exception's classes, args]``."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink

    def _send(self, message: list[Any]) -> None:
        self._sink.write(json.dumps(message).encode() + b"\n")
        self._sink.flush()

    def _receive(self) -> list[Any]:
        """Raises EOFError where the other end is gone, ValueError or RecursionError for what is not a message."""
        line = self._source.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise EOFError("the other process has ended")
        message = json.loads(line)
        if not isinstance(message, list) or len(message) != 3:
            raise ValueError("no message")
        return message

    def close(self) -> None:
        for pipe in (self._source, self._sink):
            with suppress(BrokenPipeError):
                pipe.close()

    def pack(self, value: Any) -> Any:
        return pack(value, self._pack_other)

    def unpack(self, value: Any) -> Any:
        return unpack(value, self._unpack_other)

    def _pack_other(self, value: Any) -> Any:
        raise NotImplementedError

    def _unpack_other(self, value: Any) -> Any:
        raise NotImplementedError

    def _serve(self, message: list[Any]) -> None:
        raise NotImplementedError


class ProgramEnd(Peer):
    """The program's end: does what is requested."""

    def __init__(self, source: BinaryIO, sink: BinaryIO, space: dict[str, Any]) -> None:
        super().__init__(source, sink)
        self._space = space
        self._held: dict[int, Any] = {}

    def serve(self) -> None:
        """Until the judge is gone."""
        print(end="", flush=True)
        self._send(["ok", None, {}])
        while True:
            try:
                message = self._receive()
            except EOFError:
                return
            self._serve(message)

    def _serve(self, message: list[Any]) -> None:
        try:
            reply = self._result(*message)
        except BaseException as error:
            names = [kind.__name__ for kind in type(error).__mro__[:-2]]
            try:
                reply = ["raise", names, self.pack(list(error.args))]
            except Exception:
                reply = ["raise", names, ["l"]]
        self._send(reply)

    def _result(self, operation: str, packed: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        if operation == "names":
            return ["ok", self.pack({name: self._space[name] for name in packed if name in self._space}), {}]
        args = [self.unpack(each) for each in packed]
        value = _OPERATIONS[operation](*args, **{name: self.unpack(each) for name, each in kwargs.items()})
        places = [place for place, each in enumerate(args) if type(each) in (list, dict, set, bytearray)]
        changed = {place: now for place in places if (now := self.pack(args[place])) != packed[place]}
        return ["ok", self.pack(value), changed]

    def _pack_other(self, value: Any) -> Any:
        if isinstance(value, _Callback):
            return ["fn", value.id]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["x", [kind.__name__ for kind in value.__mro__[:-2]]]
        content = None
        for kind, items in _CONTENT:
            if isinstance(value, kind):
                content = pack(kind(items(value)), self._pack_other)
        self._held[id(value)] = value
        return ["h", id(value), content]

    def _unpack_other(self, value: Any) -> Any:
        match value:
            case ["h", int(place)]:
                return self._held[place]
            case ["fn", int(place)]:
                return _Callback(self, place)
            case ["it", *items]:
                return iter([self.unpack(item) for item in items])
        raise ValueError("no value")

    def call_back(self, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a function of the tests; meanwhile it may ask for more."""
        self._send(
            [place, [self.pack(each) for each in args], {name: self.pack(each) for name, each in kwargs.items()}]
        )
        while (message := self._receive())[0] not in ("ok", "raise"):
            self._serve(message)
        if message[0] == "raise":
            kind = getattr(builtins, str(message[1]), Exception)
            raise kind(*self.unpack(message[2]))
        return self.unpack(message[1])


class _Callback:
    def __init__(self, program: ProgramEnd, place: int) -> None:
        self.program, self.id = program, place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.program.call_back(self.id, args, kwargs)


class JudgeEnd(Peer):
    """The judge's end: trusts nothing about the other than that it may have sent some data."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        super().__init__(source, sink)
        self._remotes: dict[int, Remote] = {}
        self._functions: dict[int, Callable[..., Any]] = {}
        self._exceptions: dict[str, type[BaseException]] = {}
        self.doubt = ""
        """What the tests did that may have made them fail although the program is right."""
        self.refused = ""
        """What :class:`Unsupported` said, should the tests have swallowed it."""
        self.failed = self.ended = False
        """An assertion failed in a function of the tests that the program called; :class:`Ended` was raised."""

    def ready(self) -> bool:
        """Waits for the program to have run. False where it ended instead."""
        try:
            return self._receive()[0] == "ok"
        except (EOFError, ValueError):
            return False

    def names(self, wanted: list[str]) -> dict[str, Any]:
        """Those of the program's global names that exist, and no others that it may report."""
        found = self._ask("names", list(wanted), {}, [])
        return {name: found[name] for name in wanted if name in found} if type(found) is dict else {}

    def unsupported(self, why: str) -> Unsupported:
        self.refused = why
        return Unsupported(why)

    def do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        packed = [self.pack(each) for each in args]
        return self._ask(operation, packed, {name: self.pack(each) for name, each in kwargs.items()}, args)

    def _ask(self, operation: str, packed: list[Any], kwargs: dict[str, Any], args: Any) -> Any:
        try:
            self._send([operation, packed, kwargs])
            while (message := self._receive())[0] not in ("ok", "raise"):
                self._serve(message)
        except (EOFError, OSError, ValueError, RecursionError) as error:
            self.ended = True
            raise Ended from error
        if message[0] == "raise":
            raised = self._exception(message[1], self.unpack(message[2]))
            if isinstance(raised, StopIteration) and operation != "next":  # would end a loop of the tests
                raise RuntimeError("StopIteration out of an iterator")
            raise raised
        value, changed = self.unpack(message[1]), message[2]
        if changed and value is not None:
            self.doubt = "a function changed its arguments and returned a value"
        elif changed:
            for place, content in changed.items():
                _fill(args[int(place)], self.unpack(content))
        return value

    def _serve(self, message: list[Any]) -> None:
        place, packed, kwargs = message
        function = self._functions[place]
        try:
            args, named = [self.unpack(each) for each in packed], {name: self.unpack(kwargs[name]) for name in kwargs}
            reply = ["ok", self.pack(function(*args, **named)), {}]
        except Exception as error:
            self.failed |= isinstance(error, AssertionError)
            reply = ["raise", type(error).__name__, ["l", str(error)]]
        self._send(reply)

    def _exception(self, names: Any, args: Any) -> BaseException:
        kind = self._exception_class(names)
        try:
            return kind(*args)
        except Exception:
            return Exception(*args)

    def _exception_class(self, names: Any) -> type[BaseException]:
        """The built-in one of that name, or else a class of the name that inherits the first built-in one. Programs'
        classes of one name are one class here."""
        base: type[BaseException] = Exception
        for name in reversed([str(each) for each in names]):
            known = getattr(builtins, name, None)
            if isinstance(known, type) and issubclass(known, BaseException):
                base = known
            else:
                base = self._exceptions.setdefault(name, type(name, (base,), {}))
        return base

    def _pack_other(self, value: Any) -> Any:
        if type(value) is Remote:
            return ["h", _id(value)]
        if isinstance(value, Iterator):
            return ["it", *(self.pack(item) for item in islice(value, MAX_ITEMS))]
        if callable(value):
            self._functions[id(value)] = value
            return ["fn", id(value)]
        raise self.unsupported("the tests pass the program objects of their own")

    def _unpack_other(self, value: Any) -> Any:
        match value:
            case ["h", int(place), content]:
                if place not in self._remotes:
                    self._remotes[place] = Remote(self, place, None)
                remote = self._remotes[place]
                object.__setattr__(remote, "_Remote__content", self.unpack(content))
                return remote
            case ["fn", int(place)]:
                return self._functions[place]
            case ["x", [*names]]:
                return self._exception_class(names)
        raise ValueError("no value")


class Remote:
    """An object of the program's, seen from the judge."""

    __slots__ = ("__content", "__id", "__judge")

    def __init__(self, judge: JudgeEnd, place: int, content: Any) -> None:
        for name, value in (("judge", judge), ("id", place), ("content", content)):
            object.__setattr__(self, f"_Remote__{name}", value)

    def __getattr__(self, name: str) -> Any:
        if name in QUESTIONS:
            raise self.__judge.unsupported("the tests ask an object of the program's own a question")
        return self.__judge.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__judge.do("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self.__judge.do("delattr", self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__judge.do("call", self, *args, **kwargs)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        raise self.__judge.unsupported("the tests derive a class from one of the program's")

    def __exit__(self, *_: object) -> None:
        """Never swallows an exception: it may be a failed assertion."""
        self.__judge.do("exit", self)

    def __instancecheck__(self, instance: Any) -> bool:
        return type(instance) is Remote and self.__judge.do("isinstance", instance, self) is True

    def __subclasscheck__(self, subclass: Any) -> bool:
        return type(subclass) is Remote and self.__judge.do("issubclass", subclass, self) is True

    def __eq__(self, other: object) -> bool:
        return self is other or self.__compare(operator.eq, other, False)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: Any) -> bool:
        return self.__compare(operator.lt, other, None)

    def __le__(self, other: Any) -> bool:
        return self.__compare(operator.le, other, None)

    def __gt__(self, other: Any) -> bool:
        return self.__compare(operator.gt, other, None)

    def __ge__(self, other: Any) -> bool:
        return self.__compare(operator.ge, other, None)

    __hash__ = object.__hash__

    def __compare(self, compare: Callable[[Any, Any], Any], other: Any, unlike: bool | None) -> Any:
        mine, theirs = _content(self), _content(other)
        if mine is not None and theirs is not None:
            return compare(mine, theirs)
        self.__judge.doubt = "the tests compare objects of the program's own"
        if unlike is None or type(other) is Remote:
            raise self.__judge.unsupported(self.__judge.doubt)
        return unlike


def _id(remote: Remote) -> int:
    return object.__getattribute__(remote, "_Remote__id")


def _content(value: Any) -> Any:
    """A plain value itself, and the plain content of a remote one (None: it has none), as it is now."""
    if type(value) is not Remote:
        return value
    if object.__getattribute__(value, "_Remote__content") is None:
        return None
    object.__getattribute__(value, "_Remote__judge").do("itself", value)
    return object.__getattribute__(value, "_Remote__content")


def _forward(operation: str) -> Callable[..., Any]:
    def method(self: Remote, *args: Any) -> Any:
        return object.__getattribute__(self, "_Remote__judge").do(operation, self, *args)

    return method


def _binary(operation: str, swapped: bool) -> Callable[[Remote, Any], Any]:
    """Between two objects of the program's, its operator; with plain data, the judge's own on the plain content."""

    def method(self: Remote, other: Any) -> Any:
        pair = (other, self) if swapped else (self, other)
        if type(other) is Remote:
            return object.__getattribute__(self, "_Remote__judge").do(operation, *pair)
        left, right = map(_content, pair)
        if left is None or right is None:
            judge = object.__getattribute__(self, "_Remote__judge")
            raise judge.unsupported("the tests compute with an object of the program's own")
        return _OPERATIONS[operation](left, right)

    return method


for _name in (*_UNARY, "enter", "getitem", "setitem", "delitem"):
    setattr(Remote, f"__{_name}__", _forward(_name))
for _name in _BINARY:
    setattr(Remote, f"__{_name}__", _binary(_name, swapped=False))
    setattr(Remote, f"__r{_name}__", _binary(_name, swapped=True))


def _fill(old: Any, new: Any) -> None:
    """Makes a mutable argument equal to ``new``, in place. Raises TypeError where the two are not of one type."""
    if type(old) is not type(new):
        raise TypeError("a changed argument of another type")
    if isinstance(old, list | bytearray):
        old[:] = new
    else:
        old.clear()
        old.update(new)
