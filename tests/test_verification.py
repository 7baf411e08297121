"""Verification: what it must not mistake for a difference, and what it must not overlook beside that."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Snapshot, randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import structprune as sp
from structprune.program import Call
from structprune.running import outcome
from structprune.steady import LEVELS


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# -- what is zero but for rounding ---------------------------------------------------------------------------------


class NormAfterNorm(nn.Module):
    """The second batch norm sees a linear function of what the first has centred: its running mean is rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16),
            nn.ReLU(), nn.Conv2d(16, 4, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_that_are_rounding(ratio: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    result = sp.prune(NormAfterNorm().to(dtype), rows(2, 3, 8, 8).to(dtype), ratio=ratio)
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in NormAfterNorm().parameters())
    assert result.report.verification is not None
    assert result.report.verification.max_rel_error < 1e-9


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_network_as_it_was_initialised(scope: str) -> None:
    torch.manual_seed(0)
    assert sp.prune(models.mobilenet_v2(weights=None), torch.randn(1, 3, 64, 64), ratio=0.3, scope=scope).plan


@pytest.mark.parametrize("momentum", [0.1, 0.11])
def test_statistics_that_are_rounding_hide_no_others(momentum: float) -> None:
    model = NormAfterNorm().double()
    plan = sp.plan(sp.analyze(model, rows(2, 3, 8, 8)))
    small: Any = sp.apply(plan, model)
    small.layers[1].momentum = momentum
    assert sp.verify(model, plan, rows(2, 3, 8, 8), small=small).ok == (momentum == 0.1)


class Centred(nn.Module):
    """Its second output is zero; `shift` is added to what it is the sum of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.shift = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4), 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.c(self.b(self.a(x).relu()).relu())
        return y, (y - y.mean(-1, keepdim=True) + self.shift).sum(-1)


@pytest.mark.parametrize("batch", [1, 6])
def test_an_output_that_is_rounding(batch: int) -> None:
    model = randomise(Centred().double())
    check = sp.prune(model, rows(batch, 8), ratio=0.3).report.verification
    assert check is not None
    assert check.ok


@pytest.mark.parametrize("shift", [1e-9, 1e-6, 1.0])
def test_an_output_that_should_be_rounding(shift: float) -> None:
    model = randomise(Centred().double())
    plan = sp.plan(sp.analyze(model, rows(6, 8)))
    small: Any = sp.apply(plan, model)
    small.shift = shift
    check = sp.verify(model, plan, rows(6, 8), small=small)
    assert not check.ok
    assert "DIFFERS" in check.message


def test_another_output_is_still_compared() -> None:
    model = randomise(Centred().double())
    plan = sp.plan(sp.analyze(model, rows(6, 8)))
    small: Any = sp.apply(plan, model)
    with torch.no_grad():
        small.c.bias[0] += 1e-6
    assert not sp.verify(model, plan, rows(6, 8), small=small).ok


# -- random numbers ------------------------------------------------------------------------------------------------


NOISES: dict[str, Any] = {
    "randn_like": lambda h: h + 0.1 * torch.randn_like(h),
    "randn": lambda h: h + 0.1 * torch.randn(h.shape, dtype=h.dtype),
    "rand": lambda h: h * (torch.rand(h.shape) < 0.9) / 0.9,
    "rand_like": lambda h: h * (torch.rand_like(h) < 0.9),
    "bernoulli": lambda h: h * torch.bernoulli(torch.full_like(h, 0.9)),
    "bernoulli p": lambda h: h * h.bernoulli(0.8),
    "bernoulli_": lambda h: h * torch.empty_like(h).bernoulli_(0.9),
    "normal_": lambda h: h + h.new_empty(h.shape).normal_(0.1, std=0.1),
    "normal": lambda h: h + torch.normal(h.detach(), 0.1),
    "uniform_": lambda h: h + torch.empty_like(h).uniform_(-1, 2),
    "uniform_ named": lambda h: h + torch.empty_like(h).uniform_(**{"to": 3.0}),
    "exponential_": lambda h: h * torch.empty_like(h).exponential_(2.0),
    "gumbel_softmax": lambda h: h * F.gumbel_softmax(h, dim=0),
    "centred": lambda h: h * (torch.rand_like(h) - 0.5),
    "rare": lambda h: h * (torch.rand_like(h) < 0.3),
    "signs": lambda h: h * torch.empty_like(h).uniform_(-1, 1),
    "gumbel": lambda h: h - torch.empty_like(h).exponential_().log(),
    "per row": lambda h: h * torch.rand(len(h), 1, dtype=h.dtype),
    "pooled": lambda h: F.fractional_max_pool2d(spread(h, 5, 5), 2, output_size=2).mean((2, 3)),
    "pooled in space": lambda h: F.fractional_max_pool3d(spread(h, 5, 5, 5), 2, 2, return_indices=True)[0].mean(
        (2, 3, 4)
    ),
}


def spread(h: Tensor, *sizes: int) -> Tensor:
    """[N, C] -> [N, C, ...], another number everywhere."""
    return h[(..., *[None] * len(sizes))] * torch.linspace(-1, 2, math.prod(sizes)).to(h).reshape(sizes)


HIDING = {"window": lambda h: h * ((torch.rand_like(h) - 0.25).abs() < 0.05)}


class Noisy(nn.Module):
    def __init__(self, noise: str, always: bool) -> None:
        super().__init__()
        self.a, self.b, self.noise, self.always = nn.Linear(8, 16), nn.Linear(16, 4), noise, always

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.always or self.training:
            h = {**NOISES, **HIDING}[self.noise](h)
        return self.b(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("always", [True, False], ids=["always", "training"])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_on_what_shrinks(noise: str, always: bool) -> None:
    model = randomise(Noisy(noise, always).double())
    before = Snapshot.of(model)
    result = sp.prune(model, rows(4, 8), ratio=0.5)
    assert result.model.a.out_features == 8
    before.assert_unchanged(model)
    wrong = copy.deepcopy(result.model)
    with torch.no_grad():
        wrong.b.weight[0, 0] += 1e-3
    assert not sp.verify(model, result.plan, rows(4, 8), small=wrong).ok


def test_noise_that_hides_everything() -> None:
    """It is nothing whenever it is held constant, and nothing would be verified then."""
    with pytest.raises(sp.VerificationError, match="DIFFERS"):
        sp.prune(randomise(Noisy("window", True).double()), rows(64, 8), ratio=0.5)


def test_steady_numbers_do_not_depend_on_how_many_there_are() -> None:
    for name in NOISES:
        wide, narrow = (outcome(_Alone(name), Call((rows(4, n).abs(),), {}), "eval", LEVELS[0])[0][0] for n in (6, 3))
        if name != "per row" and "softmax" not in name:
            assert torch.equal(
                wide[:, :3], outcome(_Alone(name), Call((rows(4, 6).abs()[:, :3],), {}), "eval", LEVELS[0])[0][0]
            )
        assert wide.shape[1] == 2 * narrow.shape[1]


class _Alone(nn.Module):
    def __init__(self, noise: str) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, h: Tensor) -> Tensor:
        return NOISES[self.noise](h.clamp(0, 1))  # type: ignore[no-any-return]


# -- models that remember ------------------------------------------------------------------------------------------


class Remembering(nn.Module):
    """Updates buffers, in eval mode too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.calls = kind, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), 0
        self.notes = torch.zeros((), dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros(()))

    mean: Tensor
    count: Tensor

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.kind == "in place":
            self.mean.mul_(0.9).add_(h.detach().mean((0, 2, 3)), alpha=0.1)
        elif self.kind == "anew":
            self.mean = self.mean * 0.9 + 0.1 * h.detach().mean((0, 2, 3))
        elif self.kind == "counted":
            self.count += 1
        elif self.kind == "numbered":
            self.calls += 1
        elif self.kind == "noted":
            self.notes += x.mean()
        else:
            h = F.instance_norm(h, self.mean, self.mean + 1)
        return self.b(h - self.mean[:, None, None]).mean((2, 3)) * (1 + self.count + self.notes)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["in place", "anew", "counted", "numbered", "noted", "instance norm"])
