"""Programs: what a call of a model did, and the values that go in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from torch import Tensor, fx, nn

from .sizes import Guard


@dataclass(frozen=True)
class Call:
    """One way of calling the model: the arguments, and whether it is in training mode."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    training: bool = False


@dataclass
class Program:
    """What one call of the model did."""

    graph: fx.Graph
    guards: list[Guard] = field(default_factory=list)
    training: bool = False
    notes: list[str] = field(default_factory=list)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes by their first qualified name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        prefix = path + "." if path else ""
        for store in (module._parameters, module._buffers, vars(module)):
            for name, value in store.items():
                if isinstance(value, Tensor) and id(value) not in seen:
                    seen.add(id(value))
                    found[prefix + name] = value
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a nest of containers, dataclasses and plain objects, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from tensors_in(getattr(value, entry.name))
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        yield from tensors_in(vars(value))


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with `function` applied to the tensors in its lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, v) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, v) for v in value)
    if isinstance(value, dict):
        return {key: map_tensors(function, v) for key, v in value.items()}
    return value
