"""Element by element: what meets is coupled, following broadcasting."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..labels import Labels
from .site import Site, labels_in, rule


@rule(
    "hardswish", "log_sigmoid", "tanhshrink", "softsign", "floor_divide", "arctan2",
    "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d",
    "fill", "zero", "copy", "bernoulli", "normal", "uniform", "exponential", "random",
    "clone", "contiguous", "detach", "float", "double", "half", "bfloat16", "long", "int", "bool", "short", "type",
    "cpu", "cuda", "data", "real", "imag", "conj", "resolve_conj", "resolve_neg", "positive",
    "complex", "polar", "zeros_like", "ones_like", "rand_like", "randn_like", "empty_like", "full_like", "expand_as",
)  # fmt: skip
def pointwise(site: Site, *args: Any, **kwargs: Any) -> Any:
    """Values of one shape, or broadcast to one shape."""
    if not site.has_shape:
        return site.unknown(*args, **kwargs)
    endless = _endless_at_zero(site.name, args)
    if endless is not None and site.zero(endless):
        site.freeze(f"{site.name} is not finite where it would become zero", endless)
    return site.broadcast(list(labels_in((args, kwargs))), site.shape)


_ENDLESS = frozenset({"rdiv", "reciprocal", "rsqrt", "log", "log2", "log10"})


def _endless_at_zero(name: str, args: Any) -> Labels | None:
    """The operand that may not become zero: the masked original would not be finite."""
    second = args[1] if len(args) > 1 else None
    if name in ("div", "true_divide", "divide"):
        found = second
    elif name in _ENDLESS or (name == "pow" and isinstance(second, int | float) and second < 0):
        found = args[0]
    else:
        return None
    return found if isinstance(found, Labels) and found.coordinates else None


@rule("to", "type_as", "as_tensor", "asarray")
def convert(site: Site, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Of another tensor only its dtype and device are taken. Numbers become a tensor, too."""
    if not isinstance(input, Labels):
        return site.unknown(input)
    return Labels(site.shape, input.coordinates)


@rule("glu")
def glu(site: Site, input: Labels, dim: int = -1) -> Labels:
    """a * sigmoid(b) of the halves [a, b] of one dimension: index j of both goes together."""
    labels = input.along(dim)
    if labels is None:
        return Labels(site.shape, input.coordinates)
    dim = int(dim) % input.ndim
    first, second = np.split(labels, 2, axis=dim)
    site.couple(first, second)
    return site.merge(site.shape, [*input.without((dim,)), first])


@rule("prelu")
def prelu(site: Site, input: Labels, weight: Labels) -> Labels:
    """One slope for all, or one for each index of dimension 1."""
    if weight.shape != (1,) and input.ndim > 1:
        site.join(input, 1, weight, 0)
    return Labels(site.shape, input.coordinates)


@rule("broadcast_tensors")
def broadcast_tensors(site: Site, *tensors: Any) -> dict[int, Labels]:
    """Each result has the common shape, and so the labels of all."""
    values = list(labels_in(tensors))
    shape = next(iter(site.parts.values()))
    together = site.broadcast(values, shape)
    return {i: Labels(s, together.coordinates) for i, s in site.parts.items()}
