"""Data movement: the operation itself is run on the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..labels import IntArray, Labels, NotANumberError, compress, place, varying
from ..sizes import Size
from .checks import Movement
from .following import as_many_as, follow
from .site import Site, labels_in, rule

EMPTY = "the traced call had no elements there"


def run_on(site: Site, array: IntArray, shape: Sequence[int], args: Any, kwargs: Any) -> list[IntArray]:
    """Runs the site's operation on an index array, expanded to `shape`; several results come as several arrays."""
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if _stays_along(site.name, args, kwargs):  # no copies of what is the same all along
        return [site.node.target(tensor, *args, **kwargs).expand(tuple(shape)).numpy()]  # type: ignore[operator]
    out = site.node.target(tensor.expand(tuple(shape)), *args, **kwargs)  # type: ignore[operator]
    return [t.numpy() for t in (out if isinstance(out, list | tuple) else [out])]


def _stays_along(name: str, args: Any, kwargs: Any) -> bool:
    """Whether an operation moves what it moves along single dimensions, and keeps the shape."""
    dims = kwargs.get("dims", args[1] if len(args) > 1 else ())
    return name in ("flip", "fliplr", "flipud") or (name == "roll" and dims not in ((), [], None))


def demand_numbers(*arguments: Any) -> None:
    """Where data goes must not be told by tensors, whose values are not known."""
    if any(True for _ in labels_in(arguments)):
        raise NotANumberError("a tensor tells where data goes")


def move(
    site: Site, input: Labels, args: Any, kwargs: Any, touched: Sequence[int] = (), new: Sequence[IntArray] = ()
) -> Any:
    """Moves every coordinate; where a labelled dimension is `touched` by position or size, it will be checked.

    The result has `new` coordinates besides.
    """
    demand_numbers(args, kwargs)
    shapes = {0: site.shape} if site.has_shape else site.parts
    moved: dict[int, list[IntArray]] = {i: [] for i in shapes}
    filled = input.shape if touched else tuple(n or 1 for n in input.shape)  # where nothing is, there are labels still
    for coordinate in input.coordinates:
        for i, result in enumerate(run_on(site, coordinate, filled, args, kwargs)):
            if i in moved:
                moved[i].append(compress(result))
    results = {i: site.merge(shape, [*moved[i], *new]) for i, shape in shapes.items()}
    if any(0 in shape for shape in shapes.values()):  # labels that got lost are missed by the check
        watch(site, input, results, range(input.ndim), EMPTY)
    else:
        watch(site, input, results, touched)
    return results[0] if site.has_shape else results


def watch(
    site: Site,
    input: Labels,
    results: dict[int, Labels],
    touched: Sequence[int],
    why: str = "",
    run: Callable[..., list[IntArray]] | None = None,
) -> None:
    """Registers the check that pruning and moving commute, if a labelled dimension is touched; `run` moves, or the
    site's operation."""
    labels = [c for c in input.coordinates if any(d % input.ndim in varying(c) for d in touched)]
    if labels:
        run = run or (lambda array, shape, args, kwargs: run_on(site, array, shape, args, kwargs))
        why = why or f"{site.name} with these positions or sizes does not commute with removing channels"
        site.checks.append(Movement(site.node, run, input, results, labels, why))


