"""Rewriting: a class whose `forward` has sizes written into it becomes a subclass that reads them from an attribute.

`x.view(-1, 512)` becomes `x.view(-1, self.code_sizes[0])`, and nothing else changes: control flow, training mode and
batch sizes are the user's own. A width that is read from one value and given to another, `y.reshape(b, n, x.shape[2])`,
becomes `x.shape[2] + self.code_sizes[1]`, which is 0 until one of them shrinks more than the other; `math.sqrt(width)`,
`width ** -0.5` and `y / width` get such a number, too, and go on dividing by the original width. The numbers are
attributes like any other then, so that analysis follows them and surgery sets them. What cannot be rewritten stays as
it is, and keeps its sizes.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from torch import nn

from .errors import ArgumentError
from .nn import refuse_script, unannounced
from .sizes import NUMBERS
from .source import CannotRewriteError, Rewriter, checksum, methods_of, recompiled

RIGID = ("keep", "rewrite")
REWRITE = "rewrite"


def check_rigid(rigid: Any) -> bool:
    """Whether sizes in the code may be rewritten; raises ArgumentError for anything but the two words."""
    if not isinstance(rigid, str) or rigid not in RIGID:
        raise ArgumentError(
            f"rigid must be 'keep' (sizes written in the code stay, with their channels) or 'rewrite' (modules get a "
            f"class that reads them from an attribute), not {rigid!r}"
        )
    return rigid == REWRITE


def rewritten(kind: type[nn.Module]) -> Any:
    """The subclass of `kind` whose methods read their numbers from `code_sizes`; None where there is nothing to gain,
    or where that cannot be done: no source, a decorated method, private names."""
    key: Any = kind
    return _rewritten(key)


@functools.cache
def _rewritten(kind: Any) -> type[nn.Module] | None:
    if kind.__module__.startswith(("torch.", "structprune.")) or hasattr(kind, NUMBERS):
        return None
    numbers: list[int] = []
    try:
        plain = methods_of(kind)
        methods = {name: recompiled(method, _Hoist(numbers)) for name, method in plain.items()}
    except (CannotRewriteError, OSError, TypeError, SyntaxError):  # no source, or not such a source
        return None
    if not numbers:
        return None

    def reduce(self: nn.Module, protocol: int = 2) -> tuple[Any, ...]:
        return _rebuild, (kind,), vars(self)

    members = {
        **methods, NUMBERS: tuple(numbers), "checksum": checksum(plain.values()), "__reduce_ex__": reduce,
        "__prepare_scriptable__": refuse_script, "__module__": __name__, "__doc__": kind.__doc__,
    }  # fmt: skip
    return type("Rewritten" + kind.__name__, unannounced(kind), members)


def rewrites(model: nn.Module, norms: Iterable[str]) -> dict[type[nn.Module], type[nn.Module]]:
    """Every class in a model that can be rewritten, and what becomes of it; those of `norms`, which are modules that
    have a substitute, keep theirs."""
    modules = dict(model.named_modules())
    kinds = set(map(type, modules.values())) - {type(m) for m in modules.values() if hasattr(m, NUMBERS)}
    kinds -= {type(modules[path]) for path in norms}
    return {kind: made for kind in kinds if (made := rewritten(kind)) is not None}


def stated(module: nn.Module) -> dict[str, Any]:
    """The numbers of a class that was rewritten, for an instance to have as its own."""
    return {key: value for key, value in vars(type(module)).items() if key == NUMBERS}


def held(module: nn.Module, name: str) -> Any:
    """An attribute of a module, or the numbers that it will have once it is rewritten."""
    return (
        rewritten(type(module)).code_sizes if name == NUMBERS and not hasattr(module, name) else getattr(module, name)
    )


def _rebuild(kind: type[nn.Module]) -> nn.Module:
    made: type[nn.Module] = rewritten(kind)
    return made.__new__(made)


# Methods whose numbers are exponents or dimensions.
_SIZELESS = frozenset(
    {"pow", "size", "transpose", "permute", "movedim", "unsqueeze", "squeeze", "swapaxes", "swapdims"}
)


class _Hoist(Rewriter, ast.NodeTransformer):
    """Puts `self.code_sizes[i]` in place of each number from two on, and adds it to widths that a reshape is given."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.widths: set[str] = set()
        self.told: set[str] = set()  # numbers that are computed from widths and attributes

    def enter(self, method: ast.FunctionDef) -> None:
        self.widths = _named(method, _is_width)
        self.told = _named(method, self._is_told)

    def _is_told(self, node: ast.expr, names: Collection[str]) -> bool:
        """A width, self.width, self.layer.in_features, or arithmetic with one of these"""
        if isinstance(node, ast.BinOp):
            return self._is_told(node.left, names) or self._is_told(node.right, names)
        inner = node
        while isinstance(inner, ast.Attribute):
            inner = inner.value
        own = isinstance(inner, ast.Name) and inner.id == self.owner and inner is not node
        return (own and not _is_shape(node)) or _is_width(node, names)

    def _added(self, node: ast.expr) -> ast.expr:
        """The same with a number that is 0 as yet."""
        return ast.copy_location(ast.BinOp(node, ast.Add(), self._number(0)), node)

    def _number(self, value: int) -> ast.expr:
        self.numbers.append(value)
        attribute = ast.Attribute(ast.Name(self.owner, ast.Load()), NUMBERS, ast.Load())
        return ast.Subscript(attribute, ast.Constant(len(self.numbers) - 1), ast.Load())

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if type(node.value) is not int or node.value < 2:
            return node
        return ast.copy_location(self._number(node.value), node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """An exponent is no size. Of a scale, width ** -0.5 or 1 / width, the value is kept."""
        if isinstance(node.op, ast.Pow):
            whole = isinstance(node.right, ast.Constant) and type(node.right.value) is int
            scales = not whole and self._is_told(node.left, self.told)
            node.left = self.visit(node.left)
            node.left = self._added(node.left) if scales else node.left
            return node
        if isinstance(node.op, ast.Div) and _is_width(node.right, self.widths):
            node.left, node.right = self.visit(node.left), self._added(self.visit(node.right))
            return node
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """x.view(b, c) with a c that was read from a shape; the numbers of x.pow(2), x.transpose(1, 2) are no sizes."""
        if isinstance(node.func, ast.Attribute) and node.func.attr in _SIZELESS:
            node.func = self.visit(node.func)
            return node
        if _is_root(node.func) and len(node.args) == 1 and self._is_told(node.args[0], self.told):
            node.args = [self._added(self.visit(node.args[0]))]
            return node
        reshapes = isinstance(node.func, ast.Attribute) and node.func.attr in ("view", "reshape")
        lists = [node.args, *(a.elts for a in node.args if isinstance(a, ast.Tuple | ast.List))] if reshapes else []
        widths = [(sizes, i) for sizes in lists for i, size in enumerate(sizes) if _is_width(size, self.widths)]
        self.generic_visit(node)
        for sizes, i in widths:
            sizes[i] = self._added(sizes[i])
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """-2 counts dimensions from the end."""
        plain = isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)
        return node if plain else self.generic_visit(node)  # type: ignore[return-value]

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        """dim=2 is no size."""
        return node if node.arg in ("dim", "dims", "axis") else self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """x[2] picks one; the bounds of x[2:] are sizes."""
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in parts:
            if not isinstance(part, ast.Constant):
                self.generic_visit(part) if isinstance(part, ast.Slice) else self.visit(part)
        node.value = self.visit(node.value)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = self.visit(node.value) if node.value is not None else None
        return node


