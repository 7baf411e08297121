"""Norms over channels and everything else at once: those that went are zero everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_exact, assert_kept, masked_original, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp

SOUNDS = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Global(nn.Module):
    """Of channels and time: Luo, Mesgarani, Conv-TasNet, 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def normed(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2), keepdim=True)
        return (x - mean) / (((x - mean) ** 2).mean((1, 2), keepdim=True) + 1e-8).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.normed(x) + self.bias


class Stepwise(Global):
    """Over one dimension after the other."""

    def normed(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        var = torch.pow(x - mean, 2).mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        return (x - mean) / torch.pow(var + 1e-8, 0.5)


class Nested(Global):
    """The mean is written where it is subtracted."""

    def normed(self, x: Tensor) -> Tensor:
        var = (x - x.mean(1, keepdim=True).mean(2, keepdim=True)).square().mean([1, 2], keepdim=True)
        return x / (var + 1e-8).sqrt()


class Deviation(Global):
    def normed(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=(-2, -1), keepdim=True)
        return (x - mean) / (std + 1e-8)


class Unkept(Global):
    """Dimensions that are gone from the statistics come back."""

    def normed(self, x: Tensor) -> Tensor:
        return (x - x.mean((1, 2))[:, None, None]) * torch.rsqrt(x.var((1, 2), unbiased=False)[:, None, None] + 1e-8)


class Range(Global):
    def normed(self, x: Tensor) -> Tensor:
        lowest, highest = x.amin((1, 2), keepdim=True), x.amax(dim=[1, 2], keepdim=True)
        return x / (highest - lowest)


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:])


def twice(x: Tensor) -> Tensor:
    return 2 * normed(x)


class Function(Global):
    """The norm is a function of the file."""

    def normed(self, x: Tensor) -> Tensor:
        return twice(x)


class Rms(Global):
    def normed(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean((1, 2), keepdim=True) + 1e-8)


class Layer(Global):
    def normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:])


class RootMeanSquare(Global):
    def normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.size()[1:], eps=1e-6)


class Reversed(Global):
    """Which of the dimensions is that of the channels is not known where the statistics run."""

    def normed(self, x: Tensor) -> Tensor:
        return x - x.mean((2, 1), keepdim=True)


class ByPlace(Global):
    """The squares are those of distances from a mean at each moment."""

    def normed(self, x: Tensor) -> Tensor:
        return x / (((x - x.mean(1, keepdim=True)) ** 2).mean((1, 2), keepdim=True) + 1e-8).sqrt()


class Last(Global):
    """The channels are the last that the statistics run over."""

    def normed(self, x: Tensor) -> Tensor:
        y = x.mT
        return F.layer_norm(y, y.shape[1:]).mT


def net(kind: type[Global]) -> Any:
    return randomise(nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), kind(8), nn.Conv1d(8, 4, 3)).double())


@pytest.mark.parametrize(
    "kind", [Global, Stepwise, Nested, Deviation, Unkept, Range, Rms, Layer, Function, RootMeanSquare]
)
def test_norms_over_channels_and_time(kind: type[Global], tmp_path: Path) -> None:
    model = net(kind)
    result = assert_exact(model, SOUNDS, ratio=0.5)
    small = result.model
    assert small[0].out_channels == 4
    longer = torch.cat([SOUNDS, SOUNDS.square()], 2)
    torch.testing.assert_close(small(longer), masked_original(model, result.plan)(longer), rtol=1e-12, atol=1e-12)
    sp.save(result, tmp_path / "out")
    torch.testing.assert_close(sp.load(tmp_path / "out", model)(SOUNDS), small(SOUNDS))
    torch.testing.assert_close(torch.compile(small, backend="eager", fullgraph=True)(SOUNDS), small(SOUNDS))
    torch.compiler.reset()  # it counts how often the code of one class was compiled
    again = assert_exact(small, SOUNDS, ratio=0.5)
    torch.testing.assert_close(sp.apply(result.plan.then(again.plan), model)(longer), again.model(longer))


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Reversed, "mean runs over it"), (ByPlace, "mean runs over it"), (Last, "Python looks at its size")],
)
def test_norms_over_channels_that_are_not_the_first(kind: type[Global], why: str) -> None:
    assert_kept(net(kind), SOUNDS, "0.weight[0]", why)


