"""Tensors that a model's code can make anew: caches, such as encodings of as many positions as were asked for so far.

Where a call finds what it needs, the code that would make it is not traced. Such a tensor must keep its channels: for a
longer input, a smaller model would make another one.
"""

from __future__ import annotations

import dis
import functools
import os
from collections.abc import Collection, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from .inventory import Inventory
from .source import CannotRewriteError, helpers_of, methods_of


def reused(parts: Inventory) -> dict[str, str]:
    """By name: buffers and plain tensors that are still those that `parts` knows, with what can replace them."""
    kinds = dict.fromkeys(type(module) for module in parts.modules.values())
    setters = {name: where for kind in kinds for name, where in made_anew(kind).items()}
    if not setters:
        return {}
    found: dict[str, str] = {}
    for store in [{**vars(module), **module._buffers} for module in parts.modules.values()]:
        for name in [name for name in store if name in setters]:
            tensor = store[name]
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and id(tensor) in parts.names:
                found[parts.names[id(tensor)]] = setters[name]
    return found


def made_anew(kind: type[nn.Module]) -> Mapping[str, str]:
    """The attributes that the `forward` of a class sets, of whatever object, or functions of its package that it calls;
    and where."""
    key: Any = kind
    return _made_anew(key)


def set_in_forward(kind: type[nn.Module]) -> Collection[str]:
    """The attributes that the `forward` of a class, or functions of its package that it calls, set in whatever way."""
    key: Any = kind
    return _made_anew(key, True)


@functools.cache
def _made_anew(kind: Any, updated: bool = False) -> dict[str, str]:
    try:
        queue = list(methods_of(kind).values())
    except CannotRewriteError:  # PyTorch's own
        return {}
    found: dict[str, str] = {}
    seen: set[CodeType] = set()
    while queue:
        function = queue.pop()
        code = function.__code__
        if code not in seen:
            seen.add(code)
            where = f"{function.__qualname__} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
            found.update(dict.fromkeys(_set_by(code, updated), where))
            queue += _called(function)
    return found


def _called(function: FunctionType) -> Iterator[FunctionType]:
    """The functions of the same package that a function looks up by their names."""
    home = (function.__module__ or "").partition(".")[0]
    return (other for other in helpers_of(function).values() if (other.__module__ or "").partition(".")[0] == home)


# With these names attributes are set by theirs.
_SETTERS = frozenset({"register_buffer", "setattr", "vars", "__dict__", "_buffers"})


_UPDATES = frozenset({"+=", "-=", "*=", "/=", "//=", "%=", "**=", "@=", "&=", "|=", "^=", "<<=", ">>="})


def _set_by(code: CodeType, updated: bool) -> Iterator[str]:
    """The names of attributes that a function sets; those that it sets from their old values, as it does running means,
    only if `updated`."""
    read: list[str] = []  # in this expression
    updates = False  # x.table.data *= ...
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            read.append(instruction.argval)
        elif instruction.opname == "STORE_ATTR" and instruction.argval == "data":  # x.table.data = ...
            yield from read[-1:] if updated or not updates else ()
        elif instruction.opname == "STORE_ATTR" and (updated or instruction.argval not in read):
            yield instruction.argval
        updates |= instruction.opname.startswith("INPLACE") or instruction.argrepr in _UPDATES
        if "JUMP" in instruction.opname or instruction.opname.startswith("STORE"):
            read.clear()
            updates = False
    constants = list(code.co_consts)
    if _SETTERS.intersection(code.co_names):
        constants += [key for constant in constants if isinstance(constant, tuple) for key in constant]
        yield from (constant for constant in constants if isinstance(constant, str))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _set_by(constant, updated)
