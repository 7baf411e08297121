"""Deep copies of models, with an error that names what cannot be copied."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from .errors import UnsupportedModelError


def deep_value(value: Any, memo: dict[int, Any], name: str) -> Any:
    """`copy.deepcopy` of an attribute called `name`; raises UnsupportedModelError."""
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:  # whatever the user's code raises
        raise UnsupportedModelError(
            f"the model cannot be copied: {name or 'the model'} ({type(value).__name__}) does not allow it ({error}); "
            "pass inplace=True to prune the model itself, with verify=False, since a verification needs copies too"
        ) from error


def deep_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """`copy.deepcopy` of a model; raises UnsupportedModelError with the attribute that does not allow it."""
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # the same
        for path, module in model.named_modules():
            for key, value in vars(module).items():
                if key not in ("_modules", "_parameters", "_buffers"):
                    deep_value(value, {}, f"{path}.{key}" if path else key)
        raise UnsupportedModelError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
