"""Blanks: zeros in place of the results of costly operations, so that a trace need not compute them.

A trace needs shapes, not values: convolutions, linear layers, pooling and attention are answered with zeros of the
right shape, and so is what is done to these zeros element by element, and whatever else would move many of them. Only
where a model looks at values (`if x.max() > 0`) is it run for real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from .ops import VIEWS
from .program import map_tensors, tensors_in
from .shapes import ALIKE, MEETING, SHAPES, as_long_as, joined
from .unseen import in_memory


def stand_in(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], inplace: bool, blank: bool) -> Tensor | None:
    """Zeros instead of the result of a costly operation; None if it must be computed.

    `blank` says that an argument is such zeros, or was made from them: then what keeps shapes is not computed, either.
    A batch norm, and what works in place, give back their own input.
    """
    if name == "batch_norm":
        return _normalised(*args) if args else None
    shape_of = joined if blank and name == "cat" else SHAPES.get(name)
    if shape_of is None and not (blank and name in ALIKE):
        return None
    given = args[0] if args and isinstance(args[0], list | tuple) else (*args, *kwargs.values())
    tensors = [a for a in given if isinstance(a, Tensor)]
    if not tensors:
        return None
    first = tensors[0]
    if not first.is_floating_point() or len({(t.dtype, t.device) for t in tensors}) > 1:
        return None
    try:
        if shape_of is None:
            return _alike(name, args, kwargs, first, inplace)
        shape = shape_of(*args, **kwargs)
    except TypeError:  # a call that PyTorch will refuse, too
        return None
    return None if shape is None else _zeros(first, shape)


def _alike(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], first: Tensor, inplace: bool) -> Tensor | None:
    """The stand-in for what is as large as its first argument, or as what meets there."""
    if not args or args[0] is not first or not ALIKE[name](*args, **kwargs):
        return None
    if any(a is True or isinstance(a, complex) for a in args):  # True may say, in its place, that it works in place
        return None
    shape: tuple[int, ...] = first.shape
    for other in args[1:] if name in MEETING else ():
        if isinstance(other, Tensor) and other.shape != shape:
            try:
                shape = np.broadcast_shapes(shape, other.shape)
            except ValueError:  # PyTorch will say so
                return None
    if inplace or kwargs.get("inplace"):
        return first if shape == first.shape else None
    plain = shape != first.shape or first.is_contiguous()
    return _zeros(first, shape, None if plain else torch.empty_like(first, device="meta").stride())


def large_stand_in(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """Zeros instead of the large result of an operation on such zeros, as PyTorch's meta kernels say it would be; None
    if it must be computed, or is a view, which costs nothing."""
    given = list(tensors_in((args, kwargs)))
    plain = sum(t.nbytes for t in given) >= _LARGE and all(t.is_cpu and in_memory(t) for t in given)
    if not plain or "out" in kwargs or name in ALIKE or name in SHAPES:  # those were refused: PyTorch should say why
        return None
    shares = name in VIEWS and (name != "einsum" or len(given) == 1)
    if shares and (name not in _COPYING or given[0].is_contiguous()):
        return None
    arguments = map_tensors(_on_meta, (args, kwargs))
    try:
        out = function(*arguments[0], **arguments[1])
    except Exception:  # whatever it is, the real call will say so, unless it is for the meta device alone
        return None
    if not isinstance(out, Tensor) or not out.is_floating_point() or any(out is t for t in tensors_in(arguments)):
        return None
    if shares and _is_view(given[0], out):
        return None
    return _zeros(given[0].new_empty(0, dtype=out.dtype), out.shape, None if out.is_contiguous() else out.stride())


_COPYING = frozenset({"reshape", "flatten", "contiguous"})  # unless the memory allows a view


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _is_view(tensor: Tensor, out: Tensor) -> bool:
    """Whether a tensor can be seen in the shape and the layout of `out`."""
    try:
        return tensor.view(out.shape).stride() == out.stride()
    except RuntimeError:
        return False


_LARGE = 1 << 19  # bytes: to clear fewer takes no longer than to ask for clear pages


def _zeros(like: Tensor, shape: Sequence[int], strides: Sequence[int] | None = None) -> Tensor:
    """Zeros of the dtype and on the device of a tensor. Where they are many, they are pages that nobody has touched
    yet, which take neither time nor memory."""
    size = math.prod(shape) * like.element_size()
    if size < _LARGE or not like.is_cpu or not in_memory(like):
        zeros = like.new_zeros(shape)
    else:
        pages = mmap(-1, size)
        zeros = torch.frombuffer(pages, dtype=like.dtype).view(tuple(shape))
        _PAGES[zeros.data_ptr()] = pages
    return zeros if strides is None else zeros.as_strided(tuple(shape), tuple(strides))


_PAGES: WeakValueDictionary[int, mmap] = WeakValueDictionary()  # those in use, by where they are


def in_blank(tensor: Tensor) -> bool:
    """Whether a tensor lies in the pages of a stand-in."""
    return in_memory(tensor) and tensor.untyped_storage().data_ptr() in _PAGES


def _normalised(
    input: Tensor, mean: Any = None, var: Any = None, weight: Any = None, bias: Any = None, *args: Any
) -> Any:
    """[N, C, ...] as it is; None where PyTorch should say what is wrong."""
    fits = input.ndim > 1 and mean is not None and as_long_as(input.shape[1], mean, var, weight, bias)
    return input.detach() if fits else None


def together(arguments: Any) -> Any:
    """A model on the meta device takes real inputs: where the two meet, both are on meta.

    What is made from nothing (positions, masks) is made for real, since models look at it.
    """
    found = list(tensors_in(arguments))
    if not found:
        args, kwargs = arguments
        return args, {k: "cpu" if str(v) == "meta" else v for k, v in kwargs.items()}
    if all(t.is_meta for t in found) or not any(t.is_meta for t in found):
        return arguments
    return map_tensors(lambda t: t.to("meta") if t.ndim else t, arguments)
