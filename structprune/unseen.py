"""What a model does where a `TorchFunctionMode` does not look: scripted calls, `torch.func`, `torch.autograd.grad`,
foreign extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

UNSEEN = "an untraceable call"


def opaque(*tensors: Any) -> Any:
    """Stands in the graph for such a call."""
    raise NotImplementedError("such a call can be traced, but not run from its trace")


def in_memory(tensor: Tensor) -> bool:
    """Whether a tensor has memory at all, unlike the wrappers inside `torch.func.vmap`."""
    try:
        tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def foreign(tensor: Tensor) -> bool:
    """Whether the memory is not PyTorch's own, as that of NumPy arrays: how values get there is seen."""
    return in_memory(tensor) and not tensor.untyped_storage().resizable()


def is_set_to(tensor: Tensor, value: Tensor) -> bool:
    """Whether two tensors are the same memory, seen in the same way."""
    solid = tensor.layout == value.layout == torch.strided and not tensor.is_meta and tensor.dtype == value.dtype
    return (
        solid
        and tensor.data_ptr() == value.data_ptr()
        and (tensor.shape, tensor.stride()) == (value.shape, value.stride())
    )


@contextmanager
def seen_scripts(report: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    """Calls of scripted functions go past every Python-level mode, so they are caught at their own door."""
    original = torch.jit.ScriptFunction.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        report(self, (args, kwargs), output)
        return output

    torch.jit.ScriptFunction.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.jit.ScriptFunction.__call__ = original  # type: ignore[method-assign]
