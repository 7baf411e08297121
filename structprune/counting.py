"""Norms written out by hand: a subclass whose means, variances and extremes count the original channels.

`u = x.mean(1, keepdim=True); s = (x - u).pow(2).mean(1, keepdim=True)` runs over channels. Those that went were zero
in the masked original, and `x - u` was `-u` there. The subclass, made from the source, has `self.counted_mean(x, 1,
keepdim=True)` and `self.counted_mean((x - u).pow(2), 1, keepdim=True, ghost=(u) ** 2)` in their place: ordinary
arithmetic, which compiles, exports and trains. The largest of the channels, of which spatial attention makes a map, is
at least zero then.
"""

from __future__ import annotations

import ast
import copy
import functools
import math
import re
from collections.abc import Collection
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .nn import refuse_script, unannounced, widened
from .ops import NUMPY
from .source import CannotRewriteError, Rewriter, checksum, methods_of, names_in, reached, recompiled

COUNTED = "counted"
_SOME = re.compile(rf"{COUNTED}((?: \d+)+) @[0-9a-f]{{8}}")
EXTREMES = ("max", "min")  # along a dimension; of two values they are no statistics
STATISTICS = ("mean", "var", "std", "var_mean", "std_mean", "amax", "amin", *EXTREMES)


class Extreme(NamedTuple):
    """What `max` and `min` along a dimension return; which of the channels it was is not known of those that went."""

    values: Tensor
    indices: Tensor


