"""Tensors that a model's code can make anew: caches, such as encodings of as many positions as were asked for so far.

Where a call finds what it needs, the code that would make it is not traced. Such a tensor must keep its channels: for a
longer input, a smaller model would make another one.
"""

from __future__ import annotations

import dis
import functools
import inspect
import os
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

from torch import Tensor, nn

from .inventory import Inventory
from .source import CannotRewriteError, methods_of


def reused(parts: Inventory) -> dict[str, str]:
    """By name: buffers and plain tensors that are still those that `parts` knows, with what can replace them."""
    found: dict[str, str] = {}
    for module in parts.modules.values():
        for name, where in made_anew(type(module)).items():
            tensor = module._buffers.get(name, vars(module).get(name))
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and id(tensor) in parts.names:
                found[parts.names[id(tensor)]] = where
    return found


def made_anew(kind: type[nn.Module]) -> Mapping[str, str]:
    """The attributes that the `forward` of a class sets, itself or by its other methods, and where."""
    key: Any = kind
    return _made_anew(key)


@functools.cache
def _made_anew(kind: Any) -> dict[str, str]:
    try:
        methods = methods_of(kind)
    except CannotRewriteError:  # PyTorch's own
        return {}
    found: dict[str, str] = {}
    for name in methods:
        code = inspect.getattr_static(kind, name).__code__
        where = f"{kind.__name__}.{name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
        found.update(dict.fromkeys(_set_by(code), where))
    return found


def _set_by(code: CodeType) -> Iterator[str]:
    """The names of attributes that a function sets, but not from their old values, as it does running means; and of
    buffers that it may register."""
    read: set[str] = set()  # in this expression
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            read.add(instruction.argval)
        elif instruction.opname == "STORE_ATTR" and instruction.argval not in read:
            yield instruction.argval
        if "JUMP" in instruction.opname or instruction.opname.startswith("STORE"):
            read.clear()
    if "register_buffer" in code.co_names:
        yield from (constant for constant in code.co_consts if isinstance(constant, str))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _set_by(constant)
