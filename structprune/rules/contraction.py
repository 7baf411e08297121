"""Sums of products: what is summed over is coupled, the rest is carried on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.nn import functional

from ..labels import IntArray, Labels, place
from ..nodes import Node
from ..sizes import Size
from .checks import Requirement
from .site import Site, rule

KERNEL = "it is a kernel size"  # no channels: left out when reasons are listed


@rule("linear")
def linear(site: Site, input: Labels, weight: Labels, bias: Labels | None = None) -> Any:
    """[..., I] x [O, I] -> [..., O]"""
    if weight.ndim != 2:
        return site.unknown(input, weight, bias)
    site.contract(input, -1, weight, 1)
    out = site.vector(weight, 0)
    site.produce(out)
    if bias is not None:
        out = site.join(weight, 0, bias, -1)
    return site.merge(site.shape, [*input.without((-1,)), *place(out, len(site.shape), -1)])


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    site: Site, input: Labels, weight: Labels, bias: Labels | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Labels:  # fmt: skip
    """[N, I, ...] x [O, I / groups, ...] -> [N, O, ...]; where it looks at one place at a time, places may leave."""
    rank = weight.ndim - 2
    input = site.held(input, _slides(input, weight, stride, padding), "a convolution slides along it")
    weight = site.held(weight, range(2, weight.ndim), KERNEL)
    channel = input.ndim - rank - 1
    if int(groups) == 1:
        site.contract(input, channel, weight, 1)
        out = site.vector(weight, 0)
        site.produce(out)
    else:
        out = _grouped(site, input, channel, weight, groups)
    if bias is not None:
        out = _bias(site, out, weight, bias)
    return site.merge(site.shape, [*input.without((channel,)), *place(out, input.ndim, channel)])


def _slides(input: Labels, weight: Labels, stride: Any, padding: Any) -> Sequence[int]:
    """The dimensions along which a convolution slides; none if it looks at every place by itself."""
    steps, edges = (n if isinstance(n, list | tuple) else (n,) for n in (stride, padding))
    alone = all(n == 1 for n in (*weight.shape[2:], *steps)) and all(n in (0, "valid", "same") for n in edges)
    return () if alone else range(input.ndim - weight.ndim + 2, input.ndim)


def _bias(site: Site, out: IntArray | None, weight: Labels, bias: Labels) -> IntArray | None:
    values = site.vector(bias, 0)
    if out is not None and values is not None:
        site.couple(out, values)
        return out
    for labels in (out, values):
        if labels is not None:
            site.fix(labels, f"it meets {site.describe(bias)} of {site.describe(weight)}, which is fixed")
    return None


def _grouped(site: Site, input: Labels, channel: int, weight: Labels, groups: int) -> IntArray | None:
    """Inputs are a [groups, i] grid and outputs a [groups, o] grid: whole groups leave, or whole columns.

    The weight [groups * o, i] shares its dimension 1 between the groups, so an input leaves at index j of every group;
    outputs may leave each group at another index. That suits few wide groups. Rows leave all of a group, and `groups`
    itself changes.
    """
    count = int(groups)
    inside, out = site.vector(weight, 1), site.vector(weight, 0)
    sources = site.vector(input, channel)
    site.produce(out)
    outputs = out.reshape(count, -1) if out is not None else None
    grid = sources.reshape(count, -1) if sources is not None else None
    widest = max(weight.shape[0] // count, weight.shape[1])
    if grid is not None and outputs is not None and isinstance(groups, Size) and site.loses_rows(count, widest):
        site.couple_rows(grid)
        site.couple(outputs, grid[:, :1])
        if inside is not None:
            site.fix(inside, "its convolution loses whole groups")
        _require_groups(site, groups, grid[:, 0])
        return out
    if outputs is not None:
        site.balance(outputs)
    if inside is None or grid is None or not site.zero(weight, input):
        for labels in (inside, grid):
            if labels is not None:
                site.fix(labels, "the inputs of a grouped convolution meet a fixed size")
    else:
        site.couplings.couple_columns(grid, inside, site.node)
    return out


def _require_groups(site: Site, groups: Size, units: IntArray) -> None:
    """As many groups as are kept."""
    site.followed.add(id(groups))
    site.checks.append(
        Requirement(
            site.node, groups, lambda view: int((~view.gone(units)).sum()), [units], "its groups cannot be changed"
        )
    )


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    site: Site, input: Labels, weight: Labels, bias: Labels | None = None,
    stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Labels:  # fmt: skip
    """[N, I, ...] x [I, O / groups, ...] -> [N, O, ...]"""
    rank = weight.ndim - 2
    input = site.held(input, range(input.ndim - rank, input.ndim), "a convolution slides along it")
    weight = site.held(weight, range(2, weight.ndim), KERNEL)
    channel = input.ndim - rank - 1
    count = int(groups)
    sources = site.contract(input, channel, weight, 0)
    inside = site.vector(weight, 1)
    if count == 1:
        site.produce(inside)
        out = inside
    else:
        grid = sources.reshape(count, -1) if sources is not None else None
        width = weight.shape[1]
        if grid is not None and isinstance(groups, Size) and site.loses_rows(count, max(width, grid.shape[1])):
            site.couple_rows(grid)
            if inside is not None:
                site.fix(inside, "its convolution loses whole groups")
            site.produce(site.vector(weight, 0))
            _require_groups(site, groups, grid[:, 0])
            out = np.repeat(grid[:, 0], width)
        else:
            if grid is not None:
                site.balance(grid)
            site.produce(inside)
            out = np.tile(inside, count) if inside is not None else None
    if bias is not None:
        out = _bias(site, out, weight, bias)
    return site.merge(site.shape, [*input.without((channel,)), *place(out, input.ndim, channel)])


@rule("deform_conv2d")
def deformed_convolution(
    site: Site, input: Labels, weight: Labels, offset: Labels, mask: Labels, bias: Labels, *args: Any
) -> Any:
    """A convolution at shifted positions: [N, I, H, W] x [O, I / groups, ...] -> [N, O, ...]."""
    site.freeze("it holds sampling positions", offset)
    site.freeze("it weighs sampling positions", mask)
    groups, shifts = args[-3], int(args[-2])
    channels = input.along(1)
    if channels is not None and shifts > 1:  # each part of the channels has its own offsets
        site.couple(channels.reshape(shifts, -1), channels.reshape(shifts, -1)[:1])
        if int(groups) > 1:
            site.fix(channels, "both its weights and its offsets have groups")
    return convolution(site, input, weight, bias, groups=groups)


@rule("bilinear")
def bilinear(site: Site, input1: Labels, input2: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    """[..., I] x [..., J] x [O, I, J] -> [..., O]"""
    site.contract(input1, -1, weight, 1)
    site.contract(input2, -1, weight, 2)
    out = site.vector(weight, 0)
    site.produce(out)
    if bias is not None:
        out = site.join(weight, 0, bias, 0)
    rank = len(site.shape)
    leading = site.broadcast(
        [Labels(v.shape[:-1], tuple(c[..., 0] for c in v.without((-1,)))) for v in (input1, input2)], site.shape[:-1]
    )
    return site.merge(site.shape, [*(c[..., None] for c in leading.coordinates), *place(out, rank, -1)])


def _renorms(node: Node) -> bool:
    """Whether rows are scaled down to `max_norm`: the fourth argument of functions of `torch.nn.functional`."""
    given = node.args[3] if len(node.args) > 3 else node.kwargs.get("max_norm")
    return given is not None and node.target in (functional.embedding, functional.embedding_bag)


@rule("embedding", "embedding_bag")
def embedding(site: Site, *args: Any, **kwargs: Any) -> Any:
    """[V, C] looked up at [...] -> [..., C], or at the entries of B bags -> [B, C].

    The functions of `torch` and of `torch.nn.functional` order their arguments differently: the table is the first
    that holds numbers. The weights of a bag's entries, which come later, are held with the rest.
    """
    nodes = [*site.node.args, *site.node.kwargs.values()]
    tables = [site.values[n] for n in nodes if isinstance(n, Node) and n.meta["dtype"].is_floating_point]
    site.freeze("it is looked up in a table", [v for v in (*args, *kwargs.values()) if v is not tables[0]])
    weight = site.hold(tables[0], (0,), "it counts the entries of a table")
    if _renorms(site.node) and not site.zero(tables[0]):
        site.freeze("its rows are scaled by their norm, and what is removed may not be zero", weight)
    out = site.vector(weight, 1)
    site.produce(out)
    if site.has_shape:
        return site.merge(site.shape, place(out, len(site.shape), -1))
    wide = {i for i, shape in site.parts.items() if len(shape) == 2}  # positions of maxima, too
    return {i: Labels(shape, tuple(place(out, 2, -1)) if i in wide else ()) for i, shape in site.parts.items()}