class _Statistics:
    """What a counted class has: statistics as if the first dimension that they run over had `counted_channels`
    channels."""

    counted_channels = 0

    def counted_mean(self, input: Tensor, dim: Any = None, keepdim: bool = False, ghost: Any = 0) -> Tensor:
        """The mean, where each channel that went contributes `ghost`."""
        dims, each = _run(input, dim)
        gone = (self.counted_channels - input.shape[dims[0]]) * each
        if isinstance(ghost, Tensor) and not keepdim:
            ghost = ghost.squeeze(dims)
        ghost = widened(ghost) if isinstance(ghost, Tensor) else ghost
        total = widened(input).sum(dims, keepdim=keepdim) + gone * ghost
        return (total / (self.counted_channels * each)).to(input.dtype)

    def counted_var_mean(
        self, input: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The variance and the mean, where the channels that went are zero."""
        lost = int(unbiased) if correction is None else correction
        dims, each = _run(input, dim)
        count = self.counted_channels * each
        mean = self.counted_mean(input, dims, keepdim=True)
        variance = self.counted_mean((input - mean).square(), dims, True, mean.square()) * count / (count - lost)
        return (variance, mean) if keepdim else (variance.squeeze(dims), mean.squeeze(dims))

    def counted_var(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.counted_var_mean(*args, **kwargs)[0]

    def counted_std(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.counted_var_mean(*args, **kwargs)[0].sqrt()

    def counted_std_mean(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        variance, mean = self.counted_var_mean(*args, **kwargs)
        return variance.sqrt(), mean

    def counted_amax(self, input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        """The largest, where the channels that went are zero."""
        dims, _ = _run(input, dim)
        return self._with_zero(input.amax(dims, keepdim), input.shape[dims[0]], min=0)

    def counted_amin(self, input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        dims, _ = _run(input, dim)
        return self._with_zero(input.amin(dims, keepdim), input.shape[dims[0]], max=0)

    def counted_max(self, input: Tensor, dim: int, keepdim: bool = False) -> Extreme:
        values, indices = input.max(dim, keepdim=keepdim)
        return Extreme(self._with_zero(values, input.shape[dim], min=0), indices)

    def counted_min(self, input: Tensor, dim: int, keepdim: bool = False) -> Extreme:
        values, indices = input.min(dim, keepdim=keepdim)
        return Extreme(self._with_zero(values, input.shape[dim], max=0), indices)

    def _with_zero(self, extreme: Tensor, width: int, **bound: int) -> Tensor:
        """Extremes of `width` channels and those that went."""
        return extreme.clamp(**bound) if width < self.counted_channels else extreme


def _run(input: Tensor, dim: Any) -> tuple[tuple[int, ...], int]:
    """The dimensions that statistics run over, that of the channels first, and how many elements each channel has."""
    dims = tuple(dim) if isinstance(dim, (list, tuple)) else () if dim is None else (dim,)
    dims = dims or tuple(range(input.ndim))
    return dims, math.prod([input.shape[d] for d in dims[1:]])


def named(kind: type[nn.Module], places: Collection[int]) -> str:
    """The swap of a class of which the statistics at these places in the source run over channels: "counted" for all,
    else with the places and a checksum, "counted 0 2 @1f9ac003"."""
    kind = uncounted(kind)
    if len(places) == len(ghosts(kind) or ()):
        return COUNTED
    return " ".join([COUNTED, *map(str, sorted(places)), f"@{checksum(functions_of(kind)):08x}"])


def places_of(swap: str) -> tuple[int, ...] | None:
    """Which statistics of its class a swap of this name counts, () for all; None if it is no such swap."""
    if swap == COUNTED:
        return ()
    some = _SOME.fullmatch(swap)
    return tuple(map(int, some[1].split())) if some else None


def is_of(swap: str, kind: type[nn.Module]) -> bool:
    """Whether a class is the one that a swap which counts was named for."""
    places, known = places_of(swap), ghosts(kind)
    if places is None or known is None:
        return False
    return not places or (max(places) < len(known) and swap == named(kind, places))


def counted(kind: type[nn.Module], channels: int, swap: str = COUNTED) -> type[nn.Module]:
    """A subclass of `kind` whose statistics, or those that `swap` names, count `channels` channels."""
    key: Any = kind
    return _counted(key, channels, swap)


@functools.cache
def _counted(kind: Any, channels: int, swap: str) -> type[nn.Module]:
    source = _counting_source(kind, places_of(swap) or ())
    if source is None:
        raise CannotRewriteError

    def reduce(self: nn.Module, protocol: int = 2) -> tuple[Any, ...]:
        return _rebuild, (kind, channels, swap), vars(self)

    members = {
        **source[0],
        "plain": kind,
        "counted_channels": channels,
        "counted_statistics": swap,
        "__reduce_ex__": reduce,
        "__prepare_scriptable__": refuse_script,
        "__module__": __name__,
    }
    return type("Counted" + kind.__name__, unannounced(kind, _Statistics), members)


def _rebuild(kind: type[nn.Module], channels: int, swap: str = COUNTED) -> nn.Module:
    made = counted(kind, channels, swap)
    return made.__new__(made)


def ghosts(kind: type[nn.Module]) -> tuple[bool, ...] | None:
    """For each statistic in the source of `kind`, in order, whether it is a mean of squared distances; None if the
    source cannot be rewritten, or has none."""
    key: Any = uncounted(kind)
    source = _counting_source(key, ())
    return None if source is None else source[1]


def functions_of(kind: type[nn.Module]) -> list[FunctionType]:
    """Those from which a norm's statistics must be called, in the order of `ghosts`: the methods of a class, and the
    functions that they call."""
    methods = methods_of(uncounted(kind))
    return [*methods.values(), *_helpers(methods.values())]


def uncounted(kind: type[nn.Module]) -> type[nn.Module]:
    """The class as it was before it was made to count; other classes are what they are."""
    return getattr(kind, "plain", kind) if issubclass(kind, _Statistics) else kind


@functools.cache
def _counting_source(kind: Any, places: tuple[int, ...]) -> tuple[dict[str, Any], tuple[bool, ...]] | None:
    """The methods of a class with counted statistics at these places, () for all, and what `ghosts` says."""
    if kind.__module__.startswith(("torch.", "structprune.")):
        return None
    rewriter = _Count(places)
    try:
        methods = methods_of(kind)
        rewriter.names = _helpers(methods.values())
        made = {name: recompiled(method, rewriter) for name, method in methods.items()}
        made |= {name: recompiled(helper, rewriter, _MODULE) for helper, name in rewriter.names.items()}
    except (CannotRewriteError, OSError, TypeError, SyntaxError):
        return None
    return (made, tuple(rewriter.found)) if rewriter.found else None


_MODULE = "counted_module"  # what a function that has become a method calls the module


def _helpers(methods: Collection[FunctionType]) -> dict[FunctionType, str]:
    """The functions that are to become methods, and their names: those that lead to a statistic, as far as they can."""
    found = [f for f in reached(*methods) if f not in methods and any(map(_has_statistics, reached(f)))]
    return {f: f"counted_function_{i}" for i, f in enumerate(f for f in found if _can_be_method(f))}


def _has_statistics(function: FunctionType) -> bool:
    return not set(names_in(function.__code__)).isdisjoint(STATISTICS)


def _can_be_method(function: FunctionType) -> bool:
    try:
        recompiled(function, _Count(), _MODULE)
    except (CannotRewriteError, OSError, TypeError, SyntaxError):
        return False
    return True


class _Count(Rewriter, ast.NodeTransformer):
    """Puts counted statistics in place of those of PyTorch, at these places among them; () is at all."""

    def __init__(self, places: tuple[int, ...] = ()) -> None:
        self.places = places
        self.found: list[bool] = []
        self.counts: dict[tuple[Any, ...], bool] = {}
        self.assigned: dict[str, ast.expr] = {}
        self.names: dict[FunctionType, str] = {}  # what functions are called that have become methods
        self.bound: set[str] = set()  # names of the method's own

    def enter(self, method: ast.FunctionDef) -> None:
        nodes = list(ast.walk(method))
        self.bound = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        self.bound.update(n.arg for n in nodes if isinstance(n, ast.arg))
        self.assigned = {}

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        before = copy.deepcopy(node.value)
        node.value = self.visit(node.value)
        node.targets = [self.visit(target) for target in node.targets]
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.assigned[target.id] = before
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A function that has become a method; what was computed from a name is no longer so, once it has another
        value."""
        if not isinstance(node.ctx, ast.Load):
            self.assigned = {k: e for k, e in self.assigned.items() if k != node.id and not _reads(e, node.id)}
        elif (name := self._method(node.id)) is not None:
            return ast.copy_location(ast.Attribute(ast.Name(self.owner, ast.Load()), name, ast.Load()), node)
        return node

    def _method(self, name: str) -> str | None:
        """What the function of this name is called, if it has become a method."""
        found = self.scope.get(name) if name not in self.bound else None
        return self.names.get(found) if isinstance(found, FunctionType) else None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        if not isinstance(function, ast.Attribute) or function.attr not in STATISTICS:
            return self.generic_visit(node)
        if function.attr in EXTREMES and not _along(node):
            return self.generic_visit(node)
        told = {NUMPY.get(k.arg or "", k.arg): k.value for k in node.keywords}
        if told.keys() - {"dim", "keepdim", "unbiased", "correction"}:
            raise CannotRewriteError
        of_torch = self._of_torch(function)
        input, *args = node.args if of_torch else [function.value, *node.args]
        subtracted = self._subtracted(input) if function.attr == "mean" else None
        keywords = [ast.keyword(key, self.visit(value)) for key, value in told.items()]
        inner = self.visit(input)
        if not self._counts(node, subtracted is not None):
            function.value, given = (function.value, [inner]) if of_torch else (inner, [])
            node.args, node.keywords = [*given, *map(self.visit, args)], keywords
            return node
        if subtracted is not None:
            again = _Again(self)
            squared = ast.BinOp(again.visit(copy.deepcopy(subtracted)), ast.Pow(), ast.Constant(2))
            keywords.append(ast.keyword("ghost", squared))
        method = ast.Attribute(ast.Name(self.owner, ast.Load()), f"counted_{function.attr}", ast.Load())
        return ast.copy_location(ast.Call(method, [inner, *map(self.visit, args)], keywords), node)

    def _counts(self, node: ast.Call, centred: bool) -> bool:
        """Whether to count in this statistic, the next in the source."""
        counts = not self.places or len(self.found) in self.places
        self.found.append(centred)
        self.counts[_where(node)] = counts
        return counts

    def _of_torch(self, function: ast.Attribute) -> bool:
        """Whether this is `torch.mean` rather than `x.mean`, by whatever name torch goes."""
        owner = self._resolved(function.value)
        while isinstance(owner, ast.Attribute):
            owner = owner.value
        found = self.scope.get(owner.id) if isinstance(owner, ast.Name) else None
        if isinstance(found, ModuleType | type) and (found is not torch or owner is not function.value):
            raise CannotRewriteError
        return found is torch

    def _subtracted(self, expression: ast.expr) -> ast.expr | None:
        """`u`, if the expression is the square of `x - u`."""
        base = self._squared(self._resolved(expression))
        base = self._resolved(base) if base is not None else None
        return base.right if isinstance(base, ast.BinOp) and isinstance(base.op, ast.Sub) else None

    def _resolved(self, expression: ast.expr) -> ast.expr:
        return self.assigned.get(expression.id, expression) if isinstance(expression, ast.Name) else expression

    def _squared(self, expression: ast.expr) -> ast.expr | None:
        if isinstance(expression, ast.BinOp):
            if isinstance(expression.op, ast.Pow) and _is_two(expression.right):
                return expression.left
            same = ast.dump(expression.left) == ast.dump(expression.right)
            return expression.left if isinstance(expression.op, ast.Mult) and same else None
        if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Attribute):
            return None
        function = expression.func
        if function.attr in ("square", "pow"):
            base, *rest = expression.args if self._of_torch(function) else [function.value, *expression.args]
            return base if function.attr == "square" or (rest and _is_two(rest[0])) else None
        return None


class _Again(_Count):
    """An expression that has been visited, a second time: what is counted there is counted here."""

    def __init__(self, first: _Count) -> None:
        super().__init__()
        self.owner, self.scope, self.names, self.bound = first.owner, first.scope, first.names, first.bound
        self.assigned, self.counts = first.assigned, first.counts

    def _counts(self, node: ast.Call, centred: bool) -> bool:
        return self.counts[_where(node)]


def _where(node: ast.expr) -> tuple[Any, ...]:
    """The place of an expression in the source."""
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _reads(expression: ast.expr, name: str) -> bool:
    """Whether an expression depends on a name; of `x - u` only `u` is wanted."""
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Sub):
        expression = expression.right
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(expression))


def _along(node: ast.Call) -> bool:
    """Whether this is `x.max(1)`, not `torch.max(x, y)` or `x.max()`."""
    places = [a.operand if isinstance(a, ast.UnaryOp) else a for a in node.args[:2]]
    written = any(isinstance(a, ast.Constant) and type(a.value) is int for a in places)
    return written or any(k.arg in ("dim", "axis") for k in node.keywords)


def _is_two(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Constant) and expression.value == 2
