"""Tracing: run the model once, write down the operations it calls as a graph, and leave the model as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import MappingProxyType

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .counting import uncounted
from .errors import ExampleInputsError, StructPruneError
from .inventory import Inventory
from .nodes import Node
from .prepare import check_output, explained
from .program import Call, Program, has_numbers, sizes_in, tensors_in
from .recorder import Recorder, Tags, ValuesNeeded, untag
from .remembering import remembering_nothing
from .renewal import reused
from .restoring import Contents, other_random_numbers_kept
from .rewriting import stated
from .sizes import Guard, arithmetic_watched, guarding, remember_attributes
from .unseen import seen_scripts

_ALONE = threading.RLock()  # one trace at a time: each gives modules other attributes meanwhile


def trace(
    parts: Inventory,
    call: Call,
    leaves: Callable[[str], bool],
    stand_ins: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType({}),
    watched: Collection[int] = (),
) -> Program:
    """Runs `call` on a model and returns the program; afterwards the model is as it was, bit for bit.

    Args:
        leaves: says of an operation's name whether it is understood; other Python functions are opened.
        stand_ins: the class that rigid modules have meanwhile, by exact type.
        watched: ids of modules whose calls are noted in `visits`.

    Costly operations are not computed at first; where the model turns out to look at values, it is run again. So it
    is if it uses tensors of unknown origin: those that were there before are the same in both runs.
    """
    tags: Tags = []
    with _ALONE, remembering_nothing(parts.modules.values()):
        try:
            recorder = None
            with suppress(ValuesNeeded, ExampleInputsError):
                recorder = _trace(parts, call, leaves, stand_ins, watched, tags, computing=False)
            recorder = recorder or _trace(parts, call, leaves, stand_ins, watched, tags, computing=True)
            unnamed = [tensor for node, tensor in recorder.constants.values() if node.meta["op"] == "constant"]
            if unnamed:
                recorder = _trace(
                    parts, call, leaves, stand_ins, watched, tags, recorder.computing, {id(t) for t in unnamed}
                )
        finally:
            untag(tags)
    return recorder.program


def _trace(
    parts: Inventory,
    call: Call,
    leaves: Callable[[str], bool],
    stand_ins: Mapping[type[nn.Module], type[nn.Module]],
    watched: Collection[int],
    tags: Tags,
    computing: bool,
    lasting: Collection[int] | None = None,
) -> Recorder:
    scripted = {id(m) for s in parts.modules.values() if isinstance(s, torch.jit.ScriptModule) for m in s.modules()}
    plain = {path: module for path, module in parts.modules.items() if id(module) not in scripted}
    before = Contents(plain.values(), call.args, call.kwargs)
    recorder = Recorder(parts, leaves, computing, lasting, watched, tags)
    recorder.own += before.tensors
    swapped: list[tuple[nn.Module, type[nn.Module]]] = []
    switching = any(map(switches, plain.values()))
    try:
        for path, module in plain.items():
            state = vars(module)
            if not switching:
                state["training"] = call.training
            if "_compiled_call_impl" in state:
                state["_compiled_call_impl"] = None
            kind = type(module)
            free = stand_ins.get(kind) or uncounted(kind)
            if free is not kind and "forward" not in state:
                swapped.append((module, kind))
                module.__class__ = free
                state.update(stated(module))
            # Those of torch.nn are strides, paddings and kernels.
            shapes = "normalized_shape" in state or not type(module).__module__.startswith("torch.nn.")
            remember_attributes(path, state, shapes, recorder.program.seen)
        _run(parts.model, call, recorder, switching)
        recorder.program.reused = reused(parts)
        recorder.program.numeric = has_numbers((call.args, dict(call.kwargs)))
        return recorder
    finally:
        for module, kind in swapped:
            module.__class__ = kind
        before.restore()
        recorder.restore()


def switches(module: nn.Module) -> bool:
    """Whether a module does more than to note it when its mode changes."""
    return type(module).train is not nn.Module.train


def _run(model: nn.Module, call: Call, recorder: Recorder, switching: bool) -> None:
    """The call itself; `switching` says that the model has something to do when its mode changes."""
    program = recorder.program
    program.training = call.training
    inputs: dict[int, Node] = {}
    for i, tensor in enumerate(tensors_in((call.args, dict(call.kwargs)))):
        if id(tensor) not in inputs:
            meta = {"op": "input", "shape": tuple(tensor.shape), "dtype": tensor.dtype, "path": "", "where": ""}
            node = inputs[id(tensor)] = program.graph.add("placeholder", f"input_{i}", meta=meta)
            recorder.constants[id(tensor)] = (node, tensor)
            recorder.own.append(tensor)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(recorder)))
        stack.enter_context(other_random_numbers_kept())
        stack.enter_context(_without_fast_paths())
        stack.enter_context(_variables_seen())
        stack.enter_context(seen_scripts(recorder.opaque))
        for handle in (
            register_module_forward_pre_hook(recorder.enter),
            register_module_forward_hook(recorder.leave, always_call=True),
        ):
            stack.callback(handle.remove)
        stack.enter_context(guarding(recorder.report))
        stack.enter_context(arithmetic_watched())
        stack.enter_context(recorder)
        try:
            if switching:
                model.train(call.training)
            output = model(*call.args, **call.kwargs)
        except StructPruneError:
            raise
        except Exception as error:
            raise explained(error, call, recorder.failed) from error
    check_output(output)
    program.guards += [
        Guard(size.origin, int.__int__(size), "it is an output of the model") for size in sizes_in(output)
    ]
    outputs = tuple(map(recorder.node, tensors_in(output)))
    program.graph.add("output", "output", (outputs,), meta={"op": "output", "shape": (), "path": "", "where": ""})
    program.mark_unread()


@contextmanager
def _without_fast_paths() -> Iterator[None]:
    """Transformer layers do what their `forward` says, and do not look at masks to find out if there is a short cut."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _variables_seen() -> Iterator[None]:
    """`Variable(x)`, as code from before PyTorch 0.4 has it, gives the tensor with the same values: its constructor is
    no function that could be seen."""

    def made(cls: type, data: torch.Tensor, requires_grad: bool = False) -> torch.Tensor:
        return data.detach().requires_grad_(requires_grad)

    setattr(type(torch.autograd.Variable), "__call__", made)  # noqa: B010
    try:
        yield
    finally:
        delattr(type(torch.autograd.Variable), "__call__")


def _cuda_devices(recorder: Recorder) -> Sequence[int]:
    return sorted({t.device.index for t in recorder.own if t.is_cuda})
