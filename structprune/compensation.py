"""Compensated classes: subclasses in which PyTorch's norms count the original channels (see `structprune.nn`).

The methods keep their code. The names by which they get at a norm, `F.layer_norm` or a function of their file that
calls one, lead elsewhere.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .nn import NORMS, batch_norm, group_norm, layer_norm, refuse_script, rms_norm, unannounced
from .source import CannotRewriteError, helpers_of, methods_of, reached


def compensated(kind: type[nn.Module], channels: int) -> type[nn.Module]:
    """A subclass of `kind` in whose methods the norms of `torch.nn.functional` count `channels` channels."""
    key: Any = kind
    return _compensated(key, channels)


@functools.cache
def _compensated(kind: Any, channels: int) -> type[nn.Module]:
    def reduce(self: nn.Module, protocol: int = 2) -> tuple[Any, ...]:
        return _rebuild, (kind, channels), vars(self)

    def extra_repr(self: nn.Module) -> str:
        return ", ".join(part for part in (kind.extra_repr(self), f"statistics over {channels} channels") if part)

    members = {
        **{name: _rebound(inspect.getattr_static(kind, name), channels, {}) for name in norm_functions(kind)},
        "__reduce_ex__": reduce,
        "extra_repr": extra_repr,
        "__module__": __name__,
        "plain": kind,
        "__prepare_scriptable__": refuse_script,
    }
    bases = unannounced(kind, *(compensated(norm, channels) for norm in extended(kind)))
    return type("Compensated" + kind.__name__, bases, members)


def _rebound(function: types.FunctionType, channels: int, made: dict[types.FunctionType, Any]) -> types.FunctionType:
    """The same code, to whose names of norms, and of functions that get at them, others answer."""
    if function in made:
        return made[function]  # type: ignore[no-any-return]
    instead, namespace = _counting(channels), dict(function.__globals__)
    own = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    own.__kwdefaults__, own.__module__ = function.__kwdefaults__, function.__module__
    made[function] = own
    namespace.update({key: instead[id(value)] for key, value in namespace.items() if id(value) in instead})
    helpers = {n: h for n, h in helpers_of(function).items() if any(_names(f, NORMS) for f in reached(h))}
    namespace.update({name: _rebound(helper, channels, made) for name, helper in helpers.items()})
    namespace.pop("__name__", None)  # torch.compile would find the module's own globals by it, in PyTorch 2.8 and 2.11
    return own


@functools.cache
def _counting(channels: int) -> dict[int, Any]:
    """By id: what counts `channels` channels in place of PyTorch's norms, and of the modules that hold them."""
    norms: dict[str, Any] = {
        "layer_norm": layer_norm,
        "rms_norm": rms_norm,
        "group_norm": group_norm,
        "batch_norm": batch_norm,
    }
    replaced = {name: functools.partial(norm, channels=channels) for name, norm in norms.items()}
    plain: dict[str, Any] = {  # the last argument of two of these is whether cuDNN may be used
        "layer_norm": lambda *args, cudnn_enable=True: layer_norm(*args[:5], channels=channels),
        "rms_norm": replaced["rms_norm"],
        "group_norm": lambda *args, cudnn_enabled=True: group_norm(*args[:5], channels=channels),
    }
    functional = _copied(F, replaced)
    layers = _copied(nn, {"functional": functional})
    own = {id(getattr(F, name)): function for name, function in replaced.items()}
    own |= {id(getattr(torch, name)): function for name, function in plain.items()}
    return own | {id(F): functional, id(nn): layers, id(torch): _copied(torch, {"nn": layers, **plain})}


def _copied(module: types.ModuleType, changes: dict[str, Any]) -> types.ModuleType:
    """A module with other members by these names."""
    copy = types.ModuleType(module.__name__)
    vars(copy).update(vars(module) | changes)
    return copy


def extended(kind: type[nn.Module]) -> list[type[nn.Module]]:
    """The norm of PyTorch whose `forward` that of a subclass may call by `super()`: it is compensated, too."""
    norms = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    return [norm for norm in norms if issubclass(kind, norm) and kind.forward is not norm.forward]


def norm_functions(kind: type[nn.Module], norms: tuple[str, ...] = NORMS) -> dict[str, list[types.FunctionType]]:
    """Of `forward` and the methods that it calls, by name, those that get at a norm of PyTorch by names that lead
    elsewhere in the compensated class: the functions that call the norm, the method itself or others for it."""
    key: Any = kind
    return _norm_functions(key, norms)


@functools.cache
def _norm_functions(kind: Any, norms: tuple[str, ...]) -> dict[str, list[types.FunctionType]]:
    try:
        methods = methods_of(kind)
    except CannotRewriteError:  # that of a layer of PyTorch
        methods = {"forward": inspect.getattr_static(kind, "forward")}
    if not all(isinstance(method, types.FunctionType) for method in methods.values()):
        return {}
    naming = {name: [f for f in reached(method) if _names(f, norms)] for name, method in methods.items()}
    return {name: functions for name, functions in naming.items() if functions}


def _names(function: types.FunctionType, norms: Collection[str]) -> bool:
    """Whether the code of a function has the name of a norm, or one that leads to it."""
    names = function.__code__.co_names
    functions = {id(getattr(module, norm, None)) for module in (F, torch) for norm in norms}
    return any(n in norms or id(function.__globals__.get(n)) in functions for n in names)


def _rebuild(kind: type[nn.Module], channels: int) -> nn.Module:
    made = compensated(kind, channels)
    return made.__new__(made)
