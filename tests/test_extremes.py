"""Maps of spatial attention: the largest and the smallest of the channels, of which those that went are zero."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_exact, assert_kept, masked_original, randomise
from torch import Tensor, nn

import structprune as sp

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Spatial(nn.Module):
    """Where to look, by the mean and the largest of the channels: Woo et al., CBAM, 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def pooled(self, x: Tensor) -> Tensor:
        largest, _ = torch.max(x, dim=1, keepdim=True)
        return torch.cat([torch.mean(x, dim=1, keepdim=True), largest], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(self.pooled(x)).sigmoid()


class Positional(Spatial):
    def pooled(self, x: Tensor) -> Tensor:
        return torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)


class Methods(Spatial):
    def pooled(self, x: Tensor) -> Tensor:
        return torch.cat((x.amax(1, keepdim=True), x.min(dim=-3, keepdim=True).values), 1)


class Arrays(Spatial):
    """What NumPy calls arguments, and an extreme of two values."""

    def pooled(self, x: Tensor) -> Tensor:
        lowest = torch.max(x.amin((1,), keepdim=True), x.mean(axis=1, keepdims=True) - 1)
        return torch.cat((x.max(axis=1, keepdims=True)[0], lowest), 1)


class Placed(Spatial):
    """It is looked at which channel was the largest."""

    def pooled(self, x: Tensor) -> Tensor:
        largest, place = x.max(1, keepdim=True)
        return torch.cat((largest, place.to(x.dtype)), 1)


class Everywhere(Spatial):
    """The largest along every dimension but the first, one after the other."""

    def pooled(self, x: Tensor) -> Tensor:
        return torch.stack([x.max(dim).values.mean() for dim in (1, 2)]).reshape(1, 2, 1, 1) + 0 * x[:, :2]


class Block(nn.Module):
    """Channels that may be negative where they are looked at, with a shortcut beside."""

    def __init__(self, kind: type[Spatial]) -> None:
        super().__init__()
        self.conv, self.norm, self.where = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), kind()

    def forward(self, x: Tensor) -> Tensor:
        return (self.where(self.norm(self.conv(x))) + x).relu()


def net(kind: type[Spatial]) -> Any:
    layers = nn.Conv2d(3, 8, 3), Block(kind), Block(kind), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return randomise(nn.Sequential(*layers).double())


@pytest.fixture
def compiler() -> Iterator[None]:
    """What is compiled here does not count against what other tests compile."""
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", [Spatial, Positional, Methods, Arrays])
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_maps_of_extremes(kind: type[Spatial], ratio: float) -> None:
    """With few channels left, what is largest is often a channel that went."""
    model = net(kind)
    result = assert_exact(model, IMAGES, ratio)
    small: Any = result.model
    assert small[0].out_channels == 8 - int(8 * ratio)
    assert {path: swap for path, swap in result.plan.swaps.items() if path.endswith("where")} == {
        "1.where": ("counted", 8),
        "2.where": ("counted", 8),
    }
    other = torch.randn(1, 3, 9, 17, dtype=torch.float64)
    torch.testing.assert_close(small(other), masked_original(model, result.plan)(other), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.compile(small, backend="eager", fullgraph=True)(IMAGES), small(IMAGES))
    torch.testing.assert_close(torch.export.export(small, (IMAGES,)).module()(IMAGES), small(IMAGES))
    if small[0].out_channels > 1:
        again: Any = assert_exact(small, IMAGES).model
        assert again[0].out_channels == 2


class Whole(nn.Module):
    """A norm by hand, a map, pooling over space and another norm, all in one class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.where, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 1, 3, padding=1), nn.Linear(8, 8)
        self.gain, self.out = nn.Parameter(torch.ones(8, 1, 1)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        centred = x - x.mean(1, keepdim=True)
        normed = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        x = self.gain * normed + x * self.gate(x.mean((2, 3)))[:, :, None, None]
        lowest = x.amin(1, keepdim=True) - x.mean(3, keepdim=True).mean(1, keepdim=True)
        maps = torch.cat((x.std(1, keepdim=True), torch.max(x, 1, keepdim=True)[0], lowest), 1)
        return self.out((x * self.where(maps).sigmoid()).mean((-1, -2)) + x.amax((2, 3)))


class Several(nn.Module):
    """Statistics over channels, and over tokens that could go as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.tokens, self.b = nn.Linear(6, 8), nn.Linear(12, 16, False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(self.a(x).mT)
        return self.b(h - h.mean(2, keepdim=True) * h.mean(1, keepdim=True))


def test_some_statistics_of_a_class(tmp_path: Path) -> None:
    """Those over channels count them, and those over space are as they were."""
    model = randomise(nn.Sequential(Whole()).double())
    result = assert_exact(model, IMAGES)
    small: Any = result.model
    assert small[0].conv.out_channels == 4
    ((swap, channels),) = result.plan.swaps.values()
    assert (swap.partition(" @")[0], channels) == ("counted 0 1 3 5 6 7", 8)
    other = torch.randn(1, 3, 9, 17, dtype=torch.float64)
    expected = masked_original(model, result.plan)(other)
    sp.save(result, tmp_path / "out")
    torch.save(small, tmp_path / "small.pt")
    for again in (small, sp.load(tmp_path / "out", model), torch.load(tmp_path / "small.pt", weights_only=False)):
        torch.testing.assert_close(again(other), expected, rtol=1e-12, atol=1e-12)
    assert assert_exact(small, IMAGES).model[0].conv.out_channels == 2
    with pytest.raises(sp.NothingToPruneError):  # it is known by their sizes alone which are over channels
        sp.prune(model, IMAGES, norm="stock")
    text = result.plan.to_json()
    assert swap in text
    for wrong in ("counted 0 1", "counted x @00000000", "counted -1 @00000000", swap.replace("0 1 3", "0 1  3")):
        with pytest.raises(sp.PlanError, match="is not registered here"):
            sp.PruningPlan.from_json(text.replace(swap, wrong))
    for wrong in (swap.replace("0 1 3", "1 3 0"), "counted 0 1 3 5 6 7 @00000000", swap.replace("7 @", "7 99 @")):
        with pytest.raises(sp.PlanError, match="the code of Whole is not what it was"):
            sp.apply(sp.PruningPlan.from_json(text.replace(swap, wrong)), model)


def test_statistics_over_two_kinds_of_channels() -> None:
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    assert_kept(randomise(nn.Sequential(Several()).double()), x, "0.a.weight[0]", "several substitutes")


@pytest.mark.parametrize("kind", [Spatial, Arrays])
def test_stock_extremes_are_those_of_the_channels_that_are_left(kind: type[Spatial]) -> None:
    result = sp.prune(net(kind), IMAGES, norm="stock")
    assert result.model[0].out_channels == 4
    assert result.report.verification.ok
    assert result.report.verification.deviation > 0


@pytest.mark.parametrize(("kind", "op"), [(Placed, "max"), (Everywhere, "max")])
def test_other_extremes_keep_the_channels(kind: type[Spatial], op: str) -> None:
    assert_kept(net(kind), IMAGES, "1.conv.weight[0]", f"{op} runs over it")
