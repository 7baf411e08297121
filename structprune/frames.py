"""Where in the user's code an operation was called."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection
from functools import cache
from types import CodeType
from typing import NamedTuple

import torch

_HERE = os.path.dirname(__file__) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_START = "_run"  # the function of structprune.trace that calls the model: nothing above it is the model's


def source_line() -> str:
    """`file:line` of the innermost frame that belongs neither to PyTorch nor to structprune."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        owner = _owner(code.co_filename)
        if owner == "user":
            return f"{code.co_filename}:{frame.f_lineno}"
        if owner == "here" and code.co_name == _START:
            return ""
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def is_part_of_a_name(text: str, names: Collection[str]) -> bool:
    """Whether a text is part of one of these names, or of what the code that is running could look up with it."""
    return any(text in name for name in names) or any(text in word for word in _words_of_callers())


def _words_of_callers() -> set[str]:
    """The texts that the code which is running holds: its constants, and the keys of its dicts."""
    found: set[str] = set()
    frame = sys._getframe(1)
    while frame is not None:
        owner = _owner(frame.f_code.co_filename)
        if owner == "here" and frame.f_code.co_name == _START:
            break
        if owner == "user":
            found |= _constants(frame.f_code)
            for held in (*frame.f_locals.values(), *frame.f_globals.values()):
                if type(held) is dict and held is not frame.f_builtins:
                    found.update(key for key in held if isinstance(key, str))
        frame = frame.f_back  # type: ignore[assignment]
    return found


@cache
def _constants(code: CodeType) -> frozenset[str]:
    """The texts among the constants of a function and of those inside, less those of several lines."""
    found: set[str] = set()
    stack = list(code.co_consts)
    while stack:
        constant = stack.pop()
        if isinstance(constant, CodeType):
            found |= _constants(constant)
        elif isinstance(constant, tuple | frozenset):
            stack += constant
        elif isinstance(constant, str) and "\n" not in constant:
            found.add(constant)
    return frozenset(found)


@cache
def _owner(file: str) -> str:
    """Whose code is in a file."""
    if file.startswith(_HERE):
        return "here"
    return "torch" if file.startswith((_TORCH, "<")) or file == contextlib.__file__ else "user"


class Caller(NamedTuple):
    """A place that calls an operation: some code, and which of its instructions does."""

    code: CodeType
    instruction: int


def caller() -> Caller:
    """What called the operation: the first outside structprune and the dispatching parts of PyTorch."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_HERE) and not name.endswith(
            ("torch/overrides.py", "torch/nn/functional.py", "contextlib.py")
        ):
            break
        frame = frame.f_back
    return Caller(frame.f_code, frame.f_lasti)