@rule(
    "permute", "transpose", "t", "T", "mT", "H", "mH", "adjoint", "movedim",
    "unsqueeze", "flip", "fliplr", "flipud", "view_as_real", "view_as_complex",
)  # fmt: skip
def free(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Nothing here depends on how many channels there are."""
    if site.name in ("view_as_real", "view_as_complex"):
        pad = site.name == "view_as_real"
        coordinates = (
            input.coordinates if pad else site.hold(input, (-1,), "it holds real and imaginary parts").coordinates
        )
        return site.merge(site.shape, [c[..., None] if pad else c[..., 0] for c in coordinates])
    return move(site, input, args, kwargs)


@rule("squeeze")
def squeeze(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Free, but a dimension that shrinks to one would vanish."""
    return move(site, input, args, kwargs, touched=range(input.ndim))


@rule("tril", "triu")
def triangle(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Positions count in the last two dimensions; the others pass through."""
    return Labels(site.shape, site.hold(input, (-2, -1), f"{site.name} counts along it").coordinates)


@rule("roll", "narrow", "unbind", "select", "rot90", "unfold")
def positional(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Positions count: checked wherever a labelled dimension takes part."""
    site.freeze("it is a position", args, kwargs)
    dims = [a for a in (*args, *kwargs.values()) if isinstance(a, int)]
    touched: Sequence[int] = range(input.ndim)
    if site.name in ("narrow", "select", "unbind", "unfold") and input.ndim:
        touched = (int(kwargs.get("dim", kwargs.get("dimension", dims[0] if dims else 0))) % input.ndim,)
    return move(site, input, args, kwargs, touched)


@rule("atleast_1d", "atleast_2d", "atleast_3d")
def at_least(site: Site, *tensors: Any) -> Any:
    """Dimensions of size 1 more, if there are too few."""
    return move(site, tensors[0], (), {}) if len(tensors) == 1 and site.has_shape else site.unknown(tensors)


@rule("diagonal", "linalg_diagonal")
def diagonal_of(site: Site, input: Labels, offset: int = 0, dim1: int | None = None, dim2: int | None = None) -> Labels:
    """[..., n, n] -> [..., n]: row i goes with column i. Others are held, for where a diagonal ends depends on both."""
    usual = (-2, -1) if site.name == "linalg_diagonal" else (0, 1)
    dims = [int(usual[i] if d is None else d) % input.ndim for i, d in enumerate((dim1, dim2))]
    square = input.shape[dims[0]] == input.shape[dims[1]] and int(offset) == 0
    if square and all(input.along(d) is not None for d in dims):
        places = site.join(input, dims[0], input, dims[1])
        coordinates = input.without(dims)
    else:
        places = None
        coordinates = site.hold(input, dims, "a diagonal runs along it").coordinates
    rest = [c.squeeze(tuple(dims))[..., None] for c in coordinates]
    return site.merge(site.shape, [*rest, *place(places, len(site.shape), -1)])


@rule("diag_embed")
def diagonal_matrices(site: Site, input: Labels, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Labels:
    """[..., n] -> [..., n, n], with zeros beside the diagonal: row i and column i go with value i."""
    if int(offset):
        input = site.hold(input, (-1,), "it lies beside the diagonal")
    places = site.vector(input, -1)
    added = sorted(int(d) % len(site.shape) for d in (dim1, dim2))
    rest = [np.expand_dims(c[..., 0], added) for c in input.without((-1,))]
    return site.merge(site.shape, [*rest, *(c for d in added for c in place(places, len(site.shape), d))])


@rule("diag")
def diag(site: Site, input: Labels, diagonal: int = 0) -> Labels:
    """[n] -> [n, n] or the other way round."""
    return (diagonal_matrices if input.ndim == 1 else diagonal_of)(site, input, diagonal)


@rule("chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split")
def split(site: Site, input: Labels, sizes: Any = None, dim: int = 0, **kwargs: Any) -> Any:
    """Equal parts stay equal: index j of every part goes together. Unequal parts are checked."""
    demand_numbers(sizes, dim, kwargs)
    dim = int(dim) % input.ndim
    if sizes is None:
        sizes = (
            kwargs.pop("chunks", None) or kwargs.pop("split_size_or_sections", None) or kwargs.pop("split_size", None)
        )
    if _adapts(site, sizes):
        _couple_parts(site, input, dim)
    moved = move(site, input, site.node.args[1:], site.node.kwargs, touched=(dim,))
    if "chunk" not in site.name:
        given = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
        mixed = len({type(size) for size in given}) > 1
        for i, size in enumerate(given):
            if i in moved and isinstance(size, Size):
                follow(site, size, moved[i], dim)
            elif i in moved and mixed:
                moved[i] = site.hold(moved[i], (dim,), f"{site.name} is given the size {size}, written in the code")
    return moved


@rule("tensor_split", "hsplit", "vsplit", "dsplit")
def split_evenly(site: Site, input: Labels, where: Any = None, dim: int = 0, **kwargs: Any) -> Any:
    """So many parts, as equal as they can be, or parts that are cut at positions, which are checked."""
    demand_numbers(where, dim, kwargs)
    dim = int(min(_CUT.get(site.name, dim), input.ndim - 1)) % input.ndim
    if isinstance(kwargs.get("sections", kwargs.get("indices_or_sections", where)), int):
        _couple_parts(site, input, dim)
    return move(site, input, site.node.args[1:], site.node.kwargs, touched=(dim,))


_CUT = {"hsplit": 1, "vsplit": 0, "dsplit": 2}


def _couple_parts(site: Site, input: Labels, dim: int) -> None:
    """Index j of every part goes together, if the parts are equal."""
    widths = {shape[dim] for shape in site.parts.values()}
    labels = input.along(dim)
    width = max(widths, default=1)
    if labels is not None and len(widths) == 1 and labels.shape[dim] % width == 0:
        grid = np.moveaxis(labels, dim, -1)
        grid = grid.reshape(*grid.shape[:-1], -1, width)
        site.couple(grid, grid[..., :1, :])


def _adapts(site: Site, sizes: Any) -> bool:
    """`chunk(n)` follows the input; `split(32)` with a written 32 does not."""
    return "chunk" in site.name or any(
        type(s) is not int for s in (sizes if isinstance(sizes, list | tuple) else [sizes])
    )


@rule("repeat", "tile", "repeat_interleave")
def repeat(site: Site, input: Labels, *repeats: Any, **kwargs: Any) -> Any:
    """Copies of everything, in blocks or one by one."""
    site.freeze("it counts repetitions", repeats, kwargs)
    if any(True for _ in labels_in((repeats, kwargs))):
        site.freeze("it is repeated unevenly", input)
        return Labels(site.shape)
    one_by_one = site.name == "repeat_interleave"
    counts = _counts(input, *repeats, **kwargs) if one_by_one else _in_a_row(repeats)
    if 0 in site.shape and 0 not in input.shape and len(counts) == input.ndim:
        return _repeated_never(site, input, counts)
    return move(site, input, repeats, kwargs, range(input.ndim), _spread(site, input, counts))


def _repeated_never(site: Site, input: Labels, counts: Sequence[int]) -> Labels:
    """Copies of nothing: along dimensions that are taken once, the labels are still those of the value."""
    once = [c for c in input.coordinates if all(counts[d] == 1 for d in varying(c))]
    site.freeze(EMPTY, Labels(input.shape, tuple(c for c in input.coordinates if not any(c is o for o in once))))
    result = Labels(site.shape, tuple(once))
    watch(site, input, {0: result}, range(input.ndim), EMPTY)
    return result


def _counts(input: Labels, repeats: Any = 1, dim: Any = None, output_size: Any = None) -> Sequence[Any]:
    """How often each dimension is repeated; of one of size 1, that is how large it becomes."""
    if dim is None:
        return ()
    single = input.shape[dim] == 1
    count = repeats if output_size is None or not single else output_size
    return [count if d == int(dim) % input.ndim else 1 for d in range(input.ndim)]


def _in_a_row(given: Sequence[Any]) -> Sequence[Any]:
    """Numbers that are given one by one, or as one tuple."""
    return given[0] if given and isinstance(given[0], list | tuple) else given


def _spread(site: Site, input: Labels, sizes: Sequence[Any]) -> list[IntArray]:
    """New dimensions, and those of size 1, take the labels of what their size is; so do those without labels that are
    repeated as often."""
    rank = len(site.shape)
    told: dict[int, Any] = {}
    lengths: dict[int, int] = {}
    for d, size in enumerate(sizes, rank - len(sizes)):
        own = d - rank + input.ndim
        length = input.shape[own] if own >= 0 else 1
        if length * size == site.shape[d] and (own < 0 or input.along(own) is None):
            lengths[d], told[d] = length, size
    found, rest = _grids(site, {d: size for d, size in told.items() if lengths[d] == 1}, rank)
    for d, size in told.items():
        vector = as_many_as(site, size) if d in rest or lengths[d] > 1 else None
        if vector is not None:
            length = lengths[d]
            laid = np.tile(vector, length) if site.name == "repeat_interleave" else np.repeat(vector, length)
            found += place(laid, rank, d)
    return found


@rule("expand", "broadcast_to")
def expand(site: Site, input: Labels, *sizes: Any, **kwargs: Any) -> Labels:
    """New dimensions take the labels of the dimension their size was read from."""
    target = _in_a_row(sizes or (kwargs.get("size", kwargs.get("shape")),))
    demand_numbers(target, kwargs)
    missing = len(site.shape) - input.ndim
    coordinates = [c.reshape((1,) * missing + c.shape) for c in input.coordinates]
    result = site.merge(site.shape, [*coordinates, *_spread(site, input, target)])
    watch(site, input, {0: result}, range(input.ndim))
    return result


@rule("new")
def new(site: Site, input: Labels, *given: Any, **kwargs: Any) -> Any:
    """x.new(2, 3), x.new((2, 3)): of x only its dtype and device are taken. A list or a tensor would be values."""
    sizes = given[0] if len(given) == 1 and isinstance(given[0], tuple) else given
    if not all(isinstance(size, int) for size in sizes):
        return site.unknown(given, kwargs)
    return factory(site, *given, **kwargs)


@rule("new_tensor")
def new_tensor(site: Site, input: Labels, data: Any, **kwargs: Any) -> Any:
    """x.new_tensor([2, 3]): of x only its dtype and device are taken."""
    return site.unknown(data, kwargs)


@rule("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty")
def factory(site: Site, *args: Any, **kwargs: Any) -> Labels:
    """A new value whose sizes may have been read from other values."""
    if args and isinstance(args[0], Labels):
        args = args[1:]
    site.freeze("it fills a new value", args, kwargs)
    sizes = args[0] if args and isinstance(args[0], list | tuple) else kwargs.get("size", args)
    rank = len(site.shape)
    coordinates, rest = _grids(site, dict(enumerate(sizes[:rank])), rank)
    for d, size in rest.items():
        if not _is_of_grid(site, size):
            coordinates += place(as_many_as(site, size), rank, d)
    return site.merge(site.shape, coordinates)


def _is_of_grid(site: Site, size: Any) -> bool:
    """Whether a size is that of the channels inside of each head: as long as heads leave whole, it stays."""
    labels, _ = _read_along(site, size)
    return labels is not None and len(varying(labels)) > 1


def _read_along(site: Site, size: Any) -> tuple[IntArray | None, int]:
    """The coordinate along the dimension that a size was read from, if it has labels, and the dimension."""
    value, dim = site.read_from(size) or (None, 0)
    return (value.along(dim) if value is not None and value.ndim else None), dim


def _grids(site: Site, sizes: Mapping[int, Any], rank: int) -> tuple[list[IntArray], dict[int, Any]]:
    """The coordinates over several dimensions of a value, heads and their channels, all of whose sizes are among these;
    and the sizes that are left."""
    read: dict[int, tuple[IntArray, dict[int, int]]] = {}  # by the coordinate's id: where each of its dimensions is now
    for at, size in sizes.items():
        coordinate, dim = _read_along(site, size)
        if coordinate is not None:
            read.setdefault(id(coordinate), (coordinate, {}))[1].setdefault(dim % coordinate.ndim, at)
    found, rest = [], dict(sizes)
    for coordinate, places in read.values():
        if len(places) > 1 and places.keys() == set(varying(coordinate)):
            order = sorted(places, key=places.__getitem__)
            shape = {places[dim]: coordinate.shape[dim] for dim in order}
            others = [dim for dim in range(coordinate.ndim) if dim not in places]
            found.append(coordinate.transpose(*order, *others).reshape([shape.get(d, 1) for d in range(rank)]))
            site.followed.update(id(rest.pop(at)) for at in places.values())
    return found, rest