def _named(method: ast.FunctionDef, is_size: Callable[[ast.expr, Collection[str]], bool]) -> set[str]:
    """The names in a method that stand for nothing but such sizes: b, n, c = x.shape"""
    stored = [n.id for n in ast.walk(method) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)]
    stored += [n.arg for n in ast.walk(method) if isinstance(n, ast.arg)]
    found: set[str] = set()
    while True:  # depth = c // heads is one, once c is
        read: list[ast.expr] = []
        for target, value in _assigned(method):
            if _is_shape(value) and isinstance(target, ast.Tuple | ast.List):
                read += target.elts
            elif is_size(value, found):
                read.append(target)
        names = [target.id for target in read if isinstance(target, ast.Name)]
        before, found = found, {name for name in names if names.count(name) == stored.count(name)}
        if found == before:
            return found


def _is_root(function: ast.expr) -> bool:
    """math.sqrt, np.sqrt, sqrt: of a number"""
    if isinstance(function, ast.Attribute):
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        return function.attr == "sqrt" and owner in ("math", "np", "numpy")
    return isinstance(function, ast.Name) and function.id == "sqrt"


def _assigned(method: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Every target of an assignment with its value; those of a, b = x, y one by one."""
    for node in ast.walk(method):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Tuple | ast.List) and isinstance(node.value, ast.Tuple | ast.List):
                    yield from zip(target.elts, node.value.elts, strict=False)
                else:
                    yield target, node.value


def _is_width(node: ast.expr, names: Collection[str]) -> bool:
    """x.shape[1], x.size(1), one of the names, or arithmetic with one of these"""
    if isinstance(node, ast.BinOp):
        return _is_width(node.left, names) or _is_width(node.right, names)
    if isinstance(node, ast.Subscript):
        return not isinstance(node.slice, ast.Slice) and _is_shape(node.value)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr == "size" and len(node.args + node.keywords) == 1
    return isinstance(node, ast.Name) and node.id in names


def _is_shape(node: ast.expr) -> bool:
    """x.shape, x.size(), or several of their numbers: x.shape[-2:]"""
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Slice) and _is_shape(node.value)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr == "size" and not (node.args or node.keywords)
    return isinstance(node, ast.Attribute) and node.attr == "shape"
