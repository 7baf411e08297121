"""What is known of values whatever the input: every rule, between a layer of which half is constant and one that reads it.

Of eight filters two give zero and two another number each. Where both are known behind an operation, four channels are
left; where zeros alone are, six; where nothing is known, eight; where all is a constant, one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import randomise
from test_shrink import assert_shrinks, images, zero
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune.constant_rules import RULES

aten = torch.ops.aten
Function = Callable[[Tensor, Any], Any]


class Behind(nn.Module):
    """conv -> the operation -> conv, with some tensors that the operation may use."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.scale, self.matrix = nn.Parameter(torch.zeros(8, 1, 1)), nn.Parameter(torch.zeros(8, 8))
        self.double().eval()
        with torch.no_grad():
            self.last = nn.Conv2d(self.made(images()).shape[1], 3, 1).double()

    def made(self, x: Tensor) -> Tensor:
        y = self.function(self.first(x), self)
        return y[..., None] if y.ndim == 3 else y

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.made(x))


def volume(h: Tensor, function: Callable[..., Any], *args: Any) -> Any:
    return function(h[..., None], (2, 2, 1), *args)


USES: dict[int, dict[str, Function]] = {
    1: {
        "layer_norm": lambda h, m: F.layer_norm(h, h.shape[3:], torch.zeros_like(m.scale[:1, 0, 0]).expand(h.shape[3])),
    },
    4: {
        # element by element
        "add": lambda h, m: h + m.scale,
        "sub, alpha": lambda h, m: torch.sub(h, m.scale, alpha=0.5),
        "div": lambda h, m: h / (h.abs() + 1),
        "addcmul": lambda h, m: torch.addcmul(h, h, m.scale, value=0.5),
        "hardswish": lambda h, m: F.hardswish(h),
        "log_sigmoid": lambda h, m: F.logsigmoid(h),
        "tanhshrink": lambda h, m: F.tanhshrink(h),
        "softsign": lambda h, m: F.softsign(h),
        "threshold": lambda h, m: F.threshold(h, 0.5, 0.3),
        "max of two": lambda h, m: torch.max(h, m.scale),
        "min of two": lambda h, m: h.min(m.scale),
        "prelu": lambda h, m: F.prelu(h, m.scale.flatten()),
        "one slope": lambda h, m: F.prelu(h, m.scale.flatten()[:1]),
        "a product with nothing": lambda h, m: h * torch.zeros_like(h) + h,
        "zero": lambda h, m: h.clone().zero_() + h,
        "zeros_like": lambda h, m: torch.cat([h, torch.zeros_like(h)], 1),
        "new_zeros": lambda h, m: torch.cat([h, h.new_zeros(h.shape)], 1),
        "ones_like": lambda h, m: torch.cat([h, torch.ones_like(h)], 1),
        "new_ones": lambda h, m: torch.cat([h, h.new_ones(h.shape)], 1),
        "dropout": lambda h, m: F.dropout(h, 0.5, m.training),
        "feature_dropout": lambda h, m: torch.feature_dropout(h, 0.5, False),
        "dropout2d": lambda h, m: F.dropout2d(h, 0.5, False),
        "alpha_dropout": lambda h, m: F.alpha_dropout(h, 0.5, False),
        "feature_alpha_dropout": lambda h, m: F.feature_alpha_dropout(h, 0.5, False),
        "clone": lambda h, m: h.clone().mul_(2),
        "contiguous": lambda h, m: h.contiguous(),
        "detach": lambda h, m: h.detach() + h,
        "data": lambda h, m: h.data,
        "double": lambda h, m: h.double(),
        "cpu": lambda h, m: h.cpu(),
        "to": lambda h, m: h.to(torch.float64),
        "type_as": lambda h, m: h.type_as(m.scale),
        "positive": lambda h, m: h.positive(),
        # moved
        "permute": lambda h, m: h.permute(0, 1, 3, 2),
        "transpose": lambda h, m: h.transpose(1, 2).transpose(1, 2),
        "mT": lambda h, m: h.mT.mH.adjoint(),
        "movedim": lambda h, m: h.movedim(1, 3).movedim(3, 1),
        "squeeze": lambda h, m: h.unsqueeze(1).squeeze(1),
        "flip": lambda h, m: h.flip(2),
        "roll": lambda h, m: h.roll(1, 2),
        "rot90": lambda h, m: h.rot90(1, (2, 3)),
        "narrow": lambda h, m: h.narrow(2, 1, 2),
        "select": lambda h, m: h.select(2, 1),
        "unbind": lambda h, m: h.unbind(2)[0],
        "unfold": lambda h, m: h.unfold(2, 2, 1).mean(-1),
        "diagonal": lambda h, m: h.diagonal(0, 2, 3),
        "getitem": lambda h, m: h[:, :, 1:, None, 0].flatten(3),
        "repeat": lambda h, m: h.repeat(1, 2, 1, 1),
        "repeat_interleave": lambda h, m: h.repeat_interleave(2, 1),
        "tile": lambda h, m: h.tile(1, 1, 2, 1),
        "view": lambda h, m: h.view(len(h), h.shape[1], -1),
        "reshape": lambda h, m: h.reshape(len(h), h.shape[1], -1),
        "flatten": lambda h, m: h.flatten(2),
        "view_as": lambda h, m: h.view_as(h),
        "reshape_as": lambda h, m: h.reshape_as(h),
        "expand_as": lambda h, m: m.scale.expand_as(h) * h,
        "expand": lambda h, m: h.mean((2, 3), keepdim=True).expand(h.shape) + h,
        "pixel_unshuffle": lambda h, m: F.pixel_unshuffle(h, 2),
        "pad": lambda h, m: F.pad(h, (1, 1, 1, 1), "reflect"),
        "split": lambda h, m: torch.cat(h.split(2, 2)[::-1], 2),
        "chunk": lambda h, m: torch.cat(h.chunk(2, 3)[::-1], 3),
        "tensor_split": lambda h, m: torch.cat(h.tensor_split(3, 3)[::-1], 3),
        "split_with_sizes": lambda h, m: torch.cat(h.split_with_sizes([1, h.shape[2] - 1], 2)[::-1], 2),
        "t": lambda h, m: h + (m.scale[..., 0].t() + m.scale[..., 0].T).T[..., None],
        "H": lambda h, m: h + m.scale[..., 0].H.H[..., None],
        "fliplr": lambda h, m: h + (m.scale.flipud().flipud() + m.scale.fliplr()),
        "unflatten": lambda h, m: h.flatten(2).unflatten(2, (-1, h.shape[3])),
        "ravel": lambda h, m: h + m.scale.ravel()[:, None, None],
        "broadcast_to": lambda h, m: h * m.scale.broadcast_to(h.shape),
        "constant_pad_nd": lambda h, m: torch.constant_pad_nd(h, (-1, 0)),
        "stack": lambda h, m: torch.stack([h, h * 2], 1).flatten(1, 2),
        # over windows, and over space
        "max_pool2d": lambda h, m: F.max_pool2d(h, 3, 1, 1),
        "max_pool2d_with_indices": lambda h, m: F.max_pool2d(h, 2, return_indices=True)[0],
        "avg_pool2d": lambda h, m: F.avg_pool2d(h, 3, 3, ceil_mode=True),
        "avg_pool2d, padding not counted": lambda h, m: F.avg_pool2d(h, 3, 1, 1, False, False),
        "avg_pool1d": lambda h, m: F.avg_pool1d(h.flatten(2), 2),
        "avg_pool3d": lambda h, m: volume(h, F.avg_pool3d)[..., 0],
        "max_pool1d": lambda h, m: F.max_pool1d(h.flatten(2), 2),
        "max_pool1d_with_indices": lambda h, m: F.max_pool1d(h.flatten(2), 2, return_indices=True)[0],
        "max_pool3d_with_indices": lambda h, m: volume(h, F.max_pool3d, None, 0, 1, False, True)[0][..., 0],
        "adaptive_avg_pool1d": lambda h, m: F.adaptive_avg_pool1d(h.flatten(2), 2),
        "adaptive_max_pool1d": lambda h, m: F.adaptive_max_pool1d(h.flatten(2), 2),
        "adaptive_max_pool1d_with_indices": lambda h, m: F.adaptive_max_pool1d(h.flatten(2), 2, True)[0],
        "adaptive_avg_pool3d": lambda h, m: volume(h, F.adaptive_avg_pool3d)[..., 0],
        "adaptive_max_pool3d": lambda h, m: volume(h, F.adaptive_max_pool3d)[..., 0],
        "adaptive_max_pool3d_with_indices": lambda h, m: volume(h, F.adaptive_max_pool3d, True)[0][..., 0],
        "upsample": lambda h, m: aten.upsample_nearest2d(aten.upsample_bilinear2d(h, (6, 6), False), (9, 9)),
        "upsample_bicubic2d": lambda h, m: aten.upsample_bicubic2d(h, (6, 6), False),
        "dropout1d": lambda h, m: F.dropout1d(h.flatten(2), 0.5, False),
        "dropout3d": lambda h, m: F.dropout3d(h[..., None], 0.5, False)[..., 0],
        "max_pool3d": lambda h, m: volume(h, F.max_pool3d)[..., 0],
        "adaptive_avg_pool2d": lambda h, m: F.adaptive_avg_pool2d(h, 2),
        "adaptive_max_pool2d": lambda h, m: F.adaptive_max_pool2d(h, 2),
        "adaptive_max_pool2d_with_indices": lambda h, m: F.adaptive_max_pool2d(h, 2, True)[0],
        "interpolate": lambda h, m: F.interpolate(h, size=(9, 9), mode="bicubic", align_corners=True),
        "mean": lambda h, m: h.mean((2, 3), keepdim=True),
        "mean over one dimension": lambda h, m: h.mean(2),
        "amax": lambda h, m: h.amax(2),
        "amin": lambda h, m: h.amin((2, 3), keepdim=True),
        "not all of it": lambda h, m: h.sub(h.mean(2, keepdim=True)),
        # norms
        "batch_norm": lambda h, m: m.norm(h),
        "batch_norm, by torch": lambda h, m: torch.batch_norm(
            h, m.norm.weight, m.norm.bias, m.norm.running_mean, m.norm.running_var, False, 0.1, 1e-5, False
        ),
        "instance_norm": lambda h, m: F.instance_norm(h),
        "instance_norm of what ran": lambda h, m: F.instance_norm(
            h, m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias, False
        ),
    },
    6: {
        "sum": lambda h, m: h.sum(1),
        "sum over space": lambda h, m: h.sum((2, 3), keepdim=True),
        "nansum": lambda h, m: h.nansum(1),
        "nansum over space": lambda h, m: h.nansum(2),
        "vector norm": lambda h, m: torch.linalg.vector_norm(h, 2, (2,)),
        "vector norm over channels": lambda h, m: torch.linalg.vector_norm(h, dim=1),
        "tril": lambda h, m: h.tril(),
        "triu": lambda h, m: h.triu(1),
        "padding that counts": lambda h, m: F.avg_pool2d(h, 3, 1, 1),
        "padding by words": lambda h, m: F.avg_pool2d(h, 3, 1, padding=1),
        "pad": lambda h, m: F.pad(h, (1, 1, 1, 1)),
        "matmul": lambda h, m: (h.flatten(2).mT @ h.flatten(2)).flatten(1)[..., None],
        "bmm": lambda h, m: torch.bmm(h.flatten(2).mT, h.flatten(2)).flatten(1)[..., None],
        "rms_norm over space": lambda h, m: F.rms_norm(h, (h.shape[-1],)),
        "attention over space": lambda h, m: F.scaled_dot_product_attention(h, h, h),
        "embedding": lambda h, m: F.embedding(torch.tensor([[0, 1, 2]] * len(h)), m.matrix).mT[..., None] * h[:, :, :1, :1],
    },
    8: {
        "prod": lambda h, m: h.prod(2),
        "positions": lambda h, m: h[..., torch.tensor([0, 1])],
        "batch_norm of batches": lambda h, m: F.batch_norm(h, None, None, m.norm.weight, m.norm.bias, True) + m.norm(h),
        "group_norm": lambda h, m: F.group_norm(h, 4),
        "pixel_shuffle": lambda h, m: F.pixel_shuffle(h, 2),
        "channel_shuffle": lambda h, m: F.channel_shuffle(h, 2),
        "mm": lambda h, m: torch.mm(h.flatten(1).mT, h.flatten(1))[None, :, :, None],
        "counts": lambda h, m: h.count_nonzero(2).double(),
        "integers": lambda h, m: h.long().double(),
    },
}  # fmt: skip
# Two models draw other numbers: `shrink` itself compares these.
RANDOM: dict[str, tuple[int, Function]] = {
    "dropout that is always on": (6, lambda h, m: F.dropout(h, 0.5, True)),
    "dropout2d that is always on": (6, lambda h, m: F.dropout2d(h, 0.5, True)),
    "random factors": (6, lambda h, m: torch.rand_like(h) * h),
    "random summands": (8, lambda h, m: h + torch.rand_like(h)),
    "alpha_dropout that is always on": (8, lambda h, m: F.alpha_dropout(h, 0.5, True)),
}
# What needs a GPU, what rounds, and what no public function reaches.
ELSEWHERE = {
    "cuda", "float", "half", "bfloat16", "_unsafe_view", "unsafe_chunk", "unsafe_split", "native_channel_shuffle",
}  # fmt: skip
ALL = [(name, left) for left, uses in USES.items() for name in uses]


def made(function: Function) -> Any:
    torch.manual_seed(3)
    model: Any = randomise(Behind(function))
    zero(model.first.weight, range(4))
    zero(model.first.bias, range(2))
    return model.eval()


@pytest.mark.parametrize(("name", "left"), ALL, ids=[f"{name}, {left}" for name, left in ALL])
def test_what_is_known(name: str, left: int) -> None:
    small: Any = assert_shrinks(made(USES[left][name]), images(), grow=(0,)).model
    assert small.first.out_channels == left


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_known_of_random_numbers(name: str) -> None:
    left, function = RANDOM[name]
    small: Any = sp.shrink(made(function), images())
    assert small.first.out_channels == left


def test_every_rule_has_a_case() -> None:
    met: set[str] = set()
    for function in [*(f for uses in USES.values() for f in uses.values()), *(f for _, f in RANDOM.values())]:
        for program in sp.analyze(made(function), images()).space.programs:
            met |= {node.meta["op"] for node in program.graph.nodes}
    assert set(RULES) - met == ELSEWHERE
