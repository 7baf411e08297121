"""The source of a class: its methods, changed and compiled anew at the same lines of the same file."""

from __future__ import annotations
import __future__

import ast
import dis
import inspect
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MappingProxyType
from typing import Any

from torch import nn


class CannotRewriteError(Exception):
    """This source is beyond us."""


def methods_of(kind: type[nn.Module]) -> dict[str, FunctionType]:
    """`forward`, and the methods that it calls by `self.name`, directly or through others."""
    found: dict[str, FunctionType] = {}
    queue = ["forward"]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        method = inspect.getattr_static(kind, name)
        if not isinstance(method, FunctionType) or (method.__module__ or "").startswith("torch."):
            if name == "forward":
                raise CannotRewriteError
            continue
        found[name] = method
        queue += [n for n in names_in(method.__code__) if isinstance(_own(kind).get(n), FunctionType)]
    return found


def _own(kind: type) -> dict[str, Any]:
    """What a class and its bases define, but those of PyTorch."""
    own = [b for b in reversed(kind.__mro__) if not b.__module__.startswith("torch.") and b is not object]
    return {name: member for base in own for name, member in vars(base).items()}


def names_in(code: CodeType) -> Iterator[str]:
    """The names that a function, and those inside it, look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def helpers_of(function: FunctionType) -> dict[str, FunctionType]:
    """The functions that a function, and those inside it, call by their names, but those of PyTorch."""
    known = {name: function.__globals__.get(name) for name in _globals_in(function.__code__)}
    return {
        name: value
        for name, value in known.items()
        if isinstance(value, FunctionType) and not (value.__module__ or "").startswith("torch.")
    }


def _globals_in(code: CodeType) -> Iterator[str]:
    """The names of its module that a function, and those inside it, look up."""
    yield from (i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_in(constant)


def reached(*functions: FunctionType) -> list[FunctionType]:
    """Functions, and those that they call by their names, directly or through others."""
    found = list(functions)
    for function in found:
        found += [helper for helper in helpers_of(function).values() if helper not in found]
    return found


def checksum(functions: Iterable[FunctionType]) -> int:
    """Of their source: what was found at a place in it is there as long as this is the same."""
    return zlib.crc32("".join(map(inspect.getsource, functions)).encode())


class Rewriter(ast.NodeTransformer):
    """Changes the body of a method whose first argument is called `owner`; `scope` is what its module knows."""

    owner = ""
    scope: Mapping[str, Any] = MappingProxyType({})

    def enter(self, method: ast.FunctionDef) -> None:
        """Looks at a method before anything in it is changed."""

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.ClassDef | ast.Match | ast.Global | ast.Nonlocal):
            raise CannotRewriteError
        if isinstance(node, ast.Attribute) and node.attr.startswith("__") and not node.attr.endswith("__"):
            raise CannotRewriteError  # private names are mangled inside a class
        if _binds(node, self.owner):
            raise CannotRewriteError  # the module goes by that name no longer
        return super().visit(node)


def _binds(node: ast.AST, name: str) -> bool:
    """Whether a name gets another value here, or loses it."""
    if isinstance(node, ast.Name):
        return node.id == name and not isinstance(node.ctx, ast.Load)
    return isinstance(node, ast.arg) and node.arg == name


def recompiled(method: FunctionType, rewriter: Rewriter, owner: str = "") -> FunctionType:
    """A method, rewritten; or a function, which becomes a method if it is told what to call the module.

    Raises CannotRewriteError, OSError (no source), SyntaxError or TypeError.
    """
    lines, first = inspect.getsourcelines(method)
    definition = ast.parse(textwrap.dedent("".join(lines))).body[0]
    if not isinstance(definition, ast.FunctionDef) or definition.decorator_list or hasattr(method, "__wrapped__"):
        raise CannotRewriteError
    arguments = definition.args.posonlyargs or definition.args.args
    if owner:
        arguments.insert(0, ast.arg(owner))
    if not arguments:
        raise CannotRewriteError
    rewriter.owner, rewriter.scope = arguments[0].arg, method.__globals__
    rewriter.enter(definition)
    definition.body = [rewriter.visit(statement) for statement in definition.body]
    definition.args.defaults = [ast.Constant(None) for _ in definition.args.defaults]
    definition.args.kw_defaults = [d and ast.Constant(None) for d in definition.args.kw_defaults]
    code = _compiled(definition, method.__code__, first)
    cells = dict(zip(method.__code__.co_freevars, method.__closure__ or (), strict=True))
    made = FunctionType(
        code, method.__globals__, method.__name__, method.__defaults__, tuple(cells[n] for n in code.co_freevars)
    )
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
