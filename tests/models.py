"""Awkward little models as data: each with inputs, and the number of units of each of its groups.

`units` lists what can be removed, group by group: `[4, 8]` is a group of four units and one of eight. `[]` means that
everything must be kept, and `kept` then says which dimension, and words of the reason.
"""

from __future__ import annotations

import copy
import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from helpers import randomise
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Forward = Callable[..., Any]


class Net(nn.Module):
    """A model made of parts, and of a function that uses them."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        self.compute = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute(self, *args, **kwargs)


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and what can be removed from it."""

    name: str
    units: list[int]
    model: nn.Module
    inputs: Any
    kept: dict[str, str]

    def make(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A fresh, randomised model."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor):
                    vars(module)[key] = _to(value, dtype)
        return randomise(model.to(dtype))

    def example(self, dtype: torch.dtype = torch.float64) -> Any:
        """Example inputs of this dtype."""
        if isinstance(self.inputs, dict):
            return {k: _to(v, dtype) for k, v in self.inputs.items()}
        return _to(self.inputs, dtype) if isinstance(self.inputs, Tensor) else tuple(_to(v, dtype) for v in self.inputs)


def _to(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_to(v, dtype) for v in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


CASES: list[Case] = []


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


X1, X, X3 = image(2, 3, 9), image(2, 3, 8, 8), image(2, 3, 5, 5, 5)
ROWS, TOKENS = image(4, 6), image(2, 5, 6)
IDS = torch.tensor([[1, 2, 3], [4, 0, 2]])


def case(
    name: str, units: list[int], forward: Forward, inputs: Any = X, kept: dict[str, str] | None = None, **parts: Any
) -> None:
    """Adds a model."""
    CASES.append(Case(name, units, Net(forward, **parts), inputs, kept or {}))


def model_case(
    name: str, units: list[int], model: nn.Module, inputs: Any = X, kept: dict[str, str] | None = None
) -> None:
    """Adds a model that is a class of its own."""
    CASES.append(Case(name, units, model, inputs, kept or {}))


def conv(i: int, o: int, k: int = 3, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **settings})


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


def chain(m: Any, x: Tensor) -> Tensor:
    """a -> relu -> out"""
    return m.out(torch.relu(m.a(x)))


def through(m: Any, x: Tensor) -> Tensor:
    """a -> f -> out"""
    return m.out(m.f(m.a(x)))


def pooled(m: Any, x: Tensor) -> Tensor:
    """a -> f -> mean over space -> out"""
    return m.out(m.f(m.a(x)).flatten(2).mean(2))


# -- convolutions, plain and grouped --------------------------------------------------------------------------

case("conv1d", [8], chain, X1, a=nn.Conv1d(3, 8, 3), out=nn.Conv1d(8, 4, 3))
case("conv2d", [8], chain, a=conv(3, 8), out=conv(8, 4))
case("conv2d without bias", [8], chain, a=conv(3, 8, bias=False), out=conv(8, 4, bias=False))
case("conv2d strided, dilated, same", [8], chain, a=conv(3, 8, stride=2), out=conv(8, 4, dilation=2, padding="same"))
case("conv3d", [8], chain, X3, a=nn.Conv3d(3, 8, 3), out=nn.Conv3d(8, 4, 3))
case("unbatched conv2d", [8], chain, image(3, 8, 8), a=conv(3, 8), out=conv(8, 4))
case("conv_transpose1d", [8], chain, X1, a=nn.ConvTranspose1d(3, 8, 3), out=nn.ConvTranspose1d(8, 4, 3))
case(
    "conv_transpose2d", [8], chain, a=nn.ConvTranspose2d(3, 8, 3, 2, output_padding=1), out=nn.ConvTranspose2d(8, 4, 3)
)
case("conv_transpose3d", [8], chain, X3, a=nn.ConvTranspose3d(3, 8, 2), out=nn.ConvTranspose3d(8, 4, 2))
for mode in ("reflect", "replicate", "circular", "zeros"):
    case(f"padding mode {mode}", [8], chain, a=conv(3, 8, padding_mode=mode), out=conv(8, 4, padding_mode=mode))
case("few wide groups", [4, 6], through, a=conv(3, 8), f=conv(8, 12, groups=2), out=conv(12, 4))
case("many narrow groups", [8], through, a=conv(3, 16), f=conv(16, 16, groups=8), out=conv(16, 4))
case(
    "two grouped in a row",
    [4, 6, 3],
    lambda m, x: m.out(m.g(m.f(m.a(x)))),
    a=conv(3, 8),
    f=conv(8, 12, groups=2),
    g=conv(12, 6, groups=2),
    out=conv(6, 4),
)
for multiplier in (1, 2, 3):
    case(
        f"depthwise, multiplier {multiplier}",
        [8],
        through,
        a=conv(3, 8),
        f=conv(8, 8 * multiplier, groups=8),
        out=conv(8 * multiplier, 4, 1),
    )
case(
    "depthwise then narrow groups",
    [4],
    lambda m, x: m.out(m.g(m.f(m.a(x)))),
    a=conv(3, 8),
    f=conv(8, 8, groups=8),
    g=conv(8, 8, groups=4),
    out=conv(8, 4),
)
case("depthwise over the input", [2], lambda m, x: m.out(m.f(x)), f=conv(3, 6, groups=3), out=conv(6, 4))
case(
    "depthwise over the input, one filter each", [], lambda m, x: m.out(m.f(x)), f=conv(3, 3, groups=3), out=conv(3, 4)
)
case(
    "grouped over the input", [3], lambda m, x: m.out(m.f(x)), image(2, 4, 8, 8), f=conv(4, 6, groups=2), out=conv(6, 4)
)
case(
    "grouped as the last layer",
    [4],
    through,
    kept={"out.weight[0]": "output"},
    a=conv(3, 8),
    f=nn.ReLU(),
    out=conv(8, 4, groups=2),
)
case(
    "transposed, few wide groups",
    [4, 6],
    through,
    a=conv(3, 8),
    f=nn.ConvTranspose2d(8, 12, 3, groups=2),
    out=conv(12, 4),
)
case("transposed, depthwise", [8], through, a=conv(3, 8), f=nn.ConvTranspose2d(8, 16, 3, groups=8), out=conv(16, 4))
case("transposed, narrow groups", [4], through, a=conv(3, 8), f=nn.ConvTranspose2d(8, 8, 3, groups=4), out=conv(8, 4))
case(
    "residual around a depthwise",
    [8],
    lambda m, x: m.out(m.f(h := m.a(x)) + h),
    a=conv(3, 8),
    f=conv(8, 8, groups=8),
    out=conv(8, 4),
)
case(
    "residual around a grouped",
    [4],
    lambda m, x: m.out(m.f(h := m.a(x)) + h),
    a=conv(3, 8),
    f=conv(8, 8, groups=2),
    out=conv(8, 4),
)
case(
    "inverted residual",
    [8, 16],
    lambda m, x: m.out((h := m.a(x)) + m.p(m.d(m.e(h)))),
    a=conv(3, 8),
    e=conv(8, 16, 1),
    d=conv(16, 16, groups=16),
    p=conv(16, 8, 1),
    out=conv(8, 4),
)
case(
    "functional conv with groups read from the input",
    [8],
    lambda m, x: m.out(F.conv2d(h := m.a(x), m.w, groups=h.shape[1])),
    a=conv(3, 8),
    w=parameter(8, 1, 3, 3),
    out=conv(8, 4),
)
case(
    "functional conv with groups written in the code",
    [],
    lambda m, x: m.out(F.conv2d(m.a(x), m.w, groups=8)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    w=parameter(8, 1, 3, 3),
    out=conv(8, 4),
)

# -- linear layers --------------------------------------------------------------------------------------------

case("linear", [8], chain, ROWS, a=nn.Linear(6, 8), out=nn.Linear(8, 4))
case("linear on tokens", [8], chain, TOKENS, a=nn.Linear(6, 8), out=nn.Linear(8, 4))
case("linear on a vector", [8], chain, image(6), a=nn.Linear(6, 8), out=nn.Linear(8, 4))
case(
    "bilinear",
    [8, 6, 5],
    lambda m, x: m.out(m.f(m.a(x), m.b(x))),
    ROWS,
    a=nn.Linear(6, 8),
    b=nn.Linear(6, 6),
    f=nn.Bilinear(8, 6, 5),
    out=nn.Linear(5, 4),
)
case("embedding", [8], lambda m, i: m.out(torch.relu(m.e(i))), IDS, e=nn.Embedding(5, 8), out=nn.Linear(8, 4))
case(
    "embedding with padding_idx",
    [8],
    lambda m, i: m.out(m.e(i).mean(1)),
    IDS,
    e=nn.Embedding(5, 8, padding_idx=0),
    out=nn.Linear(8, 4),
)
case(
    "tied embedding and classifier",
    [8],
    lambda m, i: F.linear(m.f(m.e(i)), m.e.weight),
    IDS,
    e=nn.Embedding(5, 8),
    f=nn.Linear(8, 8),
)
case(
    "embedding scaled by the square root of its width",
    [],
    lambda m, i: m.out(m.e(i) * math.sqrt(m.e.embedding_dim)),
    IDS,
    kept={"e.weight[1]": "Python"},
    e=nn.Embedding(5, 8),
    out=nn.Linear(8, 4),
)

# -- normalisation and activations ----------------------------------------------------------------------------

for affine in (True, False):
    for track in (True, False):
        norm = {"affine": affine, "track_running_stats": track}
        case(f"BatchNorm2d {norm}", [8], through, a=conv(3, 8), f=nn.BatchNorm2d(8, **norm), out=conv(8, 4))
        case(f"InstanceNorm2d {norm}", [8], through, a=conv(3, 8), f=nn.InstanceNorm2d(8, **norm), out=conv(8, 4))
case("BatchNorm1d on rows", [8], through, ROWS, a=nn.Linear(6, 8), f=nn.BatchNorm1d(8), out=nn.Linear(8, 4))
case("BatchNorm1d on sequences", [8], through, X1, a=nn.Conv1d(3, 8, 3), f=nn.BatchNorm1d(8), out=nn.Conv1d(8, 4, 3))
case("BatchNorm3d", [8], through, X3, a=nn.Conv3d(3, 8, 3), f=nn.BatchNorm3d(8), out=nn.Conv3d(8, 4, 3))
case(
    "BatchNorm2d with cumulative average",
    [8],
    through,
    a=conv(3, 8),
    f=nn.BatchNorm2d(8, momentum=None),
    out=conv(8, 4),
)
case(
    "functional batch norm",
    [8],
    lambda m, x: m.out(F.batch_norm(m.a(x), m.mean, m.var, m.w, m.b)),
    a=conv(3, 8),
    mean=nn.Buffer(torch.zeros(8)),
    var=nn.Buffer(torch.ones(8)),
    w=parameter(8),
    b=parameter(8),
    out=conv(8, 4),
)
case(
    "batch norm before a conv",
    [8],
    lambda m, x: m.out(torch.relu(m.n(torch.sigmoid(m.a(x))))),
    a=conv(3, 8),
    n=nn.BatchNorm2d(8),
    out=conv(8, 4),
)
case("batch norm of the input", [8], lambda m, x: m.out(m.a(m.n(x))), n=nn.BatchNorm2d(3), a=conv(3, 8), out=conv(8, 4))
case(
    "norm shared by two convs",
    [8],
    lambda m, x: m.out(m.n(m.a(x))) + m.out(m.n(m.b(x))),
    a=conv(3, 8),
    b=conv(3, 8),
    n=nn.BatchNorm2d(8),
    out=conv(8, 4),
)
case("PReLU with one slope", [8], through, a=conv(3, 8), f=nn.PReLU(), out=conv(8, 4))
case("PReLU with a slope per channel", [8], through, a=conv(3, 8), f=nn.PReLU(8), out=conv(8, 4))
for activation in (
    nn.Sigmoid(),
    nn.Hardswish(),
    nn.GELU(),
    nn.Softplus(),
    nn.ELU(),
    nn.SiLU(),
    nn.Mish(),
    nn.Tanh(),
    nn.Hardsigmoid(),
    nn.LeakyReLU(0.1),
    nn.ReLU6(),
    nn.SELU(),
    nn.Softsign(),
    nn.LogSigmoid(),
    nn.CELU(),
    nn.Hardtanh(),
    nn.Tanhshrink(),
    nn.Softshrink(0.1),
    nn.Threshold(0.1, 2.0),
    nn.Identity(),
):
    case(f"activation {type(activation).__name__}", [8], through, a=conv(3, 8), f=activation, out=conv(8, 4))
for dropout in (nn.Dropout(0.3), nn.Dropout2d(0.3), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)):
    case(f"{type(dropout).__name__}", [8], through, a=conv(3, 8), f=dropout, out=conv(8, 4))

# -- branches that meet ---------------------------------------------------------------------------------------

case("residual add", [8], lambda m, x: m.out(m.a(x) + m.b(x)), a=conv(3, 8), b=conv(3, 8), out=conv(8, 4))
case(
    "residual chain",
    [6, 8],
    lambda m, x: m.out((h := m.a(x)) + m.c(torch.relu(m.b(h)))),
    a=conv(3, 8),
    b=conv(8, 6),
    c=conv(6, 8),
    out=conv(8, 4),
)
case(
    "residual to the model's input",
    [8],
    lambda m, x: m.out(x + m.b(m.a(x))),
    kept={"b.weight[0]": "input"},
    a=conv(3, 8),
    b=conv(8, 3),
    out=conv(3, 4),
)
case(
    "residual to the output",
    [8],
    lambda m, x: m.c(x) + m.out(m.a(x)),
    kept={"c.weight[0]": "output"},
    a=conv(3, 8),
    out=conv(8, 4),
    c=conv(3, 4),
)
case(
    "broadcast add",
    [8],
    lambda m, x: m.out(m.a(x) + m.b(x).mean((2, 3), keepdim=True)),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)
case(
    "one channel meets eight",
    [8],
    lambda m, x: m.out(m.a(x) * torch.sigmoid(m.b(x))),
    a=conv(3, 8),
    b=conv(3, 1),
    out=conv(8, 4),
)
case(
    "squeeze and excite",
    [4, 8],
    lambda m, x: m.out((h := m.a(x)) * torch.sigmoid(m.e(torch.relu(m.s(F.adaptive_avg_pool2d(h, 1)))))),
    a=conv(3, 8),
    s=conv(8, 4, 1),
    e=conv(4, 8, 1),
    out=conv(8, 4),
)
case(
    "squeeze and excite, linear",
    [4, 8],
    lambda m, x: m.out((h := m.a(x)) * m.e(torch.relu(m.s(h.mean((2, 3))))).sigmoid()[:, :, None, None]),
    a=conv(3, 8),
    s=nn.Linear(8, 4),
    e=nn.Linear(4, 8),
    out=conv(8, 4),
)
case(
    "squeeze and excite, viewed",
    [4, 8],
    lambda m, x: m.out(
        (h := m.a(x)) * m.e(m.s(h.mean((2, 3)).view(h.size(0), h.size(1)))).view(h.size(0), h.size(1), 1, 1)
    ),
    a=conv(3, 8),
    s=nn.Linear(8, 4),
    e=nn.Linear(4, 8),
    out=conv(8, 4),
)
case(
    "layer scale [C, 1, 1]",
    [8],
    lambda m, x: m.out((h := m.a(x)) + m.gamma * m.b(h)),
    a=conv(3, 8),
    b=conv(8, 8),
    gamma=parameter(8, 1, 1),
    out=conv(8, 4),
)
case(
    "layer scale in channels last",
    [8, 8],
    lambda m, x: m.out((m.gamma * m.b(m.a(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)),
    a=conv(3, 8),
    b=nn.Linear(8, 8),
    gamma=parameter(8),
    out=conv(8, 4),
)
case(
    "scalar parameter",
    [8],
    lambda m, x: m.out(m.a(x) * m.s + m.t),
    a=conv(3, 8),
    s=parameter(),
    t=parameter(1),
    out=conv(8, 4),
)
case(
    "inception",
    [5, 6, 7],
    lambda m, x: m.out(torch.cat([m.a(x), m.b(x), m.c(x)], 1)),
    a=conv(3, 5, 1),
    b=conv(3, 6),
    c=conv(3, 7, 5),
    out=conv(18, 4),
)
case("cat with the input", [8], lambda m, x: m.out(torch.cat([x, m.a(x)], 1)), a=conv(3, 8), out=conv(11, 4))
case(
    "cat of a value with itself",
    [8],
    lambda m, x: m.out(torch.cat([h := m.a(x), h, h], 1)),
    a=conv(3, 8),
    out=conv(24, 4),
)
case(
    "cat along another dimension",
    [8],
    lambda m, x: m.out(torch.cat((m.a(x), m.b(x)), dim=-1)),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)
case(
    "cat with a parameter",
    [8],
    lambda m, x: m.out(torch.cat([m.a(x), m.p.expand(x.shape[0], -1, -1, -1)], 1)),
    a=conv(3, 8),
    p=parameter(1, 2, 8, 8),
    out=conv(10, 4),
)
case(
    "dense connections",
    [4, 5, 6],
    lambda m, x: m.out(torch.cat([h := m.a(x), g := m.b(h), m.c(torch.cat([h, g], 1))], 1)),
    a=conv(3, 4),
    b=conv(4, 5),
    c=conv(9, 6),
    out=conv(15, 4),
)
case(
    "cat, then added",
    [8, 4],
    lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], 1) + m.c(x)),
    a=conv(3, 8),
    b=conv(3, 4),
    c=conv(3, 12),
    out=conv(12, 4),
)
case(
    "stack, then mean",
    [8],
    lambda m, x: m.out(torch.stack([m.a(x), m.b(x)], 1).mean(1)),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)
