"""Rows of a grid that must stay as wide as one another: each loses what scores least in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_exact, randomise
from torch import Tensor, nn

import structprune as sp


def norms(groups: int = 2) -> nn.Module:
    """A group norm between two convolutions, with fewer groups than channels in each of them."""
    width = 8 * groups
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.GroupNorm(groups, width), nn.ReLU(), nn.Conv2d(width, 4, 3))


def grouped() -> nn.Module:
    """The outputs of a grouped convolution."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 24, 3, groups=2), nn.BatchNorm2d(24), nn.Conv2d(24, 4, 1))


def transposed() -> nn.Module:
    """The inputs of a grouped transposed convolution."""
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 6, 3, groups=2), nn.Conv2d(6, 4, 1))


class Nested(nn.Module):
    """Four groups of a norm inside the two groups of a convolution whose outputs a residual sum shares."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv = nn.Conv2d(8, 32, 3, padding=1, groups=2)
        self.down = nn.Conv2d(32, 8, 1)
        self.norm = nn.GroupNorm(4, 32)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.norm(x + self.conv(self.down(x).relu())).relu())


class Shuffled(nn.Module):
    """A channel shuffle written as views: the values between are rectangles of groups and channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.inner = nn.Conv2d(16, 24, 3, groups=2)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.conv(x).relu())
        n, c, h, w = x.shape
        return self.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).relu())


