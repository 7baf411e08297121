"""Normalisations: affine parameters and statistics belong to the channels they scale.

Statistics over a dimension that shrinks see zeros in the masked original and nothing in the small model. The
count must stay the original one: RMS norms fold it into their own weight and eps, layer and group norms are
swapped for modules that divide by it (`structprune.nn`). All that needs the removed inputs to be zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..labels import IntArray, Labels, varying
from ..nodes import Node
from ..sizes import AttributeOf, Size
from .checks import Requirement
from .site import Site, rule


@dataclass(frozen=True)
class Swap:
    """A module to replace if any of `labels` go."""

    path: str
    name: str
    channels: int
    labels: IntArray


@dataclass(frozen=True)
class Fold:
    """A parameter to scale by sqrt(count / kept), and an attribute to scale by count / kept.

    Where the code multiplies by `offset + parameter`, it is the sum that is scaled. `takers` are the operations that
    take the parameter and the attribute; where there are others, `instead` is to be done, or the labels stay.
    """

    parameter: str
    path: str
    attribute: str
    labels: IntArray
    takers: tuple[Node, ...]
    instead: Swap | None
    shape: AttributeOf | None = None  # the attribute that tells how many channels there are, if one does
    offset: float = 0.0

    def same(self) -> tuple[str, str, AttributeOf | None, float, int]:
        """What all folds of one module must agree on."""
        return self.parameter, self.attribute, self.shape, self.offset, len(self.labels)


@rule("batch_norm", "instance_norm")
def channel_norm(site: Site, input: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Dimension 1 has up to four vectors; statistics run over the others."""
    vectors = [v for v in (*args[:4], *kwargs.values()) if isinstance(v, Labels)]
    if not _standardises(site, input, args, kwargs):
        input = site.hold(input, (d for d in range(input.ndim) if d != 1), f"statistics of {site.name} run over it")
    for vector in vectors:
        site.join(input, 1, vector, 0)
    return Labels(site.shape, input.coordinates)


def _standardises(site: Site, input: Labels, args: Any, kwargs: Any) -> bool:
    """Whether these are filters, [1, O, I * k], standardised one by one, whose entries a subclass can count."""
    entries = input.along(2) if site.name == "batch_norm" and input.ndim == 3 and input.shape[0] == 1 else None
    statistics = [*args[:2], kwargs.get("running_mean"), kwargs.get("running_var")]
    if entries is None or len(varying(entries)) > 1 or any(s is not None for s in statistics):
        return False
    if not (site.zero(input) and site.stands_in(site.name)) or site.stock:
        return False
    site.norms.append(Swap(site.path, "norm", entries.size, entries.reshape(-1)))
    return True


def trailing(site: Site, input: Labels, width: int, vectors: Sequence[Labels | None]) -> tuple[Labels, IntArray | None]:
    """The labels of a dimension that may shrink, of the last `width` that statistics run over: the widest labelled one;
    the others are held."""
    zero = site.zero(input)
    dims = range(-width, 0)
    dim = max((d for d in dims if input.along(d) is not None), key=lambda d: input.shape[d], default=-1)
    others, why = [d for d in dims if d != dim], f"{site.name} runs over several dimensions"
    input = site.held(input, others, why)
    along = input.along(dim)
    if along is not None and len(varying(along)) > 1:  # each head by itself, say
        input, along = site.held(input, (dim,), ""), None
    if along is not None and not zero and not stays_stock(site, along.size):
        site.fix(along, f"its statistics run over it, and {site.not_zero(input, dim)}")
    for vector in vectors:
        if vector is not None:
            site.join(input, dim, site.held(vector, others, why), dim)
    return input, along.reshape(-1) if along is not None else None


@rule("layer_norm")
def layer_norm(
    site: Site, input: Labels, normalized_shape: Sequence[int], weight: Labels | None = None,
    bias: Labels | None = None, eps: float = 1e-5, *args: Any, **kwargs: Any,
) -> Labels:  # fmt: skip
    """Statistics over the last dimensions, one of which may shrink."""
    input, labels = trailing(site, input, len(normalized_shape), (weight, bias))
    if labels is not None:
        compensate(site, int.__int__(normalized_shape[0]), labels)
        _follow_shape(site, normalized_shape, input)
    return Labels(site.shape, input.coordinates)


