"""Rewriting: a class whose `forward` has sizes written into it becomes a subclass that reads them from an attribute.

`x.view(-1, 512)` becomes `x.view(-1, self.code_sizes[0])`, and nothing else changes: control flow, training mode and
batch sizes are the user's own. The numbers are attributes like any other then, so that analysis follows them and
surgery sets them. What cannot be rewritten stays as it is, and keeps its sizes.
"""

from __future__ import annotations

import ast
import functools
import inspect
import zlib
from typing import Any

from torch import nn

from .errors import ArgumentError
from .nn import refuse_script
from .source import CannotRewriteError, Rewriter, methods_of, names_in, recompiled

RIGID = ("keep", "rewrite")
NUMBERS = "code_sizes"
REWRITE = "rewrite"

_IN_NORMS = frozenset({"layer_norm", "group_norm", "rms_norm", "var", "std", "var_mean", "std_mean", "rsqrt"})


def _is_norm(names: set[str]) -> bool:
    """Whether a method that looks up these names is a norm's: those have swaps of their own, and one is enough."""
    return bool(_IN_NORMS & names) or {"mean", "sqrt"} <= names


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
        if any(_is_norm(set(names_in(getattr(kind, name).__code__))) for name in methods_of(kind)):
            return None
        methods = {name: recompiled(kind, name, _Hoist(numbers)) for name in methods_of(kind)}
    except (CannotRewriteError, OSError, TypeError, SyntaxError):  # no source, or not such a source
        return None
    if not numbers:
        return None
    source = "".join(inspect.getsource(getattr(kind, name)) for name in methods)

    def reduce(self: nn.Module, protocol: int = 2) -> tuple[Any, ...]:
        return _rebuild, (kind,), vars(self)

    members = {
        **methods, NUMBERS: tuple(numbers), "checksum": zlib.crc32(source.encode()), "__reduce_ex__": reduce,
        "__prepare_scriptable__": refuse_script, "__module__": __name__, "__doc__": kind.__doc__,
    }  # fmt: skip
    return type("Rewritten" + kind.__name__, (kind,), members)


def rewrites(model: nn.Module) -> dict[type[nn.Module], type[nn.Module]]:
    """Every class in a model that can be rewritten, and what becomes of it."""
    kinds = {type(module) for module in model.modules()} - {type(m) for m in model.modules() if hasattr(m, NUMBERS)}
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


class _Hoist(Rewriter, ast.NodeTransformer):
    """Puts `self.code_sizes[i]` in place of each number from two on."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if type(node.value) is not int or node.value < 2:
            return node
        self.numbers.append(node.value)
        attribute = ast.Attribute(ast.Name(self.owner, ast.Load()), NUMBERS, ast.Load())
        index = ast.Constant(len(self.numbers) - 1)
        return ast.copy_location(ast.Subscript(attribute, index, ast.Load()), node)

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
