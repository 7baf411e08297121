"""What a run may leave behind in a model, and how it is taken back: attributes, and all that they contain.

Models keep caches in lists, dicts and objects of their own. A trace would leave numbers there that remember where they
came from, and zeros in place of values.
"""

from __future__ import annotations

import functools
import random
import sys
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = frozenset({int, float, complex, str, bytes, bool, type(None), type, torch.dtype, torch.device, torch.Size})
_PLAIN |= {FunctionType, BuiltinFunctionType, MethodType, ModuleType}
_TORCH = frozenset({"_parameters", "_buffers", "_modules"})  # dicts of what is looked after elsewhere
_FOREIGN = sys.stdlib_module_names | {"torch"}  # objects of these are no caches
_TABLES = frozenset({dict, OrderedDict, set})


class Contents:
    """The attributes of modules, and the lists, dicts, sets and objects in them and in `others`, as they are now."""

    def __init__(self, modules: Iterable[nn.Module], *others: Any) -> None:
        self.tensors: list[Tensor] = []  # in containers
        self._tables: list[tuple[Any, Any]] = []  # dicts and sets
        self._empty: list[Any] = []  # and those among them in which there is nothing
        self._others: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
        self._seen: set[int] = set()
        states = [vars(module) for module in modules]
        self._seen.update(map(id, states))
        for state in states:
            self._keep_state(state)
        self._keep_all(others)

    def _keep_state(self, state: dict[str, Any]) -> None:
        tables, empty = self._tables, self._empty
        tables.append((state, state.copy()))
        for key, value in state.items():
            kind = type(value)
            if kind in _TABLES:
                if not value:
                    empty.append(value)
                    continue
                tables.append((value, value.copy()))
                if key not in _TORCH:
                    self._keep_all(value if kind is set else value.values())
            elif kind is tuple:
                self._keep_all(value)
            elif kind not in _PLAIN and not isinstance(value, Tensor):  # those have names
                self._keep(value)

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, tuple | frozenset):
            self._keep_all(value)
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            refill = next((refill for base, refill in _REFILL.items() if isinstance(value, base)), None)
            if refill is not None:
                mapping = isinstance(value, dict)
                self._others.append((refill, value, dict(value) if mapping else list(value)))
                self._keep_all(value.values() if mapping else value)
            elif (random_numbers := next((t for t in _GENERATORS if isinstance(value, t)), None)) is not None:
                self._others.append((_GENERATORS[random_numbers][1], value, _GENERATORS[random_numbers][0](value)))
            elif isinstance(value, np.ndarray) and value.flags.writeable:
                self._others.append((np.copyto, value, value.copy()))
            elif _is_own(type(value)):
                self._keep_object(value)

    def _keep_object(self, value: Any) -> None:
        """The attributes of an object, in its dict and in places of their own."""
        kind: Any = type(value)
        if kind.__dictoffset__ != 0:
            state = object.__getattribute__(value, "__dict__")
            if id(state) not in self._seen:
                self._seen.add(id(state))
                self._keep_state(state)
        if slots_of(kind):
            held = {name: getattr(value, name) for name in slots_of(kind) if hasattr(value, name)}
            self._others.append((_set_slots, value, held))
            self._keep_all(held.values())

    def _keep_all(self, values: Iterable[Any]) -> None:
        for value in values:
            if type(value) not in _PLAIN:
                self._keep(value)

    def restore(self) -> None:
        """Puts everything back."""
        for value in self._empty:
            if value:
                value.clear()
        for value, content in self._tables:
            value.clear()
            value.update(content)
        for refill, other, content in self._others:
            refill(other, content)


@contextmanager
def other_random_numbers_kept() -> Iterator[None]:
    """Afterwards the generators of Python and NumPy are where they were."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _is_own(kind: type) -> bool:
    """Whether objects of a class have attributes that a model may write."""
    if issubclass(kind, type | torch.jit.ScriptModule):
        return False
    home = (kind.__module__ or "").partition(".")[0]
    return issubclass(kind, nn.Module | SimpleNamespace | UserDict | UserList) or home not in _FOREIGN


@functools.cache
def slots_of(kind: Any) -> tuple[str, ...]:
    """The attributes that the instances of a class have places for."""
    found = [getattr(base, "__slots__", ()) for base in kind.__mro__]
    names = [name for names in found for name in ((names,) if isinstance(names, str) else names)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _set_slots(value: Any, content: Mapping[str, Any]) -> None:
    kind: Any = type(value)
    for name in slots_of(kind):
        if name in content:
            setattr(value, name, content[name])
        elif hasattr(value, name):
            delattr(value, name)


def _refill_ordered(value: OrderedDict[Any, Any], content: dict[Any, Any]) -> None:
    OrderedDict.clear(value)
    OrderedDict.update(value, content)


def _refill_dict(value: dict[Any, Any], content: dict[Any, Any]) -> None:
    dict.clear(value)
    dict.update(value, content)


def _refill_list(value: list[Any], content: Sequence[Any]) -> None:
    list.__setitem__(value, slice(None), content)


def _refill_set(value: set[Any], content: Sequence[Any]) -> None:
    set.clear(value)
    set.update(value, content)


def _refill_deque(value: deque[Any], content: Sequence[Any]) -> None:
    deque.clear(value)
    deque.extend(value, content)


# What tells where a generator of random numbers is, and what puts it there.
_GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    torch.Generator: (lambda g: g.get_state(), lambda g, state: g.set_state(state)),
    np.random.Generator: (lambda g: g.bit_generator.state, lambda g, state: setattr(g.bit_generator, "state", state)),
    np.random.RandomState: (lambda g: g.get_state(), lambda g, state: g.set_state(state)),
    random.Random: (lambda g: g.getstate(), lambda g, state: g.setstate(state)),
}

_REFILL: dict[type, Callable[[Any, Any], None]] = {
    OrderedDict: _refill_ordered, dict: _refill_dict, list: _refill_list, set: _refill_set, deque: _refill_deque,
}  # fmt: skip
