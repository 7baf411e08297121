"""Sizes: Python integers that remember where they came from, and constants: floats that do.

While a model is traced, tensor shapes and the integers that its modules hold are `Size` objects. They are
ordinary integers to PyTorch and to Python, but they survive arithmetic, so that at an operation that takes
a size, `x.view(b, self.heads, c // self.heads)`, it is known what the pruned model will compute there.

Where an integer leaves this bookkeeping (it is compared, or becomes a float), a `Guard` records that the
pruned model must get the same answer.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class DimOf:
    """The size of a dimension of a value (a node of the traced graph)."""

    value: Any
    dim: int


class AttributeOf(NamedTuple):
    """A number among the attributes of a module, by its path; or one integer of a tuple or list, by its place."""

    module: str
    name: str
    place: int | None = None

    def pick(self, value: Any) -> int:
        """The number, of what the attribute holds."""
        return int(value if self.place is None else value[self.place])


@dataclass(frozen=True, eq=False)
class Computed:
    """A function of other sizes."""

    function: Callable[..., Any]
    operands: tuple[int, ...]


Origin = DimOf | AttributeOf | Computed


@dataclass(frozen=True, eq=False)
class Guard:
    """The model's Python looked at a size: what it saw must stay as it was."""

    origin: Origin
    expected: Any
    where: str


_on_guard: ContextVar[Callable[[Origin, Any], None] | None] = ContextVar("on_guard", default=None)


@contextmanager
def guarding(report: Callable[[Origin, Any], None] | None) -> Iterator[None]:
    """Sends guards to `report`; None ignores them, as inside an operation."""
    token = _on_guard.set(report)
    try:
        yield
    finally:
        _on_guard.reset(token)


class Size(int):
    """An integer with an origin."""

    origin: Origin

    def __new__(cls, value: int, origin: Origin | None = None) -> Any:
        """Without an origin, as when Python makes another number of the same class, it is a plain integer."""
        if origin is None:
            return int(value)
        size = super().__new__(cls, value)
        size.origin = origin
        return size

    def __reduce__(self) -> tuple[type[int], tuple[int]]:  # copies and pickles are plain integers
        return int, (int.__int__(self),)

    __hash__ = int.__hash__


class Constant(float):
    """A float attribute of a module. Where something other than an operation takes it, it is among the `seen`."""

    __slots__ = ("origin", "seen")

    origin: AttributeOf
    seen: set[AttributeOf]

    def __new__(cls, value: float, origin: AttributeOf, seen: set[AttributeOf]) -> Constant:
        constant = super().__new__(cls, value)
        constant.origin, constant.seen = origin, seen
        return constant

    def __reduce__(self) -> tuple[type[float], tuple[float]]:  # copies and pickles are plain floats
        return float, (float.__float__(self),)

    __hash__ = float.__hash__


def is_attribute(size: Any) -> bool:
    """Whether a number is an attribute of a module, as it is."""
    return isinstance(size, Size) and isinstance(size.origin, AttributeOf)


def _plain(operands: tuple[Any, ...]) -> list[Any]:
    return [int.__int__(o) if isinstance(o, Size) else o for o in operands]


def _notice(name: str) -> Callable[..., Any]:
    """The method of floats by this name, which has seen a constant."""
    method = getattr(float, name)

    def noticed(self: Constant, *others: Any) -> Any:
        self.seen.add(self.origin)
        return method(self, *others)

    return noticed


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow")
for _name in (
    *_ARITHMETIC, *(f"r{name}" for name in _ARITHMETIC), "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "int",
    "float", "bool", "str", "repr", "format", "round", "trunc", "floor", "ceil",
):  # fmt: skip
    setattr(Constant, f"__{_name}__", _notice(f"__{_name}__"))


def _derive(function: Callable[..., Any], *operands: Any) -> Any:
    """Arithmetic: an integer remembers its operands; anything else is watched."""
    value = function(*_plain(operands))
    return Size(value, Computed(function, operands)) if type(value) is int else _watch(value, function, operands)


def _observe(function: Callable[..., Any], *operands: Any) -> Any:
    """A comparison or a conversion: the answer is watched."""
    return _watch(function(*_plain(operands)), function, operands)


