"""What callers hand in, checked and put into one form before anything else happens."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod

from .copying import deep_copy
from .errors import ArgumentTypeError, ExampleInputsError, NonFiniteError, UnsupportedModelError
from .inventory import Inventory
from .program import Call, tensors_in


def unwrap(model: Any) -> nn.Module:
    """The plain module inside a wrapper that is safe to open; raises UnsupportedModelError for what is not one."""
    if isinstance(model, torch.export.ExportedProgram):
        raise UnsupportedModelError(
            "an ExportedProgram has no Python forward to prune; pass the nn.Module it was exported from"
        )
    if isinstance(model, nn.Module) and "_modules" not in vars(model) and not isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not initialised: its __init__ must call super().__init__()"
        )
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    if type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
        return unwrap(model._orig_mod)
    return model


def check_flag(value: Any, name: str) -> None:
    """Raises ArgumentTypeError for anything but True and False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be True or False, not {value!r}")


def check_model(parts: Inventory) -> None:
    """Raises UnsupportedModelError, with the path and the way out, for models that cannot be sliced."""
    if isinstance(parts.model, torch.jit.ScriptModule):
        raise UnsupportedModelError("the model is scripted (torch.jit); pass the nn.Module it was scripted from")
    for path, module in parts.modules.items():
        kind: Any = type(module)
        if refusal := _refusal(kind):
            raise UnsupportedModelError(f"{_where(path)} is {refusal}")
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                owner = f"model.get_submodule({path!r})" if path else "model"
                call = f"torch.nn.utils.prune.remove({owner}, {hook._tensor_name!r})"
                raise UnsupportedModelError(
                    f"{_where(path)} carries a torch.nn.utils.prune mask; make it permanent first: {call}, or let "
                    "structprune.shrink(model, example_inputs) remove what the masks made dead"
                )
    for name, tensor in parts.registered.items():
        _check_tensor(name, tensor)
    if sum(len(module._modules) for module in parts.modules.values()) >= len(parts.modules):  # some is held twice
        _check_no_circle(parts.model, {})


def _where(path: str) -> str:
    return f"the module {path!r}" if path else "the model"


def _check_no_circle(module: nn.Module, inside: dict[int, bool]) -> None:
    """Raises UnsupportedModelError if a module holds itself; `inside` says of those met whether the walk is in them."""
    inside[id(module)] = True
    for name, child in module._modules.items():
        if child is not None and inside.get(id(child)):
            raise UnsupportedModelError(f"a {type(module).__name__} holds, as {name!r}, a module that holds it")
        if child is not None and id(child) not in inside:
            _check_no_circle(child, inside)
    inside[id(module)] = False


@functools.cache
def _refusal(kind: Any) -> str:
    """What a class of modules is that cannot be sliced, and the way out; empty for all others."""
    name, home = kind.__name__, kind.__module__
    if "quantized" in home and not home.startswith("structprune"):
        return f"quantised ({name}); prune the float model, then quantise it"
    if "FullyShardedDataParallel" in name or "FSDP" in name:
        return f"sharded ({name}); prune before wrapping it, or pass the gathered module"
    if name == "OptimizedModule":
        return "compiled (torch.compile); put the plain module in its place, prune, then compile"
    return ""