@rule("rms_norm")
def rms_norm(
    site: Site, input: Labels, normalized_shape: Sequence[int], weight: Labels | None = None, eps: float | None = None,
    **kwargs: Any,
) -> Labels:  # fmt: skip
    """A mean of squares over the last dimensions."""
    node = site.node_of(weight) if weight is not None else None
    input, labels = trailing(site, input, len(normalized_shape), (weight,))
    if labels is not None:
        name = site.attribute_holding(eps) if site.stands_in("rms_norm") else ""
        shape = _told_by(normalized_shape[0], site.path)
        plain = len(normalized_shape) == 1 and not site.stock
        if name and shape is not None and node is not None and foldable(node) and plain:
            instead = substitute(site, len(labels), labels)
            site.norms.append(Fold(node.meta["tensor"], site.path, name, labels, (site.node,), instead, shape))
        else:
            compensate(site, int.__int__(normalized_shape[0]), labels)
            _follow_shape(site, normalized_shape, input)
    return Labels(site.shape, input.coordinates)


def _follow_shape(site: Site, normalized_shape: Sequence[int], input: Labels) -> None:
    """The first size is that of what is left, or of what there was: the substitute knows how many there were."""
    if input.along(-len(normalized_shape)) is not None and not site.stock:
        site.followed.add(id(normalized_shape[0]))


def _told_by(size: int, path: str) -> AttributeOf | None:
    """The attribute of this module that a size is."""
    origin = size.origin if isinstance(size, Size) else None
    return origin if isinstance(origin, AttributeOf) and origin.module == path else None


def compensate(site: Site, channels: int, labels: IntArray) -> None:
    """Swaps the module that called this norm from its own forward; a call from elsewhere fixes the channels."""
    swap = substitute(site, channels, labels)
    if swap is not None:
        site.norms.append(swap)
    else:
        site.fix(labels, f"{site.name} is called outside the forward of a module that could be swapped")


def substitute(site: Site, channels: int, labels: IntArray) -> Swap | None:
    """What takes the place of the calling module, if something can."""
    if stays_stock(site, channels):
        return Swap(site.path, "stock", channels, labels)
    return Swap(site.path, "norm", channels, labels) if site.stands_in(site.name) else None


def stays_stock(site: Site, channels: int) -> bool:
    """Whether the calling module may go on as it is over fewer channels, told its shape by an attribute."""
    shape = getattr(site.modules[site.path], "normalized_shape", None)
    told = site.name == "group_norm" or shape == (channels,)
    return site.stock and told and site.stands_in(site.name)


@rule("group_norm")
def group_norm(
    site: Site,
    input: Labels,
    num_groups: int,
    weight: Labels | None = None,
    bias: Labels | None = None,
    *args: Any,
    channels: int | None = None,
    **kwargs: Any,
) -> Labels:
    """A [groups, channels] grid: whole groups leave, or the same number of channels from each, as they did before."""
    zero = site.zero(input)
    held = site.held(input, (d for d in range(input.ndim) if d != 1), "statistics of group_norm run over it")
    vectors = [v for v in (weight, bias) if v is not None]
    along = held.along(1)
    for vector in vectors:
        site.join(held, 1, vector, 0)
    if along is None:
        return Labels(site.shape, held.coordinates)
    count = int(num_groups)
    grid = along.reshape(count, -1)
    rows = count > 1 and channels in (None, grid.size) and site.loses_rows(*grid.shape)
    if rows and isinstance(num_groups, Size):
        site.couple_rows(grid)
        units = grid[:, 0]
        site.followed.add(id(num_groups))
        left = lambda view: int((~view.gone(units)).sum())  # noqa: E731
        site.checks.append(Requirement(site.node, num_groups, left, [units], "its groups cannot be changed"))
    else:
        site.balance(grid)
        if not zero and not stays_stock(site, grid.size):
            site.fix(grid, f"its statistics run over it, and {site.not_zero(input, 1)}")
        compensate(site, grid.size, grid.reshape(-1))
    return Labels(site.shape, held.coordinates)


def foldable(weight: Node) -> bool:
    """Whether a parameter scales one thing only."""
    return weight.meta["op"] == "parameter" and len(weight.users) == 1


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(site: Site, v: Labels, g: Labels, dim: int = 0) -> Any:
    """g * v / norm(v): a masked row would be 0 / 0, so filters stay; what the norm runs over may go."""
    way = (
        "parametrize.remove_parametrizations(module, 'weight')"
        if "parametrizations" in site.describe(g)
        else "remove_weight_norm(module)"
    )
    why = f"weight_norm divides by its norm; torch.nn.utils.{way} frees it"
    site.freeze(why, g)
    held = site.hold(v, (int(dim),), why).coordinates
    return Labels(site.shape, held) if site.has_shape else {0: Labels(v.shape, held)}
