"""Tracing: run the model once and write down the operations it calls, as a graph.

The recorder is a `torch.overrides.TorchFunctionMode`: it sees every call of a public PyTorch function with
its Python arguments, on real tensors, without looking at autograd. Each node of the graph keeps the name of
its operation, the path of the module that called it, and the line of source that did.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from .counting import STATISTICS, uncounted
from .errors import ExampleInputsError, StructPruneError
from .frames import caller, source_line
from .nodes import Graph, Node
from .ops import QUERIES, SIZES, in_place, operation, python_body
from .prepare import explained
from .program import Call, Program, modules_of, named_tensors, registered_tensors, tensors_in
from .rewriting import stated
from .shapes import stand_in, together
from .sizes import DimOf, Guard, Size, attributes_as_sizes, guarding
from .unseen import UNSEEN, foreign, opaque, seen_scripts

_TAG = "_structprune_node"

# Operations whose tensor arguments are positions: what they hold decides where data goes.
_INDEXING = frozenset({"getitem", "setitem", "index_select", "take_along_dim", "gather", "index_put", "take", "index"})


# Operations whose result has a shape that depends on values.
_VALUED = frozenset({"nonzero", "unique", "masked_select", "bincount", "repeat_interleave", "isin"})

# Operations for which it matters whose `forward` calls them.
_NORMS = frozenset({"layer_norm", "group_norm", "rms_norm", "batch_norm", *STATISTICS})


class ValuesNeeded(BaseException):
    """The model looks at a value that was not computed."""


class Recorder(TorchFunctionMode):
    """Writes each operation into `program.graph`; `leaves` says which names need not be opened."""

    def __init__(
        self,
        leaves: Callable[[str], bool],
        tensors: Mapping[str, Tensor],
        plain: Collection[str],
        paths: Mapping[int, str],
        computing: bool,
        lasting: Collection[int] | None,
    ):
        super().__init__()
        self.program = Program(Graph())
        self.leaves = leaves
        self.names = {id(t): name for name, t in tensors.items()}  # parameters, buffers and plain tensor attributes
        self.plain = plain  # names of those that are mere attributes
        self.paths = paths  # id of a module -> its path
        self.stack: list[str] = []
        self.opened: list[Callable[..., Any]] = []  # Python functions whose body is running; some ask for themselves
        self.failed: str | None = None  # the innermost module whose forward raised
        self.computing = computing
        self.lasting = lasting  # ids of the constants of an earlier run, against which new ones show
        self.on_meta = any(t.is_meta for t in tensors.values())
        self.constants: dict[int, tuple[Node, Tensor]] = {}
        self.stored: dict[int, Tensor] = {}  # storage address -> the model's own tensor there
        self.saved: dict[int, tuple[Tensor, Tensor]] = {}  # what in-place operations changed -> as it was

    # -- the interception -------------------------------------------------------------------------------

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = operation(function)
        if known.name in QUERIES:
            return function(*args, **kwargs)
        if known.name in SIZES and isinstance(args[0], Tensor):
            return self.sizes(known.name, function, args, kwargs)
        if known.python and not self.leaves(known.name) and function not in self.opened:
            self.opened.append(function)
            try:
                with self:
                    return python_body(function)(*args, **kwargs)
            finally:
                self.opened.pop()
        return self.record(function, args, kwargs)

    def record(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operation and adds its node."""
        known = operation(function)
        lifted, lifted_kwargs = self.lift(args), self.lift(kwargs)
        lifted, lifted_kwargs = in_place(known.name, lifted, lifted_kwargs)
        if known.inplace or "out" in kwargs:
            self.protect(kwargs.get("out", args[0] if args else None))
        with guarding(None):
            out = self.execute(known.name, function, args, kwargs)
        if known.name in _INDEXING:
            self.keep_positions(args, kwargs)
        node = self.add(function, known.name, lifted, lifted_kwargs)
        node.meta["inplace"] = known.inplace
        node.meta["writes"] = known.inplace or known.name in ("batch_norm", "instance_norm")  # running statistics
        node.meta["reads"] = not any(True for _ in tensors_in(out))  # what Python gets to see stays in the graph
        if node.meta["reads"] and not self.computing:
            raise ValuesNeeded
        if known.name == "setitem":
            self.bind(node, args[0])
        else:
            self.bind(node, out)
        return out

    def execute(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Costly operations are answered with zeros, unless values count; batch norms are run without batch
        statistics: a trace changes no buffer and takes a batch of one."""
        if not self.computing:
            if self.needs_values(name, args):
                raise ValuesNeeded
            if (zeros := stand_in(name, args, kwargs)) is not None:
                return zeros
        if self.on_meta:
            args, kwargs = together((args, kwargs))
        if name == "batch_norm" and (kwargs.get("training") or (len(args) > 5 and args[5])):
            return args[0].clone()
        return function(*args, **kwargs)

    def needs_values(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether the shape of the result depends on values, or may: masks as indices, operations without a rule."""
        masked = name == "getitem" and any(t.dtype in (torch.bool, torch.uint8) for t in tensors_in(args[1:]))
        return masked or name in _VALUED or not self.leaves(name)

    def add(self, function: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Node:
        node = self.program.graph.add("call_function", function, args, kwargs)
        node.meta.update(op=name, path=self.stack[-1] if self.stack else "", where=source_line())
        if name in _NORMS:
            node.meta["code"] = caller()
        return node

    # -- values and nodes -------------------------------------------------------------------------------

    def bind(self, node: Node, out: Any) -> None:
        """`out` is from now on what `node` computed."""
        if isinstance(out, Tensor):
            node.meta["shape"] = tuple(out.shape)
            node.meta["dtype"] = out.dtype
            if id(out) in self.names or id(out) in self.constants:  # not made here: nothing is written on it
                self.constants[id(out)] = (node, out)
            else:
                setattr(out, _TAG, node)
        elif isinstance(out, list | tuple):
            for i, item in enumerate(out):
                if any(True for _ in tensors_in(item)):
                    part = self.program.graph.add("call_function", _item, (node, i))
                    part.meta.update(node.meta, op="item", inplace=False)
                    part.meta.pop("shape", None)
                    self.bind(part, item)

    def node(self, tensor: Tensor) -> Node:
        """The node that computed `tensor`; a parameter or constant gets one when it is first met."""
        node = getattr(tensor, _TAG, None)
        if node is not None and node.graph is self.program.graph:
            return node
        if id(tensor) not in self.constants:
            name = self.names.get(id(tensor), "")
            if not name and node is None and self.is_new(tensor):
                return self.unseen(tensor)
            node = self.program.graph.add("get_attr", name or f"_constant_{len(self.constants)}")
            node.meta.update(op="parameter" if name else "constant", shape=tuple(tensor.shape), dtype=tensor.dtype)
            node.meta.update(path=name.rpartition(".")[0], where="", tensor=name, plain=name in self.plain)
            if not name and tensor.dtype in (torch.int64, torch.bool, torch.int32):
                node.meta["value"] = tensor
            self.constants[id(tensor)] = (node, tensor)
        return self.constants[id(tensor)][0]

    def is_new(self, tensor: Tensor) -> bool:
        """Whether a tensor of unknown origin was made in this run; one with a node of another run is older."""
        return self.lasting is not None and id(tensor) not in self.lasting and not foreign(tensor)

    def unseen(self, tensor: Tensor) -> Node:
        """What made this tensor went past us, and may have read all that there was."""
        node = self.add(opaque, UNSEEN, tuple(n for n in self.program.graph.nodes if "shape" in n.meta), {})
        node.meta["inplace"] = node.meta["writes"] = True
        self.bind(node, tensor)
        return node

    def lift(self, value: Any) -> Any:
        """Arguments with nodes in place of tensors."""
        kind = type(value)
        if kind is int or kind is float or kind is bool or value is None:
            return value
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, tuple):
            return tuple([self.lift(v) for v in value])
        if isinstance(value, list):
            return [self.lift(v) for v in value]
        if isinstance(value, dict):
            return {k: self.lift(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(self.lift(value.start), self.lift(value.stop), self.lift(value.step))
        return value

    def sizes(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Shapes whose numbers remember the dimension they are the size of."""
        with guarding(None):
            out = function(*args, **kwargs)
        node = self.node(args[0])
        node.meta["sized"] = True  # its size went to Python
        shape = node.meta["shape"]
        if isinstance(out, torch.Size):
            return torch.Size([Size(n, DimOf(node, d)) for d, n in enumerate(shape)])
        if name == "len":  # Python makes it a plain integer
            self.report(DimOf(node, 0), out)
            return out
        if name == "size":
            dim = int(kwargs["dim"] if "dim" in kwargs else args[1])
            return Size(out, DimOf(node, dim % len(shape)))
        total: Any = 1
        for d, n in enumerate(shape):
            total = Size(n, DimOf(node, d)) * total
        return total if isinstance(total, Size) else out

    def report(self, origin: Any, value: Any) -> None:
        """Python looked at a size."""
        self.program.guards.append(Guard(origin, value, source_line()))

    def keep_positions(self, args: Any, kwargs: Any) -> None:
        for tensor in tensors_in((args[1:], kwargs)):
            if not tensor.is_floating_point():
                self.node(tensor).meta["value"] = tensor

    # -- leaving no trace on the model ------------------------------------------------------------------

    def protect(self, target: Any) -> None:
        """Keeps a copy of the model's own tensor that an in-place operation is about to change."""
        for tensor in tensors_in(target):
            own = self.stored.get(tensor.untyped_storage().data_ptr()) if tensor.device.type != "meta" else None
            if own is not None and id(own) not in self.saved:
                self.saved[id(own)] = (own, own.detach().clone())

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, value in self.saved.values():
                tensor.copy_(value)

    # -- where in the model we are ----------------------------------------------------------------------

    def enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(self.paths.get(id(module), self.stack[-1] if self.stack else ""))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        failed = sys.exc_info()[1]
        if failed is not None and self.failed is None:
            self.failed = self.stack[-1]
        elif isinstance(module, torch.jit.ScriptModule):
            self.opaque(module, args, output)
        self.stack.pop()

    def opaque(self, called: Any, inputs: Any, output: Any) -> None:
        """A call whose inside cannot be seen."""
        if not self.computing:
            raise ValuesNeeded
        name = f"scripted {getattr(called, 'original_name', None) or getattr(called, 'name', type(called).__name__)}"
        node = self.add(opaque, name, self.lift(tuple(tensors_in(inputs))), {})
        node.meta["inplace"] = node.meta["writes"] = True
        self.bind(node, tuple(t for t in tensors_in(output)))


def _item(values: Any, index: int) -> Any:
    return values[index]


def trace(
    model: nn.Module,
    call: Call,
    leaves: Callable[[str], bool],
    stand_ins: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType({}),
) -> Program:
    """Runs `call` on `model` and returns the program; afterwards the model is as it was, bit for bit.

    Args:
        leaves: says of an operation's name whether it is understood; other Python functions are opened.
        stand_ins: the class that rigid modules have meanwhile, by exact type.

    Costly operations are not computed at first; where the model turns out to look at values, it is run again. So it
    is if it uses tensors of unknown origin: those that were there before are the same in both runs.
    """
    recorder = None
    with suppress(ValuesNeeded, ExampleInputsError):
        recorder = _trace(model, call, leaves, stand_ins, computing=False)
    recorder = recorder or _trace(model, call, leaves, stand_ins, computing=True)
    unnamed = [tensor for node, tensor in recorder.constants.values() if node.meta["op"] == "constant"]
    if unnamed:
        recorder = _trace(model, call, leaves, stand_ins, recorder.computing, {id(tensor) for tensor in unnamed})
    return recorder.program


def _trace(
    model: nn.Module,
    call: Call,
    leaves: Callable[[str], bool],
    stand_ins: Mapping[type[nn.Module], type[nn.Module]],
    computing: bool,
    lasting: Collection[int] | None = None,
) -> Recorder:
    every = modules_of(model)
    scripted = {id(m) for s in every.values() if isinstance(s, torch.jit.ScriptModule) for m in s.modules()}
    modules = {path: m for path, m in every.items() if id(m) not in scripted}
    tensors = named_tensors(model)
    paths = {id(module): path for path, module in every.items()}
    before = [(vars(m), vars(m).copy()) for m in modules.values()]
    dicts = [d for m in modules.values() for d in vars(m).values() if type(d) is dict or type(d) is OrderedDict]
    before += [(d, d.copy() if d else {}) for d in dicts]
    recorder = Recorder(leaves, tensors, tensors.keys() - registered_tensors(model).keys(), paths, computing, lasting)
    for tensor in tensors.values():
        if tensor.device.type != "meta" and tensor.layout == torch.strided:
            recorder.stored[tensor.untyped_storage().data_ptr()] = tensor
    swapped: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for path, module in modules.items():
            state = vars(module)
            state["training"] = call.training
            state.update({k: None for k in ("_compiled_call_impl",) if k in state})
            kind = type(module)
            free = stand_ins.get(kind, uncounted(kind))
            if free is not kind and "forward" not in state:
                swapped.append((module, kind))
                module.__class__ = free
                state.update(stated(module))
            # Those of torch.nn are strides, paddings and kernels.
            attributes_as_sizes(path, state, shapes=not type(module).__module__.startswith("torch.nn."))
        _run(model, call, recorder)
        return recorder
    finally:
        recorder.restore()
        for module, kind in swapped:
            module.__class__ = kind
        for store, content in before:
            store.clear()
            store.update(content)


def _run(model: nn.Module, call: Call, recorder: Recorder) -> None:
    program = recorder.program
    program.training = call.training
    inputs: dict[int, Node] = {}
    for i, tensor in enumerate(tensors_in((call.args, dict(call.kwargs)))):
        if id(tensor) not in inputs:
            node = inputs[id(tensor)] = program.graph.add("placeholder", f"input_{i}")
            node.meta.update(op="input", shape=tuple(tensor.shape), dtype=tensor.dtype, path="", where="")
            recorder.constants[id(tensor)] = (node, tensor)
            recorder.stored[tensor.untyped_storage().data_ptr()] = tensor

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(recorder)))
        stack.enter_context(seen_scripts(recorder.opaque))
        for handle in (
            register_module_forward_pre_hook(recorder.enter),
            register_module_forward_hook(recorder.leave, always_call=True),
        ):
            stack.callback(handle.remove)
        stack.enter_context(guarding(recorder.report))
        stack.enter_context(recorder)
        try:
            output = model(*call.args, **call.kwargs)
        except StructPruneError:
            raise
        except Exception as error:
            raise explained(error, call, recorder.failed) from error
    node = program.graph.add("output", "output", (recorder.lift(tuple(tensors_in(output))),))
    node.meta.update(op="output", shape=(), path="", where="")
    program.mark_unread()


def _cuda_devices(recorder: Recorder) -> Sequence[int]:
    return sorted({t.device.index for t in recorder.stored.values() if t.device.type == "cuda"})