def check_values(model: nn.Module) -> None:
    """Raises UnsupportedModelError if a parameter or buffer is on the meta device."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UnsupportedModelError(f"{name} is on the meta device, where it has no values; load the weights first")


def check_finite(model: nn.Module) -> None:
    """Raises NonFiniteError, with its name and the count, for the first parameter or running statistic that holds NaN
    or infinity; infinities in parameters that are not trained may be masks."""
    running = [(n, t) for n, t in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    for name, tensor in (*model.named_parameters(), *running):
        if tensor.is_meta or not tensor.is_floating_point() or bool(tensor.detach().sum().isfinite()):
            continue
        frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        bad = int((tensor.isnan() if frozen else ~tensor.isfinite()).sum())
        if bad:
            raise NonFiniteError(f"{name} holds {bad} values that are NaN or infinite: no output would mean anything")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1 and isinstance(tensor, nn.Parameter):
        raise UnsupportedModelError(
            f"{name} is {tensor.dtype}, with which nothing can be computed; pass the model in bfloat16, or in float32"
        )
    plain = type(tensor) is nn.Parameter or type(tensor) is Tensor
    if plain and tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized:
        return
    if is_lazy(tensor):
        raise UnsupportedModelError(f"{name} is lazy and has no shape yet; run the model once on real inputs first")
    if type(tensor).__name__ == "DTensor":
        raise UnsupportedModelError(f"{name} is a DTensor; pass the model with full tensors (`full_tensor()`)")
    if tensor.is_nested:
        raise UnsupportedModelError(f"{name} is a NestedTensor; pass the model with dense parameters")
    if tensor.layout != torch.strided:
        raise UnsupportedModelError(
            f"{name} is sparse ({tensor.layout}); pass the model with dense parameters (`to_dense()`)"
        )
    if tensor.is_quantized:
        raise UnsupportedModelError(f"{name} is quantised; prune the float model, then quantise it")
    if hasattr(type(tensor), "__tensor_flatten__"):  # what PyTorch calls a traceable wrapper
        raise UnsupportedModelError(
            f"{name} is a {type(tensor).__name__}, which wraps other tensors, as quantised ones do; prune the plain "
            "model, then convert it"
        )


def calls_of(example_inputs: Any) -> list[Call]:
    """Example inputs as calls: a tensor, a tuple of arguments, a dict of keyword arguments, or a list of those."""
    several = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    if not several:
        raise ExampleInputsError("example_inputs is an empty list: give at least one call of the model")
    return [_call(one) for one in several]


def _call(one: Any) -> Call:
    if isinstance(one, Tensor):
        call = Call((one,), {})
    elif isinstance(one, tuple):
        call = Call(one, {})
    elif isinstance(one, Mapping):
        call = Call((), dict(one))
    else:
        raise ArgumentTypeError(
            "example_inputs must be a tensor, a tuple of positional arguments, a dict of keyword arguments, "
            f"or a list of those, not {type(one).__name__}"
        )
    for tensor in tensors_in((call.args, dict(call.kwargs))):
        if tensor.is_nested or tensor.layout != torch.strided:
            kind = "a nested tensor" if tensor.is_nested else f"a sparse tensor ({tensor.layout})"
            raise ExampleInputsError(
                f"example_inputs holds {kind}: give dense tensors, such as padded ones with a mask"
            )
        if tensor.numel() == 0:
            raise ExampleInputsError(f"example_inputs holds an empty tensor of shape {tuple(tensor.shape)}")
    return call


def check_output(output: Any) -> None:
    """Raises UnsupportedModelError if a model returns what can be read but once, or is made when it is asked for."""
    several = output if isinstance(output, list | tuple) else list(output.values()) if isinstance(output, dict) else []
    for one in (output, *several):
        if isinstance(one, Iterator | FunctionType):
            raise UnsupportedModelError(
                f"the model returns a {type(one).__name__}, in which its outputs cannot be seen; return tensors, in a "
                "tuple, list, dict or dataclass"
            )


def explained(error: Exception, call: Call, path: str | None = None) -> ExampleInputsError:
    """What to raise when the model, in the module at `path`, raised this error on a call."""
    shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in((call.args, dict(call.kwargs)))) or "none"
    where = f", in {path}" if path else ""
    hint = ""
    if "does not require grad" in str(error):
        hint = "; models run without gradients here: what takes some in a forward needs torch.enable_grad()"
    return ExampleInputsError(
        f"while running the model on example_inputs of shape {shapes}{where}: {type(error).__name__}: {error}{hint}"
    )


def check_takes(model: nn.Module, call: Call) -> None:
    """Raises ExampleInputsError if a model, in eval mode, does not take a call."""
    copied = deep_copy(model).eval()
    try:
        with torch.no_grad():
            copied(*call.args, **call.kwargs)
    except Exception as error:  # whatever the user's code raises
        raise explained(error, call) from error


def check_placement(parts: Inventory, calls: Iterable[Call]) -> None:
    """Device and dtype are compared before the model is traced: PyTorch's own errors come from deep inside. Inputs that
    are elsewhere, or of another dtype, are tried, for a model may convert them itself."""
    for call in calls:
        if why := _misplaced(parts, call):
            try:
                check_takes(parts.model, call)
            except ExampleInputsError as error:
                raise ExampleInputsError(why) from error


def _misplaced(parts: Inventory, call: Call) -> str:
    """In what inputs differ from all weights; empty if they do not."""
    weights = [p for p in parts.registered.values() if isinstance(p, nn.Parameter) and p.is_floating_point()]
    devices, dtypes = {p.device for p in weights}, {p.dtype for p in weights}
    meta = any(device.type == "meta" for device in devices)  # takes real inputs, too
    for tensor in tensors_in((call.args, dict(call.kwargs))):
        if len(devices) == 1 and tensor.device not in devices and tensor.ndim and not meta:
            return f"example_inputs is on {tensor.device}, the model on {next(iter(devices))}"
        if tensor.is_floating_point() and len(dtypes) == 1 and tensor.dtype not in dtypes and tensor.ndim:
            return f"example_inputs is {tensor.dtype}, the model {next(iter(dtypes))}"
    return ""