def test_models_that_remember(kind: str) -> None:
    model = randomise(Remembering(kind).double()).eval()
    before = Snapshot.of(model)
    result = sp.prune(model, rows(2, 3, 6, 6), ratio=0.5)
    before.assert_unchanged(model)
    small: Any = result.model
    assert small.a.out_channels == 4
    assert small.calls == 0
    assert sp.verify(model, result.plan, rows(2, 3, 6, 6)).max_rel_error < 1e-12


class Renewing(nn.Module):
    """Masks are made for another batch, as SpeechBrain's light GRUs do: the buffer is replaced by one of the new width."""

    masks: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.width, self.batch = 12, 8
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)
        self.register_buffer("masks", torch.ones(64, 12))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        if self.training and self.batch != len(x):
            self.batch, self.masks = len(x), torch.ones(64, self.width, dtype=x.dtype)
        return self.last(h * self.masks[: len(x)] if self.training else h)  # type: ignore[no-any-return]


def test_a_buffer_that_is_made_anew_at_the_new_width() -> None:
    result = sp.prune(randomise(Renewing().double()), rows(2, 8))
    assert result.plan.kept["last.weight"][1]
    assert result.model(rows(3, 8)).shape == (3, 4)


def test_a_run_leaves_a_model_as_it_was() -> None:
    model = randomise(Remembering("in place").double()).eval()
    before = Snapshot.of(model)
    call = Call((rows(2, 3, 6, 6),), {})
    first, second = (outcome(model, call, "eval") for _ in range(2))
    before.assert_unchanged(model)
    assert torch.equal(first[0][0], second[0][0])
    assert torch.equal(first[1]["mean"], second[1]["mean"])
    assert not torch.equal(first[1]["mean"], model.mean)  # type: ignore[arg-type]


