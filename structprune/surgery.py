"""Surgery: a plan and a model become a smaller model. No tracing, no knowledge of operations."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .collector import paused
from .copying import check_free, deep_value
from .errors import UnsupportedModelError
from .fitting import check_fits
from .inventory import Inventory, modules_of
from .plan import PruningPlan
from .prepare import check_flag
from .swaps import swap

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_CALLED = frozenset({FunctionType, functools.partial, OrderedDict})  # hooks lie in the last
_CONTAINERS = frozenset({dict, OrderedDict, list, set})
_GETSTATE = getattr(nn.Module, "__getstate__", None)  # every object has one since Python 3.11
_SHARED = frozenset({int, float, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size})


@paused()
def apply(plan: PruningPlan, model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The smaller model: a copy of `model`, or `model` itself with `inplace=True`.

    Weights are sliced once, never copied whole. Parameters keep their dtype, device, memory format,
    `requires_grad` and gradient; tied ones stay tied; hooks are kept.

    Raises PlanError if the plan was made for another model, UnsupportedModelError if the model cannot be copied, does
    not let itself be changed, or is to be cut in place and has hooks on parameters.
    """
    check_flag(inplace, "inplace")
    parts = Inventory(model)
    check_fits(plan, parts)
    tensors = parts.tensors
    cut = plan.cut
    if inplace:
        _check_hooks({name: tensors[name] for name in cut})
    chosen = {name: t for name, t in tensors.items() if not inplace or name in cut}
    with torch.inference_mode(False), torch.no_grad():  # the small model may be trained later
        slicer = Slicer()
        sliced = {id(t): slice_tensor(t, cut.get(name, {}), slicer) for name, t in chosen.items()}
        for name, scale in plan.scales.items():
            sliced[id(tensors[name])].mul_(scale).add_(plan.shifts.get(name, 0.0))
    if inplace:
        _check_functions(parts, sliced)
    memo: dict[int, Any] = dict(sliced)
    small = model if inplace else copy_module(model, memo, parts.paths)
    modules = modules_of(small)
    _set_attributes(plan, modules)  # what a module may refuse comes first
    if inplace:
        replace_tensors(model, sliced)
    for path, (name, channels) in plan.swaps.items():
        swap(modules[path], name, channels)
    return small


def _check_hooks(tensors: Mapping[str, Tensor]) -> None:
    """Raises UnsupportedModelError for parameters with hooks of their own, which those in their places would not have.

    There is no public way to ask for them.
    """
    for name, tensor in tensors.items():
        if tensor._backward_hooks or tensor._post_accumulate_grad_hooks:
            raise UnsupportedModelError(
                f"{name} has hooks of its own, which the smaller parameter in its place would not have: remove them, "
                "and register them again on the pruned model"
            )


def _check_functions(parts: Inventory, sliced: Mapping[int, Tensor]) -> None:
    """Raises UnsupportedModelError if a function among the attributes or hooks of a module would keep what is cut."""
    for path, module in parts.modules.items():
        for key, value in vars(module).items():
            if type(value) in _CALLED:
                check_free(value, f"{path}.{key}" if path else key, {}, sliced, copied=False)


def _set_attributes(plan: PruningPlan, modules: Mapping[str, nn.Module]) -> None:
    """Sets the numbers that modules keep, or none of them: raises UnsupportedModelError if a module refuses one."""
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for path, values in plan.attributes.items():
        state = vars(modules[path])
        before.append((state, state.copy()))
        for name, value in values.items():
            try:
                setattr(modules[path], name, list(value) if type(state.get(name)) is list else value)
            except Exception as error:  # whatever the user's code raises
                for changed, content in before:
                    changed.clear()
                    changed.update(content)
                raise UnsupportedModelError(f"{path}.{name} cannot be set to {value!r}: {error}") from error


