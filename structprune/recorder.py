"""The recorder: sees every operation of a running model, and writes it down as a node of a graph.

It is a `torch.overrides.TorchFunctionMode`: it sees every call of a public PyTorch function with its Python
arguments, on real tensors, without looking at autograd. Each node keeps the name of its operation, the path of the
module that called it, and the line of source that did.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .answers import answer
from .blanks import in_blank, large_stand_in, stand_in, together
from .counting import STATISTICS
from .frames import caller, is_part_of_a_name, source_line
from .inventory import Inventory, distinct
from .nn import NORMS
from .nodes import Graph, Node
from .ops import Operation, in_place, operation, python_body
from .program import Program, Visit, tensors_in
from .scalars import computed
from .sizes import Guard, Size
from .unseen import UNSEEN, foreign, in_memory, is_set_to, opaque

_TAG = "_structprune_node"
_ATOMS = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})

# Operations whose tensor arguments are positions: what they hold decides where data goes.
_INDEXING = frozenset({"getitem", "setitem", "index_select", "take_along_dim", "gather", "index_put", "take", "index"})

# Operations whose result has a shape that depends on values.
_VALUED = frozenset({"nonzero", "unique", "masked_select", "bincount", "repeat_interleave", "isin"})

# Operations for which it matters whose `forward` calls them.
_NORMS = frozenset({*NORMS, *STATISTICS})


# Operations after which the memory of a tensor may be written without being seen.
_LENDING = frozenset({"numpy", "__array__", "data_setter", "__dlpack__"})

# Operations that may write other arguments than the first: weights, given `max_norm`, and running statistics.
_WRITING = frozenset({"embedding", "embedding_bag", "instance_norm"})

# Requests for gradients, of which a trace has none.
_HOOKING = frozenset({"register_hook", "retain_grad"})

# Questions about how a tensor lies in memory.
_LAYOUT = frozenset({"stride", "storage_offset", "untyped_storage", "storage"})

Tags = list[weakref.ref[Tensor]]


class ValuesNeeded(BaseException):
    """The model looks at a value that was not computed."""


def untag(tags: Tags) -> None:
    """Takes the nodes of a trace away from the tensors that live on."""
    for reference in tags:
        tensor = reference()
        if tensor is not None:
            vars(tensor).pop(_TAG, None)


class Recorder(TorchFunctionMode):
    """Writes each operation into `program.graph`; `leaves` says which names need not be opened."""

    def __init__(
        self,
        parts: Inventory,
        leaves: Callable[[str], bool],
        computing: bool,
        lasting: Collection[int] | None,
        watched: Collection[int],
        tags: Tags,
    ):
        super().__init__()
        self.program = Program(Graph())
        self.leaves = leaves
        self.names = parts.names
        self.parts = parts
        self.registered = parts.registered  # the other tensors are mere attributes
        self.paths = parts.paths
        self.stack: list[str] = []
        self.watched = watched  # ids of modules
        self.depth = 0  # how many of them are running
        self.opened: list[Callable[..., Any]] = []  # Python functions whose body is running; some ask for themselves
        self.inside = False  # whether an operation is running: what it asks of sizes is not the model's question
        self.failed: str | None = None  # the innermost module whose forward raised
        self.computing = computing
        self.lasting = lasting  # ids of the constants of an earlier run, against which new ones show
        self.on_meta = any(t.is_meta for t in parts.tensors.values())
        self.constants: dict[int, tuple[Node, Tensor]] = {}
        self.own = list(parts.tensors.values())  # what must not change: the model's tensors, and the inputs
        self.saved: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # what was changed: itself, its memory, its values
        self.tags = tags  # every tensor that was given a node
        self.thread = threading.get_ident()  # hooks of modules are called in all of them

    # -- the interception -------------------------------------------------------------------------------

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = operation(function)
        if known.asks or (known.name == "type" and len(args) == 1 and not kwargs):
            return _hook(known.name) if known.name in _HOOKING else function(*args, **kwargs)
        if known.name == "data_setter" and is_set_to(*args):  # `x.data *= y`, which was written in place already
            return function(*args)
        if known.sizes and args and isinstance(args[0], Tensor):
            return self.sizes(known.name, function, args, kwargs)
        if known.python and not self.leaves(known.name) and function not in self.opened:
            self.opened.append(function)
            try:
                with self:
                    return python_body(function)(*args, **kwargs)
            finally:
                self.opened.pop()
        return self.record(known, function, args, kwargs)

    def record(
        self, known: Operation, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Runs an operation and adds its node."""
        if "out" in kwargs and any(tensor.numel() for tensor in tensors_in(kwargs["out"])):
            return self.record_into(known, function, args, dict(kwargs))
        inputs: dict[Node, None] = {}
        sizes: list[Size] = []
        spelled, named = in_place(known.name, args, kwargs) if kwargs else (args, kwargs)
        lifted = self.lift(spelled, inputs, sizes)
        lifted_kwargs = self.lift(named, inputs, sizes) if named else named
        blank = any(node.meta.get("blank") for node in inputs)
        self.inside = True
        try:
            out, blank = self.execute(known, function, args, kwargs, blank)
        finally:
            self.inside = False
        if known.name in _INDEXING:
            self.keep_positions(args, kwargs)
        writes = known.inplace or known.name in ("batch_norm", "instance_norm")  # running statistics
        told = not isinstance(out, Tensor) and not any(True for _ in tensors_in(out))
        reads = told and known.name != "setitem"  # Python gets to see values
        node = self.add(
            function, known.name, lifted, lifted_kwargs, inputs,
            inplace=known.inplace, writes=writes, reads=reads, sizes=sizes, blank=blank,
        )  # fmt: skip
        if reads and not self.computing:
            raise ValuesNeeded
        if (sizes or any("scalar" in n.meta for n in inputs)) and not (blank or known.inplace or kwargs):
            self.count(node, args, out)
        self.bind(node, args[0] if known.name == "setitem" else out)
        return out

    def count(self, node: Node, args: tuple[Any, ...], out: Any) -> None:
        """An operation that sizes take part in, or counts that they took part in."""
        origin = computed(node.meta["op"], args, self.node)
        if origin is not None:
            node.meta["scalar"] = origin
        elif node.meta["reads"]:
            for counted in (n.meta["scalar"] for n in node.all_input_nodes if "scalar" in n.meta):
                self.report(counted, out)

    def record_into(
        self, known: Operation, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The same with `out=`: other values may lie in that memory, so it is written as by `copy_`."""
        into = kwargs.pop("out")
        result = self.record(known, function, args, kwargs)
        for target, value in zip(tensors_in(into), tensors_in(result), strict=True):
            if target.shape != value.shape:
                self.record(operation(Tensor.resize_), Tensor.resize_, (target, value.shape), {})
            self.record(operation(Tensor.copy_), Tensor.copy_, (target, value), {})
        return into

    def execute(
        self,
        known: Operation,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        blank: bool,
    ) -> tuple[Any, bool]:
        """What an operation gives, and whether that is a stand-in without values, or was made from one (as `blank` says
        of its arguments). Batch norms are run without batch statistics: a trace changes no buffer and takes a batch of
        one."""
        name = known.name
        if not self.computing:
            if self.needs_values(name, args):
                raise ValuesNeeded
            zeros = stand_in(name, args, kwargs, known.inplace, blank)
            if zeros is None and blank and not known.inplace:
                zeros = large_stand_in(name, function, args, kwargs)
            if zeros is not None:
                return zeros, True
        if known.inplace or "out" in kwargs or name in _LENDING:
            self.protect(kwargs.get("out", args[0] if args else None))
        elif name in _WRITING:
            self.protect((args, kwargs))
        if self.on_meta:
            args, kwargs = together((args, kwargs))
        if name == "batch_norm" and (kwargs.get("training") or (len(args) > 5 and args[5])):
            return args[0].clone(), blank
        return function(*args, **kwargs), blank

    def needs_values(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether the shape of the result depends on values, or may: masks as indices, operations without a rule."""
        masked = name == "getitem" and any(t.dtype in (torch.bool, torch.uint8) for t in tensors_in(args[1:]))
        positions = name == "where" and len(args) == 1
        return masked or positions or name in _VALUED or not self.leaves(name)

    def add(
        self, function: Callable[..., Any], name: str, args: Any, kwargs: Any, inputs: Any = None, **meta: Any
    ) -> Node:
        """The node of an operation, at this place of the model and of its code."""
        path = self.stack[-1] if self.stack else ""
        meta.update(op=name, path=path, where=source_line())
        if name in _NORMS:
            meta["caller"] = caller()
        return self.program.graph.add("call_function", function, args, kwargs, inputs, meta)

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
                self.tags.append(weakref.ref(out))
        elif isinstance(out, list | tuple):
            for i, item in enumerate(out):
                if any(True for _ in tensors_in(item)):
                    meta = {**node.meta, "op": "item", "inplace": False, "sizes": ()}
                    self.bind(self.program.graph.add("call_function", _item, (node, i), {}, {node: None}, meta), item)

    def node(self, tensor: Tensor) -> Node:
        """The node that computed `tensor`; a parameter or constant gets one when it is first met."""
        key = id(tensor)
        if key in self.constants:
            return self.constants[key][0]
        name = self.names.get(key, "")
        made = None if name else getattr(tensor, _TAG, None)
        if made is not None and made.graph is self.program.graph:
            return made
        if not name and made is None and self.is_new(tensor):
            return self.unseen(tensor)
        meta: dict[str, Any] = {
            "op": "parameter" if name else "constant", "path": name.rpartition(".")[0], "where": "", "tensor": name,
            "shape": tuple(tensor.shape), "dtype": tensor.dtype, "plain": bool(name) and name not in self.registered,
        }  # fmt: skip
        if not name and tensor.dtype in (torch.int64, torch.bool, torch.int32):
            meta["value"] = tensor
        node = self.program.graph.add("get_attr", name or f"_constant_{len(self.constants)}", meta=meta)
        self.constants[key] = (node, tensor)
        return node

    def is_new(self, tensor: Tensor) -> bool:
        """Whether a tensor of unknown origin was made in this run; one with a node of another run is older."""
        lasting = self.lasting is None or id(tensor) in self.lasting or (foreign(tensor) and not in_blank(tensor))
        return not lasting

    def unseen(self, tensor: Tensor) -> Node:
        """What made this tensor went past us, and may have read all that there was."""
        every = tuple(n for n in self.program.graph.nodes if "shape" in n.meta)
        node = self.add(opaque, UNSEEN, every, {}, inplace=True, writes=True, reads=False)
        self.bind(node, tensor)
        return node

    def lift(self, value: Any, inputs: dict[Node, None], sizes: list[Size]) -> Any:
        """Arguments with nodes in place of tensors; those nodes, and the sizes, are added to what is given."""
        kind = type(value)
        if kind in _ATOMS:
            return value
        if kind is Size:
            sizes.append(value)
        elif isinstance(value, Tensor):
            node = self.node(value)
            inputs[node] = None
            return node
        elif isinstance(value, tuple):
            return tuple([v if type(v) in _ATOMS else self.lift(v, inputs, sizes) for v in value])
        elif isinstance(value, list):
            return [self.lift(v, inputs, sizes) for v in value]
        elif isinstance(value, dict):
            return {k: self.lift(v, inputs, sizes) for k, v in value.items()}
        elif isinstance(value, slice):
            return slice(*self.lift((value.start, value.stop, value.step), inputs, sizes))
        return value

    def sizes(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Shapes and the like, whose numbers remember the dimensions they are the sizes of."""
        self.inside = True
        try:
            out = function(*args, **kwargs)
        finally:
            self.inside = False
        node = self.node(args[0])
        if node.meta.get("blank") and name in _LAYOUT:  # a stand-in may lie in memory in another way
            raise ValuesNeeded
        node.meta["sized"] = True  # its size went to Python
        return answer(name, out, args[0], node, args, kwargs, self.report)

    def report(self, origin: Any, value: Any) -> None:
        """Python looked at a size; one in a text counts only if that may be a name that is looked up."""
        if not self.inside and (not isinstance(value, str) or is_part_of_a_name(value, self.parts.words)):
            self.program.guards.append(Guard(origin, value, source_line()))

    def keep_positions(self, args: Any, kwargs: Any) -> None:
        for tensor in tensors_in((args[1:], kwargs)):
            if not tensor.is_floating_point():
                self.node(tensor).meta["value"] = tensor

    # -- leaving no trace on the model ------------------------------------------------------------------

    def protect(self, target: Any) -> None:
        """Keeps copies of the model's own tensors that are about to change with `target`."""
        for tensor in (t for t in tensors_in(target) if t.device.type != "meta"):
            wrapped = not in_memory(tensor)  # it may be any of them
            for own in self.own if wrapped else self.stored.get(tensor.untyped_storage().data_ptr(), ()):
                if id(own) not in self.saved:
                    self.saved[id(own)] = own, own.data, distinct(own).detach().clone()

    @functools.cached_property
    def stored(self) -> dict[int, list[Tensor]]:
        """The tensors that must not change, by where they are stored."""
        found: dict[int, list[Tensor]] = {}
        for tensor in self.own:
            if tensor.device.type != "meta" and tensor.layout == torch.strided:
                found.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        return found

    def restore(self) -> None:
        """Takes back what was written into the model's own tensors."""
        with torch.no_grad():
            for tensor, memory, values in self.saved.values():
                if tensor.data_ptr() != memory.data_ptr() or tensor.shape != memory.shape:
                    tensor.data = memory
                distinct(tensor).copy_(values)

    # -- where in the model we are ----------------------------------------------------------------------

    @property
    def elsewhere(self) -> bool:
        """Whether it is another thread that runs something."""
        return threading.get_ident() != self.thread

    def enter(self, module: nn.Module, args: Any) -> None:
        if self.elsewhere:
            return
        self.stack.append(self.paths.get(id(module), self.stack[-1] if self.stack else ""))
        if id(module) in self.watched:
            if not self.depth:
                self.program.visits.append(Visit(module, args))
            self.depth += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.elsewhere:
            return
        failed = sys.exc_info()[1]
        if failed is not None and self.failed is None:
            self.failed = self.stack[-1]
        elif isinstance(module, torch.jit.ScriptModule):
            self.opaque(module, args, output)
        self.stack.pop()
        self.depth -= id(module) in self.watched

    def opaque(self, called: Any, inputs: Any, output: Any) -> None:
        """A call whose inside cannot be seen."""
        if self.elsewhere:
            return
        if not self.computing:
            raise ValuesNeeded
        name = f"scripted {getattr(called, 'original_name', None) or getattr(called, 'name', type(called).__name__)}"
        given = tuple(map(self.node, tensors_in(inputs)))
        node = self.add(opaque, name, given, {}, inplace=True, writes=True, reads=False)
        self.bind(node, tuple(t for t in tensors_in(output)))


def _hook(name: str) -> RemovableHandle | None:
    """What such a request gives: a hook that nobody calls."""
    return RemovableHandle(OrderedDict()) if name == "register_hook" else None


def _item(values: Any, index: int) -> Any:
    return values[index]
