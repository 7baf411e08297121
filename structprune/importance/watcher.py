"""A watcher: sees what each weight reads and what it makes, while the model runs, and keeps none of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import unwrap
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..ops import QUERIES, SIZES, operation, python_body
from ..program import tensors_in


class Contact(NamedTuple):
    """A dimension of a weight, and the dimension of a value that it reads (sums over) or makes."""

    weight: Tensor
    weight_dim: int
    value: Tensor
    value_dim: int
    role: str  # "read" or "made"


Given = Mapping[str, Any]

# -- where weights touch values, by operation -------------------------------------------------------------------


def _linear(given: Given, out: Any) -> Iterator[Contact]:
    """[..., I] x [O, I] -> [..., O], or [..., I] x [I] -> [...]"""
    yield Contact(given["weight"], -1, given["input"], -1, "read")
    if given["weight"].ndim > 1:
        yield Contact(given["weight"], 0, out, -1, "made")


def _convolution(given: Given, out: Any) -> Iterator[Contact]:
    """[N, I, ...] x [O, I / groups, ...] -> [N, O, ...]"""
    channel = 1 - given["weight"].ndim
    yield Contact(given["weight"], 1, given["input"], channel, "read")
    yield Contact(given["weight"], 0, out, channel, "made")


def _transposed(given: Given, out: Any) -> Iterator[Contact]:
    """[N, I, ...] x [I, O / groups, ...] -> [N, O, ...]"""
    channel = 1 - given["weight"].ndim
    yield Contact(given["weight"], 0, given["input"], channel, "read")
    yield Contact(given["weight"], 1, out, channel, "made")


def _product(given: Given, out: Any) -> Iterator[Contact]:
    """[..., K] x [..., K, O] -> [..., O], either of them a weight, or rows shared out among the weights of experts."""
    left, right = given["left"], given["right"]
    inner = -2 if right.ndim > 1 else -1
    yield Contact(right, inner, left, -1, "read")
    yield Contact(left, -1, right, inner, "read")
    if right.ndim > 1:
        yield Contact(right, -1, out, -1, "made")
    if left.ndim > 1:
        yield Contact(left, -2, out, -2 if right.ndim > 1 else -1, "made")


def _bilinear(given: Given, out: Any) -> Iterator[Contact]:
    """[..., I] x [..., J] x [O, I, J] -> [..., O]"""
    yield Contact(given["weight"], 1, given["input1"], -1, "read")
    yield Contact(given["weight"], 2, given["input2"], -1, "read")
    yield Contact(given["weight"], 0, out, -1, "made")


def _embedding(given: Given, out: Any) -> Iterator[Contact]:
    """[V, C] looked up at [...] -> [..., C]"""
    yield Contact(given["weight"], 1, out, -1, "made")


def _einsum(given: Given, out: Any) -> Iterator[Contact]:
    """Each operand against the others, by the letters they share."""
    equation, operands = given["equation"], given["operands"]
    if not isinstance(equation, str) or "->" not in equation:
        return
    operands = operands[0] if operands and isinstance(operands[0], list | tuple) else operands
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    for i, (term, weight) in enumerate(zip(terms, operands, strict=True)):
        others = [(t, value) for j, (t, value) in enumerate(zip(terms, operands, strict=True)) if j != i]
        for letter in set(term) - {"."}:
            shared = [(t, value) for t, value in others if letter in t]
            if letter not in result:
                for t, value in shared:
                    yield Contact(weight, _position(term, letter), value, _position(t, letter), "read")
            elif not shared:
                yield Contact(weight, _position(term, letter), out, _position(result, letter), "made")


def _position(term: str, letter: str) -> int:
    """The dimension of a letter, from the left before an ellipsis and from the right after it."""
    head = term.partition("...")[0]
    return head.index(letter) if letter in head else term.rindex(letter) - len(term)


_CONV = ("input", "weight", "bias", "stride", "padding")
_RULES: dict[str, tuple[tuple[str, ...], Callable[[Given, Any], Iterator[Contact]]]] = {
    "linear": (("input", "weight"), _linear),
    **{f"conv{n}d": (_CONV, _convolution) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (_CONV, _transposed) for n in (1, 2, 3)},
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "grouped_mm"), (("left", "right"), _product)),
    **dict.fromkeys(("addmm", "baddbmm"), (("bias", "left", "right"), _product)),
    "bilinear": (("input1", "input2", "weight"), _bilinear),
    "embedding": (("weight", "indices"), _embedding),
}
_SPELLED = {  # keywords that PyTorch gives the operands of products
    "other": "right", "mat2": "right", "vec": "right", "batch2": "right", "mat1": "left", "batch1": "left",
    "mat_a": "left", "mat_b": "right",
}  # fmt: skip


def contacts(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Iterator[Contact]:
    """Where the operands of one operation touch; recurrent layers, whose inside cannot be seen, have none."""
    if name == "einsum":
        yield from _einsum({"equation": args[0], "operands": args[1:]}, out)
    elif name in _RULES:
        names, rule = _RULES[name]
        given = dict(zip(names, args, strict=False)) | {_SPELLED.get(key, key): value for key, value in kwargs.items()}
        if "left" in names:
            given.setdefault("left", kwargs.get("input"))
        yield from rule(given, out)


# -- whose weight it is -----------------------------------------------------------------------------------------

Block = dict[int, tuple[int, int]]  # dimensions of a tensor -> those of a weight, and the index where they start


def located(view: Tensor, weight: Tensor) -> Block | None:
    """Which block of a weight a view of it is: for each dimension, that of the weight and where in it it starts.

    A transpose, a chunk or one expert of a stack is a block; None for other views (every second row).
    """
    rest = int(view.storage_offset()) - int(weight.storage_offset())
    starts: dict[int, int] = {}
    for dim in sorted((d for d in range(weight.ndim) if weight.shape[d] > 1), key=weight.stride, reverse=True):
        starts[dim], rest = divmod(rest, weight.stride(dim))
    single = [dim for dim in range(weight.ndim) if dim not in starts]
    found: Block = {}
    for dim, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
        home = next((d for d in starts if weight.stride(d) == stride), None)
        if size == 1 and single:
            found[dim] = (single.pop(0), 0)
        elif home is not None and starts[home] + size <= weight.shape[home]:
            found[dim] = (home, starts[home])
        elif size > 1:
            return None
    inside = all(0 <= start < weight.shape[dim] for dim, start in starts.items())
    return found if inside and not rest else None


Record = Callable[[str, int, int, Tensor, int, str], None]


class Watcher(TorchFunctionMode):
    """Calls `record(name, dim, start, value, value_dim, role)` wherever a value touches one of the weights.

    Dimension `dim` of the weight, from index `start` on, meets `value_dim` of `value`. Weights are known by
    their memory, so it does not matter whether a module, a functional call, a transpose or a chunk brings them
    in; what is computed from a weight and has its shape (normalised, scaled, quantised) stands for it.
    """

    def __init__(self, weights: Mapping[str, Tensor], record: Record) -> None:
        super().__init__()
        self.record = record
        self.opened: list[Callable[..., Any]] = []
        self.homes: dict[int, list[tuple[str, Tensor]]] = {}
        self.derived = WeakTensorKeyDictionary()  # what is computed from a weight -> the weight
        for name, weight in weights.items():
            self.homes.setdefault(weight.untyped_storage().data_ptr(), []).append((name, weight))

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = operation(function)
        if known.name in QUERIES or known.name in SIZES:
            return function(*args, **kwargs)
        found = [(tensor.shape, source) for tensor in tensors_in((args, kwargs)) if (source := self.source(tensor))]
        if not found:
            return function(*args, **kwargs)
        if known.python and isinstance(unwrap(function), FunctionType) and function not in self.opened:
            self.opened.append(function)
            try:
                with self:
                    return python_body(function)(*args, **kwargs)
            finally:
                self.opened.pop()
        out = function(*args, **kwargs)
        touching = list(contacts(known.name, args, kwargs, out))
        for contact in touching:
            self.see(contact)
        shape, source = found[0]
        if isinstance(out, Tensor) and out.shape == shape and not touching and not self.source(out):
            self.derived[out] = source
        return out

    def source(self, tensor: Tensor) -> tuple[str, Block] | None:
        """The weight that a tensor is a block of, or stands for, and where its dimensions begin there."""
        if tensor.layout != torch.strided or tensor.is_nested:
            return None
        for name, weight in self.homes.get(tensor.untyped_storage().data_ptr(), []):
            block = located(tensor, weight)
            if block is not None:
                return name, block
        return self.derived.get(tensor)

    def see(self, contact: Contact) -> None:
        source = self.source(contact.weight)
        if source is not None:
            name, block = source
            dim = contact.weight_dim % contact.weight.ndim
            if dim in block:
                self.record(name, *block[dim], contact.value, contact.value_dim, contact.role)
