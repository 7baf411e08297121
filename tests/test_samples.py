"""What verification compares on: inputs that the model takes, where something is computed of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune.program import Call
from structprune.samples import fresh, sampled


class Prepared(nn.Module):
    """A function of the inputs, then two layers."""

    def __init__(self, prepare: Callable[..., Tensor]) -> None:
        super().__init__()
        self.prepare = prepare
        self.a, self.b, self.table = nn.Linear(6, 16), nn.Linear(16, 3), nn.Embedding(10, 6)

    def forward(self, *inputs: Any) -> Tensor:
        return self.b(self.a(self.prepare(self, *inputs)).relu())


def images_alone(model: Any, x: Tensor) -> Tensor:
    if x.min() < 0 or x.max() > 1:
        raise ValueError("images must be in [0, 1]")
    return x


SHARES = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
DOMAINS: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
    "positive": (lambda m, x: x.log(), SHARES),
    "probabilities": (lambda m, x: torch.bernoulli(x), SHARES),
    "indices": (lambda m, x: m.table(x.long()), torch.tensor([1.0, 4.0, 8.0, 9.0])),
    "covariances": (lambda m, x: torch.linalg.cholesky(x), torch.eye(6) * 3 + 0.1),
    "checked": (images_alone, SHARES),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_inputs_that_must_be_of_a_kind(name: str) -> None:
    prepare, example = DOMAINS[name]
    result = sp.prune(randomise(Prepared(prepare)), example, ratio=0.5)
    assert result.model.a.out_features == 8
    assert result.report.verification is not None
    assert result.report.verification.max_rel_error < 1e-12


class Wrong(nn.Module):
    """What it returns depends on how many channels there are, in a way that no trace sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16, bias=False), nn.Linear(16, 3, bias=False)
        self.scales = [float(i) for i in range(17)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.nan_to_num(0.0)).relu()
        return self.b(h * self.scales[h.shape[1]])


@pytest.mark.parametrize("missing", [0, 1, 23])
def test_values_that_are_missing_hide_nothing(missing: int) -> None:
    example = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    example.flatten()[:missing] = torch.nan
    with pytest.raises(sp.VerificationError, match="DIFFERS"):
        sp.prune(randomise(Wrong()), example, ratio=0.5)


class Fresh(Wrong):
    """The same, behind a weight of zeros: a scale, or that of the last layer, which has a bias."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last, self.scale = nn.Linear(3, 4), nn.Parameter(torch.ones(3))
        nn.init.zeros_(self.last.weight if last else self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(x) * self.scale)


@pytest.mark.parametrize("last", [False, True])
def test_weights_of_zeros_hide_nothing(last: bool) -> None:
    example = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    with pytest.raises(sp.VerificationError, match=r"DIFFERS .* with random numbers where weights are zero"):
        sp.prune(Fresh(last), example, ratio=0.5)
    right = Fresh(last)
    right.scales = [2.0] * 17
    state = torch.get_rng_state()
    check: Any = sp.prune(right, example, ratio=0.5).report.verification
    assert torch.equal(torch.get_rng_state(), state)
    assert check.max_rel_error < 1e-12
    assert check.message.endswith("with random numbers where weights are zero")
    assert [row.dtype for row in check.comparisons].count("float32") == 1


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention, self.out = nn.Embedding(20, 16), nn.MultiheadAttention(16, 4), nn.Linear(16, 20)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        h = self.table(ids)
        return self.out(self.attention(h, h, h, attn_mask=mask)[0]), h.mean()


@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min, -1e9])
def test_masks_stay_masks(low: float) -> None:
    """What they leave is compared, not NaN with NaN."""
    model, ids = randomise(Attending()), torch.randint(20, (6, 2), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), low)
    result = sp.prune(model, (ids, mask), ratio=0.5)
    with torch.no_grad():
        result.model.out.weight.mul_(1.001)
    assert not sp.verify(model, result.plan, (ids, mask), small=result.model).ok


def test_what_stays_of_an_example() -> None:
    mask = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    assert torch.equal(fresh(mask), mask)
    holes = torch.tensor([[1.0, torch.nan, 3.0], [torch.inf, 5.0, 0.5]])
    renewed = fresh(holes)
    assert torch.equal(renewed.isnan(), holes.isnan())
    assert torch.equal(renewed.isinf(), holes.isinf())
    assert not (renewed == holes)[holes.isfinite()].any()
    assert fresh(torch.zeros(3, 4)).unique().numel() == 12


class Converting(nn.Module):
    """Takes any floating-point numbers, and times beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.t, self.b = nn.Linear(6, 16), nn.Linear(2, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        times = torch.stack([t.sin(), t.cos()], -1)
        return self.b((self.a(x.to(self.a.weight.dtype)) + self.t(times.to(self.t.weight.dtype))).relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_that_the_model_converts(dtype: torch.dtype) -> None:
    model, inputs = randomise(Converting()).bfloat16(), (SHARES.to(dtype), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert sp.prune(model, inputs, ratio=0.5).model.a.out_features == 8


def test_inputs_that_it_does_not_convert() -> None:
    with pytest.raises(sp.ExampleInputsError, match=r"example_inputs is torch.float64, the model torch.float32"):
        sp.prune(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), SHARES.double())


class Halved(nn.Module):
    """Says that its channels are computed in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(x).to(torch.bfloat16)).to(x.dtype))


def test_the_rounding_of_bfloat16_is_not_compared() -> None:
    check = sp.prune(randomise(Halved()), SHARES, ratio=0.5).report.verification
    assert check is not None
    assert check.max_rel_error < 1e-12


class Split(nn.Module):
    """Its first output divides by what becomes zero, in a way that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a(x)
        return self.b(h / (h.sigmoid() - torch.tensor(0.5))), self.b(h)


def test_every_output_must_stay_finite() -> None:
    with pytest.raises(sp.VerificationError, match="outputs of the masked model are not finite"):
        sp.prune(randomise(Split()), SHARES, ratio=0.5)


class Rooted(nn.Module):
    """Roots of its inputs, which some random numbers do not have; the outputs of other rows are finite."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.sqrt()).relu())


def test_the_example_where_it_gives_more_numbers() -> None:
    example = torch.rand(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = randomise(Rooted().double())
    (sample,) = sampled(model, [Call((example,), {})], torch.device("cpu"))
    assert torch.equal(sample.wide.args[0], example)
    example.fill_(-1.0)
    (sample,) = sampled(model, [Call((example,), {})], torch.device("cpu"))
    assert not torch.equal(sample.wide.args[0], example)


def test_zeros_that_a_root_is_taken_of() -> None:
    class Rooted(Fresh):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.b(self.a(x).relu()) * self.scale.sqrt())

    check = sp.prune(Rooted(last=False), torch.randn(4, 6), ratio=0.5).report.verification
    assert check is not None
    assert check.ok
