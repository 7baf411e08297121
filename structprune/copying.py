"""Deep copies of models, with an error that names what cannot be copied."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from .errors import UnsupportedModelError

_FAILURES = (TypeError, RuntimeError, ValueError, AttributeError, NotImplementedError)


def deep_value(value: Any, memo: dict[int, Any], name: str) -> Any:
    """`copy.deepcopy` of an attribute called `name`; raises UnsupportedModelError."""
    try:
        return copy.deepcopy(value, memo)
    except _FAILURES as error:
        raise UnsupportedModelError(
            f"the model cannot be copied: {name or 'the model'} ({type(value).__name__}) does not allow it ({error}); "
            "pass inplace=True to prune the model itself, with verify=False, since a verification needs copies too"
        ) from error


def deep_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """`copy.deepcopy` of a model; raises UnsupportedModelError with the attribute that does not allow it."""
    try:
        return copy.deepcopy(model, memo)
    except _FAILURES:
        for path, module in model.named_modules():
            for key, value in vars(module).items():
                if key not in ("_modules", "_parameters", "_buffers"):
                    deep_value(value, {}, f"{path}.{key}" if path else key)
        raise
