"""Integers that standard modules keep beside their parameters, and the dimension each of them repeats.

Weights and bookkeeping come from the same rows, so they cannot disagree.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, instancenorm


class Mirror(NamedTuple):
    """`module.attribute` equals the size of dimension `dim` of `module.tensor`, times `module.factor` if given."""

    attribute: str
    tensor: str
    dim: int
    factor: str = ""


_MIRRORS: tuple[tuple[tuple[type[nn.Module], ...], tuple[Mirror, ...]], ...] = (
    ((nn.Linear,), (Mirror("out_features", "weight", 0), Mirror("in_features", "weight", 1))),
    (
        (nn.Bilinear,),
        (Mirror("out_features", "weight", 0), Mirror("in1_features", "weight", 1), Mirror("in2_features", "weight", 2)),
    ),
    (
        (conv._ConvTransposeNd,),
        (Mirror("in_channels", "weight", 0), Mirror("out_channels", "weight", 1, "groups")),
    ),
    ((conv._ConvNd,), (Mirror("out_channels", "weight", 0), Mirror("in_channels", "weight", 1, "groups"))),
    (
        (batchnorm._NormBase, instancenorm._InstanceNorm),
        (Mirror("num_features", "weight", 0), Mirror("num_features", "running_mean", 0)),
    ),
    (
        (nn.MultiheadAttention,),
        (
            Mirror("embed_dim", "out_proj.weight", 0),
            Mirror("kdim", "k_proj_weight", 1),
            Mirror("vdim", "v_proj_weight", 1),
            Mirror("kdim", "in_proj_weight", 1),
            Mirror("vdim", "in_proj_weight", 1),
        ),
    ),
    (
        (nn.RNNBase,),
        (
            Mirror("input_size", "weight_ih_l0", 1),
            Mirror("hidden_size", "weight_hh_l0", 1),
            Mirror("hidden_size", "weight_hr_l0", 1),
            Mirror("proj_size", "weight_hr_l0", 0),
        ),
    ),
    ((nn.RNNCellBase,), (Mirror("input_size", "weight_ih", 1), Mirror("hidden_size", "weight_hh", 1))),
    ((nn.GroupNorm,), (Mirror("num_channels", "weight", 0),)),
    ((nn.PReLU,), (Mirror("num_parameters", "weight", 0),)),
    ((nn.Embedding, nn.EmbeddingBag), (Mirror("embedding_dim", "weight", 1), Mirror("num_embeddings", "weight", 0))),
)


def mirrors(module: nn.Module) -> Iterator[tuple[Mirror, Tensor]]:
    """The rows that hold for this module as it stands, with the tensor that each of them is about; a subclass that gave
    an attribute another meaning has none."""
    kind: Any = type(module)
    for row in _rows(kind):
        for tensor in _mirrored(module, row.tensor):
            value = getattr(module, row.attribute, None)
            factor = getattr(module, row.factor) if row.factor else 1
            if tensor.ndim > row.dim and value == tensor.shape[row.dim] * factor:
                yield row, tensor
                break


# What weight norm, spectral norm and other parametrizations compute a weight from, of its shape: the older ones in a
# hook, the newer ones in a module of their own.
_SOURCES = ("{}_v", "{}_orig", "parametrizations.{}.original1", "parametrizations.{}.original")


def _mirrored(module: nn.Module, name: str) -> Iterator[Tensor]:
    """A tensor of a module, or if that is computed, what it may be computed from, and what it was last."""
    tensor = _stored(module, name)
    if tensor is None:  # asking for it would compute it, and may move a state
        yield from (found for source in _SOURCES if (found := _stored(module, source.format(name))) is not None)
        path, _, local = name.rpartition(".")
        tensor = vars(module.get_submodule(path)).get(local)
    if tensor is not None:
        yield tensor


def _stored(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer by its name, from this module on."""
    *path, local = name.split(".")
    owner: Any = module
    for step in path:
        owner = owner._modules.get(step) if owner is not None else None
    return None if owner is None else owner._parameters.get(local, owner._buffers.get(local))


@functools.cache
def _rows(kind: Any) -> tuple[Mirror, ...]:
    return next((rows for kinds, rows in _MIRRORS if issubclass(kind, kinds)), ())
