"""Rules and swaps of one's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_exact, assert_kept, masked_original, randomise
from torch import Tensor, nn

import structprune as sp
from structprune import swaps
from structprune.rules import RULES, Labels, Site, rule

ROWS = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What a test registers is gone after it."""
    before, rules = dict(swaps._SWAPS), dict(RULES)
    yield
    for registry, content in ((swaps._SWAPS, before), (RULES, rules)):
        registry.clear()
        registry.update(content)  # type: ignore[arg-type]


# -- swaps ----------------------------------------------------------------------------------------------------


class Rigid(nn.Module):
    """Attention with its sizes written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 96), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / 8**0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(*x.shape[:2], 32))


class Free(Rigid):
    """The same, with as many heads of width 8 as there are."""

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], 3, x.shape[-1] // 24, 8).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        weights = (q @ k.mT / 8**0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def model_of(kind: type[nn.Module] = Rigid) -> Any:
    return randomise(nn.Sequential(kind(), nn.Linear(16, 5)).double())


def test_a_rigid_module_keeps_its_sizes() -> None:
    assert_kept(model_of(), ROWS, "0.qkv.weight[0]", "written in the code")


def test_a_registered_swap_frees_it(tmp_path: Path) -> None:
    sp.register_swap(Rigid, Free)
    model = model_of()
    result = assert_exact(model, ROWS, exclude="0.out")
    assert type(model[0]) is Rigid
    small: Any = result.model
    assert type(small[0]) is Free
    assert small[0].qkv.weight.shape[0] == 48
    assert result.plan.swaps == {"0": (f"{__name__}.Rigid", 0)}
    assert list(small.state_dict()) == list(model.state_dict())
    sp.save(result, tmp_path / "out")
    for again in (sp.load(tmp_path / "out", model_of), copy.deepcopy(small), sp.apply(result.plan, model)):
        torch.testing.assert_close(again(ROWS), masked_original(model, result.plan)(ROWS))


def test_modules_that_lose_nothing_keep_their_class() -> None:
    sp.register_swap(Rigid, Free, name="free attention")
    model = randomise(nn.Sequential(Rigid(), nn.Linear(16, 16), Rigid(), nn.Linear(16, 5)).double())
    result = sp.prune(model, ROWS, exclude=["0.*", "1"])
    small: Any = result.model
    assert [type(small[0]), type(small[2])] == [Rigid, Free]
    assert result.plan.swaps == {"2": ("free attention", 0)}


def test_subclasses_are_not_swapped() -> None:
    """They may compute something else."""

    class Other(Rigid):
        pass

    sp.register_swap(Rigid, Free)
    assert_kept(model_of(Other), ROWS, "0.qkv.weight[0]", "written in the code")


def test_a_plan_with_a_swap_that_is_not_registered() -> None:
    sp.register_swap(Rigid, Free, name="mine")
    plan = sp.plan(sp.analyze(model_of(), ROWS))
    text = plan.to_json()
    del swaps._SWAPS["mine"]
    with pytest.raises(sp.PlanError, match=r"swaps\.0: the swap 'mine' is not registered here .*register_swap"):
        sp.PruningPlan.from_json(text)
    with pytest.raises(sp.PlanError, match="swaps '0': the swap 'mine' is not registered here"):
        sp.apply(plan, model_of())


def test_a_plan_that_swaps_the_wrong_module() -> None:
    sp.register_swap(Rigid, Free, name="mine")
    plan = sp.plan(sp.analyze(model_of(), ROWS))
    with pytest.raises(sp.PlanError, match="swaps '0', which is a Free"):
        sp.apply(plan, model_of(Free))


def test_what_cannot_be_registered() -> None:
    class Same(Rigid):
        pass

    sp.register_swap(Rigid, Free, name="mine")
    sp.register_swap(Rigid, Free, name="mine")  # once more is no harm
    for rigid, free in ((Rigid, Same), (Rigid, nn.Linear), (Free, Rigid), (Rigid, Rigid)):
        with pytest.raises(sp.ArgumentTypeError, match="must be a subclass of"):
            sp.register_swap(rigid, free)
    for what in (Rigid(), "Rigid", int, None):
        with pytest.raises(sp.ArgumentTypeError, match="two classes of modules"):
            sp.register_swap(what, Free)  # type: ignore[arg-type]
    for name in ("other", "attention", "norm"):
        with pytest.raises(sp.ArgumentError, match=r"already|own swap"):
            sp.register_swap(Rigid, Free, name=name)


# -- rules ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("structprune_tests::normalise", mutates_args=())
def normalise(x: Tensor, scale: Tensor) -> Tensor:
    """[N, C, H, W], [C]: divided by the norm over space."""
    return x / (1 + x.square().sum((2, 3), keepdim=True)).sqrt() * scale[:, None, None]


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(normalise(self.a(x), self.scale))


def test_a_rule_for_an_operator_of_ones_own() -> None:
    model: Any = randomise(Custom().double()).requires_grad_(False)
    assert_kept(model, IMAGES, "a.weight[0]", "normalise has no rule")

    @rule("normalise")
    def normalise_rule(site: Site, x: Labels, scale: Labels) -> Labels:
        x = site.hold(x, (2, 3), "normalise runs over space")
        site.join(x, 1, scale, 0)
        return Labels(site.shape, x.coordinates)

    small: Any = sp.prune(model, IMAGES).model
    assert small.a.weight.shape[0] == small.scale.shape[0] == 4
    with pytest.raises(sp.ArgumentError, match="a rule for 'normalise' already"):
        rule("normalise")(normalise_rule)


def test_a_wrong_rule_is_caught() -> None:
    @rule("normalise")
    def normalise_rule(site: Site, x: Labels, scale: Labels) -> Labels:
        return Labels(site.shape, x.coordinates)

    model = randomise(Custom().double()).requires_grad_(False)
    with pytest.raises(sp.VerificationError):
        sp.prune(model, IMAGES)


@torch.library.custom_op("structprune_tests::relu", mutates_args=())
def swish_and_multiply(x: Tensor, scale: float) -> Tensor:
    """Called like an operator of PyTorch, and something else: channels are mixed."""
    return x.roll(1, 1) * scale


@torch.library.custom_op("structprune_tests::rms_norm", mutates_args=())
def own_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + epsilon) * weight[:, None, None]


@pytest.mark.parametrize("spelling", ["function", "packet", "overload"])
def test_operators_that_are_called_like_those_of_pytorch(spelling: str) -> None:
    ops = torch.ops.structprune_tests
    relu, norm = {
        "function": (swish_and_multiply, own_norm),
        "packet": (ops.relu, ops.rms_norm),
        "overload": (ops.relu.default, ops.rms_norm.default),
    }[spelling]

    class Model(Custom):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(norm(relu(self.a(x), 2.0), self.scale, 1e-6))  # type: ignore[no-any-return]

    model = randomise(Model().double()).requires_grad_(False)
    assert_kept(model, IMAGES, "a.weight[0]", "structprune_tests::relu has no rule")