case(
    "stack, then flatten",
    [8],
    lambda m, x: m.out(torch.stack([m.a(x), m.b(x)], 1).flatten(1, 2)),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(16, 4),
)
case(
    "stack behind, then flatten",
    [8],
    lambda m, x: m.out(torch.stack([m.a(x), m.b(x)], 2).flatten(1, 2)),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(16, 4),
)
case(
    "maximum, where, lerp, addcmul",
    [8],
    lambda m, x: m.out(
        torch.addcmul(torch.where((h := m.a(x)) > 0, h, g := m.b(x)), h, torch.maximum(h, g)).lerp(g, 0.3)
    ),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)
case(
    "max of two values", [8], lambda m, x: m.out(torch.max(m.a(x), m.b(x))), a=conv(3, 8), b=conv(3, 8), out=conv(8, 4)
)
case(
    "arithmetic with numbers",
    [8],
    lambda m, x: m.out(1 - 2 / (1 + torch.exp(-(m.a(x) ** 2) / 3))),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "masked_fill and clamp",
    [8],
    lambda m, x: m.out((h := m.a(x)).masked_fill(h < 0, 0.5).clamp(max=2.0)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "branches of different size",
    [8],
    lambda m, x: m.out(m.a(x) + F.interpolate(m.b(F.max_pool2d(x, 2)), scale_factor=2)),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)

# -- chunks, slices, indices ----------------------------------------------------------------------------------

case(
    "gated by chunks",
    [4],
    lambda m, x: m.out((h := m.a(x).chunk(2, 1))[0] * torch.sigmoid(h[1])),
    a=conv(3, 8),
    out=conv(4, 4),
)
case(
    "chunks to different layers",
    [4],
    lambda m, x: m.out((h := m.a(x).chunk(2, dim=1))[0]) + m.o2(h[1]),
    a=conv(3, 8),
    out=conv(4, 4),
    o2=conv(4, 4),
)
case("chunks, one of them unused", [4], lambda m, x: m.out(m.a(x).chunk(2, dim=1)[1]), a=conv(3, 8), out=conv(4, 4))
case(
    "chunks put back in another order",
    [4],
    lambda m, x: m.out(torch.cat((m.a(x).chunk(2, dim=1))[::-1], 1)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "split by half of the size",
    [4],
    lambda m, x: m.out(sum((h := m.a(x)).split(h.shape[1] // 2, 1))),
    a=conv(3, 8),
    out=conv(4, 4),
)
case(
    "split(4) written in the code",
    [],
    lambda m, x: m.out(sum(m.a(x).split(4, 1))),
    kept={"a.weight[0]": "split"},
    a=conv(3, 8),
    out=conv(4, 4),
)
case(
    "split([3, 5]) written in the code",
    [],
    lambda m, x: m.out((h := m.a(x).split([3, 5], 1))[0]) + m.o2(h[1]),
    kept={"a.weight[0]": "split"},
    a=conv(3, 8),
    out=conv(3, 4),
    o2=conv(5, 4),
)
case("split along space", [8], lambda m, x: m.out(sum(m.a(x).split(4, 3))), a=conv(3, 8), out=conv(8, 4))
case("x[:, :4]", [], lambda m, x: m.out(m.a(x)[:, :4]), kept={"a.weight[0]": "getitem"}, a=conv(3, 8), out=conv(4, 4))
case("x[:, ::2]", [], lambda m, x: m.out(m.a(x)[:, ::2]), kept={"a.weight[0]": "getitem"}, a=conv(3, 8), out=conv(4, 4))
case(
    "x[:, 2:-2]", [], lambda m, x: m.out(m.a(x)[:, 2:-2]), kept={"a.weight[0]": "getitem"}, a=conv(3, 8), out=conv(4, 4)
)
case(
    "x[:, self.idx]",
    [],
    lambda m, x: m.out(m.a(x)[:, m.idx]),
    kept={"a.weight[0]": "position"},
    a=conv(3, 8),
    out=conv(4, 4),
    idx=nn.Buffer(torch.tensor([5, 0, 0, 7])),
)
case(
    "x[:, [0, 2]]",
    [],
    lambda m, x: m.out(m.a(x)[:, [0, 2]]),
    kept={"a.weight[0]": "position"},
    a=conv(3, 8),
    out=conv(2, 4),
)
case(
    "index_select",
    [],
    lambda m, x: m.out(m.a(x).index_select(1, m.idx)),
    kept={"a.weight[0]": "position"},
    a=conv(3, 8),
    out=conv(4, 4),
    idx=nn.Buffer(torch.tensor([5, 0, 0, 7])),
)
case(
    "split by an attribute divided by another",
    [4],
    lambda m, x: m.out(sum(torch.split(m.a(x), m.channels // m.paths, 1))),
    a=conv(3, 8),
    channels=8,
    paths=2,
    out=conv(4, 4),
)
case(
    "heads of a width read elsewhere",
    [4],
    lambda m, x: m.out(_attended(m, m.a(x), m.heads)),
    a=conv(3, 8),
    qkv=nn.Linear(8, 24),
    heads=4,
    o=nn.Linear(8, 8),
    out=conv(8, 4),
)
case(
    "four heads of a width read elsewhere",
    [2],
    lambda m, x: m.out(_attended(m, m.a(x), 4)),
    a=conv(3, 8),
    qkv=nn.Linear(8, 24),
    o=nn.Linear(8, 8),
    out=conv(8, 4),
)
case(
    "split into an attribute and the rest",
    [12],
    lambda m, x: m.out(torch.cat(((p := m.a(x).split([m.part, m.width - m.part], 1))[0] * 2, p[1]), 1)),
    a=conv(3, 12),
    width=12,
    part=4,
    out=conv(12, 4),
)
case(
    "no tokens before the others",
    [8],
    lambda m, x: m.out(
        torch.cat(((h := m.a(x).flatten(2))[..., : m.first], h[..., m.first :] * 2), 2).unflatten(2, (8, 8))
    ),
    a=conv(3, 8),
    first=0,
    out=conv(8, 4),
)
case(
    "one size for two layers: split",
    [8],
    lambda m, x: m.out(h := m.a(x)) + m.o2((p := m.b(x).split([h.shape[1], 4], 1))[0]) + m.o3(p[1]),
    a=conv(3, 8),
    b=conv(3, 12),
    out=conv(8, 4),
    o2=conv(8, 4),
    o3=conv(4, 4),
    kept={"b.weight[0]": "given the size 4, written in the code"},
)
case(
    "one size for two layers: slices",
    [8],
    lambda m, x: m.out((h := m.a(x)) * m.b(x)[:, : h.shape[1]] + m.b(x)[:, h.shape[1] :]),
    a=conv(3, 8),
    b=conv(3, 16),
    out=conv(8, 4),
)
case(
    "one size for two layers: compared",
    [8],
    lambda m, x: m.out(h := m.a(x)) + m.o2(g := m.b(x)) * float(h.shape[1] == g.shape[1]),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
    o2=conv(8, 4),
)
case(
    "one size for two layers: parts of a projection",
    [8],
    lambda m, x: m.out((h := m.a(x)) + (p := m.f(h).split((h.shape[1], h.shape[1], 1), 1))[0] * m.b(p[1] * p[2])),
    a=conv(3, 8),
    f=conv(8, 17),
    b=conv(8, 8),
    out=conv(8, 4),
)
case(
    "half and half by slices",
    [4],
    lambda m, x: m.out((h := m.a(x))[:, : h.shape[1] // 2]) + m.o2(h[:, h.shape[1] // 2 :]),
    a=conv(3, 8),
    out=conv(4, 4),
    o2=conv(4, 4),
)
case(
    "halves by slices, multiplied",
    [4],
    lambda m, x: m.out((h := m.a(x))[:, : h.shape[1] // 2] * h[:, h.shape[1] // 2 :]),
    a=conv(3, 8),
    out=conv(4, 4),
)
case(
    "narrow",
    [],
    lambda m, x: m.out(m.a(x).narrow(1, 2, 4)),
    kept={"a.weight[0]": "narrow"},
    a=conv(3, 8),
    out=conv(4, 4),
)
case("one channel", [], lambda m, x: m.out(m.a(x)[:, 3:4]), kept={"a.weight[0]": ""}, a=conv(3, 8), out=conv(1, 4))
case(
    "x[:, 2]",
    [],
    lambda m, x: m.out((h := m.a(x)) * h[:, 2].unsqueeze(1)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "slices of space",
    [8],
    lambda m, x: m.out(m.a(x)[:, :, ::2, 1:-1][..., None, :, :][:, :, 0]),
    a=conv(3, 8),
    out=conv(8, 4),
)


def _shifted(a: Tensor, b: Tensor) -> Tensor:
    """[N, C, shifts, H, W]: filled one shift after the other."""
    volume = a.new_zeros(a.shape[0], a.shape[1], 3, *a.shape[2:])
    for i in range(3):
        volume[:, :, i, :, i:] = a[..., i:] * b[..., : b.shape[-1] - i]
    return volume


def _cached(m: Any, h: Tensor) -> Tensor:
    """The first rows are those of the last call."""
    m.cache[: h.shape[0], :, 2:5] = h[:, :, 2:5]
    return m.cache[: h.shape[0]] + h  # type: ignore[no-any-return]


def _written_through(h: Tensor) -> Tensor:
    """A view of it is written, and what is zero is not any more."""
    torch.einsum("bchw->bhwc", h).add_(1)
    return h.sum(1)


def _attended(m: Any, x: Tensor, heads: int) -> Tensor:
    """The width of a head is computed from the width of another value; the heads are joined without a look at either."""
    tokens = x.flatten(2).mT
    b, n, c = tokens.shape
    q, k, v = m.qkv(tokens).view(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    joined = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
    return x + m.o(joined).mT.unflatten(2, x.shape[2:])


def _across_channels(m: Any, x: Tensor) -> Tensor:
    """Every channel of a head meets every other (El-Nouby et al., "XCiT", 2021)."""
    q, k, v = (part(x).flatten(2).unflatten(1, (m.heads, -1)) for part in (m.q, m.k, m.v))
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * m.temperature
    return x + m.o((scores.softmax(-1) @ v).flatten(1, 2).unflatten(2, x.shape[2:]))


case(
    "cost volume by shifts",
    [8],
    lambda m, x: m.out(_shifted(m.a(x), m.b(x)).flatten(2, 3)),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)
case(
    "LayerNorm over channels and pixels",
    [8],
    lambda m, x: m.out(m.norm(m.a(x))),
    a=conv(3, 8),
    norm=nn.LayerNorm([8, 8, 8]),
    out=conv(8, 4),
)
case(
    "LayerNorm of a context",
    [4, 8],
    lambda m, x: (h := m.a(x)).mean((1, 2, 3)) + m.out(m.norm(m.b(h.mean((2, 3), keepdim=True))).relu()).sum((1, 2, 3)),
    a=conv(3, 4),
    b=conv(4, 8),
    norm=nn.LayerNorm([8, 1, 1]),
    out=conv(8, 4),
)
case(
    "LayerNorm over tokens and channels",
    [8],
    lambda m, x: m.out(m.norm(m.a(x).flatten(2).mT).mT.unflatten(2, (8, 8))),
    a=conv(3, 8),
    norm=nn.LayerNorm([64, 8], bias=False),
    out=conv(8, 4),
)
case(
    "RMSNorm over channels and pixels",
    [8],
    lambda m, x: m.out(m.norm(m.a(x))),
    a=conv(3, 8),
    norm=nn.RMSNorm([8, 8, 8]),
    out=conv(8, 4),
)
case(
    "RMSNorm over tokens and channels, with an eps",
    [8],
    lambda m, x: m.out(m.norm(m.a(x).flatten(2).mT).mT.unflatten(2, (8, 8))),
    a=conv(3, 8),
    norm=nn.RMSNorm([64, 8], eps=1e-3),
    out=conv(8, 4),
)
case(
    "nearest entries of a codebook",
    [8],
    lambda m, x: m.out(m.codes[torch.cdist(m.a(x).flatten(2).mT, m.codes).argmin(2)].mT.unflatten(2, (8, 8))),
    a=conv(3, 8),
    codes=nn.Parameter(torch.randn(10, 8)),
    out=conv(8, 4),
)
case(
    "attention across channels",
    [4, 8],
    lambda m, x: m.out(_across_channels(m, m.a(x))),
    a=conv(3, 8),
    q=conv(8, 16),
    k=conv(8, 16),
    v=conv(8, 16),
    temperature=nn.Parameter(torch.randn(4, 1, 1)),
    heads=4,
    o=conv(16, 8),
    out=conv(8, 4),
)
case(
    "a cache that is a buffer",
    [8],
    lambda m, x: m.out(_cached(m, m.a(x))),
    a=conv(3, 8),
    out=conv(8, 4),
    cache=nn.Buffer(torch.zeros(2, 8, 8, 8)),
)
case(
    "messages along edges",
    [8],
    lambda m, x: m.out(torch.zeros_like(h := m.a(x)).index_add(2, m.there, h[:, :, m.here])),
    a=conv(3, 8),
    out=conv(8, 4),
    here=nn.Buffer(torch.tensor([0, 1, 1, 3])),
    there=nn.Buffer(torch.tensor([2, 2, 0, 1])),
)
case(
    "a size among the outputs",
    [],
    lambda m, x: (m.out(h := m.a(x)), {"width": [h.shape[1]]}),
    kept={"a.weight[0]": "it is an output of the model"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "the number of pictures among the outputs",
    [8],
    lambda m, x: (m.out(h := m.a(x)), h.shape[0]),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "one norm for values of two lengths",
    [8],
    lambda m, x: (m.out(m.norm(m.a(x).flatten(2).mT)), m.out(m.norm(m.a(x[..., :3, :3]).flatten(2).mT))),
    a=conv(3, 8, bias=False),
    norm=nn.LayerNorm(8),
    out=nn.Linear(8, 4),
)
case(
    "focus",
    [8],
    lambda m, x: m.out(m.a(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2]], 1))),
    a=conv(6, 8),
    out=conv(8, 4),
)
case(
    "indexed by positions in space",
    [8],
    lambda m, x: m.out(m.a(x)[:, :, m.idx]),
    a=conv(3, 8),
    out=conv(8, 4),
    idx=nn.Buffer(torch.tensor([5, 0, 0, 7])),
)
case(
    "read after a write through einsum",
    [],
    lambda m, x: m.out(_written_through(m.a(x))),
    kept={"a.weight[0]": "sum runs over it"},
    a=conv(3, 8, bias=False),
    out=nn.Linear(8, 4),
)
case(
    "boolean mask over tokens",
    [8],
    lambda m, x: m.out(m.a(x)[m.mask]),
    TOKENS,
    a=nn.Linear(6, 8),
    out=nn.Linear(8, 4),
    mask=nn.Buffer(torch.tensor([[True, False, True, False, True]] * 2)),
)
case(
    "unbind over channels",
    [],
    lambda m, x: m.out(torch.stack(m.a(x).unbind(1)[::-1], 1)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "for loop over channels",
    [],
    lambda m, x: m.out(torch.stack([m.a(x)[:, i] * (i + 1) for i in range(8)], 1)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "for loop over as many channels as there are",
    [],
    lambda m, x: m.out(torch.stack([m.a(x)[:, i] for i in range(m.a.out_channels)], 1)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    out=conv(8, 4),
)
case("flip over channels", [8], lambda m, x: m.out(m.a(x).flip(1)), a=conv(3, 8), out=conv(8, 4))
case("flip, then added", [4], lambda m, x: m.out((h := m.a(x)) + h.flip(1)), a=conv(3, 8), out=conv(8, 4))
case("roll over space", [8], lambda m, x: m.out(m.a(x).roll((1, 2), (2, 3))), a=conv(3, 8), out=conv(8, 4))
case(
    "roll by three over channels",
    [],
    lambda m, x: m.out(m.a(x).roll(3, 1)),
    kept={"a.weight[0]": "roll"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "roll by half, added",
    [4],
    lambda m, x: m.out((h := m.a(x)) + h.roll(h.shape[1] // 2, 1)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "roll by a literal half, added",
    [],
    lambda m, x: m.out((h := m.a(x)) + h.roll(4, 1)),
    kept={"a.weight[0]": "roll"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "topk over channels",
    [],
    lambda m, x: m.out(m.a(x).topk(4, 1).values),
    kept={"a.weight[0]": "topk"},
    a=conv(3, 8),
    out=conv(4, 4),
)
case(
    "sort over channels",
    [],
    lambda m, x: m.out(m.a(x).sort(1)[0]),
    kept={"a.weight[0]": "sort"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case("sort over space", [8], lambda m, x: m.out(m.a(x).sort(3)[0]), a=conv(3, 8), out=conv(8, 4))

# -- copies and reshapes --------------------------------------------------------------------------------------

case("repeat", [8], lambda m, x: m.out(m.a(x).repeat(1, 2, 1, 1)), a=conv(3, 8), out=conv(16, 4))
case("repeat_interleave", [8], lambda m, x: m.out(m.a(x).repeat_interleave(2, dim=1)), a=conv(3, 8), out=conv(16, 4))
case("repeat of one channel", [], lambda m, x: m.out(m.a(x).repeat(1, 8, 1, 1)), a=conv(3, 1), out=conv(8, 4))
case(
    "expand over space",
    [8],
    lambda m, x: m.out(m.a(x).mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "expand_as",
    [8],
    lambda m, x: m.out((h := m.a(x)) * h.amax((2, 3), keepdim=True).expand_as(h)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "expand with the channels' size",
    [8],
    lambda m, x: m.out((h := m.a(x)) + m.p.expand(h.size(0), h.size(1), h.size(2), h.size(3))),
    a=conv(3, 8),
    p=parameter(8, 1, 1),
    out=conv(8, 4),
)
case(
    "expand with a written size",
    [],
    lambda m, x: m.out((h := m.a(x)) + m.p.expand(h.size(0), 8, h.size(2), h.size(3))),
    kept={"a.weight[0]": "expand"},
    a=conv(3, 8),
    p=parameter(8, 1, 1),
    out=conv(8, 4),
)
case(
    "expand one channel to eight",
    [8],
    lambda m, x: m.out((h := m.a(x)) + m.b(x).expand(-1, h.shape[1], -1, -1)),
    a=conv(3, 8),
    b=conv(3, 1),
    out=conv(8, 4),
)
case("flatten", [8], lambda m, x: m.out(m.a(x).flatten(1)), a=conv(3, 8), out=nn.Linear(512, 4))
case(
    "nn.Flatten after pooling",
    [8],
    lambda m, x: m.out(m.f(F.adaptive_avg_pool2d(m.a(x), 2))),
    a=conv(3, 8),
    f=nn.Flatten(),
    out=nn.Linear(32, 4),
)
case(
    "torch.flatten",
    [8],
    lambda m, x: m.out(torch.flatten(torch.relu(m.a(x)), start_dim=1)),
    a=conv(3, 8),
    out=nn.Linear(512, 4),
)
case(
    "flatten after NHWC",
    [8],
    lambda m, x: m.out(m.a(x).permute(0, 2, 3, 1).flatten(1)),
    a=conv(3, 8),
    out=nn.Linear(512, 4),
)
case(
    "flatten into the batch",
    [8],
    lambda m, x: m.out(m.a(x).permute(0, 2, 3, 1).reshape(-1, m.a.out_channels)),
    a=conv(3, 8),
    out=nn.Linear(8, 4),
)
case("view(b, -1)", [8], lambda m, x: m.out(m.a(x).view(x.size(0), -1)), a=conv(3, 8), out=nn.Linear(512, 4))
case(
    "view(-1, 512)",
    [],
    lambda m, x: m.out(m.a(x).view(-1, 512)),
    kept={"a.weight[0]": "512"},
    a=conv(3, 8),
    out=nn.Linear(512, 4),
)
case(
    "view(-1, in_features)",
    [8],
    lambda m, x: m.out(m.a(x).view(-1, m.out.in_features)),
    a=conv(3, 8),
    out=nn.Linear(512, 4),
)
case(
    "view(-1, c * h * w)",
    [8],
    lambda m, x: m.out((h := m.a(x)).view(-1, h.shape[1] * h.shape[2] * h.shape[3])),
    a=conv(3, 8),
    out=nn.Linear(512, 4),
)
case(
    "view with a number of the model's own",
    [8],
    lambda m, x: m.out(m.a(x).view(-1, m.width)),
    a=conv(3, 8),
    width=512,
    out=nn.Linear(512, 4),
)
case(
    "view with channels of the model's own",
    [8],
    lambda m, x: m.out(m.a(x).view(-1, m.channels, 64).mean(2)),
    a=conv(3, 8),
    channels=8,
    out=nn.Linear(8, 4),
)
case(
    "reshape to tokens and back",
    [8],
    lambda m, x: m.out((h := m.a(x)).flatten(2).transpose(1, 2).transpose(1, 2).reshape(h.shape)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "tokens through linear",
    [8, 6],
    lambda m, x: m.out(m.b(m.a(x).flatten(2).transpose(1, 2)).mean(1)),
    a=conv(3, 8),
    b=nn.Linear(8, 6),
    out=nn.Linear(6, 4),
)
case("unflatten", [4], lambda m, x: m.out(m.a(x).unflatten(1, (2, -1)).sum(1)), a=conv(3, 8), out=conv(4, 4))
case(
    "unflatten the other way",
    [4],
    lambda m, x: m.out(m.a(x).unflatten(1, (-1, 2)).mean(2)),
    a=conv(3, 8),
    out=conv(4, 4),
)
case(
    "unflatten with written sizes",
    [],
    lambda m, x: m.out(m.a(x).unflatten(1, (2, 4)).mean(1)),
    kept={"a.weight[0]": "unflatten"},
    a=conv(3, 8),
    out=conv(4, 4),
)
case(
    "maxout",
    [4],
    lambda m, x: m.out((h := m.a(x)).view(h.size(0), h.size(1) // 2, 2, *h.shape[2:]).max(2).values),
    a=conv(3, 8),
    out=conv(4, 4),
)
case(
    "heads as a number of the model's own",
    [4],
    lambda m, x: m.out((h := m.a(x)).view(h.size(0), m.heads, h.size(1) // m.heads, -1).mean(3).flatten(1)),
    a=conv(3, 8),
    heads=2,
    out=nn.Linear(8, 4),
)
case(
    "squeeze and unsqueeze",
    [8],
    lambda m, x: m.out(F.adaptive_avg_pool2d(m.a(x), 1).squeeze(-1).squeeze(-1)[..., None].squeeze()),
    a=conv(3, 8),
    out=nn.Linear(8, 4),
)
case(
    "movedim, swapaxes, mT",
    [8],
    lambda m, x: m.out(m.a(x).movedim(1, -1).swapaxes(1, 2).mT.transpose(2, 3).moveaxis(-1, 1)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case("view as", [8], lambda m, x: m.out((h := m.a(x)).flatten(2).view_as(h)), a=conv(3, 8), out=conv(8, 4))
case(
    "two flattens of one value",
    [8],
    lambda m, x: m.out((h := m.a(x)).flatten(1)) + m.o2(h.permute(0, 2, 3, 1).flatten(1)),
    a=conv(3, 8),
    out=nn.Linear(512, 4),
    o2=nn.Linear(512, 4),
)


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


case("channel shuffle by hand", [4], lambda m, x: m.out(shuffle(m.a(x), 2)), a=conv(3, 8), out=conv(8, 4))
case("nn.ChannelShuffle", [4], through, a=conv(3, 8), f=nn.ChannelShuffle(2), out=conv(8, 4))
case(
    "grouped, shuffled, grouped",
    [2, 4, 4],
    lambda m, x: m.out(m.c(shuffle(m.b(m.a(x)), 2))),
    a=conv(3, 8),
    b=conv(8, 8, groups=2),
    c=conv(8, 8, groups=2),
    out=conv(8, 4),
)
case(
    "shuffle after cat",
    [4],
    lambda m, x: m.out(shuffle(torch.cat([m.a(x), m.b(x)], 1), 2)),
    a=conv(3, 4),
    b=conv(3, 4),
    out=conv(8, 4),
)
case("pixel shuffle", [4], through, a=conv(3, 16), f=nn.PixelShuffle(2), out=conv(4, 4))
case("pixel unshuffle", [4], through, a=conv(3, 4), f=nn.PixelUnshuffle(2), out=conv(16, 4))
case(
    "pixel shuffle by hand",
    [4],
    lambda m, x: m.out(
        (h := m.a(x)).view(h.size(0), -1, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(h.size(0), -1, 16, 16)
    ),
    a=conv(3, 16),
    out=conv(4, 4),
)
case("unfold", [8], lambda m, x: m.out(F.unfold(m.a(x), 3)), a=conv(3, 8), out=nn.Conv1d(72, 4, 1))
case(
    "fold",
    [4],
    lambda m, x: m.out(F.fold(m.a(x), (8, 8), 2, stride=2)),
    image(2, 3, 16),
    a=nn.Conv1d(3, 16, 1),
    out=conv(4, 4),
)
case(
    "unfold and fold",
    [8],
    lambda m, x: m.out(F.fold(F.unfold(m.a(x), 2, stride=2), (8, 8), 2, stride=2)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case("Tensor.unfold over space", [8], lambda m, x: m.out(m.a(x).unfold(2, 2, 2).amax(-1)), a=conv(3, 8), out=conv(8, 4))

# -- pooling, padding, resampling, reductions -----------------------------------------------------------------

for pool in (
    nn.MaxPool2d(2),
    nn.AvgPool2d(3, 2, 1),
    nn.AdaptiveAvgPool2d(2),
    nn.AdaptiveMaxPool2d((3, 2)),
    nn.LPPool2d(2, 2),
    nn.AdaptiveAvgPool2d((None, 1)),
    nn.Upsample(scale_factor=2),
    nn.UpsamplingBilinear2d(scale_factor=2),
    nn.ZeroPad2d(1),
    nn.ReflectionPad2d(1),
    nn.ReplicationPad2d(2),
    nn.ConstantPad2d(1, 3.5),
    nn.CircularPad2d(1),
):
    case(f"{pool}", [8], through, a=conv(3, 8), f=pool, out=conv(8, 4, 1))
case("pool 1d", [8], through, X1, a=nn.Conv1d(3, 8, 3), f=nn.MaxPool1d(2), out=nn.Conv1d(8, 4, 1))
case("pool 3d", [8], through, X3, a=nn.Conv3d(3, 8, 1), f=nn.AvgPool3d(2), out=nn.Conv3d(8, 4, 1))
case(
    "max pool and unpool",
    [8],
    lambda m, x: m.out(F.max_unpool2d(*F.max_pool2d(m.a(x), 2, return_indices=True), 2)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "interpolate to a size",
    [8],
    lambda m, x: m.out(F.interpolate(m.a(x), size=x.shape[2:], mode="bilinear", align_corners=False)),
    a=conv(3, 8, stride=2),
    out=conv(8, 4),
)
case(
    "grid sample",
    [8],
    lambda m, x: m.out(
        F.grid_sample(
            m.a(x),
            F.affine_grid(m.t[None].expand(x.size(0), -1, -1), x.size(), align_corners=False),
            align_corners=False,
        )
    ),
    a=conv(3, 8),
    t=nn.Buffer(torch.zeros(2, 3)),
    out=conv(8, 4),
)
case(
    "grid sample with the grid of the value itself",
    [8],
    lambda m, x: m.out(
        F.grid_sample(
            h := m.a(x),
            F.affine_grid(m.t[None].expand(x.size(0), -1, -1), h.size(), align_corners=False),
            align_corners=False,
        )
    ),
    a=conv(3, 8),
    t=nn.Buffer(torch.zeros(2, 3)),
    out=conv(8, 4),
)
case("padded channels", [8], lambda m, x: m.out(F.pad(m.a(x), (0, 0, 0, 0, 1, 2))), a=conv(3, 8), out=conv(11, 4))
case(
    "padded shortcut",
    [4],
    lambda m, x: m.out(F.pad(m.a(x), (0, 0, 0, 0, 2, 2)) + m.b(x)),
    a=conv(3, 4),
    b=conv(3, 8),
    out=conv(8, 4),
)
case(
    "cropped channels",
    [],
    lambda m, x: m.out(F.pad(m.a(x), (0, 0, 0, 0, -2, -2))),
    kept={"a.weight[0]": "pad"},
    a=conv(3, 8),
    out=conv(4, 4),
)
case(
    "circular padding of channels",
    [],
    lambda m, x: m.out(F.pad(m.a(x).flatten(2).transpose(1, 2), (1, 1), mode="circular")),
    kept={"a.weight[0]": "pad"},
    a=conv(3, 8),
    out=nn.Linear(10, 4),
)
for function in (torch.mean, torch.amax, torch.std, torch.var, torch.sum, torch.logsumexp, torch.amin):
    case(
        f"{function.__name__} over space",
        [8],
        lambda m, x: m.out(m.f(m.a(x), (2, 3))),
        a=conv(3, 8),
        f=function,
        out=nn.Linear(8, 4),
    )
case(
    "norm over space",
    [8],
    lambda m, x: m.out(F.normalize(m.a(x).flatten(2), dim=2).sum(2)),
    a=conv(3, 8),
    out=nn.Linear(8, 4),
)
case("softmax over space", [8], lambda m, x: m.out(m.a(x).flatten(2).softmax(2)), a=conv(3, 8), out=nn.Conv1d(8, 4, 1))
case(
    "softmax over channels",
    [],
    lambda m, x: m.out(m.a(x).softmax(1)),
    kept={"a.weight[0]": "softmax"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "mean over channels",
    [],
    lambda m, x: m.out((h := m.a(x)) * h.mean(1, keepdim=True)),
    kept={"a.weight[0]": "mean"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "max over channels",
    [],
    lambda m, x: m.out((h := m.a(x)) * h.max(1, keepdim=True)[0]),
    kept={"a.weight[0]": "max"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "std over everything",
    [],
    lambda m, x: m.out((h := m.a(x)) / h.std()),
    kept={"a.weight[0]": "std"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "normalised over channels",
    [],
    lambda m, x: m.out(F.normalize(torch.sigmoid(m.a(x)), dim=1)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "cumsum over channels",
    [],
    lambda m, x: m.out(m.a(x).cumsum(1)),
    kept={"a.weight[0]": "cumsum"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case("cumsum over space", [8], lambda m, x: m.out(m.a(x).cumsum(3)), a=conv(3, 8), out=conv(8, 4))
case(
    "efficient channel attention",
    [],
    lambda m, x: m.out((h := m.a(x)) * m.e(h.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    e=nn.Conv1d(1, 1, 3, padding=1),
    out=conv(8, 4),
)
case(
    "spatial attention",
    [],
    lambda m, x: m.out((h := m.a(x)) * m.s(torch.cat([h.mean(1, True), h.amax(1, True)], 1)).sigmoid()),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    s=conv(2, 1),
    out=conv(8, 4),
)
case(
    "global response over space",
    [8],
    lambda m, x: m.out((h := m.a(x)) * (h**2).sum((2, 3), keepdim=True).add(1e-6).sqrt() * m.g + h),
    a=conv(3, 8),
    g=parameter(1, 8, 1, 1),
    out=conv(8, 4),
)

# -- sharing, tying, parameters used directly -----------------------------------------------------------------

case(
    "conv called twice",
    [8],
    lambda m, x: m.out(m.b(torch.relu(m.b(m.a(x))))),
    a=conv(3, 8),
    b=conv(8, 8),
    out=conv(8, 4),
)
case(
    "conv called on two values",
    [8, 6],
    lambda m, x: m.out(m.b(m.a(x))) + m.out(m.b(m.c(x))),
    a=conv(3, 8),
    c=conv(3, 8),
    b=conv(8, 6),
    out=conv(6, 4),
)
case(
    "siamese",
    [8],
    lambda m, x, y: m.out(torch.relu(m.a(x)) - torch.relu(m.a(y))),
    (X, X + 1),
    a=conv(3, 8),
    out=conv(8, 4),
)
_shared = conv(8, 8)
case(
    "one module under two names",
    [8],
    lambda m, x: m.out(m.c(torch.relu(m.b(m.a(x))))),
    a=conv(3, 8),
    b=_shared,
    c=_shared,
    out=conv(8, 4),
)
_tied_a, _tied_b = nn.Linear(6, 8, bias=False), nn.Linear(6, 8)
_tied_b.weight = _tied_a.weight
case(
    "two layers with one weight",
    [8],
    lambda m, x: m.out(torch.relu(m.a(x)) + m.b(x)),
    ROWS,
    a=_tied_a,
    b=_tied_b,
    out=nn.Linear(8, 4),
)
case("tied autoencoder", [8], lambda m, x: F.linear(torch.relu(m.a(x)), m.a.weight.t()), ROWS, a=nn.Linear(6, 8))
case("tied autoencoder by .T and mm", [8], lambda m, x: torch.relu(m.a(x)) @ m.a.weight, ROWS, a=nn.Linear(6, 8))
case(
    "weights used directly",
    [8],
    lambda m, x: F.conv2d(torch.relu(F.conv2d(x, m.w, m.b, padding=1)), m.v),
    w=parameter(8, 3, 3, 3),
    b=parameter(8),
    v=parameter(4, 8, 3, 3),
)
case(
    "weights in matmul",
    [8],
    lambda m, x: torch.relu(x @ m.w + m.b) @ m.v,
    ROWS,
    w=parameter(6, 8),
    b=parameter(8),
    v=parameter(8, 4),
)
case(
    "weights in matmul, transposed",
    [8],
    lambda m, x: torch.relu(x.matmul(m.w.T)).mm(m.v.t()),
    ROWS,
    w=parameter(8, 6),
    v=parameter(4, 8),
)
case(
    "weights joined before use",
    [3, 5],
    lambda m, x: m.out(F.conv2d(x, torch.cat([m.w, m.v]), padding=1)),
    w=parameter(3, 3, 3, 3),
    v=parameter(5, 3, 3, 3),
    out=conv(8, 4),
)
case(
    "weights reshaped before use",
    [8],
    lambda m, x: m.out(F.conv2d(x, m.w.view(m.w.shape[0], 3, 3, 3))),
    w=parameter(8, 27),
    out=conv(8, 4),
)
case(
    "weight scaled per filter",
    [8],
    lambda m, x: m.out(F.conv2d(x, m.a.weight * m.g, m.a.bias)),
    a=conv(3, 8),
    g=parameter(8, 1, 1, 1),
    out=conv(8, 4),
)
case(
    "weight standardisation",
    [8],
    lambda m, x: m.out(F.conv2d(x, (w := m.a.weight) - w.mean((1, 2, 3), keepdim=True), m.a.bias)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "weight standardisation in the middle",
    [6],
    lambda m, x: m.out(
        F.conv2d(
            m.a(x), ((w := m.b.weight) - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-3)
        )
    ),
    kept={"a.weight[0]": "runs over it"},
    a=conv(3, 8),
    b=conv(8, 6),
    out=conv(6, 4),
)
case(
    "position embedding",
    [8],
    lambda m, x: m.out(torch.relu(m.a(x) + m.pos)),
    TOKENS,
    a=nn.Linear(6, 8),
    pos=parameter(1, 5, 8),
    out=nn.Linear(8, 4),
)
case(
    "position embedding, sliced",
    [8],
    lambda m, x: m.out(torch.relu(m.a(x) + m.pos[:, : x.shape[1]])),
    TOKENS,
    a=nn.Linear(6, 8),
    pos=parameter(1, 9, 8),
    out=nn.Linear(8, 4),
)
case(
    "class token",
    [8],
    lambda m, x: m.out(torch.cat([m.cls.expand(x.shape[0], -1, -1), m.a(x)], 1)[:, 0]),
    TOKENS,
    a=nn.Linear(6, 8),
    cls=parameter(1, 1, 8),
    out=nn.Linear(8, 4),
)
case(
    "class token that mixes",
    [8],
    lambda m, x: m.out(torch.relu(torch.cat([m.cls.expand(x.shape[0], -1, -1), m.a(x)], 1)).mean(1)),
    TOKENS,
    a=nn.Linear(6, 8),
    cls=parameter(1, 1, 8),
    out=nn.Linear(8, 4),
)
case(
    "position looked up by a range",
    [8],
    lambda m, i: m.out(m.e(i) + m.p(torch.arange(i.shape[1]))),
    IDS,
    e=nn.Embedding(5, 8),
    p=nn.Embedding(6, 8),
    out=nn.Linear(8, 4),
)
case(
    "buffers per channel",
    [8],
    lambda m, x: m.out((m.a(x) - m.mean) * m.scale),
    a=conv(3, 8),
    mean=nn.Buffer(torch.zeros(1, 8, 1, 1)),
    scale=nn.Buffer(torch.ones(1, 8, 1, 1)),
    out=conv(8, 4),
)
case(
    "non-persistent buffer",
    [8],
    lambda m, x: m.out(m.a(x) * m.s),
    a=conv(3, 8),
    s=nn.Buffer(torch.ones(8, 1, 1), persistent=False),
    out=conv(8, 4),
)
case(
    "plain tensor attribute", [8], lambda m, x: m.out(m.a(x) * m.s), a=conv(3, 8), s=torch.ones(8, 1, 1), out=conv(8, 4)
)
case(
    "plain tensor as a filter",
    [8],
    lambda m, x: m.out(F.conv2d(m.a(x), m.blur, groups=m.a.out_channels)),
    a=conv(3, 8),
    blur=torch.ones(8, 1, 3, 3),
    out=conv(8, 4),
)
case(
    "blur made for as many channels as there are",
    [8],
    lambda m, x: m.out(F.conv2d(h := m.a(x), m.blur.expand(h.shape[1], 1, 3, 3), groups=h.shape[1])),
    a=conv(3, 8),
    blur=nn.Buffer(torch.ones(1, 1, 3, 3)),
    out=conv(8, 4),
)
case(
    "blur repeated for as many channels as there are",
    [8],
    lambda m, x: m.out(F.conv2d(h := m.a(x), m.blur.repeat(h.shape[1], 1, 1, 1), groups=h.shape[1])),
    a=conv(3, 8),
    blur=nn.Buffer(torch.ones(1, 1, 3, 3)),
    out=conv(8, 4),
)
case(
    "blur repeated for eight channels",
    [],
    lambda m, x: m.out(F.conv2d(m.a(x), m.blur.repeat(8, 1, 1, 1), groups=8)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    blur=nn.Buffer(torch.ones(1, 1, 3, 3)),
    out=conv(8, 4),
)
case(
    "a sum divided by a repeated constant",
    [8],
    lambda m, x: m.out(((h := m.a(x)) / m.scale.repeat(1, h.shape[1], 1, 1)).sum(1, keepdim=True)),
    a=conv(3, 8),
    scale=nn.Buffer(torch.full((1, 1, 1, 1), 2.0)),
    out=conv(1, 4),
)
case(
    "a sum with a repeated constant",
    [],
    lambda m, x: m.out(((h := m.a(x)) + m.scale.repeat(1, h.shape[1], 1, 1)).sum(1, keepdim=True)),
    kept={"a.weight[0]": "sum runs over it"},
    a=conv(3, 8),
    scale=nn.Buffer(torch.full((1, 1, 1, 1), 2.0)),
    out=conv(1, 4),
)
case(
    "a new tensor of as many channels",
    [8],
    lambda m, x: m.out((h := m.a(x)) + torch.ones(h.shape[1], dtype=h.dtype)[:, None, None]),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "a new tensor of eight channels",
    [],
    lambda m, x: m.out((h := m.a(x)) + h.new_ones(8, 1, 1)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "zeros_like and full_like",
    [8],
    lambda m, x: m.out(torch.zeros_like(h := m.a(x)) + h * torch.full_like(h, 0.5)),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "a range over the channels",
    [],
    lambda m, x: m.out((h := m.a(x)) * torch.arange(h.shape[1])[:, None, None]),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "parameter list",
    [8],
    lambda m, x: m.out(m.a(x) * m.p[0] + m.p[1]),
    a=conv(3, 8),
    p=nn.ParameterList([parameter(8, 1, 1), parameter(8, 1, 1)]),
    out=conv(8, 4),
)
case(
    "parameter dict",
    [8],
    lambda m, x: m.out(m.a(x) * m.p["s"]),
    a=conv(3, 8),
    p=nn.ParameterDict({"s": parameter(8, 1, 1)}),
    out=conv(8, 4),
)
case(
    "a parameter and its mirror image",
    [4],
    lambda m, x: m.out(m.a(x) + m.p + m.p.flip(0)),
    a=conv(3, 8),
    p=parameter(8, 1, 1),
    out=conv(8, 4),
)
case(
    "outer product of parameters",
    [8],
    lambda m, x: m.out(F.linear(x, m.u[:, None] * m.v)),
    ROWS,
    u=parameter(8),
    v=parameter(6),
    out=nn.Linear(8, 4),
)
case(
    "low rank weight",
    [8],
    lambda m, x: m.out(F.linear(x, m.u @ m.v)),
    ROWS,
    u=parameter(8, 3),
    v=parameter(3, 6),
    out=nn.Linear(8, 4),
)
case(
    "low rank adapter",
    [2, 8],
    lambda m, x: m.out(m.a(x) + m.up(m.down(x))),
    ROWS,
    a=nn.Linear(6, 8),
    down=nn.Linear(6, 2, bias=False),
    up=nn.Linear(2, 8, bias=False),
    out=nn.Linear(8, 4),
)
case(
    "consumer with transformed weight",
    [],
    lambda m, x: F.linear(torch.sigmoid(m.a(x)), torch.exp(m.w)),
    ROWS,
    kept={"a.weight[0]": ""},
    a=nn.Linear(6, 8),
    w=parameter(4, 8),
)
case(
    "consumer with transformed weight of zeros",
    [8],
    lambda m, x: F.linear(torch.relu(m.a(x)), torch.exp(m.w)),
    ROWS,
    a=nn.Linear(6, 8),
    w=parameter(4, 8),
)
case(
    "consumer with squared weight",
    [8],
    lambda m, x: F.linear(torch.sigmoid(m.a(x)), m.w**2),
    ROWS,
    a=nn.Linear(6, 8),
    w=parameter(4, 8),
)

# -- sizes that modules keep in tuples and lists --------------------------------------------------------------


class Shaped(nn.Module):
    """A shape as an attribute, of channels and of something else."""

    def __init__(self, shape: Any, width: int, forward: Forward) -> None:
        super().__init__()
        self.shape, self.compute = shape, forward
        self.a, self.out = nn.Linear(6, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.compute(self, self.a(x)))


def _by_heads(x: Tensor) -> Tensor:
    """Something that keeps each head whole."""
    return x.softmax(2)


for name, units, shape, forward in [
    ("view by heads", [8], (8, 4), lambda m, h: _by_heads(h.view(len(h), *m.shape)).view(len(h), -1)),
    ("view by heads, in a list", [8], [8, 4], lambda m, h: _by_heads(h.view(len(h), *m.shape)).flatten(1)),
    ("view by heads, indexed", [8], (8, 4), lambda m, h: _by_heads(h.view(-1, m.shape[0], m.shape[1])).flatten(1)),
    ("unflatten", [8], (8, 4), lambda m, h: _by_heads(h.unflatten(1, m.shape)).flatten(1)),
    ("split", [8], (3, 5), lambda m, h: torch.cat([p.relu() for p in h.split(m.shape, 1)], 1)),
    ("a constant", [8], [1, 8], lambda m, h: h + torch.ones(m.shape, dtype=h.dtype).cumsum(0)),
    ("not of channels", [8], (2, 2), lambda m, h: h.view(*m.shape, -1).view(4, -1)),
    ("too small to tell from another", [], (4, 8), lambda m, h: h.view(m.shape).softmax(1) * m.shape[1]),
    (
        "both numbers",
        [8],
        (8, 4),
        lambda m, h: _by_heads(h.view(len(h), *m.shape)).view(len(h), m.shape[0] * m.shape[1]),
    ),
]:
    width = {(3, 5): 8, (8, 4): 32}.get(tuple(shape), 8)
    model_case(f"a shape in an attribute: {name}", units, Shaped(shape, width, forward), ROWS)

# -- values without elements ----------------------------------------------------------------------------------


def _found(x: Tensor) -> Tensor:
    """The examples that are large: none of those traced."""
    return x.amax((1, 2, 3)) > 99


for name, empty, why in [
    ("a slice", lambda h, x: h[:0], "output"),
    ("permuted", lambda h, x: h[:0].permute(0, 2, 3, 1), "output"),
    ("in parts", lambda h, x: torch.stack(h[:0].split([3, 5], 1)[1].unbind(1)), "no elements"),
    ("the second axis", lambda h, x: h[:, :, :0].transpose(1, 3), "output"),
    ("flattened", lambda h, x: h[:0].flatten(1), "no elements"),
    ("a mask", lambda h, x: h[_found(x)], "output"),
    ("a mask, permuted", lambda h, x: h[_found(x)].permute(0, 2, 3, 1), "output"),
    ("a value of that size", lambda h, x: x.new_zeros(0, 3, h[:0].shape[1]).permute(0, 2, 1), "output"),
    ("a value of a mask's size", lambda h, x: torch.zeros((len(x[_found(x)]), 3, h[_found(x)].shape[1])), "output"),
]:
    case(
        f"no elements: {name}",
        [],
        lambda m, x: (m.out(h := m.a(x)), m.empty(h, x)),
        kept={"a.weight[0]": why},
        a=conv(3, 8),
        out=conv(8, 4),
        empty=empty,
    )
case(
    "no elements: a layer of its own",
    [8],
    lambda m, x: (m.out(m.a(x)), m.b(x[:0]).flatten(2).mT),
    kept={"b.weight[0]": "no elements"},
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)
case(
    "no elements, and none of the channels either",
    [8],
    lambda m, x: (m.out(h := m.a(x)), h[:, :0].flatten(1), h[:, 8:]),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "an empty batch next to a full one",
    [8],
    lambda m, x: m.out(torch.cat([m.a(x[:0]), m.a(x)])),
    a=conv(3, 8),
    out=conv(8, 4),
)

# -- slices that a removal would leave empty ------------------------------------------------------------------


def _product_with_slice(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)[:, 2:4].flatten(2)
    return m.out(torch.bmm(torch.bmm(x.flatten(2), h.mT), h).unflatten(2, x.shape[2:]))


case(
    "a slice of two channels, multiplied",
    [],
    _product_with_slice,
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    out=conv(3, 4),
)

# -- computed, and not used -----------------------------------------------------------------------------------

case(
    "a layer whose result is thrown away",
    [5, 8],
    lambda m, x: (m.aux(h := m.a(x)), m.out(h))[1],
    a=conv(3, 8),
    aux=conv(8, 5),
    out=conv(8, 4),
)
case(
    "a batch norm whose result is thrown away",
    [],
    lambda m, x: (m.n((h := m.a(x)).amax(1, keepdim=True)), m.out(h))[1],
    kept={"a.weight[0]": "amax"},
    a=conv(3, 8),
    n=nn.BatchNorm2d(1),
    out=conv(8, 4),
)

# -- what is removed is zero, or is not -----------------------------------------------------------------------

case(
    "sum over channels of zeros",
    [8],
    lambda m, x: m.out(torch.relu(m.a(x)).sum(1, keepdim=True)),
    a=conv(3, 8),
    out=conv(1, 4),
)
case(
    "sum over channels of halves",
    [],
    lambda m, x: m.out(torch.sigmoid(m.a(x)).sum(1, keepdim=True)),
    kept={"a.weight[0]": "sum"},
    a=conv(3, 8),
    out=conv(1, 4),
)
for name, function in {
    "2 ** x": lambda h: 2**h,
    "torch.pow(2, x)": lambda h: torch.pow(2, h),
    "1 - x": lambda h: 1 - h,
    "torch.sub(1, x)": lambda h: torch.sub(1.0, h),
    "clamp(min=1)": lambda h: h.clamp(min=1),
    "max with a sigmoid": lambda h: torch.max(h, torch.sigmoid(h)),
    "maximum with a sigmoid": lambda h: torch.maximum(h, torch.sigmoid(h)),
    "min with a cosine minus two": lambda h: torch.min(h, torch.cos(h) - 2),
    "x ** 0": lambda h: h**0,
    "masked_fill": lambda h: h.masked_fill(h == 0, 1.0),
    "where": lambda h: torch.where(h > 0, h, 1.0),
    "batch norm of a sigmoid without affine": lambda h: F.batch_norm(
        torch.sigmoid(h), torch.zeros(h.shape[1], dtype=h.dtype), torch.ones(h.shape[1], dtype=h.dtype)
    ),
    "padded with ones": lambda h: F.pad(h, (1, 1), value=1.0),
    "padded with ones by mode": lambda h: F.pad(h, (1, 1), "constant", 1.0),
    "in-place sigmoid": lambda h: h.sigmoid_(),
    "in-place sigmoid of a view": lambda h: (h.view(h.shape).sigmoid_(), h)[1],
    "in-place add to a view": lambda h: (h[:, :, 1:].add_(1.0), h)[1],
    "in-place fill": lambda h: h.clone().fill_(2.0),
    "ones_like": lambda h: h + torch.ones_like(h),
    "threshold": lambda h: F.threshold(h, 0.1, 3.0),
    "logical not": lambda h: (~(h > 0)).to(h.dtype),
    "comparison": lambda h: (h >= 0).to(h.dtype),
    "softmax over space": lambda h: h.softmax(3),
    "logsumexp over space": lambda h: h.logsumexp(3, keepdim=True),
    "product over space": lambda h: (h + 1).prod(3, keepdim=True),
    "cosine of a pool": lambda h: F.avg_pool2d(h, 2).cos(),
    "addcmul with ones": lambda h: torch.addcmul(torch.ones_like(h), h, h),
    "lerp to ones": lambda h: h.lerp(torch.ones_like(h), 0.5),
    "dropout of a sigmoid": lambda h: F.dropout(h.sigmoid(), 0.0),
    "mul by a wider value": lambda h: h.mean(1, keepdim=True) * 0 + h.sigmoid(),
    "erfc": lambda h: h.erfc(),
    "hypot": lambda h: torch.hypot(h, torch.ones_like(h)),
    "copysign": lambda h: torch.copysign(torch.ones_like(h), h),
    "divided by a sum": lambda h: torch.sigmoid(h) / (h + 3),
    "index add": lambda h: h.index_add(3, torch.tensor([0]), torch.ones_like(h[..., :1])),
    "log1p of exp": lambda h: torch.log1p(torch.exp(h)),
    "rsub": lambda h: torch.rsub(h, 1.0),
    "repeat of a cosine": lambda h: h.cos().repeat(1, 2, 1, 1),
    "embedding of its sign": lambda h: F.embedding((h > 0).long(), torch.tensor([[1.0], [3.0]], dtype=h.dtype))[..., 0],
}.items():
    case(
        f"sum over channels after {name}",
        [],
        lambda m, x: m.out(m.f(m.a(x)).sum(1, keepdim=True)),
        kept={"a.weight[0]": ""},
        a=conv(3, 8),
        f=function,
        out=conv(1, 4),
    )
case(
    "embedding of a sign",
    [],
    lambda m, x: m.out(F.embedding((m.a(x) > 0).long(), m.e.weight).sum(-1)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    e=nn.Embedding(2, 1),
    out=conv(8, 4),
)
case(
    "sum over channels with a computed filter",
    [],
    lambda m, x: m.out(F.conv2d(x, torch.sigmoid(m.w)).sum(1, keepdim=True)),
    kept={"w[0]": ""},
    w=parameter(8, 3, 3, 3),
    out=conv(1, 4),
)
case(
    "sum over channels with a computed bias",
    [],
    lambda m, x: m.out(F.linear(x, m.w, torch.cos(m.b)).sum(1, keepdim=True)),
    ROWS,
    kept={"w[0]": ""},
    w=parameter(8, 6),
    b=parameter(8),
    out=nn.Linear(1, 4),
)
case(
    "sum over channels of a statistics norm",
    [],
    lambda m, x: m.out(m.n(torch.sigmoid(m.a(x))).sum(1, keepdim=True)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    n=nn.BatchNorm2d(8, affine=False),
    out=conv(1, 4),
)
case(
    "sum over channels of a group norm without affine",
    [],
    lambda m, x: m.out(m.n(m.a(x)).sum(1, keepdim=True)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    n=nn.GroupNorm(2, 8, affine=False),
    out=conv(1, 4),
)
case(
    "sum over channels of a layer norm without affine",
    [],
    lambda m, x: m.out(torch.relu(m.n(m.a(x).flatten(2).mT)).sum(2)),
    kept={"a.weight[0]": ""},
    a=conv(3, 8),
    n=nn.LayerNorm(8, elementwise_affine=False),
    out=nn.Linear(64, 4),
)
case(
    "sum over channels of a group norm with affine",
    [4],
    lambda m, x: m.out(m.n(m.a(x)).sum(1, keepdim=True)),
    a=conv(3, 8),
    n=nn.GroupNorm(2, 8),
    out=conv(1, 4),
)
case(
    "group norm without affine before a conv",
    [4],
    through,
    a=conv(3, 8),
    f=nn.GroupNorm(2, 8, affine=False),
    out=conv(8, 4),
)
case(
    "sum over channels of a norm with affine",
    [8],
    lambda m, x: m.out(m.n(torch.sigmoid(m.a(x))).sum(1, keepdim=True)),
    a=conv(3, 8),
    n=nn.BatchNorm2d(8),
    out=conv(1, 4),
)
case(
    "sum over channels of gated sigmoids",
    [8],
    lambda m, x: m.out((m.a(x) * torch.sigmoid(m.b(x))).sum(1, keepdim=True)),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(1, 4),
)
case(
    "product of two values over channels",
    [8],
    lambda m, x: m.out((m.a(x).flatten(2).transpose(1, 2) @ m.b(x).flatten(2)).sum(2)),
    a=conv(3, 8),
    b=conv(3, 8),
    out=nn.Linear(64, 4),
)
case(
    "product of two sigmoids over channels",
    [],
    lambda m, x: m.out((m.a(x).flatten(2).sigmoid().mT @ m.b(x).flatten(2).sigmoid()).sum(2)),
    kept={"a.weight[0]": "matmul"},
    a=conv(3, 8),
    b=conv(3, 8),
    out=nn.Linear(64, 4),
)

# -- in-place operations --------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Statements that a lambda cannot hold: `statements(self, h, g)` return the value that goes on."""

    def __init__(self, statements: Forward, width: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 8), conv(3, 8), conv(width, 4)
        self.statements = statements

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.statements(self, self.a(x), self.b(x)))


def _plus_equals(m: Any, h: Tensor, g: Tensor) -> Tensor:
    h += g
    h *= 2
    return h.relu_()


def _set_space(m: Any, h: Tensor, g: Tensor) -> Tensor:
    h[:, :, 0] = 0.0
    return h + g


def _set_channels(m: Any, h: Tensor, g: Tensor) -> Tensor:
    h[:, :4] = g[:, 4:]
    return h


def _temporal_shift(m: Any, h: Tensor, g: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, :2, 1:], out[:, 2:, :-1] = h[:, :2, :-1], h[:, 2:, 1:]
    return out + g


def _view_changed(m: Any, h: Tensor, g: Tensor) -> Tensor:
    rows = h.flatten(2)
    rows += g.flatten(2)
    return h


def _halves_changed(m: Any, h: Tensor, g: Tensor) -> Tensor:
    first, second = h.chunk(2, 1)
    first = first.clone()
    first += second
    return torch.cat([first, second], 1) * g


def _slice_changed(m: Any, h: Tensor, g: Tensor) -> Tensor:
    h[:, :4].mul_(g[:, :4])
    return h


def _copied(m: Any, h: Tensor, g: Tensor) -> Tensor:
    out = torch.empty(*h.shape, dtype=h.dtype)
    out.copy_(h)
    return out.add_(g, alpha=0.5)


def _copied_to_eight(m: Any, h: Tensor, g: Tensor) -> Tensor:
    out = torch.empty(h.shape[0], 8, 8, 8, dtype=h.dtype)
    out.copy_(h)
    return out + g


def _out_argument(m: Any, h: Tensor, g: Tensor) -> Tensor:
    with torch.no_grad():
        out = torch.empty_like(h)
        torch.add(h, g, out=out)
    return out


def _without_gradient(m: Any, h: Tensor, g: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(g)
    return h * gate


def _swapped(m: Any, h: Tensor, g: Tensor) -> Tensor:
    half = h.shape[1] // 2
    first = h[:, :half].clone()
    h[:, :half] = h[:, half:]
    h[:, half:] = first
    return h + g


def _masked_write(m: Any, h: Tensor, g: Tensor) -> Tensor:
    h[h < 0] = 0.1
    return h + g


def _loop_by_channels(m: Any, h: Tensor, g: Tensor) -> Tensor:
    for _ in range(h.shape[1] // 4):
        h = torch.tanh(h) + g
    return h


def _table_by_channels(m: Any, h: Tensor, g: Tensor) -> Tensor:
    return h * [1.0, 2.0, 3.0][h.shape[1] // 4] + g


def _name_by_channels(m: Any, h: Tensor, g: Tensor) -> Tensor:
    return h * {"width 8": 2.0}.get(f"width {h.shape[1]}", 3.0) + g


def _dictionary_by_channels(m: Any, h: Tensor, g: Tensor) -> Tensor:
    return h * {8: 2.0, 4: 3.0}[h.shape[1]] + g


def _list_of_channels(m: Any, h: Tensor, g: Tensor) -> Tensor:
    return h * torch.tensor([0.5] * h.shape[1], dtype=h.dtype)[:, None, None] + g


ABOVE = {"a.weight[0]": "", "b.weight[0]": ""}
for name, units, statements, kept in (
    ("h += g", [8], _plus_equals, {}),
    ("h[:, :, 0] = 0", [8], _set_space, {}),
    ("h[:, :4] = g[:, 4:]", [], _set_channels, ABOVE),
    ("temporal shift", [], _temporal_shift, ABOVE),
    ("in-place on a flattened view", [8], _view_changed, {}),
    ("in-place on a chunk", [4], _halves_changed, {}),
    ("in-place on a slice", [], _slice_changed, ABOVE),
    ("copy_", [8], _copied, {}),
    ("copy_ to eight channels", [], _copied_to_eight, ABOVE),
    ("out=", [8], _out_argument, {}),
    ("no_grad", [8], _without_gradient, {}),
    ("halves swapped in place", [4], _swapped, {}),
    ("written by a mask", [8], _masked_write, {}),
    ("a text made from channels", [], _name_by_channels, ABOVE),
    ("a dictionary entry by channels", [], _dictionary_by_channels, ABOVE),
    ("a list as long as the channels", [], _list_of_channels, ABOVE),
    ("detach", [8], lambda m, h, g: h * torch.sigmoid(g).detach(), {}),
    (".data", [8], lambda m, h, g: h * torch.sigmoid(g).data, {}),
    ("inplace=True", [8], lambda m, h, g: F.relu(h, inplace=True) + F.leaky_relu_(g), {}),
    ("h.shape[1] == 8", [], lambda m, h, g: h + g if h.shape[1] == 8 else h - g, ABOVE),
    ("h.shape[1] > 4", [], lambda m, h, g: h + g if h.shape[1] > 4 else h - g, ABOVE),
    ("h.shape == g.shape", [8], lambda m, h, g: h + g if h.shape == g.shape else h - g, {}),
    ("h.size() != g.size()", [8], lambda m, h, g: h - g if h.size() != g.size() else h + g, {}),
    ("h.shape[1] == self.a.out_channels", [8], lambda m, h, g: h + g if h.shape[1] == m.a.out_channels else h - g, {}),
    ("h / h.shape[1]", [], lambda m, h, g: h / h.shape[1] + g, ABOVE),
    ("h * h.size(1) ** -0.5", [], lambda m, h, g: h * h.size(1) ** -0.5 + g, ABOVE),
    ("math.sqrt(h.size(1))", [], lambda m, h, g: h / math.sqrt(h.size(1)) + g, ABOVE),
    ("math.log(h.size(1))", [], lambda m, h, g: h / math.log(h.size(1)) + g, ABOVE),
    ("math.log2(h.size(1) * 2)", [], lambda m, h, g: h / math.log2(h.size(1) * 2) + g, ABOVE),
    ("math.gcd(h.size(1), 2)", [], lambda m, h, g: h / math.gcd(h.size(1), 12) + g, ABOVE),
    ("math.log of another size", [8], lambda m, h, g: h / math.log(h.size(2)) + g, {}),
    ("h / h.sum over space", [], lambda m, h, g: h / h.relu().sum((2, 3), keepdim=True) + g, ABOVE),
    ("h / h.sum over space and a little", [8], lambda m, h, g: h / (h.relu().sum((2, 3), keepdim=True) + 1) + g, {}),
    ("rsqrt of squares", [], lambda m, h, g: h * h.square().sum((2, 3), keepdim=True).rsqrt() + g, ABOVE),
    ("a negative power", [], lambda m, h, g: h * h.square().sum((2, 3), keepdim=True) ** -0.5 + g, ABOVE),
    ("the log of an absolute value", [], lambda m, h, g: h.abs().log() + g, ABOVE),
    ("the log of one more", [8], lambda m, h, g: h.abs().log1p() + g, {}),
    ("pow(h.size(1), 2, 7)", [], lambda m, h, g: h * pow(h.size(1), 2, 7) + g, ABOVE),
    ("h.size(1).numerator", [], lambda m, h, g: h * h.size(1).numerator + g, ABOVE),
    ("bit_length", [], lambda m, h, g: h / h.size(1).bit_length() + g, ABOVE),
    ("torch.as_tensor(h.shape[1])", [], lambda m, h, g: h / torch.as_tensor(h.shape[1]) + g, ABOVE),
    ("float(h.shape[1])", [], lambda m, h, g: h / float(h.shape[1]) + g, ABOVE),
    ("h.numel()", [], lambda m, h, g: h / h.numel() + g, ABOVE),
    ("np.sqrt(h.shape[1])", [], lambda m, h, g: h / float(np.sqrt(h.shape[1])) + g, ABOVE),
    ("torch.tensor(h.shape[1])", [], lambda m, h, g: h / torch.tensor(h.shape[1], dtype=h.dtype) + g, ABOVE),
    ("torch.full of the width", [], lambda m, h, g: h / torch.full((1,), h.shape[1], dtype=h.dtype) + g, ABOVE),
    ("h / len(h[0])", [], lambda m, h, g: h / len(h[0]) + g, ABOVE),
    ("min(h.shape[1], 100)", [8], lambda m, h, g: h[:, : min(h.shape[1], 100)] + g, {}),
    ("cdist", [8], lambda m, h, g: h + torch.cdist(g, g), {}),
    (
        "an operation without a rule",
        [],
        lambda m, h, g: torch.renorm(h, 2, 0, 1.0) + g,
        {"a.weight[0]": "has no rule", "b.weight[0]": ""},
    ),
    ("numpy round trip", [], lambda m, h, g: h + torch.from_numpy(g.detach().numpy() * 2), ABOVE),
    ("tolist", [], lambda m, h, g: h + torch.tensor(g.tolist(), dtype=h.dtype), ABOVE),
    ("item of a sum", [8], lambda m, h, g: h + g.sum().item() + g, {}),
    ("item of a mean", [], lambda m, h, g: h + g.mean().item() + g, ABOVE),
    ("numpy to another layer", [], lambda m, h, g: h + g + m.a(torch.from_numpy(h.detach().numpy())[:, :3]), ABOVE),
    ("list to another layer", [], lambda m, h, g: h + g + m.a(torch.tensor(h.tolist(), dtype=h.dtype)[:, :3]), ABOVE),
    ("float(tensor)", [], lambda m, h, g: h * float(h.amax()) + g, ABOVE),
    ("int(tensor)", [], lambda m, h, g: h * int(h.abs().amax() * 100) + g, ABOVE),
    ("tensor as a condition", [], lambda m, h, g: h + (g if (h[0, 0, 0, 0] > h.mean()) else -g), ABOVE),
    ("isnan().any() as a condition", [8], lambda m, h, g: h + g if not h.isnan().any() else g, {}),
    ("isfinite().all() as a condition", [8], lambda m, h, g: h + g if torch.isfinite(h).all() else g, {}),
    ("an equation as a condition", [8], lambda m, h, g: h + g if (h == h + 0).all() else g, {}),
    (
        "a condition that zeros do not meet",
        [8],
        lambda m, h, g: g if (h.abs() > 1e-9).all() else h + g,
        {"a.weight[0]": "all runs over it"},
    ),
    ("an unread value", [8], lambda m, h, g: (h.softmax(1), h + g)[1], {}),
    ("data-dependent branch", [], lambda m, h, g: h + g if g.mean() > -100 else h - g, ABOVE),
):
    model_case(name, units, InPlace(statements), X, kept)

# Python does not say that it reads these sizes: `range` and subscripts take any integer as it is. The trace cannot see
# it, so verification must.
UNSEEN = [
    Case("as many rounds as channels", [], InPlace(_loop_by_channels), X, {}),
    Case("a list entry by channels", [], InPlace(_table_by_channels), X, {}),
]


# -- calls that cannot be seen into ---------------------------------------------------------------------------


class Double(torch.autograd.Function):
    """2 x, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class SaveSwish(torch.autograd.Function):
    """The memory-efficient swish of many vision models."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s * (1 + x * (1 - s)))


class Through(torch.autograd.Function):
    """Straight-through sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Same(torch.autograd.Function):
    """Gradient reversal: the value is returned as it came."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


for function in (Double, SaveSwish, Through, Same):
    case(
        f"custom autograd function {function.__name__}",
        [8],
        lambda m, x: m.out(m.f.apply(m.a(x))),
        a=conv(3, 8),
        f=function,
        out=conv(8, 4),
    )


class MyConv(nn.Conv2d):
    """A conv with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 0.5, None, padding=1) + self.bias[:, None, None]


class Blocks(nn.Module):
    """Blocks from a list, chosen by a stride that happens to be a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stride = 1
        self.stem = conv(3, 8)
        self.blocks = nn.ModuleList(
            [nn.Sequential(conv(8, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 8)) for _ in range(3)]
        )
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 4), "b": nn.Linear(8, 2)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x) if self.stride == 1 else block(x)
        x = x.mean((2, 3))
        return {name: head(x) for name, head in self.heads.items()}


class Auxiliary(nn.Module):
    """A second output in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out, self.aux = conv(3, 8), conv(8, 8), conv(8, 4), conv(8, 5)

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.a(x))
        g = torch.relu(self.b(h))
        if self.training:
            return self.out(g), self.aux(h + g)
        return self.out(g)


class Norms(nn.Module):
    """Batch norm as old code wrote it, with its own running average."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = conv(3, 8), conv(8, 4)
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.training:
            self.average.mul_(0.9).add_(h.mean((0, 2, 3)).detach() * 0.1)
        return self.out(h - self.average.view(1, -1, 1, 1))


model_case("blocks in lists and dicts", [6, 6, 6, 8], Blocks())
model_case("auxiliary head in train mode", [8], Auxiliary())
model_case("running average by hand", [8], Norms())
case("a conv subclass with its own forward", [8], chain, a=MyConv(3, 8, 3, padding=1), out=MyConv(8, 4, 3, padding=1))
case(
    "checkpointed",
    [8, 8],
    lambda m, x: m.out(checkpoint(m.b, torch.relu(m.a(x)), use_reentrant=False)),
    a=conv(3, 8),
    b=conv(8, 8),
    out=conv(8, 4),
)
case(
    "sequential in sequential",
    [6, 8],
    lambda m, x: m.f(x),
    f=nn.Sequential(conv(3, 8), nn.Sequential(nn.ReLU(), conv(8, 6)), nn.BatchNorm2d(6), conv(6, 4)),
)

# -- outputs and inputs ---------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "features logits")


@dataclass
class Output:
    """As transformers return."""

    logits: Tensor
    features: Tensor | None = None


FEATURES = {"a.weight[0]": "output"}
for name, pack in {
    "a tuple": lambda h, y: (y, h),
    "a list": lambda h, y: [y, [h]],
    "a dict": lambda h, y: {"logits": y, "inner": {"features": h}},
    "a namedtuple": lambda h, y: Pair(h, y),
    "a dataclass": lambda h, y: Output(y, h),
}.items():
    case(
        f"features in {name}",
        [],
        lambda m, x: m.pack(h := m.a(x), m.out(h)),
        kept=FEATURES,
        a=conv(3, 8),
        out=conv(8, 4),
        pack=pack,
    )
    case(
        f"logits in {name}",
        [8],
        lambda m, x: m.pack(y := m.out(m.a(x)), y * 2),
        a=conv(3, 8),
        out=conv(8, 4),
        pack=pack,
    )
case("the first layer is the output", [], lambda m, x: m.a(x), kept=FEATURES, a=conv(3, 8))
case(
    "an output of all channels' mean",
    [8],
    lambda m, x: (m.out(h := m.a(x)), h.flatten(2).mean(2)[:, :0]),
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "two inputs",
    [8, 8],
    lambda m, x, y: m.out(torch.cat([m.a(x), m.b(y)], 1)),
    (X, X * 2),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(16, 4),
)
case(
    "keyword inputs",
    [8],
    lambda m, *, left, right=None: m.out(m.a(left) + m.b(right)),
    {"left": X, "right": X * 2},
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)
case("a list as input", [8], lambda m, xs: m.out(sum(m.a(x) for x in xs)), ([X, X * 2],), a=conv(3, 8), out=conv(8, 4))
case(
    "an optional input that is not given",
    [8],
    lambda m, x, y=None: m.out(m.a(x) if y is None else m.b(y)),
    kept={"b.weight": "no traced call"},
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)
case("the input is an output too", [8], lambda m, x: (x, m.out(m.a(x))), a=conv(3, 8), out=conv(8, 4))
case(
    "an input that meets channels",
    [],
    lambda m, x, g: m.out(m.a(x) * g),
    (X, image(2, 8, 1, 1)),
    kept={"a.weight[0]": "input"},
    a=conv(3, 8),
    out=conv(8, 4),
)
case(
    "a mask as input",
    [8],
    lambda m, x, mask: m.out(m.a(x) * mask),
    (X, image(2, 1, 8, 8)),
    a=conv(3, 8),
    out=conv(8, 4),
)


def _frozen() -> nn.Conv2d:
    layer = conv(3, 8)
    layer.weight.requires_grad_(False)
    return layer


case("frozen parameters", [8], chain, a=_frozen(), out=conv(8, 4))


def hooked() -> nn.Module:
    """Hooks that change values: a gate behind `a`, a scale before `out`."""
    model = Net(chain, a=conv(3, 8), out=conv(8, 4))
    model.a.register_forward_hook(lambda module, args, y: y * torch.sigmoid(y))
    model.out.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return model


model_case("hooks that compute", [8], hooked())


@torch.no_grad()
def _no_grad_forward(m: Any, x: Tensor) -> Tensor:
    return chain(m, x)


case("a forward without gradients", [8], _no_grad_forward, a=conv(3, 8), out=conv(8, 4))


def _filled(h: Tensor, place: Tensor, rows: Tensor) -> Tensor:
    h = h.clone()
    h[place] = rows
    return h


def _checked(h: Tensor, place: Tensor, rows: Tensor) -> Tensor:
    if place.sum() * h.shape[-1] != rows.numel():
        raise ValueError(f"{rows.shape[0]} rows of {rows.shape[1]}")
    if not torch.all(place.sum() + 1 > rows.shape[0]) or int(place.sum()) < 1:
        raise ValueError
    return h.masked_scatter(place[..., None], rows)


def _odd(ids: Tensor) -> Tensor:
    """Two places in every row, whatever is there."""
    return (torch.arange(5) % 2 == 1).expand(len(ids), -1)


SEEN = (torch.tensor([[1, 3, 3, 4, 0], [3, 2, 3, 2, 1]]), image(2, 2, 6))
for name, units, merged in [
    ("masked_scatter", [8], lambda h, place, rows: h.masked_scatter(place[..., None], rows)),
    ("masked_scatter, expanded", [8], lambda h, place, rows: h.masked_scatter(place[..., None].expand_as(h), rows)),
    ("masked_scatter, in place", [8], lambda h, place, rows: h.clone().masked_scatter_(place[..., None], rows)),
    ("masked_scatter, by channels", [], lambda h, place, rows: h.masked_scatter(h > 1, h.flatten(0, 1)) + rows.sum(0)),
    ("setitem", [8], _filled),
    ("setitem, positions", [8], lambda h, place, rows: _filled(h, torch.tensor([[1], [0]]), rows[:1, None])),
    ("setitem, between", [8], lambda h, place, rows: _filled(h, (slice(None), torch.tensor([4, 0])), rows[:2])),
    ("setitem, a number", [8], lambda h, place, rows: _filled(h, place, 0.5) + rows.sum(0)),
    ("setitem, by channels", [8], lambda h, place, rows: _filled(h, h > 1, 0.5) + rows.sum(0)),
    ("setitem, positions and a number", [], lambda h, place, rows: _filled(h, (torch.tensor([1, 0]), 2), rows[:2])),
    ("after a check", [8], _checked),
    ("a count that is a value", [], lambda h, place, rows: h * (place.sum() * h.shape[-1]) + rows.sum(0)),
]:
    case(
        f"rows where a mask says so: {name}",
        units,
        lambda m, ids, picture: m.out(m.merge(m.e(ids), _odd(ids), m.p(picture).flatten(0, 1))),
        SEEN,
        {} if units else {"e.weight[1]": ""},
        e=nn.Embedding(10, 8),
        p=nn.Linear(6, 8),
        out=nn.Linear(8, 4),
        merge=merged,
    )


def _shown(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if not f"{h.shape[1]} channels":
        raise ValueError
    return m.out(h)


case("a message with the number of channels", [8], _shown, a=conv(3, 8), out=conv(8, 4))
case(
    "a module found by the number of channels",
    [],
    lambda m, x: m.out(m.norms[f"of {(h := m.a(x)).shape[1]}"](h)),
    kept={"a.weight[0]": "Python looks at its size"},
    a=conv(3, 8),
    norms=nn.ModuleDict({"of 8": nn.BatchNorm2d(8)}),
    out=conv(8, 4),
)
case(
    "a view behind a layer norm of what was transposed",
    [8],
    lambda m, x: m.out(m.n(m.a(x).flatten(2).mT).view(2, -1)),
    a=conv(3, 8),
    n=nn.LayerNorm(8),
    out=nn.Linear(512, 4),
)


def _split(m: Any, h: Tensor) -> Tensor:
    inner, states = h.split([m.width, m.groups * m.states], 1)
    return m.out(inner) + m.other(states)  # type: ignore[no-any-return]


case(
    "a split by a product of attributes",
    [8, 4],
    lambda m, x: _split(m, m.a(x)),
    a=conv(3, 12),
    width=8,
    groups=1,
    states=4,
    out=conv(8, 4),
    other=conv(4, 4),
)


def _states(m: Any, x: Tensor) -> Tensor:
    h, states = m.a(x), m.s(x)[:, None]
    states = states.repeat_interleave(h.shape[1] // states.shape[1], 1, output_size=h.shape[1])
    return m.out(h * (states * m.scale).sum(2))  # type: ignore[no-any-return]


case(
    "states repeated for every head",
    [4, 8],
    _states,
    a=conv(3, 8),
    s=conv(3, 4, bias=False),
    scale=nn.Parameter(torch.randn(4, 1, 1)),
    out=conv(8, 4),
)


def _two_views(m: Any, x: Tensor, width: int) -> Tensor:
    first, second = (part(x.flatten(2).mT).view(2, 64, width) for part in (m.a, m.b))
    return m.out(relu(first)) + m.other(F.gelu(second))  # type: ignore[no-any-return]


case(
    "one size for: two layers viewed by one attribute",
    [8],
    lambda m, x: _two_views(m, x, m.width),
    a=nn.Linear(3, 8),
    b=nn.Linear(3, 8),
    width=8,
    out=nn.Linear(8, 4),
    other=nn.Linear(8, 4),
)
case(
    "one size for: two layers viewed by what the next one takes",
    [8],
    lambda m, x: _two_views(m, x, m.out.in_features),
    a=nn.Linear(3, 8),
    b=nn.Linear(3, 8),
    out=nn.Linear(8, 4),
    other=nn.Linear(8, 4),
)


def _two_attentions(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).flatten(2).mT
    for qkv, out in ((m.p, m.q), (m.r, m.s)):
        q, k, v = qkv(h).view(2, 64, 3, m.heads, 4).permute(2, 0, 3, 1, 4)
        h = h + out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 64, 4 * m.heads))
    return m.out(h)  # type: ignore[no-any-return]


case(
    "one size for: the heads of two attentions",
    [6, 4],
    _two_attentions,
    a=conv(3, 6),
    p=nn.Linear(6, 48),
    q=nn.Linear(16, 6),
    r=nn.Linear(6, 48),
    s=nn.Linear(16, 6),
    heads=4,
    out=nn.Linear(6, 4),
)


def _parts(m: Any, x: Tensor) -> Tensor:
    first, second, rest = m.a(x).split([m.width, m.width, 2 * m.width], 1)
    return m.out(relu(first)) + m.other(torch.cat([second, rest], 1))  # type: ignore[no-any-return]


case(
    "one size for: the parts of a split",
    [4],
    _parts,
    a=conv(3, 16),
    width=4,
    out=conv(4, 4),
    other=conv(12, 4),
)


def _moved_in_time(m: Any, x: Tensor, shift: Callable[[Tensor, int], Tensor]) -> Tensor:
    h = m.a(x.transpose(0, 1))
    n, c, height, width = h.shape
    return m.out(shift(h.view(n // 3, 3, c, height, width), c // 4).view(n, c, height, width))  # type: ignore


def _written_shift(h: Tensor, fold: int) -> Tensor:
    """Lin, Gan, Han, TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019."""
    out = torch.zeros_like(h)
    out[:, :-1, :fold] = h[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = h[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = h[:, :, 2 * fold :]
    return out


def _joined_shift(h: Tensor, fold: int) -> Tensor:
    ahead, behind = F.pad(h[:, 1:, :fold], (0,) * 7 + (1,)), F.pad(h[:, :-1, fold : 2 * fold], (0,) * 6 + (1, 0))
    return torch.cat([ahead, behind, h[:, :, 2 * fold :]], 2)


for name, units, shift in [
    ("written by slices", [2], _written_shift),
    ("joined again", [2], _joined_shift),
    ("of a width that is written", [], lambda h, fold: _written_shift(h, 2)),
]:
    case(
        f"channels shifted in time, {name}",
        units,
        lambda m, x: _moved_in_time(m, x, m.shift),
        image(1, 3, 8, 8),
        {} if units else {"a.weight[0]": "written into by position"},
        a=conv(1, 8),
        out=conv(8, 4),
        shift=shift,
    )


def _written_before(m: Any, x: Tensor) -> Tensor:
    h, rest = m.a(x), m.b(x)
    out = rest.clone()
    out[:, : m.width] = h
    return m.out(out)  # type: ignore[no-any-return]


case(
    "written up to an attribute",
    [6, 2],
    _written_before,
    a=conv(3, 6),
    b=conv(3, 8),
    width=6,
    out=conv(8, 4),
)
for parts, units in ((2, [4, 4]), (3, [2])):
    case(
        f"channels up to one of {parts} parts",
        units,
        lambda m, x: m.out(
            torch.cat([m.b((h := m.a(x))[:, : h.shape[1] // m.parts]), h[:, h.shape[1] // m.parts :]], 1)
        ),
        a=conv(3, 8),
        b=conv(8 // parts, 8 // parts),
        parts=parts,
        out=conv(8, 4),
    )


def _padded_in_time(m: Any, x: Tensor) -> Tensor:
    """A causal convolution that looks back as far as its kernel is long: not at all, if that is one."""
    h = m.a(x)
    return m.out(torch.cat([m.repeated(h[:, :, :1]), h], 2))  # type: ignore[no-any-return]


for name, repeated in [
    ("repeat", lambda h: h.repeat(1, 1, 0, 1)),
    ("tile", lambda h: h.tile(1, 1, 0, 1)),
    ("repeat_interleave", lambda h: h.repeat_interleave(0, 2)),
]:
    case(f"nothing in front: {name}", [8], _padded_in_time, a=conv(3, 8), out=conv(8, 4), repeated=repeated)
case(
    "channels that are taken never",
    [8],
    lambda m, x: m.out(torch.cat([m.a(x), m.b(x).repeat(1, 0, 1, 1)], 1)),
    kept={"b.weight[0]": "no elements"},
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
)


def _compared(m: Any, x: Tensor) -> Tensor:
    """What is narrower than the layer is filled up: nothing is, as PyTorch Geometric's gated graph convolutions do."""
    h = m.a(x)
    if h.size(1) > m.width:
        raise ValueError("too wide")
    if h.size(1) < m.width:
        h = torch.cat([h, h.new_zeros(h.size(0), m.width - h.size(1), *h.shape[2:])], 1)
    return m.out(m.b(h))  # type: ignore[no-any-return]


case("compared with an attribute", [8, 8], _compared, a=conv(3, 8), b=conv(8, 8), out=conv(8, 4), width=8)
case(
    "one size for: the wider of two is chosen",
    [8],
    lambda m, x: m.out(g if (g := m.b(x)).shape[1] > (h := m.a(x)).shape[1] else h) + m.other(g),
    a=conv(3, 8),
    b=conv(3, 8),
    out=conv(8, 4),
    other=conv(8, 4),
)


def _added_in_place(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).flatten(2).transpose(1, 2)
    h += m.places
    return m.out(m.n(h))  # type: ignore[no-any-return]


case(
    "positions added in place behind two views",
    [8],
    _added_in_place,
    a=conv(3, 8, bias=False),
    places=parameter(1, 64, 8),
    n=nn.LayerNorm(8),
    out=nn.Linear(8, 4),
)


def _written_too_late(m: Any, x: Tensor) -> Tensor:
    """What is read after a write is no longer zero; what was read before is."""
    h = m.a(x).flatten(2).transpose(1, 2)
    before, _ = h.sum(2), h.add_(1)
    return m.out(h.transpose(1, 2)) + before[:, None]  # type: ignore[no-any-return]


case("written after it was read", [8], _written_too_late, a=conv(3, 8, bias=False), out=nn.Conv1d(8, 4, 1))
case(
    "written before it is read",
    [],
    lambda m, x: m.out(m.n(h) if (h := m.a(x).flatten(2).transpose(1, 2)).add_(1) is not None else h),
    kept={"a.weight[0]": "may not be zero after add"},
    a=conv(3, 8, bias=False),
    n=nn.LayerNorm(8),
    out=nn.Linear(8, 4),
)


def _masked_attention(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).flatten(2).mT
    q, k, v = (part(h).view(2, 64, m.heads, -1).transpose(1, 2) for part in (m.q, m.k, m.v))
    seen = (x[:, :1].flatten(2) > 0).to(x.dtype)
    return m.out(F.scaled_dot_product_attention(q, k * m.scale, v, m.spread(m, seen)).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


for name, spread in [
    ("expand", lambda m, seen: seen[:, None].expand(-1, m.heads, 64, -1)),
    ("broadcast_to", lambda m, seen: seen[:, None].broadcast_to(2, m.heads, 64, 64)),
    ("repeat", lambda m, seen: seen[:, None].repeat(1, m.heads, 64, 1)),
    ("repeat_interleave", lambda m, seen: seen.repeat_interleave(m.heads, 0).view(-1, m.heads, 1, 64)),
    ("repeat of a batch", lambda m, seen: seen.repeat(m.heads, 1, 1).view(m.heads, -1, 1, 64).transpose(0, 1)),
    ("zeros", lambda m, seen: seen[:, None] + torch.zeros(2, m.heads, 64, 64)),
]:
    case(
        f"a mask for every head: {name}",
        [4, 6],
        _masked_attention,
        a=conv(3, 6),
        q=nn.Linear(6, 32),
        k=nn.Linear(6, 32),
        v=nn.Linear(6, 32),
        scale=nn.Parameter(torch.ones(8)),
        out=nn.Linear(32, 4),
        heads=4,
        spread=spread,
    )


def _partly_rotated(m: Any, x: Tensor) -> Tensor:
    """Rotary positions of some channels of each head: of all of them."""
    h = m.a(x).flatten(2).mT
    q, k, v = (part(h).view(2, 64, m.heads, -1).transpose(1, 2) for part in (m.q, m.k, m.v))
    q, k = (torch.cat((t[..., : m.rotated] * m.table, t[..., m.rotated :]), -1) for t in (q, k))
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


case(
    "nothing behind: rotary positions of all channels",
    [4, 6],
    _partly_rotated,
    a=conv(3, 6),
    q=nn.Linear(6, 32),
    k=nn.Linear(6, 32),
    v=nn.Linear(6, 32),
    table=nn.Parameter(torch.ones(64, 8)),
    out=nn.Linear(32, 4),
    heads=4,
    rotated=8,
)
case(
    "nothing in front: memories that there are none of",
    [8],
    lambda m, x: m.out(
        torch.cat([m.memories.expand(2, -1, -1).reshape(2, 0, m.memories.shape[1]), m.a(x).flatten(2).mT], 1)
    ),
    a=conv(3, 8),
    memories=parameter(0, 8),
    out=nn.Linear(8, 4),
)
for name, divided in [
    ("normalize", lambda w: F.normalize(w, dim=-1)),
    ("clamp", lambda w: w / w.norm(dim=-1, keepdim=True).clamp(min=1e-6)),
    ("clamp_min", lambda w: w / w.abs().sum(1, keepdim=True).clamp_min(1e-6)),
]:
    case(
        f"filters divided by their norms: {name}",
        [8, 8],
        lambda m, x: m.out(relu(F.linear(relu(F.linear(x.flatten(2).mT, m.divided(m.a))), m.divided(m.b)))),
        a=parameter(8, 3),
        b=parameter(8, 8),
        out=nn.Linear(8, 4),
        divided=divided,
    )
case(
    "filters divided by norms that may be zero",
    [],
    lambda m, x: m.out(F.linear(x.flatten(2).mT, m.a / m.a.norm(dim=-1, keepdim=True).clamp(max=1.0))),
    kept={"a[0]": ""},
    a=parameter(8, 3),
    out=nn.Linear(8, 4),
)


def _gained_attention(m: Any, x: Tensor) -> Tensor:
    """Queries and keys of length one, times a gain of every head: Dehghani et al., Scaling Vision Transformers to 22
    Billion Parameters, 2023."""
    h = m.a(x).flatten(2).mT
    q, k, v = (part(h).view(2, 64, m.heads, -1).transpose(1, 2) for part in (m.q, m.k, m.v))
    q, k = (F.normalize(t, dim=-1) * m.gain for t in (q, k))
    return m.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


for shape in ((4, 1, 8), (4, 1, 1), (8,), (1,)):
    case(
        f"a gain for every head of shape {shape}",
        [4, 6],
        _gained_attention,
        a=conv(3, 6),
        q=nn.Linear(6, 32),
        k=nn.Linear(6, 32),
        v=nn.Linear(6, 32),
        gain=nn.Parameter(torch.ones(shape)),
        out=nn.Linear(32, 4),
        heads=4,
    )
case(
    "learned queries behind a layer",
    [8],
    lambda m, x: m.out(m.a(x).flatten(2).mean(2)[:, None] * m.n(m.e(m.queries))).mean(1),
    a=conv(3, 8),
    queries=parameter(3, 6),
    e=nn.Linear(6, 8),
    n=nn.LayerNorm(8),
    out=nn.Linear(8, 4),
)
case(
    "learned queries that attend",
    [8],
    lambda m, x: m.out(m.n(torch.softmax(m.queries @ (h := m.a(x).flatten(2)), -1) @ h.mT)),
    a=conv(3, 8, bias=False),
    queries=parameter(3, 8),
    n=nn.LayerNorm(8),
    out=nn.Linear(8, 4),
)


def _aggregated(m: Any, x: Tensor) -> Tensor:
    """Messages of heads are added up in a value of their shape, as PyTorch Geometric's attention does."""
    rows = x.flatten(2).mT.flatten(0, 1)
    q, k, v = (part(rows).view(-1, m.heads, m.width) for part in (m.q, m.k, m.v))
    messages = v * (q * k).sum(-1, keepdim=True).sigmoid()
    size = (4, *messages.size()[1:])
    sums = messages.new_zeros(size).index_add(0, torch.arange(128) % 4, messages)
    return m.out(sums.view(4, m.heads * m.width))  # type: ignore[no-any-return]


case(
    "heads added up in a value of their shape",
    [4],
    _aggregated,
    q=nn.Linear(3, 32),
    k=nn.Linear(3, 32),
    v=nn.Linear(3, 32),
    out=nn.Linear(32, 4),
    heads=4,
    width=8,
)


case(
    "nothing in front: memories that are moved about",
    [8],
    lambda m, x: m.out(
        torch.cat(
            [m.memories.unsqueeze(0).expand(2, -1, -1).permute(2, 0, 1), m.a(x).flatten(2).permute(1, 0, 2)], 2
        ).permute(1, 2, 0)
    ),
    a=conv(3, 8),
    memories=parameter(0, 8),
    out=nn.Linear(8, 4),
)


def _reordered(m: Any, x: Tensor) -> Tensor:
    """Rows are put at positions that differ from example to example, as masked autoencoders put theirs."""
    h, other = (part(x).flatten(2).mT[:, :4] for part in (m.a, m.b))
    batch, places = torch.arange(2)[:, None], torch.tensor([[2, 0, 5, 7], [1, 3, 4, 6]])
    out = torch.zeros(2, 8, m.width, dtype=x.dtype)
    m.put(out, batch, places, h)
    return m.out(out[:, :4]) + m.other(other)  # type: ignore[no-any-return]


def _put_by_index(out: Tensor, batch: Tensor, places: Tensor, h: Tensor) -> None:
    out[batch, places] = h


for name, put in [
    ("setitem", _put_by_index),
    ("index_put", lambda out, batch, places, h: out.index_put_((batch, places), h)),
    ("index_put, added", lambda out, batch, places, h: out.index_put_((batch, places), h, accumulate=True)),
]:
    case(
        f"rows at positions of each example: {name}",
        [8, 4],
        _reordered,
        a=conv(3, 8),
        b=conv(3, 4),
        out=nn.Linear(8, 4),
        other=nn.Linear(4, 4),
        width=8,
        put=put,
    )
case(
    "numbers at positions of channels",
    [],
    lambda m, x: m.out(_filled(m.a(x), (torch.arange(2)[:, None], torch.tensor([[0, 3], [1, 5]])), 0.5)),
    kept={"a.weight[0]": "written into by position"},
    a=conv(3, 8),
    out=conv(8, 4),
)


case(
    "a norm of what was written at positions",
    [8],
    lambda m, x: m.out(
        m.n(
            _filled(
                torch.zeros(2, 64, m.width, dtype=x.dtype),
                (torch.arange(2)[:, None], torch.tensor([[3, 5, 7], [0, 1, 2]])),
                m.a(x).flatten(2).mT[:, :3],
            )
        )
    ),
    a=conv(3, 8),
    n=nn.LayerNorm(8),
    out=nn.Linear(8, 4),
    width=8,
)
case(
    "a norm of what was filled with ones at positions",
    [],
    lambda m, x: m.out(
        m.n(_filled(m.a(x).flatten(2).mT, (torch.arange(2)[:, None], torch.tensor([[3, 5, 7], [0, 1, 2]])), 1.0))
    ),
    kept={"a.weight[0]": "may not be zero after setitem"},
    a=conv(3, 8),
    n=nn.LayerNorm(8),
    out=nn.Linear(8, 4),
)


def _shared_keys(m: Any, x: Tensor) -> Tensor:
    """Every key and value serves several queries, as many as an attribute says: Ainslie et al., GQA, 2023."""
    h = m.a(x).flatten(2).mT
    q, k, v = (part(h).view(2, 64, -1, 4).transpose(1, 2) for part in (m.q, m.k, m.v))
    k, v = (
        t[:, :, None].expand(2, t.shape[1], m.repeats, 64, 4).reshape(2, t.shape[1] * m.repeats, 64, 4) for t in (k, v)
    )
    return m.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


case(
    "keys repeated as often as an attribute says",
    [4, 6],
    _shared_keys,
    a=conv(3, 6),
    q=nn.Linear(6, 32),
    k=nn.Linear(6, 16),
    v=nn.Linear(6, 16),
    out=nn.Linear(32, 4),
    repeats=2,
)


for name, tiled in [
    ("expand", lambda m, h: h[:, None].expand(-1, m.copies, -1)),
    ("zeros", lambda m, h: h[:, None] + torch.zeros(2, m.copies, 1, dtype=h.dtype)),
]:
    case(
        f"channels in as many copies as an attribute says: {name}",
        [8],
        lambda m, x: m.out(m.tiled(m, m.a(x).mean((2, 3))).flatten(1)),
        a=conv(3, 8),
        out=nn.Linear(24, 4),
        copies=3,
        tiled=tiled,
    )
    case(
        f"a norm behind as many copies as an attribute says: {name}",
        [8, 6],
        lambda m, x: m.out(m.n(m.b(m.tiled(m, m.a(x).mean((2, 3)))))),
        a=conv(3, 8),
        b=nn.Linear(8, 6),
        n=nn.LayerNorm(6),
        out=nn.Linear(6, 4),
        copies=3,
        tiled=tiled,
    )


def _skipped(m: Any, x: Tensor) -> Tensor:
    """Every fourth step together, in the batch, and put side by side again: Lai et al., LSTNet, 2018."""
    h = m.a(x).flatten(2).view(2, m.width, 16, m.skip).permute(2, 0, 3, 1).contiguous()
    _, h = m.recurrent(h.view(16, 2 * m.skip, m.width))
    return m.out(h.view(2, m.skip * m.hidden))  # type: ignore[no-any-return]


case(
    "a product of how often and how wide",
    [6, 8],
    _skipped,
    a=conv(3, 8),
    recurrent=nn.GRU(8, 6),
    out=nn.Linear(24, 4),
    width=8,
    skip=4,
    hidden=6,
)


def _variables(m: Any, x: Tensor) -> Tensor:
    """States made as before PyTorch 0.4."""
    rows = x.mean(3)
    h = c = Variable(rows.data.new(rows.size(0), m.width).zero_())
    for t in range(rows.size(1)):
        h, c = m.cell(m.a(Variable(rows)[:, t]), (h, c))
    return m.out(h)  # type: ignore[no-any-return]


case(
    "variables",
    [6, 8],
    _variables,
    a=nn.Linear(8, 6),
    cell=nn.LSTMCell(6, 8),
    out=nn.Linear(8, 4),
    width=8,
)
case(
    "a sparse adjacency",
    [8],
    lambda m, x: m.out(torch.sparse.mm(m.adjacency.to_sparse(), m.a(x.flatten(1)))),
    a=nn.Linear(192, 8),
    adjacency=nn.Parameter(torch.rand(5, 2), requires_grad=False),
    out=nn.Linear(8, 4),
)


def _interactions(m: Any, x: Tensor) -> Tensor:
    """Products of each with each, of which the lower triangle is taken: Naumov et al., DLRM, 2019."""
    x = x.flatten(1)
    a = m.a(x)
    b, d = a.shape
    rows = torch.cat([a] + [e(x) for e in (m.b, m.c)], 1).view((b, -1, d))
    products = torch.bmm(rows, rows.transpose(1, 2))
    return m.out(torch.cat([a, products[:, torch.tensor([1, 2, 2]), torch.tensor([0, 0, 1])]], 1))  # type: ignore[no-any-return]


case(
    "rows that are as wide as something else",
    [8],
    _interactions,
    a=nn.Linear(192, 8),
    b=nn.Linear(192, 8),
    c=nn.Linear(192, 8),
    out=nn.Linear(11, 4),
)


def _weighted(m: Any, x: Tensor) -> Tensor:
    """A weight for each step, in as many copies as there are heads and channels: Wu et al., Autoformer, 2021."""
    steps = x.mean(1)
    values = m.v(steps).view(2, steps.shape[1], m.heads, -1)
    weights = m.copied(steps.mean(-1)[:, :, None, None].softmax(1), values.shape[2], values.shape[3])
    return m.out((values * weights).view(2, steps.shape[1], -1))  # type: ignore[no-any-return]


for name, copied in [
    ("repeat", lambda w, head, channel: w.repeat(1, 1, head, channel)),
    ("expand", lambda w, head, channel: w.expand(-1, -1, head, channel)),
]:
    case(
        f"copies for heads and their channels: {name}",
        [4],
        _weighted,
        v=nn.Linear(8, 8),
        out=nn.Linear(8, 4),
        heads=4,
        copied=copied,
    )