def _watch(value: Any, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    report = _on_guard.get()
    if report is not None:
        report(Computed(function, operands), value)
    return value


def _binary(function: Callable[..., Any], how: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def method(self: Size, other: Any, *modulus: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        if modulus:
            return _observe(pow, self, other, *modulus)
        return how(function, other, self) if reflected else how(function, self, other)

    return method


def _unary(function: Callable[..., Any], how: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: how(function, self)


for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow", "lshift", "rshift", "and", "or", "xor"):
    _function = getattr(operator, f"__{_name}__")
    setattr(Size, f"__{_name}__", _binary(_function, _derive))
    setattr(Size, f"__r{_name}__", _binary(_function, _derive, reflected=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Size, f"__{_name}__", _binary(getattr(operator, _name), _observe))
for _name in ("neg", "abs", "invert"):
    setattr(Size, f"__{_name}__", _unary(getattr(operator, _name), _derive))
for _name, _kind in (("float", float), ("int", int), ("bool", bool), ("str", str)):
    setattr(Size, f"__{_name}__", _unary(_kind, _observe))
for _name in ("bit_length", "bit_count", "as_integer_ratio", "to_bytes"):
    _method = getattr(int, _name)
    setattr(Size, _name, lambda self, *args, _method=_method: _observe(_method, self, *args))
# A number put into a text may be part of a name that is looked up; whole shapes (`repr`) are only ever shown.
Size.__repr__ = int.__repr__  # type: ignore[method-assign, assignment]


def _shown(self: Size, spec: str) -> str:
    _observe(str, self)
    return format(int.__int__(self), spec)


Size.__format__ = _shown  # type: ignore[method-assign, assignment]
for _name in ("pos", "trunc", "floor", "ceil"):
    setattr(Size, f"__{_name}__", lambda self: self)


def _rounded(self: Size, digits: Any = None) -> Any:
    return self if digits is None or digits >= 0 else _derive(round, self, digits)


Size.__round__ = _rounded  # type: ignore[method-assign, assignment]
Size.conjugate = lambda self: self  # type: ignore[method-assign]
for _name in ("real", "numerator"):
    setattr(Size, _name, property(lambda self: self))
Size.__divmod__ = lambda self, other: (self // other, self % other)  # type: ignore[method-assign, assignment, misc]
Size.__rdivmod__ = lambda self, other: (other // self, other % self)  # type: ignore[method-assign, assignment, misc]


# Functions that take an integer as it is, without asking it for anything.
_GREEDY = frozenset({"log", "log2", "log10", "isqrt", "gcd", "lcm", "comb", "perm", "factorial", "ldexp"})


@contextmanager
def arithmetic_watched() -> Iterator[None]:
    """Meanwhile what functions of `math` answer that take a size for any integer is watched, and constants that they
    take, as they are, too, are seen."""
    before = {
        name: function for name, function in vars(math).items() if callable(function) and not name.startswith("_")
    }

    def watching(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            for constant in (a for a in args if isinstance(a, Constant)):
                constant.seen.add(constant.origin)
            greedy = name in _GREEDY and any(isinstance(a, Size) for a in args)
            return _observe(function, *args) if greedy else function(*args, **kwargs)

        return watched

    try:
        for name, function in before.items():
            setattr(math, name, watching(name, function))
        yield
    finally:
        for name, function in before.items():
            setattr(math, name, function)


NUMBERS = "code_sizes"  # the attribute of a class that was rewritten (see `structprune.rewriting`)
_REMEMBERED = frozenset({int, float, tuple, list})


def remember_attributes(path: str, state: dict[str, Any], shapes: bool, seen: set[AttributeOf]) -> None:
    """The integers among a module's attributes, and with `shapes` those in its short tuples and lists, become sizes;
    floats become constants, noted in `seen`."""
    for key, value in [item for item in state.items() if type(item[1]) in _REMEMBERED]:
        kind = type(value)
        if kind is int:
            state[key] = Size(value, AttributeOf(path, key))
        elif kind is float:
            state[key] = Constant(value, AttributeOf(path, key), seen)
        elif shapes and (0 < len(value) <= 16 or key == NUMBERS) and all(type(n) is int for n in value):
            state[key] = kind(Size(n, AttributeOf(path, key, i)) for i, n in enumerate(value))


def evaluate(size: Any, leaf: Callable[[DimOf | AttributeOf], int]) -> Any:
    """What `size` (or its origin) will be, given the value of each leaf."""
    origin = size.origin if isinstance(size, Size) else size
    if isinstance(origin, Computed):
        return origin.function(*(evaluate(o, leaf) for o in origin.operands))
    return leaf(origin) if isinstance(origin, DimOf | AttributeOf) else size


def leaves(size: Any) -> Iterator[DimOf | AttributeOf]:
    """The dimensions and attributes that `size` (or an origin) is made of."""
    origin = size.origin if isinstance(size, Size) else size
    if isinstance(origin, Computed):
        for operand in origin.operands:
            yield from leaves(operand)
    elif isinstance(origin, DimOf | AttributeOf):
        yield origin
