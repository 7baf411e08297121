"""Functions that remember (`functools.lru_cache`), made to forget while a model is traced.

Such a function knows sizes by their numbers alone: it would hand the results of one trace to the next, or to the
model itself, and those of an earlier call of the model to the trace. einops works that way.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

_Remembering: Any = type(functools.lru_cache(lambda: None))
_FOREIGN = sys.stdlib_module_names | {"torch", "numpy", "structprune"}


@contextmanager
def remembering_nothing(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The functions that remember, among those that these modules call, compute everything anew."""
    kinds: set[Any] = set(map(type, modules))
    found = {(id(place), name): (place, name) for kind in kinds for place, name in _places(kind)}
    before = [(place, name, vars(place).get(name)) for place, name in found.values()]
    before = [(place, name, value) for place, name, value in before if isinstance(value, _Remembering)]
    try:
        for place, name, value in before:
            setattr(place, name, _forgetful(value))
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _forgetful(function: Any) -> Any:
    @functools.wraps(function.__wrapped__)
    def compute(*args: Any, **kwargs: Any) -> Any:
        return function.__wrapped__(*args, **kwargs)

    for name in ("cache_clear", "cache_info", "cache_parameters"):
        setattr(compute, name, getattr(function, name))
    return compute


@functools.cache
def _places(kind: type) -> tuple[tuple[Any, str], ...]:
    """The classes and modules, with names in them, where functions that remember are within reach of a class's code."""
    bases = [base for base in kind.__mro__ if not _foreign(base.__module__)]
    homes = {sys.modules[base.__module__] for base in bases if base.__module__ in sys.modules}
    for home in tuple(homes):  # what it imports, and where that comes from
        homes |= {other for value in tuple(vars(home).values()) for other in _homes(value)}
    for home in tuple(homes):
        homes |= {other for value in tuple(vars(home).values()) for other in _homes(value, modules=False)}
    places: list[Any] = [*bases, *homes]
    return tuple((p, name) for p in places for name, value in tuple(vars(p).items()) if isinstance(value, _Remembering))


def _homes(value: Any, modules: bool = True) -> Iterator[ModuleType]:
    """The module that a module, class or function is or is defined in, unless it is of a foreign package."""
    if isinstance(value, ModuleType):
        name = value.__name__ if modules else ""
    elif isinstance(value, FunctionType | type | _Remembering):
        name = getattr(value, "__module__", None) or ""
    else:
        return
    if name in sys.modules and not _foreign(name):
        yield sys.modules[name]


def _foreign(module: str) -> bool:
    return module.partition(".")[0] in _FOREIGN
