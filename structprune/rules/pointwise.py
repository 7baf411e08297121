"""Element by element: what meets is coupled, following broadcasting."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..labels import Labels
from .asked import endless
from .site import Site, labels_in, rule


@rule(
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
    if site.name in _POLES:
        for place, value in enumerate(args):
            if isinstance(value, Labels) and value.coordinates and endless(site.node, place) and site.zero(value):
                site.freeze(f"{site.name} is not finite where it would become zero", value)
    return site.broadcast(list(labels_in((args, kwargs))), site.shape)


# Functions that are not finite where an operand is zero, some of them for some exponents.
_POLES = frozenset(
    """div rdiv floor_divide remainder fmod addcdiv reciprocal rsqrt pow float_power log log2 log10
    logit xlogy lgamma digamma polygamma mvlgamma igamma igammac special_zeta special_ndtri special_bessel_y0
    special_bessel_y1 special_modified_bessel_k0 special_modified_bessel_k1 special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1""".split()
)


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