class Skip(nn.Module):
    """A stream whose norm has as many groups as channels in each, beside a wider one that reads it, too."""

    def __init__(self, convolution: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.wide = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32))
        narrow = nn.Conv2d(16, 16, 3, padding=1, groups=4) if convolution else nn.Identity()
        self.narrow = nn.Sequential(nn.GroupNorm(4, 16), narrow)
        self.norm = nn.GroupNorm(4, 48)
        self.head = nn.Conv2d(48, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(self.norm(torch.cat([self.wide(self.narrow(x)), x], 1)).relu())


class Tied(nn.Module):
    """Halves that are multiplied: index j of one goes with index j of the other, whatever the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.GroupNorm(2, 16)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm(self.conv(x)).chunk(2, 1)
        return self.head(a * b)


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def made(build: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomise(build().double())


def strongest(weight: Tensor, dim: int, rows: int, share: float = 0.5) -> tuple[int, ...]:
    """By hand: the indices of each row with the largest L1 norm."""
    norms = weight.detach().abs().sum([d for d in range(weight.ndim) if d != dim]).view(rows, -1)
    width = norms.shape[1]
    kept = norms.argsort(1, descending=True)[:, : width - int(share * width)] + width * torch.arange(rows)[:, None]
    return tuple(sorted(kept.flatten().tolist()))


@pytest.mark.parametrize(
    ("build", "filters", "rows"),
    [(norms, "0.weight", 2), (lambda: norms(4), "0.weight", 4), (grouped, "1.weight", 2), (transposed, "0.weight", 2)],
)
def test_each_row_loses_its_own_least(build: Any, filters: str, rows: int) -> None:
    model = made(build)
    result = assert_exact(model, images(), 0.5)
    expected = strongest(model.get_parameter(filters), 0, rows)
    assert result.plan.kept[filters][0] == expected
    columns = np.array(expected).reshape(rows, -1) % (model.get_parameter(filters).shape[0] // rows)
    assert (columns != columns[0]).any()  # or the test would show nothing


def test_rows_inside_of_rows_stay_balanced() -> None:
    """What is balanced over four groups is over two; scores add up over all that writes into the sum."""
    model = made(Nested)
    result = assert_exact(model, images(), 0.5)
    norms = model.stem.weight.abs().sum((1, 2, 3)) + model.conv.weight.abs().sum((1, 2, 3))
    assert result.plan.kept["norm.weight"][0] == strongest(norms[:, None], 0, 4)
    assert (np.bincount(np.array(result.plan.kept["conv.weight"][0]) // 16) == 8).all()


@pytest.mark.parametrize(("build", "name", "width"), [(Tied, "conv.weight", 8), (Shuffled, "inner.weight", 12)])
def test_rows_that_are_tied_go_by_columns(build: Any, name: str, width: int) -> None:
    kept = np.array(assert_exact(made(build), images(), 0.5).plan.kept[name][0]).reshape(2, -1)
    assert kept.shape[1] == width // 2
    assert (kept[0] == kept[1] - width).all()


@pytest.mark.parametrize("convolution", [False, True])
def test_groups_that_cannot_leave_whole_lose_channels(convolution: bool) -> None:
    """By themselves the narrow groups would leave whole, and each takes the others along through the wider ones."""
    small = assert_exact(made(lambda: Skip(convolution)), images(), 0.5).model
    assert (small.narrow[0].num_groups, small.narrow[0].num_channels) == (4, 8)
    alone = assert_exact(made(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), Skip().narrow, nn.Conv2d(16, 2, 1))), images())
    assert alone.model[1][0].num_groups == 2


@pytest.mark.parametrize("build", [norms, grouped, transposed, Nested, Shuffled, Tied, Skip])
@pytest.mark.parametrize("settings", [
    {"ratio": 0.4, "scope": "global"}, {"target": {"macs": 0.5}}, {"ratio": 0.5, "round_to": 4},
    {"target": {"params": 0.6}, "allocation": "knapsack"}, {"ratio": 0.5, "importance": sp.importance.FPGM()},
])  # fmt: skip
def test_every_way_of_planning_is_exact(build: Any, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    assert_exact(made(build), images(), settings.pop("ratio", None), **settings)


def test_scores_from_data_read_the_loader_once() -> None:
    model = made(norms)
    loader = iter([images(), images().flip(0)])  # twice is not possible
    taylor = sp.importance.Taylor(lambda model, batch: model(batch).square().mean(), loader)
    assert_exact(model, images(), 0.5, importance=taylor)


def test_the_plan_of_masks_is_the_plan() -> None:
    for build in (norms, grouped, transposed, Nested):
        model = made(build)
        plan = sp.plan(sp.analyze(model, images()), ratio=0.5)
        assert sp.plan_from_masks(sp.mask(plan, model), images()) == plan


def test_dead_channels_of_a_group_go_with_those_of_another() -> None:
    model = made(grouped)
    with torch.no_grad():
        for dead in (0, 1, 20, 23):
            model[1].weight[dead] = model[1].bias[dead] = 0
            model[2].weight[dead] = model[2].bias[dead] = 0
    small = sp.shrink(model, images())
    assert small[1].out_channels == 20
    torch.testing.assert_close(small(images()), model(images()))


def test_steps_take_from_each_row() -> None:
    model = made(norms)
    widths = []
    for step in sp.iterate(model, images(), ratio=0.5, steps=2, schedule="linear"):
        widths.append(step.model[0].out_channels)
        torch.testing.assert_close(step.model(images()), sp.mask(step.plan, model)(images()))
    assert widths == [12, 8]


def test_the_report_counts_what_is_left() -> None:
    result = sp.prune(made(norms), images(), ratio=0.5)
    assert result.report.params[1] == sum(p.numel() for p in result.model.parameters())


def test_excluded_rows_stay() -> None:
    plan = sp.plan(sp.analyze(made(Nested), images()), ratio=0.5, exclude=["norm"])
    assert plan  # the inner width
    assert "norm.weight" in sp.plan(sp.analyze(made(Nested), images()), ratio=0.5).kept
    with pytest.raises(sp.NothingToPruneError, match="excluded"):
        sp.plan(sp.analyze(made(norms), images()), exclude=["0"])


class SharedNorm(nn.Module):
    """A norm without parameters, which looks at its input's width, behind two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Conv2d(12, 5, 1)
        self.norm, self.other = nn.InstanceNorm2d(12), nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.norm(self.a(x)).relu())).relu()
        return self.other(self.c(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_layers_of_a_norm_that_looks_at_their_width_lose_equally_many(scope: str) -> None:
    model: Any = assert_exact(made(SharedNorm), images(), scope=scope).model
    assert model.a.out_channels == model.b.out_channels == model.norm.num_features < 12
