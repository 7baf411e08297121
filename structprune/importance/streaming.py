"""Streaming: batches from a loader, one at a time, through a model that is left as it was."""

from __future__ import annotations

import operator
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError, ExampleInputsError, StructPruneError
from ..inventory import modules_of, named_tensors
from ..program import Call, map_tensors, tensors_in
from ..restoring import Contents, other_random_numbers_kept
from .processes import is_first

Inputs = Callable[[Any], Any]

# -- batches --------------------------------------------------------------------------------------------------


def check_loader(loader: Any, batches: int | None) -> None:
    """Raises ArgumentTypeError unless `loader` yields batches, ArgumentError unless `batches` is positive."""
    if isinstance(loader, Tensor | np.ndarray | Mapping | str) or not isinstance(loader, Iterable):
        raise ArgumentTypeError(
            f"loader must be an iterable of batches, such as a DataLoader or a list, not {type(loader).__name__}; "
            "one batch is a loader when it stands in a list: [batch]"
        )
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int)):
        raise ArgumentTypeError(f"batches must be a whole number or None for all of them, not {batches!r}")
    if batches is not None and not 1 <= batches <= sys.maxsize:
        raise ArgumentError(f"batches must be at least 1, or None for all of them; {batches} was given")


@contextmanager
def streamed(
    loader: Iterable[Any], batches: int | None, model: nn.Module, title: str, show: bool
) -> Iterator[Iterator[tuple[int, Any]]]:
    """The first batches with their numbers from 1, on the model's device, under a progress bar on terminals."""
    length = operator.length_hint(loader) or None
    total = length if batches is None else min(batches, length or batches)
    devices = {p.device for p in model.parameters()}
    device = next(iter(devices)) if len(devices) == 1 else None
    console = Console(stderr=True)
    hidden = not (show and console.is_terminal and is_first())
    with Progress(console=console, transient=True, disable=hidden) as bar:
        tracked = enumerate(bar.track(islice(loader, batches), total=total, description=title), 1)
        yield ((number, moved(batch, device)) for number, batch in tracked)


def moved(batch: Any, device: torch.device | None) -> Any:
    """A batch on a device: by its own method `to` if it has one, or else the tensors in lists, tuples and dicts."""
    if device is None:
        return batch
    return batch.to(device) if hasattr(batch, "to") else map_tensors(lambda t: t.to(device), batch)


def check_count(count: int) -> int:
    """Raises ArgumentError if no batch came."""
    if not count:
        raise ArgumentError(
            "the loader yields no batch; an iterator is used up after one pass: give a list or a DataLoader"
        )
    return count


def arguments(batch: Any, inputs: Inputs | None) -> Call:
    """How the model is called on a batch.

    A tensor is its argument; of a tuple or list the first element is; a mapping holds keyword arguments. What
    `inputs` makes of a batch, a tensor, a tuple of arguments or a mapping, overrides this.
    """
    if inputs is None and isinstance(batch, list | tuple):
        if not batch:
            raise ArgumentError("the loader yields an empty batch")
        batch = batch[0]
    elif inputs is not None:
        batch = inputs(batch)
    if isinstance(batch, Mapping):
        return Call((), dict(batch))
    return Call(batch if isinstance(batch, tuple) else (batch,), {})


@contextmanager
def explaining(model: nn.Module, batch: Any, number: int) -> Iterator[None]:
    """What a model or a loss raises on a batch becomes an ExampleInputsError with shapes and the module path."""
    try:
        yield
    except StructPruneError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(batch)) or "none"
        path = _failing(model, error)
        where = f", in {path}" if path else ""
        raise ExampleInputsError(
            f"on batch {number} of the loader, with tensors of shape {shapes}{where}: {type(error).__name__}: {error}"
        ) from error


def _failing(model: nn.Module, error: Exception) -> str:
    """The path of the innermost module whose method raised."""
    paths = {id(module): path for path, module in modules_of(model).items()}
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((paths[id(owner)] for owner in reversed(owners) if id(owner) in paths), "")


# -- the model ------------------------------------------------------------------------------------------------


@contextmanager
def undisturbed(model: nn.Module, train: bool) -> Iterator[None]:
    """The model in eval mode, or in train mode, and not compiled; afterwards its modes, attributes, buffers,
    gradients and flags, and the random numbers to come, are as they were."""
    modules = [m for m in modules_of(model).values() if not isinstance(m, torch.jit.ScriptModule)]
    before = Contents(modules)
    weights = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    learned = {id(p) for p, _, _ in weights}
    others = [
        (t, t.is_leaf, t.requires_grad, t.detach().clone())
        for t in named_tensors(model).values()
        if id(t) not in learned and t.layout == torch.strided and not t.is_meta
    ]
    devices = sorted({p.device.index for p, _, _ in weights if p.device.type == "cuda"})
    try:
        with (
            torch.random.fork_rng(devices=devices), other_random_numbers_kept(),
            torch.compiler.set_stance("force_eager"),
        ):  # fmt: skip
            for module in modules:
                vars(module).update(training=train)  # not train(): a model may have its own
                if vars(module).get("_compiled_call_impl") is not None:
                    vars(module)["_compiled_call_impl"] = None
            yield
    finally:
        before.restore()
        for parameter, grad, flag in weights:
            if parameter.requires_grad != flag:  # tensors made in inference mode do not let it be set, even as it is
                parameter.requires_grad_(flag)
            parameter.grad = grad
        for tensor, leaf, flag, value in others:
            if leaf and not tensor.is_leaf:  # what was computed was written into a buffer
                tensor.detach_()
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)
            if not torch.equal(tensor, value):
                with torch.no_grad():
                    tensor.copy_(value)
