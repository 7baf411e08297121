"""RMS norms make up for channels by their own weight and epsilon, unless something else takes these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_exact, assert_exact_or_nothing, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp

ROWS = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def rms(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class Norm(nn.Module):
    """An RMS norm, with an epsilon so large that it shows, and another attribute of the same value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps, self.other, self.width = nn.Parameter(torch.ones(width)), 0.1, 0.1, width

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Called(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.width,), self.weight, self.eps)


class Derived(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class WeightInTraining(Norm):
    def forward(self, x: Tensor) -> Tensor:
        out = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        return out * self.weight if self.training else out


class EpsilonTwice(Norm):
    def forward(self, x: Tensor) -> Tensor:
        out = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        return out * self.eps


class EpsilonInPython(Norm):
    def forward(self, x: Tensor) -> Tensor:
        out = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        return out * (1 + self.eps)


class Written(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1))


class BesideAnother(Norm):
    """All means of the class are counted: a scale besides would be one too many."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        return out / (out.square().mean(-1, keepdim=True) + 0.3)


class Rounded(Norm):
    """A quotient that is rounded does not grow with its divisor."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.div(x, (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt(), rounding_mode="floor") * self.weight


class Squared(Norm):
    """The inverse root twice."""

    def forward(self, x: Tensor) -> Tensor:
        inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return inverse * inverse * self.weight * x


class OfAnother(Norm):
    """What is scaled is not what is measured."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x.abs() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class ByKeyword(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.pow(x.pow(2).mean(-1, keepdim=True) + self.eps, exponent=0.5) * self.weight


class OneNumber(Norm):
    """A gain for all channels, which is not cut."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class OneEpsilonForTwo(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.second = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.eps = 0.1

    def forward(self, x: Tensor) -> Tensor:
        first = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        return first + self.second * (first * torch.rsqrt(first.pow(2).mean(-1, keepdim=True) + self.eps))


class Gained(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight


class Lifted(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.eps)  # type: ignore[operator]


class Averaged(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.normalized_shape[0]


class Model(nn.Module):
    """What `after` takes beside the norm is its own affair."""

    def __init__(self, norm: nn.Module, after: Callable[[Tensor, Any], Tensor] | None = None) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 16, bias=False), norm, nn.Linear(16, 3)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x))
        return self.b(h if self.after is None else self.after(h, self.norm))


def made(norm: nn.Module, after: Callable[[Tensor, Any], Tensor] | None = None) -> nn.Module:
    return randomise(Model(norm, after).double()).eval()


FOLDED: list[Callable[[], nn.Module]] = [
    lambda: Norm(16), lambda: Called(16), lambda: nn.RMSNorm(16, eps=0.1), lambda: Derived(16, eps=0.1)
]  # fmt: skip
SWAPPED: list[Callable[[], nn.Module]] = [
    lambda: EpsilonTwice(16), lambda: EpsilonInPython(16), lambda: Written(16), lambda: OneEpsilonForTwo(16),
    lambda: nn.RMSNorm(16), lambda: Gained(16, eps=0.1), lambda: Lifted(16, eps=0.1), lambda: Averaged(16, eps=0.1),
    lambda: BesideAnother(16), lambda: WeightInTraining(16), lambda: Rounded(16), lambda: Squared(16),
    lambda: ByKeyword(16), lambda: OneNumber(16), lambda: OfAnother(16),
]  # fmt: skip


@pytest.mark.parametrize("norm", FOLDED)
def test_folded(norm: Callable[[], nn.Module]) -> None:
    plan = assert_exact(made(norm()), ROWS).plan
    assert plan.scales.keys() == {"norm.weight"}
    assert not plan.swaps


@pytest.mark.parametrize("norm", SWAPPED)
def test_swapped_where_a_fold_would_change_more(norm: Callable[[], nn.Module]) -> None:
    plan = assert_exact(made(norm()), ROWS).plan
    assert plan.swaps.keys() == {"norm"}
    assert not plan.scales


@pytest.mark.parametrize("norm", [FOLDED[0], FOLDED[2]])
@pytest.mark.parametrize(
    "after",
    [
        lambda h, norm: h + norm.weight,
        lambda h, norm: h * norm.eps,
        lambda h, norm: h * torch.tensor(float(norm.eps)),
        lambda h, norm: rms(h, norm.eps),
    ],
)
def test_taken_by_another_module(norm: Callable[[], nn.Module], after: Callable[[Tensor, Any], Tensor]) -> None:
    result = assert_exact_or_nothing(made(norm(), after), ROWS)
    assert result is None or not result.plan.scales


def test_taken_in_another_call() -> None:
    """The second example takes the weight plainly."""

    def after(h: Tensor, norm: Any) -> Tensor:
        return h * norm.weight if len(h) > 5 else h

    model = made(Norm(16), after)
    plan = sp.plan(sp.analyze(model, [ROWS, torch.cat([ROWS, ROWS])]), ratio=0.5)
    assert not plan.scales
    for rows in (ROWS, torch.cat([ROWS, ROWS])):
        assert sp.verify(model, plan, rows).max_rel_error < 1e-12


def test_the_shape_as_seen_by_another_module() -> None:
    """`normalized_shape` follows the channels only where nobody else reads it."""
    model = made(nn.RMSNorm(16, eps=0.1), lambda h, norm: h / norm.normalized_shape[0])
    assert_exact(model, ROWS)


def test_the_model_gets_its_floats_back() -> None:
    model: Any = made(Norm(16))
    sp.analyze(model, ROWS)
    assert type(model.norm.eps) is float
    assert type(sp.prune(model, ROWS).model.norm.eps) is float
