"""Where in the user's code an operation was called."""

from __future__ import annotations

import os
import sys
from functools import cache
from types import CodeType

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


@cache
def _owner(file: str) -> str:
    """Whose code is in a file."""
    if file.startswith(_HERE):
        return "here"
    return "torch" if file.startswith((_TORCH, "<")) or "contextlib" in file else "user"


def caller() -> CodeType:
    """The code that called the operation: the first outside structprune and the dispatching parts of PyTorch."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_HERE) and not name.endswith(
            ("torch/overrides.py", "torch/nn/functional.py", "contextlib.py")
        ):
            break
        frame = frame.f_back
    return frame.f_code
