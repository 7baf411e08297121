"""Element by element: what meets is coupled, following broadcasting."""

from __future__ import annotations

from typing import Any

from ..labels import Labels
from .site import Site, labels_in, rule


@rule(
    "hardswish", "log_sigmoid", "tanhshrink", "softsign", "floor_divide", "arctan2",
    "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d",
    "fill", "zero", "copy", "bernoulli", "normal", "uniform", "exponential", "random",
    "clone", "contiguous", "detach", "float", "double", "half", "bfloat16", "long", "int", "bool", "short", "type",
    "cpu", "cuda", "data", "real", "imag", "conj", "resolve_conj", "resolve_neg", "positive",
    "zeros_like", "ones_like", "rand_like", "randn_like", "empty_like", "full_like", "expand_as",
)  # fmt: skip
def pointwise(site: Site, *args: Any, **kwargs: Any) -> Any:
    """Values of one shape, or broadcast to one shape."""
    if not site.has_shape:
        return site.unknown(*args, **kwargs)
    return site.broadcast(list(labels_in((args, kwargs))), site.shape)


@rule("to", "type_as")
def convert(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Of another tensor only its dtype and device are taken."""
    return Labels(site.shape, input.coordinates)


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
