"""`norm="stock"`: norms stay as they are; what the small model must equal, and by how much it deviates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import Snapshot, masked_original, randomise, sliced
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp

ROWS = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(4, 6, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class WrittenRms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(width)), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Sandwich(nn.Module):
    """A layer, a norm, a layer."""

    def __init__(self, norm: nn.Module, *between: nn.Module) -> None:
        super().__init__()
        convs = isinstance(norm, nn.GroupNorm)
        self.a = nn.Conv2d(6, 24, 1) if convs else nn.Linear(16, 24)
        self.between, self.norm = nn.Sequential(*between), norm
        self.b = nn.Conv2d(24, 5, 1) if convs else nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.between(self.a(x))))


def checked(result: sp.Result) -> sp.Verification:
    """The verification, which found nothing."""
    check = result.report.verification
    assert check is not None
    assert check.ok
    assert check.max_rel_error < 1e-12
    return check


NORMS = {
    "layer norm": (lambda: nn.LayerNorm(24), ROWS),
    "layer norm without affine": (lambda: nn.LayerNorm(24, elementwise_affine=False), ROWS),
    "rms norm": (lambda: nn.RMSNorm(24, eps=1e-5), ROWS),
    "written rms": (lambda: WrittenRms(24), ROWS),
    "group norm": (lambda: nn.GroupNorm(2, 24), IMAGES),
    "group norm with one group": (lambda: nn.GroupNorm(1, 24), IMAGES),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_norm_sees_what_is_kept(name: str) -> None:
    """The small model is the stock modules over the kept slices, written here with plain indexing."""
    make, inputs = NORMS[name]
    model: Any = randomise(Sandwich(make()).double())
    before = Snapshot.of(model)
    result = sp.prune(model, inputs, norm="stock")
    before.assert_unchanged(model)
    small: Any = result.model
    assert type(small.norm) is type(model.norm)
    assert not result.plan.swaps
    assert small.a.weight.shape[0] == 12
    kept = result.plan.kept
    expected = copy.deepcopy(model)
    for key, tensor in expected.named_parameters():
        tensor.data = sliced(tensor.data, kept.get(key, {}))
    if hasattr(expected.norm, "normalized_shape"):
        expected.norm.normalized_shape = (12,)
    if isinstance(expected.norm, nn.GroupNorm):
        expected.norm.num_channels = 12
    torch.testing.assert_close(small(inputs), expected(inputs), rtol=1e-12, atol=1e-12)

    masked = masked_original(model, result.plan)
    check = checked(result)
    assert check.deviation is not None
    assert check.deviation > 1e-3
    assert not torch.allclose(small(inputs), masked(inputs))
    assert "stock norms" in str(check)
    assert "deviates" in str(result.report)
    assert result.report.to_dict()["verification"]["deviation"] == check.deviation
    again = sp.PruningPlan.from_json(result.plan.to_json())
    assert again == result.plan
    torch.testing.assert_close(sp.apply(again, model)(inputs), small(inputs))
    assert sp.verify(model, again, inputs).deviation == pytest.approx(check.deviation)


def test_stock_norms_take_what_is_not_zero() -> None:
    """After a sigmoid exact statistics are impossible; those over the kept channels are not."""
    model = randomise(Sandwich(nn.LayerNorm(24), nn.Sigmoid()).double())
    with pytest.raises(sp.NothingToPruneError, match="statistics"):
        sp.prune(model, ROWS)
    assert checked(sp.prune(model, ROWS, norm="stock")).deviation is not None


def test_a_norm_that_nobody_could_tell_its_shape() -> None:
    """The number is in the code: stock or not, zeros must come in and a subclass goes on counting."""

    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, (24,))

    result = sp.prune(randomise(Sandwich(Written()).double()), ROWS, norm="stock")
    assert checked(result).deviation is None
    with pytest.raises(sp.NothingToPruneError, match="statistics"):
        sp.prune(randomise(Sandwich(Written(), nn.Sigmoid()).double()), ROWS, norm="stock")


def test_a_wrong_stock_model_is_caught() -> None:
    model: Any = randomise(Sandwich(nn.LayerNorm(24)).double())
    plan = sp.plan(sp.analyze(model, ROWS, norm="stock"))
    small: Any = sp.apply(plan, model)
    with torch.no_grad():
        small.norm.weight[0] += 0.1
    check = sp.verify(model, plan, ROWS, small=small)
    assert not check.ok
    assert "DIFFERS from the masked original with stock norms" in str(check)


def test_exact_is_the_default_and_has_no_deviation() -> None:
    result = sp.prune(randomise(Sandwich(nn.LayerNorm(24)).double()), ROWS)
    assert checked(result).deviation is None


@pytest.mark.parametrize("norm", ["Stock", "", None, True, 1.0, ["stock"]])
def test_another_norm_is_refused(norm: Any) -> None:
    model = Sandwich(nn.LayerNorm(24)).double()
    with pytest.raises(sp.ArgumentError, match=r"norm must be 'exact' .* or 'stock'"):
        sp.prune(model, ROWS, norm=norm)
    with pytest.raises(sp.ArgumentError, match="norm must be 'exact'"):
        sp.analyze(model, ROWS, norm=norm)
