"""Modes: a model is traced in eval mode, and in train mode where that may do something else.

Only code that reads `training` can tell the modes apart. Where it sits in small modules (stochastic depth, say),
those are called once more in both modes by themselves: if they do the same, so does the model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ExampleInputsError
from .inventory import Inventory
from .program import Call, Program, Visit, map_tensors
from .rules import has_rule
from .source import names_in
from .trace import switches, trace

Classes = Mapping[type[nn.Module], type[nn.Module]]  # what modules have while they are traced, by what they are
SMALL = 4  # the modules that ask for the mode are small if they hold less than one in so many


def traced(parts: Inventory, calls: list[Call], classes: Classes) -> list[Program]:
    """What the calls do in eval mode, and in train mode if that is anything else; a model that does not take them
    there (detectors want targets) is not asked again."""
    asking = [m for m in parts.modules.values() if _naming("training", m) or switches(m)]
    watched = set(map(id, asking))
    programs = [trace(parts, Call(c.args, c.kwargs), has_rule, classes, watched) for c in calls]
    if asking and not (_small(parts, asking) and all(_alike(program, classes) for program in programs)):
        with suppress(ExampleInputsError):
            programs += [trace(parts, Call(c.args, c.kwargs, training=True), has_rule, classes) for c in calls]
    for program in programs:
        program.visits.clear()  # they hold values
    return _different(programs)


def _different(programs: list[Program]) -> list[Program]:
    """The programs without those that do again what another did."""
    read = [
        frozenset(n.target for n in p.graph.nodes if n.meta["op"] == "parameter" and n.meta["shape"]) for p in programs
    ]
    found: dict[Any, Program] = {}
    for program, names in zip(programs, read, strict=True):
        alike = read.count(names) > 1  # programs that read other parameters do other things
        kept = found.setdefault((names, program.outline() if alike else None), program)
        kept.seen |= program.seen
    return list(found.values())


# -- whether the modes differ ---------------------------------------------------------------------------------


def _small(parts: Inventory, asking: Sequence[nn.Module]) -> bool:
    """Whether it is little work to call again what asks for the mode, and calls of modules are all that does so."""
    inside = {id(m) for module in asking for m in module.modules()}
    only = all(_naming("training", m) == {"forward"} for m in asking)
    called = not any(_naming("forward", m) for m in parts.modules.values())
    return SMALL * len(inside) < len(parts.modules) and only and called


def _alike(program: Program, classes: Classes) -> bool:
    """Whether all that asks for the mode does the same in both."""
    if not all(map(_repeatable, program.visits)):
        return False
    again = Inventory(_Again(program.visits))
    given = tuple(map_tensors(_zeros, visit.args) for visit in program.visits)
    try:
        both = [trace(again, Call(given, {}, training), has_rule, classes) for training in (False, True)]
    except ExampleInputsError:
        return False
    return both[0].outline() == both[1].outline()


def _repeatable(visit: Visit) -> bool:
    """Whether its arguments are all that it was given, and no values of theirs can matter."""
    parameters = list(inspect.signature(type(visit.module).forward).parameters.values())[1:]
    plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    floating = all(isinstance(a, Tensor) and a.is_floating_point() for a in visit.args)
    return plain and floating and len(parameters) == len(visit.args) and "forward" not in vars(visit.module)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)


class _Again(nn.Module):
    """Calls modules one after the other."""

    def __init__(self, visits: list[Visit]) -> None:
        super().__init__()
        self.visited = nn.ModuleList(visit.module for visit in visits)

    def forward(self, *given: Any) -> list[Any]:
        return [module(*args) for module, args in zip(self.visited, given, strict=True)]


# -- what code names ------------------------------------------------------------------------------------------


def _naming(word: str, module: nn.Module) -> frozenset[str]:
    """The methods of a module, outside torch.nn, whose code names an attribute, or calls what does."""
    kind: Any = type(module)
    if FunctionType not in map(type, vars(module).values()):
        return _methods_naming(word, kind)
    own = [key for key, value in vars(module).items() if type(value) is FunctionType and _names(word, value)]
    return _methods_naming(word, kind).union(own)


@functools.cache
def _methods_naming(word: str, kind: Any) -> frozenset[str]:
    return frozenset(
        name
        for base in kind.__mro__
        if not base.__module__.startswith("torch.nn") and base is not object
        for name, member in vars(base).items()
        if name not in ("train", "eval") and any(_names(word, function) for function in _functions_of(member))
    )


def _functions_of(member: Any) -> list[FunctionType]:
    """The functions that a member of a class is made of."""
    made = member.fget if isinstance(member, property) else getattr(member, "__func__", getattr(member, "func", member))
    return [made] if isinstance(made, FunctionType) else []


def _names(word: str, function: FunctionType) -> bool:
    """Whether a function, or a function of the same project that it names, names an attribute or holds its name."""
    waiting, seen = [function], {function}
    while waiting:
        one = waiting.pop()
        names = frozenset(names_in(one.__code__))
        if word in names or word in one.__code__.co_consts:
            return True
        for name in names & one.__globals__.keys():
            other = one.__globals__[name]
            if isinstance(other, FunctionType) and other not in seen and _project(other) == _project(function):
                seen.add(other)
                waiting.append(other)
    return False


def _project(function: FunctionType) -> str:
    return (function.__module__ or "").partition(".")[0]
