"""Rules: what each operation does to the labels of its arguments.

A rule is a function of a `Site` and of the operation's own arguments, with `Labels` in place of tensors,
that returns the `Labels` of the result. It is registered under the operation's ATen name:

    @rule("linear")
    def linear(site, input, weight, bias=None): ...

An operation without a rule fixes everything it touches. Rules for operators of your own are written the same way:

    @torch.library.custom_op("mine::normalise", mutates_args=())
    def normalise(x: Tensor, scale: Tensor) -> Tensor: ...       # [N, C, H, W], [C]: divides by the norm over space

    @structprune.rules.rule("normalise")
    def normalise_rule(site, x, scale):
        x = site.hold(x, (2, 3), "normalise runs over space")    # these dimensions keep their size
        site.join(x, 1, scale, 0)                                # channel c of x meets entry c of scale
        return Labels(site.shape, x.coordinates)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from ..labels import Labels, NotANumberError
from ..ops import is_pointwise
from . import (
    attention,
    contraction,
    indexing,
    joining,
    matrices,
    movement,
    normalization,
    pointwise,
    recurrent,
    reduction,
    shaping,
    spatial,
    written,
)
from .site import RULES, Rule, Site, rule

__all__ = ["RULES", "Labels", "Site", "apply_rule", "has_rule", "rule"]

_FAMILIES = (
    attention, contraction, indexing, joining, matrices, movement, normalization, pointwise, recurrent, reduction,
    shaping, spatial, written,
)  # fmt: skip


def has_rule(name: str) -> bool:
    """Whether the operation is understood; else it is opened (if it is Python) or fixed."""
    return name in RULES or is_pointwise(name)


def apply_rule(site: Site, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """The labels of what `site.node` computes; of arguments that a rule does not know, nothing is known."""
    known = RULES.get(site.name)
    if known is None:
        known = pointwise.pointwise if is_pointwise(site.name) and site.has_shape else site.unknown
    try:
        return known(site, *args, **kwargs)
    except NotANumberError:
        return site.unknown(args, kwargs)
    except TypeError:
        if _binds(known, site, *args, **kwargs):
            raise
        return site.unknown(args, kwargs)


def _binds(rule: Rule, *args: object, **kwargs: object) -> bool:
    """Whether a rule takes these arguments."""
    try:
        inspect.signature(rule).bind(*args, **kwargs)
    except TypeError:
        return False
    return True
