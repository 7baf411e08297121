"""Pooling, padding and resampling: the trailing dimensions are worked on, the channels pass through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..labels import Labels, varying
from ..ops import POOLS, TRANSFORMS
from .reduction import dims_of
from .site import Site, labels_in, rule


def _pass(site: Site, input: Labels, rank: int, free: Sequence[int] = ()) -> Any:
    """The last `rank` dimensions are held, but those that are free; the others carry on into every result."""
    dims = [d for d in range(input.ndim - rank, input.ndim) if d - input.ndim not in free]
    rest = site.hold(input, dims, f"{site.name} works along it").coordinates
    if site.has_shape:
        return Labels(site.shape, rest)
    return {i: Labels(shape, rest) for i, shape in site.parts.items()}


@rule(*sorted(POOLS))
def pool(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Windows over the trailing dimensions; where they hold one place each, places may leave."""
    rank = int(site.name.partition("pool")[2][0])
    return _pass(site, input, rank, _single_places(site, rank, *args, **kwargs))


def _single_places(site: Site, rank: int, *args: Any, **kwargs: Any) -> list[int]:
    """The dimensions, from the end, along which each window of a plain pooling holds one place, and none is left out.

    Indices of maxima count places of all dimensions.
    """
    if not site.has_shape or not site.name.startswith(("max_pool", "avg_pool")):
        return []
    given = dict(zip(("kernel_size", "stride", "padding"), args, strict=False)) | kwargs
    kernel = _each(given["kernel_size"], rank)
    stride = _each(given.get("stride") or kernel, rank)
    padding = _each(given.get("padding", 0), rank)
    return [i - rank for i in range(rank) if (kernel[i], stride[i], padding[i]) == (1, 1, 0)]


def _each(number: Any, rank: int) -> Sequence[Any]:
    """A number for each dimension, of one for all or a number for each."""
    several = list(number) if isinstance(number, list | tuple) else [number]
    return several * rank if len(several) == 1 else several


@rule("max_unpool1d", "max_unpool2d", "max_unpool3d")
def unpool(site: Site, input: Labels, indices: Labels, *args: Any, **kwargs: Any) -> Any:
    """The indices count within a channel, so channels stay channels; of a whole shape the last sizes count."""
    rank = int(site.name[-2])
    given = next((a for a in (*args, *kwargs.values()) if isinstance(a, list | tuple) and len(a) > rank), ())
    site.followed.update(id(size) for size in given[:-rank])
    return _pass(site, site.broadcast([input, indices], input.shape), rank)


