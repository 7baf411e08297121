"""Programs: what a call of a model did, and the values that go in and out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn

from .nodes import Graph, Node
from .restoring import slots_of
from .sizes import AttributeOf, Computed, Constant, DimOf, Guard, Size


@dataclass(frozen=True)
class Call:
    """One way of calling the model: the arguments, and whether it is in training mode."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    training: bool = False

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Call:
        """The same call with `function` applied to its tensors."""
        return replace(self, args=map_tensors(function, self.args), kwargs=map_tensors(function, dict(self.kwargs)))


@dataclass(frozen=True, eq=False)
class Visit:
    """A call of a module, with its positional arguments."""

    module: nn.Module
    args: tuple[Any, ...]


@dataclass
class Program:
    """What one call of the model did."""

    graph: Graph
    guards: list[Guard] = field(default_factory=list)
    training: bool = False
    visits: list[Visit] = field(default_factory=list)  # of the outermost modules that were watched
    seen: set[AttributeOf] = field(default_factory=set)  # floats that something other than an operation took
    reused: Mapping[str, str] = field(default_factory=dict)  # see `renewal`
    numeric: bool = False  # numbers are among the arguments

    def mark_unread(self) -> None:
        """Marks what runs without any output depending on it: it must still fit, but its values do not matter."""
        for node in reversed(self.graph.nodes):
            meta = node.meta
            read = node.op != "call_function" or meta["writes"] or meta["reads"] or meta.get("sized")
            meta["unread"] = not read and all(user.meta["unread"] for user in node.users)

    def outline(self) -> tuple[Any, ...]:
        """What was done to what, in what order: equal for two programs that constrain a model alike.

        Random factors for whole examples (stochastic depth) are left out: they neither couple nor fix anything.
        """
        number: dict[Node, int] = {}
        noise: set[Node] = set()
        rows: list[Any] = []
        for node in self.graph.nodes:
            operands, shape, op = node.inputs, node.meta.get("shape"), node.meta["op"]
            values = [n for n in operands if n not in noise]
            if shape == () and all(n.meta.get("shape") == () for n in operands):
                number[node] = -1  # a counter of batches: it has no channels
            elif _is_noise(node, bool(values)):
                noise.add(node)
            elif len(values) == 1 < len(operands) and op in ("mul", "div") and shape == values[0].meta["shape"]:
                number[node] = number[values[0]]
            else:
                number[node] = len(rows)
                told = _outlined((node.args, dict(node.kwargs)), number, not (op in _MODAL or "dropout" in op))
                rows.append((op, node.meta.get("tensor"), id(node.meta.get("value")), shape, told))
        rows += [_outlined((guard.origin, guard.expected), number) for guard in self.guards]
        return tuple(rows)


def _outlined(value: Any, number: Mapping[Node, int], exactly: bool = True) -> Any:
    """Arguments with numbers in place of values, and sizes by what they are the size of."""
    kind = type(value)
    if kind is int or value is None or kind is str:
        return value
    if kind is bool or kind is float:
        return value if exactly else None
    if kind is Constant:
        return ("constant", value.origin) if exactly else None
    if kind is Node:
        return "value", number.get(value, -1)
    if kind is tuple or kind is list:
        return tuple([_outlined(item, number, exactly) for item in value])
    if kind is dict:
        return tuple([(key, _outlined(item, number, exactly)) for key, item in value.items()])
    if kind is Size:
        return _outlined(value.origin, number)
    if kind is DimOf:
        return "size", number.get(value.value, -1), value.dim
    if kind is Computed:
        return value.function, _outlined(value.operands, number)
    if kind is slice:
        return "slice", _outlined((value.start, value.stop, value.step), number)
    return value if isinstance(value, Hashable) else id(value)


# Their flags and probabilities say what the mode is, and nothing about channels.
_MODAL = frozenset("batch_norm instance_norm scaled_dot_product_attention rrelu lstm gru rnn_tanh rnn_relu".split())
_RANDOM = frozenset({"empty", "new_empty", "rand", "bernoulli", "div", "floor", "add"})


def _is_noise(node: Node, has_values: bool) -> bool:
    """A factor for each example, made from random numbers alone."""
    if node.op != "call_function" or has_values or node.meta["op"] not in _RANDOM:
        return False
    return all(n == 1 for n in node.meta.get("shape", (0, 0))[1:])


def users_of_parameters(programs: Iterable[Program]) -> dict[str, set[Node]]:
    """The operations that use a parameter or buffer, by its name, in all programs."""
    users: dict[str, set[Node]] = {}
    for program in programs:
        for node in program.graph.nodes:
            if node.meta["op"] == "parameter":
                users.setdefault(node.meta["tensor"], set()).update(node.users)
    return users


_CONTAINERS = (list, tuple, set, frozenset, deque, KeysView, ValuesView, ItemsView)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a nest of containers, dataclasses and plain objects, in order."""
    return _leaves(value, Tensor, ())


def sizes_in(value: Any) -> Iterator[Size]:
    """The sizes in such a nest."""
    return _leaves(value, Size, ())


def has_numbers(value: Any) -> bool:
    """Whether there are numbers in such a nest."""
    return any(not isinstance(number, bool) for number in _leaves(value, (int, float), ()))


def _leaves(value: Any, kind: Any, inside: tuple[int, ...]) -> Iterator[Any]:
    """What is of a kind in a nest, of which objects (by id) are being looked through."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Tensor | int | float | str) or value is None or id(value) in inside:
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item, kind, inside)
    elif isinstance(value, _CONTAINERS):
        for item in value:
            yield from _leaves(item, kind, inside)
    elif not isinstance(value, type | nn.Module):
        for item in _attributes(value):
            yield from _leaves(item, kind, (*inside, id(value)))


def _attributes(value: Any) -> Iterable[Any]:
    """What a dataclass or an object that is no function holds."""
    if is_dataclass(value):
        return [getattr(value, entry.name) for entry in fields(value)]
    if hasattr(value, "__dict__"):
        return () if callable(value) else vars(value).values()
    kind: Any = type(value)
    return [getattr(value, name, None) for name in slots_of(kind)]


def map_tensors(
    function: Callable[[Tensor], Any], value: Any, others: Callable[[Any], Any] = lambda value: value
) -> Any:
    """`value` with `function` applied to the tensors in its lists, tuples and dicts, and `others` to what is none."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, v, others) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, v, others) for v in value)
    if isinstance(value, dict):
        return {key: map_tensors(function, v, others) for key, v in value.items()}
    return others(value)
