"""Running two models so that what they return can be compared: in float64, seeded, without dropout."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .copying import deep_copy
from .inventory import named_tensors
from .ops import Operation, operation
from .program import Call, map_tensors, tensors_in
from .restoring import Contents, other_random_numbers_kept
from .steady import drawn

_WIDER = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}


class _Comparable(TorchFunctionMode):
    """Dropout draws one number per channel, so the two models would draw different ones: it is switched off.

    In float64, conversions to float32 inside a model (Hugging Face norms have them) are left out: their rounding
    would hide what is looked for. What a model makes of nothing, as the first state of an LSTM, is made in float64.
    A `level` holds all random numbers constant (see `steady`).
    """

    def __init__(self, dtype: torch.dtype, level: float | None) -> None:
        super().__init__()
        self.exact = dtype == torch.float64
        self.level = level

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        known = operation(function)
        name = known.name
        if self.level is not None and (constant := drawn(known, function, args, kwargs, self.level)) is not None:
            return constant
        if "dropout" in name and args and isinstance(args[0], Tensor):
            return args[0]
        position = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}.get(name)
        if position is not None:  # they draw inside
            args = (*args[:position], 0.0, *args[position + 1 :]) if len(args) > position else args
            kwargs = {k: 0.0 if k == "dropout_p" else v for k, v in kwargs.items()}
        if name == "rrelu":  # slopes are drawn in train mode alone
            args = (*args[:3], False, *args[4:]) if len(args) > 3 else args
            kwargs = {k: False if k == "training" else v for k, v in kwargs.items()}
        if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            args = tuple(0.0 if type(a) is float else a for a in args)
        if self.exact and not (known.asks or known.sizes):
            if name in ("float", "half", "bfloat16") and args and isinstance(args[0], Tensor):
                return args[0].double()
            if name == "grouped_mm" and (args[0].ndim, args[1].ndim) == (2, 3) and kwargs.get("bias") is None:
                return _grouped_product(*args, **kwargs)
            args, kwargs = _all_wide(known, args, kwargs)
            return _made_wide(known, function, args, kwargs)
        return function(*args, **kwargs)


def in_float64(tensor: Tensor) -> Tensor:
    """In float64 or complex128, if it is of fewer digits."""
    return tensor.to(_WIDER[tensor.dtype]) if tensor.dtype in _WIDER else tensor


def _all_wide(known: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Arguments in float64, but what is written into; tensors that no module holds have another dtype."""
    args = tuple(_WIDER.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
    kwargs = {k: _WIDER.get(v, v) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()}
    if all(tensor.dtype not in _WIDER for tensor in tensors_in((args, kwargs))):
        return args, kwargs
    kept = 1 if known.inplace else 0
    into = {k: v for k, v in kwargs.items() if k == "out"}
    return (*args[:kept], *map_tensors(in_float64, args[kept:])), {**map_tensors(in_float64, kwargs), **into}


def _made_wide(known: Operation, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation gives: in float64, if it makes numbers of the default dtype from none, or from integers."""
    try:
        out = function(*args, **kwargs)
    except RuntimeError:  # too large a number for the default dtype
        if known.name not in ("tensor", "full", "scalar_tensor") or "dtype" in kwargs:
            raise
        return function(*args, **kwargs, dtype=torch.float64)
    plain = isinstance(out, Tensor) and not known.inplace and "out" not in kwargs
    return in_float64(out) if plain else out


def _grouped_product(a: Tensor, b: Tensor, *, offs: Tensor, **options: Any) -> Tensor:
    """[S, K] x [E, K, N] -> [S, N], which PyTorch does not have in float64."""
    out, start = a.new_zeros(a.shape[0], b.shape[2]), 0
    for expert, end in zip(b, offs.tolist(), strict=True):
        out[start:end] = a[start:end] @ expert
        start = end
    return out


@torch.no_grad()
def double(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy in float64 and complex128."""
    copied = deep_copy(model).to(device=device).double()
    for tensor in named_tensors(copied).values():
        wide = _WIDER.get(tensor.dtype)
        if wide is not None:  # complex parameters, and plain attributes, which Module.double leaves alone
            tensor.data = tensor.data.to(device, wide)
    return copied


@contextmanager
def deterministic() -> Iterator[None]:
    """Random numbers from the start, no gradients, nothing compiled, no TF32, which would hide what is looked for."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        torch.manual_seed(0)
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if torch.cuda.is_available():  # nothing else has it
            for backend, name, full in _tf32():
                stack.callback(setattr, backend, name, getattr(backend, name))
                setattr(backend, name, full)
        yield


def _tf32() -> list[tuple[Any, str, Any]]:
    """The switches of TF32, by the names that this PyTorch has for them, and how to turn it off."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # once this was set, reading the old names raises
        return [(place, "fp32_precision", "ieee") for place in (matmul, cudnn.conv, cudnn.rnn)]
    return [(place, "allow_tf32", False) for place in (matmul, cudnn)]


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers for every run, from PyTorch, NumPy and Python (masking and layer drop use them)."""
    with other_random_numbers_kept():
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        yield


def run(model: nn.Module, call: Call, mode: str) -> list[Tensor]:
    """The tensors that a model returns; see `outcome`."""
    return outcome(model, call, mode)[0]


def outcome(
    model: nn.Module, call: Call, mode: str, level: float | None = None
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The tensors that a model returns, and its floating-point buffers after that, by name; both in float64.

    The next run finds the model and the inputs as this one did: buffers that it updates, what it keeps in attributes,
    and tensors that it works on in place.
    """
    model.train(mode == "train")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float64)
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = Contents(modules)
    copies: dict[int, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.clone()
        return copies[id(tensor)]

    for module in modules:
        for store in (module._buffers, vars(module)):
            store.update({name: copied(value) for name, value in store.items() if isinstance(value, Tensor)})
    args, kwargs = map_tensors(copied, (call.args, dict(call.kwargs)), _copy)
    try:
        with _seeded(), _Comparable(dtype, level):
            outputs = list(tensors_in(model(*args, **kwargs)))
        buffers = {name: b.double() for name, b in model.named_buffers() if b.is_floating_point()}
    finally:
        before.restore()
    return [_plain(tensor) for tensor in outputs], buffers


def _copy(value: Any) -> Any:
    """A copy of an object among the inputs, a cache that a run fills, say; what cannot be copied is given as it is."""
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever the user's code raises
        return value


def _plain(tensor: Tensor) -> Tensor:
    """Dense real numbers in float64."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


def errors(found: Sequence[Tensor], expected: Sequence[Tensor], least: Sequence[float] = ()) -> tuple[float, float]:
    """max|a - b| and max|a - b| / max|b| over pairs of tensors; `least` says for each what to divide by at least."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf"), float("inf")
    absolute = relative = 0.0
    for a, b, floor in zip(found, expected, least or [0.0] * len(expected), strict=True):
        if b.numel():
            same = (a == b) | (a.isnan() & b.isnan())
            error = float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf")).max())
            scale = max(floor, float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0)
            absolute = max(absolute, error)
            relative = max(relative, error / scale if scale else (error and float("inf")))
    return absolute, relative