class Rescaling(Centred):
    """Works on its input in place."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x.mul_(2).add_(1))


def test_inputs_that_are_written() -> None:
    model, images = randomise(Rescaling().double()), rows(3, 8)
    before = images.clone()
    result = sp.prune(model, images, ratio=0.5)
    assert result.report.verification is not None
    assert result.report.verification.max_rel_error < 1e-9
    assert torch.equal(images, before)
    wrong = copy.deepcopy(result.model)
    with torch.no_grad():
        wrong.c.bias[0] += 1e-3
    assert not sp.verify(model, result.plan, images, small=wrong).ok


# -- other outputs -------------------------------------------------------------------------------------------------


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()).to_sparse()  # type: ignore[no-any-return]


def test_a_sparse_output() -> None:
    check = sp.prune(randomise(Sparse().double()), rows(2, 3), ratio=0.5).report.verification
    assert check is not None
    assert check.max_rel_error < 1e-12


def test_outputs_that_are_not_finite() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(sp.VerificationError, match="before anything is pruned"):
        sp.prune(model, torch.full((2, 3), float("nan")), ratio=0.5)


# -- what a model makes in the default dtype -------------------------------------------------------------------------


class Stateful(nn.Module):
    """An LSTM whose first state is made in its forward, as tutorials have it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 12, 2, batch_first=True)
        self.head = nn.Linear(12, 4)
        self.hidden, self.layers = 12, 2

    def forward(self, x: Tensor) -> Tensor:
        state = [torch.zeros(self.layers, x.size(0), self.hidden).to(x.device) for _ in range(2)]
        return self.head(self.layer(x, tuple(state))[0][:, -1])  # type: ignore[no-any-return]


class Making(nn.Module):
    """Something made in the forward meets what has the dtype of the weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)
        self.listed = [torch.eye(5).roll(1, 0)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.kind == "listed":
            h = self.listed[0].view(1, 5, 5) @ h
        elif self.kind == "of NumPy":
            h = torch.from_numpy(np.eye(5, k=1, dtype=np.float32)) @ h
        elif self.kind == "an old constructor":
            h = torch.FloatTensor(5, 5).fill_(0.5) @ h
        elif self.kind == "steps":
            h = (torch.arange(h.shape[1]) / 5).view(1, 1, -1) @ h
        elif self.kind == "written":
            out = torch.zeros(h.shape[0], h.shape[1], self.first.out_features)
            out[:, torch.tensor([0, 2])] = h[:, torch.tensor([1, 0])]
            h = out
        elif self.kind == "a limit":
            h = torch.max(h, torch.tensor(torch.finfo(h.dtype).min))
        elif self.kind == "ones":
            h = torch.ones(1, h.shape[1], h.shape[1]) @ h
        elif self.kind == "half":
            h = F.linear(h.half().to(h.dtype), self.first.weight @ self.first.weight.mT)
        return self.last(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "kind", ["steps", "written", "a limit", "ones", "half", "listed", "of NumPy", "an old constructor"]
)
def test_what_is_made_in_the_forward(kind: str) -> None:
    result = sp.prune(randomise(Making(kind)), rows(2, 5, 8).float())
    check = result.report.verification
    assert result.plan.kept
    assert check is not None
    assert check.max_rel_error < 1e-12


def test_a_state_that_is_made_in_the_forward() -> None:
    result = sp.prune(randomise(Stateful()), rows(2, 5, 8).float())
    assert result.plan.kept["head.weight"][1]
    assert result.model.get_submodule("layer").hidden_size == 6


class Detector(nn.Module):
    """It returns as many numbers as are large enough."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        return y[y > 0]


def test_outputs_that_masks_leave_empty() -> None:
    model = Detector()
    with torch.no_grad():
        model.b.weight.copy_(torch.arange(16).sub(7.5).sign().expand(2, 16))  # what the first half gives is below zero
        model.b.bias.zero_()
    with pytest.raises(sp.VerificationError, match="every output of the masked model is constant"):
        sp.prune(model, torch.randn(99, 6), importance=lambda group: -torch.arange(len(group)))


def test_outputs_that_are_empty_from_the_start() -> None:
    model = Detector()
    with torch.no_grad():
        model.b.weight.zero_()
        model.b.bias.fill_(-1)
    with pytest.raises(sp.VerificationError, match="nothing but empty tensors"):
        sp.prune(model, torch.randn(9, 6))


class Ended(nn.Module):
    """Whatever is computed, it comes to one number."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.end = nn.Linear(6, 16), nn.Linear(16, 2), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.b(self.a(x).relu()))


@pytest.mark.parametrize(
    "end", [lambda y: y * 0, lambda y: y.clamp(5, 5), lambda y: -y.abs().neg().relu(), lambda y: torch.ones_like(y)]
)
def test_outputs_that_are_constant_from_the_start(end: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(sp.VerificationError, match="every output of the masked model is constant"):
        sp.prune(randomise(Ended(end)), torch.randn(9, 6))


def test_one_number_for_each_input() -> None:
    result = sp.prune(randomise(Ended(lambda y: y.sum())), torch.randn(9, 6))
    assert result.plan