class Slicer:
    """Cuts tensors. Index tensors are made once for the many parameters that keep the same indices (and share the
    tuple). What lies between two cuts of a tensor stays in a small buffer: fresh memory costs more than copying."""

    BLOCK = 1 << 20  # elements that are between two cuts at a time

    def __init__(self) -> None:
        self._indices: dict[tuple[int, torch.device], Tensor] = {}
        self._buffers: dict[torch.dtype, Tensor] = {}

    def index(self, indices: tuple[int, ...], device: torch.device) -> Tensor:
        """The indices as a tensor."""
        key = (id(indices), device)
        if key not in self._indices:
            self._indices[key] = torch.from_numpy(np.array(indices)).to(device)
        return self._indices[key]

    def cut(self, data: Tensor, kept: Mapping[int, tuple[int, ...]]) -> Tensor:
        """A new tensor with the kept indices."""
        if not kept:
            return data.clone()
        if len(kept) == 2 and 0 in kept and data.is_cpu and data.is_contiguous() and data.numel() > self.BLOCK:
            return self._cut_twice(data, kept)
        for dim in sorted(kept):  # rows first: they are copied whole
            data = data.index_select(dim, self.index(kept[dim], data.device))
        return data

    def _cut_twice(self, data: Tensor, kept: Mapping[int, tuple[int, ...]]) -> Tensor:
        """Cuts dimension 0 and another one of a large tensor, a few rows at a time."""
        dim = max(kept)
        rows, inner = self.index(kept[0], data.device), self.index(kept[dim], data.device)
        shape = list(data.shape)
        shape[0], shape[dim] = len(rows), len(inner)
        out = data.new_empty(shape)
        width = data.numel() // data.shape[0]
        step = max(1, self.BLOCK // width)
        if step * width > self._buffers.get(data.dtype, data[:0]).numel():
            self._buffers[data.dtype] = data.new_empty(max(step * width, self.BLOCK))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            buffer = self._buffers[data.dtype][: len(some) * width].view(len(some), *data.shape[1:])
            torch.index_select(data, 0, some, out=buffer)
            torch.index_select(buffer, dim, inner, out=out[start : start + step])
        return out


def slice_tensor(tensor: Tensor, kept: Mapping[int, tuple[int, ...]], slicer: Slicer) -> Tensor:
    """A new tensor with the kept indices, and everything else about it unchanged."""
    data = slicer.cut(tensor.detach(), kept)
    layout = _LAYOUTS.get(data.ndim)
    if layout is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout):
        data = data.contiguous(memory_format=layout)
    kind = type(tensor)
    if issubclass(kind, nn.Parameter):
        out: Tensor = nn.Parameter(data, tensor.requires_grad)
        if kind is not nn.Parameter:
            out.__class__ = kind
    else:
        out = data.requires_grad_(tensor.requires_grad)
    if tensor.is_leaf and tensor.grad is not None:
        out.grad = slice_tensor(tensor.grad, kept, slicer)
    for key, value in vars(tensor).items():
        setattr(out, key, value)
    return out


def _copies_itself(kind: Any) -> bool:
    """Whether a class of modules has a way of its own to be copied.

    What PyTorch's modules do with a state is meant for old pickles, which lack attributes.
    """
    usual = kind.__setstate__ is nn.Module.__setstate__ or kind.__setstate__.__module__.startswith("torch.nn.")
    states = not usual or getattr(kind, "__getstate__", None) is not _GETSTATE
    return states or hasattr(kind, "__deepcopy__") or kind.__reduce_ex__ is not object.__reduce_ex__


def copy_module(module: nn.Module, memo: dict[int, Any], paths: Mapping[int, str]) -> nn.Module:
    """A deep copy of a module in which the tensors of `memo` are already replaced."""
    if id(module) in memo:
        return memo[id(module)]
    if _copies_itself(type(module)):
        return deep_value(module, memo, paths.get(id(module), ""))
    new = type(module).__new__(type(module))
    memo[id(module)] = new
    state = vars(new)
    for key, value in vars(module).items():
        kind = type(value)
        if kind in _SHARED or (kind is tuple and all(type(v) in _SHARED for v in value)):
            state[key] = value
        elif kind in _CONTAINERS and not value:
            state[key] = memo.setdefault(id(value), kind())  # handles of hooks refer to such
        elif key == "_modules":
            state[key] = {n: m if m is None else copy_module(m, memo, paths) for n, m in value.items()}
        elif key in ("_parameters", "_buffers"):
            state[key] = {n: t if t is None else memo[id(t)] for n, t in value.items()}
        elif key == "_compiled_call_impl":  # compiled for the old sizes
            state[key] = None
        else:
            path = paths.get(id(module), "")
            name = f"{path}.{key}" if path else key
            if kind in _CALLED:
                check_free(value, name, paths, memo, copied=True)
            state[key] = deep_value(value, memo, name)
    return new


def replace_tensors(model: nn.Module, sliced: Mapping[int, Tensor]) -> None:
    """Puts new tensors in the place of old ones (by `id`), wherever modules hold them."""
    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for store in stores:
            for name, value in store.items():
                if isinstance(value, Tensor):
                    store[name] = sliced.get(id(value), value)
                elif type(value) in (list, tuple, dict):  # recurrent layers keep a list of their weights
                    store[name] = _replaced(value, sliced)


def _replaced(value: Any, sliced: Mapping[int, Tensor]) -> Any:
    """A list or dict with new tensors in the place of old ones; a tuple made anew, if there are any in it."""
    if isinstance(value, Tensor):
        return sliced.get(id(value), value)
    if type(value) is list:
        value[:] = [_replaced(item, sliced) for item in value]
    elif type(value) is dict:
        value.update({key: _replaced(item, sliced) for key, item in value.items()})
    elif type(value) is tuple:
        items = tuple(_replaced(item, sliced) for item in value)
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value