@rule("interpolate", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")
def interpolate(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """[N, C, ...]: everything behind the channels is resampled."""
    site.freeze("it sets an output size", args, kwargs)
    return _pass(site, input, input.ndim - 2)


@rule("grid_sampler", "grid_sample", "grid_sampler_2d")
def grid_sample(site: Site, input: Labels, grid: Labels, *args: Any, **kwargs: Any) -> Any:
    """[N, C, H, W] sampled at positions that belong to no channel."""
    site.freeze("it holds sampling positions", grid)
    input = site.hold(input, (0,), "there are as many grids of sampling positions")
    return _pass(site, input, input.ndim - 2)


@rule("roi_align", "roi_pool")
def regions(site: Site, input: Labels, boxes: Labels, *args: Any) -> Any:
    """[N, C, H, W] and K boxes -> [K, C, h, w]"""
    site.freeze("it holds boxes", boxes)
    rest = site.hold(input, (0, 2, 3), f"{site.name} works along it").coordinates
    if site.has_shape:
        return Labels(site.shape, rest)
    return {i: Labels(shape, rest) for i, shape in site.parts.items()}


@rule("ps_roi_align", "ps_roi_pool")
def bins(site: Site, input: Labels, boxes: Labels, *args: Any) -> Any:
    """[N, C * h * w, H, W] and K boxes -> [K, C, h, w]: the h * w sources of a channel stay together."""
    site.freeze("it holds boxes", boxes)
    channels = site.vector(site.hold(input, (0, 2, 3), f"{site.name} works along it"), 1)
    if channels is None:
        return {i: Labels(shape) for i, shape in site.parts.items()}
    grid = channels.reshape(site.parts[0][1], -1)
    site.couple(grid, grid[:, :1])
    return {i: Labels(shape, (grid[:, 0].reshape(1, -1, 1, 1),)) for i, shape in site.parts.items()}


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def pad(site: Site, input: Labels, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    """Padded channels are new and fixed; padding by a constant leaves the old ones free. What is padded inside of each
    row of a grid (of each head) leaves with the whole row."""
    if any(isinstance(p, Labels) for p in pad):
        return site.unknown(input, pad)
    pairs = [(int(a), int(b)) for a, b in zip(pad[::2], pad[1::2], strict=True)][::-1]
    widths = [(0, 0)] * (input.ndim - len(pairs)) + pairs
    padded = [d for d, (a, b) in enumerate(widths) if a or b]
    if mode != "constant" or any(a < 0 or b < 0 for a, b in widths):
        input = site.hold(input, padded, f"{mode} padding works along it")
    coordinates = []
    for c in input.coordinates:
        dims = [d for d in padded if c.shape[d] > 1]
        if len(varying(c)) > len(dims):
            c, dims = site.hold_coordinate(c, dims, ""), []
        coordinates.append(np.pad(c, [widths[d] if d in dims else (0, 0) for d in range(c.ndim)]) if dims else c)
    return Labels(site.shape, tuple(coordinates))


@rule("im2col")
def im2col(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Labels:
    """[N, C, H, W] -> [N, C * k, L]: each channel becomes k rows in a block."""
    batched = input.ndim == 4
    rest = site.hold(input, (-2, -1), "im2col slides over it")
    channel = site.vector(rest, -3)
    coordinates = [c.reshape(c.shape[:-1]) for c in rest.without((-3,))]
    if channel is not None:
        rows = np.repeat(channel, site.shape[-2] // len(channel))
        coordinates.append(rows.reshape((1,) * batched + (-1, 1)))
    return site.merge(site.shape, coordinates)


@rule("col2im")
def col2im(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Labels:
    """[N, C * k, L] -> [N, C, H, W]: the k rows of a channel stay together."""
    rest = site.hold(input, (-1,), "col2im sums over it")
    rows = site.vector(rest, -2)
    coordinates = [c.reshape((*c.shape, 1)) for c in rest.without((-2,))]
    if rows is not None:
        grid = rows.reshape(site.shape[-3], -1)
        site.couple(grid, grid[:, :1])
        coordinates.append(grid[:, 0].reshape((1,) * (input.ndim - 2) + (-1, 1, 1)))
    return site.merge(site.shape, coordinates)


@rule("pixel_shuffle")
def pixel_shuffle(site: Site, input: Labels, upscale_factor: int) -> Labels:
    """[N, C * r * r, H, W] -> [N, C, H * r, W * r]: the r * r sources of a channel stay together."""
    rest = site.hold(input, (-2, -1), "pixel_shuffle rearranges it")
    channels = site.vector(rest, -3)
    coordinates = list(rest.without((-3,)))
    if channels is not None:
        grid = channels.reshape(-1, int(upscale_factor) ** 2)
        site.couple(grid, grid[:, :1])
        coordinates.append(grid[:, 0].reshape((1,) * (input.ndim - 3) + (-1, 1, 1)))
    return site.merge(site.shape, coordinates)


@rule("pixel_unshuffle")
def pixel_unshuffle(site: Site, input: Labels, downscale_factor: int) -> Labels:
    """[N, C, H * r, W * r] -> [N, C * r * r, H, W]: a channel becomes r * r in a block."""
    rest = site.hold(input, (-2, -1), "pixel_unshuffle rearranges it")
    channels = site.vector(rest, -3)
    coordinates = list(rest.without((-3,)))
    if channels is not None:
        repeated = np.repeat(channels, int(downscale_factor) ** 2)
        coordinates.append(repeated.reshape((1,) * (input.ndim - 3) + (-1, 1, 1)))
    return site.merge(site.shape, coordinates)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(site: Site, input: Labels, groups: int) -> Labels:
    """[N, g * c, ...]: c and g change places, so index c of every group goes together."""
    channels = site.vector(input, 1)
    if channels is None:
        return Labels(site.shape, input.coordinates)
    grid = channels.reshape(int(groups), -1)
    site.couple(grid, grid[:1])
    moved = grid.T.reshape((1, -1) + (1,) * (input.ndim - 2))
    return site.merge(site.shape, [*input.without((1,)), moved])


@rule("affine_grid", "affine_grid_generator")
def affine_grid(site: Site, theta: Labels, size: Any, *args: Any, **kwargs: Any) -> Labels:
    """Two or three rows of a matrix: nothing to remove. How many channels will be sampled does not matter."""
    site.freeze("it holds affine matrices", *labels_in(theta))
    site.followed.add(id(size[1]))
    return Labels(site.shape)


@rule(*sorted(TRANSFORMS))
def transform(site: Site, input: Labels, size: Any = None, dim: Any = (), *args: Any, **kwargs: Any) -> Labels:
    """Along the dimensions it runs over every value depends on all; the others pass through."""
    size = kwargs.get("n", kwargs.get("s", size))
    if dim == ():
        dim = {"2": (-2, -1), "n": None}.get(site.name[-1], -1)
    if dim is None and size is not None:
        dim = range(-len(size) if isinstance(size, list | tuple) else -1, 0)
    dims = dims_of(input, dim if dim is None or isinstance(dim, int) else list(dim))
    return Labels(site.shape, site.hold(input, dims, f"{site.name} runs along it").coordinates)


@rule("fft_fftshift", "fft_ifftshift")
def shift(site: Site, input: Labels, dim: Any = None) -> Labels:
    """Half of a dimension changes places with the other half."""
    return Labels(site.shape, site.hold(input, dims_of(input, dim), f"{site.name} moves it").coordinates)
