"""Rewriting: a class whose `forward` has sizes written into it becomes a subclass that reads them from an attribute.

`x.view(-1, 512)` becomes `x.view(-1, self.code_sizes[0])`, and nothing else changes: control flow, training mode and
batch sizes are the user's own. The numbers are attributes like any other then, so that analysis follows them and
surgery sets them. What cannot be rewritten stays as it is, and keeps its sizes.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import textwrap
import zlib
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from .errors import ArgumentError

RIGID = ("keep", "rewrite")
NUMBERS = "code_sizes"
REWRITE = "rewrite"

# A norm is swapped by its call from `forward`: a module cannot be both.
_NORMS = frozenset({"layer_norm", "group_norm", "rms_norm"})


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
        methods = {name: _rewritten_method(kind, name, numbers) for name in _methods(kind)}
    except (CannotRewriteError, OSError, TypeError, SyntaxError):  # no source, or not such a source
        return None
    if not numbers:
        return None
    source = "".join(inspect.getsource(getattr(kind, name)) for name in methods)

    def reduce(self: nn.Module, protocol: int = 2) -> tuple[Any, ...]:
        return _rebuild, (kind,), vars(self)

    members = {
        **methods, NUMBERS: tuple(numbers), "checksum": zlib.crc32(source.encode()), "__reduce_ex__": reduce,
        "__module__": __name__, "__doc__": kind.__doc__,
    }  # fmt: skip
    return type("Rewritten" + kind.__name__, (kind,), members)


def rewrites(model: nn.Module) -> dict[type[nn.Module], type[nn.Module]]:
    """Every class in a model that can be rewritten, and what becomes of it."""
    kinds = {type(module) for module in model.modules()}
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


class CannotRewriteError(Exception):
    """This source is beyond us."""


def _methods(kind: type[nn.Module]) -> list[str]:
    """`forward`, and the methods that it calls by `self.name`, directly or through others."""
    found, queue = [], ["forward"]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        method = inspect.getattr_static(kind, name)
        if not isinstance(method, FunctionType) or (method.__module__ or "").startswith("torch."):
            if name == "forward":
                raise CannotRewriteError
            continue
        found.append(name)
        queue += [n for n in _names(method.__code__) if isinstance(_own(kind).get(n), FunctionType)]
    return found


def _own(kind: type) -> dict[str, Any]:
    """What a class and its bases define, but those of PyTorch."""
    own = [b for b in reversed(kind.__mro__) if not b.__module__.startswith("torch.") and b is not object]
    return {name: member for base in own for name, member in vars(base).items()}


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _rewritten_method(kind: type[nn.Module], name: str, numbers: list[int]) -> FunctionType:
    """The method compiled anew, at the same lines of the same file."""
    method: FunctionType = inspect.getattr_static(kind, name)
    if hasattr(method, "__wrapped__") or _NORMS & set(_names(method.__code__)):
        raise CannotRewriteError
    lines, first = inspect.getsourcelines(method)
    definition = ast.parse(textwrap.dedent("".join(lines))).body[0]
    if not isinstance(definition, ast.FunctionDef) or definition.decorator_list or not definition.args.args:
        raise CannotRewriteError
    visitor = _Hoist(definition.args.args[0].arg, numbers)
    definition.body = [visitor.visit(statement) for statement in definition.body]
    definition.args.defaults = [ast.Constant(None) for _ in definition.args.defaults]
    definition.args.kw_defaults = [d and ast.Constant(None) for d in definition.args.kw_defaults]
    code = _compiled(definition, method.__code__, first)
    cells = dict(zip(method.__code__.co_freevars, method.__closure__ or (), strict=True))
    made = FunctionType(code, method.__globals__, name, method.__defaults__, tuple(cells[n] for n in code.co_freevars))
    made.__kwdefaults__ = method.__kwdefaults__
    made.__qualname__, made.__module__, made.__doc__ = method.__qualname__, method.__module__, method.__doc__
    return made


def _compiled(definition: ast.FunctionDef, like: CodeType, first: int) -> CodeType:
    """The code of a function that may have variables of enclosing scopes, `__class__` (for `super`) among them."""
    tree = ast.parse(f"def outer({', '.join(like.co_freevars)}): pass")
    tree.body[0].body = [ast.increment_lineno(definition, first - 1)]  # type: ignore[attr-defined]
    flags = like.co_flags & __future__.annotations.compiler_flag
    code = compile(ast.fix_missing_locations(tree), like.co_filename, "exec", flags, dont_inherit=True)
    for _ in range(2):
        code = next(c for c in code.co_consts if isinstance(c, CodeType))
    return code


class _Hoist(ast.NodeTransformer):
    """Puts `self.code_sizes[i]` in place of each number from two on."""

    def __init__(self, owner: str, numbers: list[int]) -> None:
        self.owner = owner
        self.numbers = numbers

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.ClassDef | ast.Match | ast.Global | ast.Nonlocal):
            raise CannotRewriteError
        return super().visit(node)

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

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr.startswith("__") and not node.attr.endswith("__"):  # mangled inside a class
            raise CannotRewriteError
        return self.generic_visit(node)