class Two(nn.Module):
    """One norm without scales for two values, of which only one shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.norm, self.out = nn.LayerNorm([6, 6, 7], elementwise_affine=False), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(self.norm(self.conv(x))), self.norm(self.other(x))


def test_a_norm_that_meets_a_value_that_keeps_its_channels() -> None:
    assert assert_exact(randomise(Two().double()), IMAGES, ratio=0.5).model.conv.out_channels == 3


class Standardised(nn.Conv2d):
    """Weight standardisation: Qiao, Wang, Liu, Shen, Yuille, 2019."""

    def standard(self, w: Tensor) -> Tensor:
        mean, var = w.mean([1, 2, 3], keepdim=True), w.var([1, 2, 3], unbiased=False, keepdim=True)
        return (w - mean) * (var + 1e-5).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standard(self.weight), self.bias, self.stride, self.padding)


class ByDeviation(Standardised):
    def standard(self, w: Tensor) -> Tensor:
        return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True).expand_as(w) + 1e-5)


class ByBoth(Standardised):  # Big Transfer's
    def standard(self, w: Tensor) -> Tensor:
        var, mean = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return (w - mean) / torch.sqrt(var + 1e-10)


class ByLayerNorm(Standardised):
    def standard(self, w: Tensor) -> Tensor:
        return F.layer_norm(w, w.shape[1:])


class ByLength(Standardised):
    """Filters of length one, or so."""

    def standard(self, w: Tensor) -> Tensor:
        return w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-5).sqrt()


class Endless(Standardised):
    """A filter of zeros would be divided by zero."""

    def standard(self, w: Tensor) -> Tensor:
        return w / w.square().sum((1, 2, 3), keepdim=True).sqrt()


class Raised(Standardised):
    """A filter of zeros does not stay one."""

    def standard(self, w: Tensor) -> Tensor:
        return (w - w.mean([1, 2, 3], keepdim=True)).exp()


def filters(kind: type[Standardised]) -> Any:
    norms = nn.GroupNorm(2, 16), nn.BatchNorm2d(16)
    layers = kind(3, 16, 3), norms[0], nn.ReLU(), kind(16, 16, 3), norms[1], nn.SiLU(), kind(16, 4, 1)
    return randomise(nn.Sequential(*layers).double())


@pytest.mark.parametrize("kind", [Standardised, ByDeviation, ByBoth, ByLayerNorm, ByLength])
def test_standardised_filters(kind: type[Standardised]) -> None:
    small = assert_exact(filters(kind), torch.cat([IMAGES, IMAGES], 2), ratio=0.5).model
    assert [small[i].weight.shape[:2] for i in (0, 3, 6)] == [(8, 3), (8, 8), (4, 8)]


@pytest.mark.parametrize(
    ("kind", "why"), [(Endless, "not finite where it would become zero"), (Raised, "may not be zero")]
)
def test_filters_that_do_not_stay_zero(kind: type[Standardised], why: str) -> None:
    assert_kept(filters(kind), torch.cat([IMAGES, IMAGES], 2), "0.weight[0]", why)


class Upwards(nn.ConvTranspose2d):
    """The rows of such a weight are no filters: those of inputs stay zero, not those of outputs."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        w = self.weight - self.weight.mean([1, 2, 3], keepdim=True)
        return F.conv_transpose2d(x, w)


def test_standardised_rows_of_transposed_convolutions() -> None:
    layers = nn.Conv2d(3, 8, 1), Upwards(8, 8, 2, bias=False), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)
    small = assert_exact(randomise(nn.Sequential(*layers).double()), IMAGES, ratio=0.5).model
    assert small[1].weight.shape[:2] == (4, 8)
