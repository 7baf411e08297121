"""Plans after one another and against one another, and small models in their old shapes."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Snapshot, assert_same_outputs, masked_original, named_state, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CASES, Case
from torch import Tensor, nn

import structprune as sp

FREE = [case for case in CASES if any(count > 1 for count in case.units)]
SOME = FREE[::4]


def scores(seed: int) -> Any:
    """Random scores, for plans that differ."""
    random = np.random.default_rng(seed)
    return lambda group: random.permutation(len(group))


def pruned(model: nn.Module, inputs: Any, seed: int, ratio: float) -> tuple[sp.PruningPlan, nn.Module] | None:
    """A plan and the model that it leaves; None if nothing can be removed (a norm over fewer channels, say)."""
    try:
        plan = sp.plan(sp.analyze(model, inputs), scores(seed), ratio=ratio)
    except sp.NothingToPruneError:
        return None
    return plan, sp.apply(plan, model)


def assert_same_state(a: nn.Module, b: nn.Module, scaled: Any = ()) -> None:
    """Bit for bit; the tensors that two plans scale, to the last bit."""
    first, second = named_state(a), named_state(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if name in scaled:
            torch.testing.assert_close(tensor, second[name], rtol=1e-15, atol=0)
        else:
            assert torch.equal(tensor.detach(), second[name].detach()), name
        assert tensor.dtype == second[name].dtype
        assert tensor.stride() == second[name].stride()
    for m, n in zip(a.modules(), b.modules(), strict=True):
        assert type(m) is type(n)
        assert m.extra_repr() == n.extra_repr()


# -- one after the other --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(case=st.sampled_from(FREE), seed=st.integers(0, 99), ratios=st.tuples(*[st.sampled_from([0.25, 0.5, 0.7])] * 2))
def test_at_once_is_one_by_one(case: Case, seed: int, ratios: tuple[float, float]) -> None:
    model, inputs = case.make(), case.example()
    first = pruned(model, inputs, seed, ratios[0])
    second = pruned(first[1], inputs, seed + 1, ratios[1]) if first else None
    if first is None or second is None:
        return
    both = first[0].then(second[0])
    small = sp.apply(both, model)
    assert_same_state(small, second[1], set(first[0].scales) & set(second[0].scales))
    assert sp.PruningPlan.from_json(both.to_json()) == both
    assert both.fingerprint == first[0].fingerprint
    assert both.becomes == second[0].becomes == sp.analyze(small, inputs).fingerprint
    assert_same_outputs(small.eval(), second[1].eval(), inputs, case.name)
    if first[0]:
        with pytest.raises(sp.PlanError, match="the second plan does not follow the first"):
            second[0].then(first[0])


class Norms(nn.Module):
    """Every norm, on one residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 16)
        self.layer, self.rms, self.plain = nn.LayerNorm(16), nn.RMSNorm(16, eps=1e-5), nn.RMSNorm(16)
        self.batch, self.group = nn.BatchNorm1d(16), nn.GroupNorm(2, 16)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for norm in (self.layer, self.rms, self.plain, self.batch, self.group):
            x = x + self.down(self.up(norm(x)).relu())
        out: Tensor = self.head(x)
        return out


def test_norms_go_on_counting_the_original_channels() -> None:
    model: Any = randomise(Norms().double()).eval()
    rows = torch.randn(5, 6, dtype=torch.float64)
    first = sp.prune(model, rows, ratio=0.25)
    second = sp.prune(first.model, rows, ratio=0.5)
    assert first.plan.swaps
    assert len(first.plan.kept["layer.weight"][0]) == 12
    assert len(second.plan.kept["layer.weight"][0]) == 6
    assert second.plan.kept["up.weight"][0]
    both = first.plan.then(second.plan)
    assert both.swaps == first.plan.swaps
    assert all(channels == 16 for _, channels in both.swaps.values())
    small = sp.apply(both, model)
    assert_same_state(small, second.model)
    assert sp.verify(model, both, rows).max_rel_error < 1e-12


class Gemma(nn.Module):
    """An RMS norm that adds one to its weight: it is folded into a scale and a shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


class Written(nn.Module):
    """A layer norm written out by hand: its class is swapped for one that counts the original channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        var = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(var + 1e-6) * self.weight + self.bias


@pytest.mark.parametrize("norm", [Gemma, Written])
def test_norms_by_hand_are_pruned_twice(norm: Any) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 16), norm(16), nn.Linear(16, 12), nn.ReLU(), norm(12), nn.Linear(12, 3))
    randomise(model.double()).eval()
    rows = torch.randn(5, 6, dtype=torch.float64)
    first = sp.prune(model, rows, ratio=0.25)
    second = sp.prune(first.model, rows, ratio=0.5)
    assert [len(second.plan.kept[f"{i}.weight"][0]) for i in (0, 2)] == [6, 5]
    both = first.plan.then(second.plan)
    small = sp.apply(both, model)
    assert_same_state(small, second.model, both.scales)
    assert sp.verify(model, both, rows).max_rel_error < 1e-12
    assert sp.PruningPlan.from_json(both.to_json()) == both


class Flat(nn.Module):
    """A size written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).relu().view(-1, 288))
        return out


def test_rewritten_sizes_are_pruned_twice() -> None:
    model: Any = randomise(Flat().double()).eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    first = sp.prune(model, x, ratio=0.25, rigid="rewrite")
    second = sp.prune(first.model, x, ratio=0.5, rigid="rewrite")
    assert second.model.conv.out_channels == 3
    both = first.plan.then(second.plan)
    assert_same_state(sp.apply(both, model), second.model)
    assert sp.verify(model, both, x).max_rel_error < 1e-12


def test_a_swap_made_twice_is_made_once() -> None:
    from structprune.swaps import swap

    norm = nn.LayerNorm(16)
    swap(norm, "norm", 16)
    kind = type(norm)
    swap(norm, "norm", 12)
    assert type(norm) is kind


def test_a_bias_that_shrink_gave_is_cut_by_what_follows() -> None:
    def chain() -> Any:
        layers = nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 1)
        return randomise(nn.Sequential(*layers).double()).eval()

    model = chain()
    with torch.no_grad():
        model[0].weight[:2] = 0  # two constant channels, folded into a bias of the second convolution
    pictures = images().double()
    first = sp.shrink(model, pictures, details=True)
    assert first.plan.swaps == {"2": ("bias", 6)}
    second = sp.prune(first.model, pictures)
    assert len(second.plan.kept["2.bias"][0]) == 3
    both = first.plan.then(second.plan)
    assert both.swaps == {"2": ("bias", 3)}
    small = sp.apply(both, chain())
    assert_same_state(small, sp.apply(second.plan, sp.apply(first.plan, chain())))
    assert sp.PruningPlan.from_json(both.to_json()) == both
    torch.testing.assert_close(sp.inflate(first.plan, first.model, chain())(pictures), model(pictures))
    assert_same_outputs(sp.inflate(both, second.model, chain()), second.model, pictures, "inflated")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 5))


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def made(ratio: float = 0.25, **options: Any) -> sp.PruningPlan:
    return sp.plan(sp.analyze(net(), images()), ratio=ratio, **options)


def test_plans_that_do_not_follow() -> None:
    plan = made()
    with pytest.raises(sp.PlanError, match=r"expects 8 indices of 0\.weight .* it was made for the unpruned model"):
        plan.then(plan)
    with pytest.raises(sp.PlanError, match="made for another model than apply"):
        plan.then(dataclasses.replace(made(0), fingerprint="of a model that is another", sizes={}))
    for other in ({}, None, "plan"):
        with pytest.raises(sp.ArgumentTypeError, match="the other plan must be a PruningPlan"):
            plan.then(other)  # type: ignore[arg-type]
        with pytest.raises(sp.ArgumentTypeError, match="the other plan must be a PruningPlan"):
            plan.diff(other)  # type: ignore[arg-type]


def test_an_empty_plan_changes_nothing() -> None:
    nothing, plan = made(0), made()
    assert not nothing.then(plan).diff(plan)
    small = sp.apply(plan, net())
    after = sp.plan(sp.analyze(small, images()), ratio=0)
    assert plan.then(after).to_dict() == plan.to_dict()


# -- one against the other ------------------------------------------------------------------------------------


def test_equal_plans_do_not_differ() -> None:
    found = made().diff(made())
    assert not found
    assert str(found) == "the plans are equal"
    assert found.to_dict() == sp.plan(sp.analyze(net(), images())).diff(made(0.5)).to_dict()


def test_what_differs() -> None:
    first, second = made(0.5, importance=lambda g: range(len(g))), made(0.25, importance=lambda g: range(len(g), 0, -1))
    found = first.diff(second)
    assert found
    assert found.kept["0.weight"][0] == ((6, 7), (0, 1, 2, 3))
    assert found.attributes["0.out_channels"] == (4, 6)
    text = str(found)
    assert "0.weight[0]: only the first keeps 6, 7; only the second keeps 0, 1, 2, 3" in text
    assert "0.out_channels: 4 in the first, 6 in the second" in text
    assert json.loads(json.dumps(found.to_dict()))["kept"]["0.weight"]["0"] == {"first": [6, 7], "second": [0, 1, 2, 3]}
    assert found.fingerprints is None


def test_a_dimension_that_only_one_cuts() -> None:
    found = made().diff(made(exclude="0"))
    assert len(found.kept["0.weight"][0][1]) == 2
    assert not found.kept["0.weight"][0][0]
    assert made(exclude="0").diff(made()).kept["0.weight"][0] == found.kept["0.weight"][0][::-1]


def test_plans_for_different_models() -> None:
    other = sp.plan(sp.analyze(Norms(), torch.randn(5, 6)))
    found = made().diff(other)
    assert found.fingerprints == (made().fingerprint, other.fingerprint)
    assert "they are for different models" in str(found)
    assert "layer: None in the first, ('norm', 16) in the second" in str(found)


# -- and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SOME, ids=[case.name for case in SOME])
def test_an_inflated_model_is_the_masked_original(case: Case) -> None:
    model, inputs = case.make().eval(), case.example()
    found = pruned(model, inputs, 3, 0.5)
    if found is None:
        return
    plan, small = found
    before = [Snapshot.of(m) for m in (model, small)]
    full = sp.inflate(plan, small, model)
    for snapshot, m in zip(before, (model, small), strict=True):
        snapshot.assert_unchanged(m)
    assert type(full) is type(model)
    assert_same_state(full, masked_original(model, plan), plan.scales)
    assert_same_state(sp.apply(plan, full), small, plan.scales)


def test_it_follows_fine_tuning() -> None:
    model: Any = randomise(Norms().double())
    rows = torch.randn(5, 6, dtype=torch.float64)
    result = sp.prune(model, rows)
    small = result.model.train()
    optimizer = torch.optim.SGD(small.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        small(rows).square().mean().backward()
        optimizer.step()
    full = sp.inflate(result.plan, small, lambda: Norms().double())
    assert full.training
    assert [tuple(p.shape) for p in full.parameters()] == [tuple(p.shape) for p in model.parameters()]
    assert type(full.layer) is nn.LayerNorm
    outputs = assert_same_outputs(full.eval(), copy.deepcopy(small).eval(), rows, "after fine-tuning")
    assert float((outputs[0] - model.eval()(rows)).detach().abs().max()) > 1e-3


def test_what_cannot_be_inflated() -> None:
    result = sp.prune(net(), images())
    for small, make, words in (
        (net(), net(), "0.weight has the shape (8, 3, 3, 3), the plan leaves (4, 3, 3, 3)"),
        (nn.Identity(), net(), "it has no"),
        (result.model, result.model, "was the plan applied already"),
    ):
        with pytest.raises(sp.PlanError) as caught:
            sp.inflate(result.plan, small, make)
        assert words in str(caught.value)
    with pytest.raises(sp.ArgumentTypeError, match=r"make_model must be \(or make\)"):
        sp.inflate(result.plan, result.model, lambda: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(sp.ArgumentTypeError, match=r"small must be"):
        sp.inflate(result.plan, {}, net())  # type: ignore[arg-type]


def test_a_group_norm_that_lost_channels_keeps_its_groups() -> None:
    """It counts the channels that each group had: with groups fewer than channels in each it loses no whole groups."""
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layers = nn.Conv2d(3, 24, 3), nn.GroupNorm(4, 24), nn.ReLU(), nn.Conv2d(24, 5, 3)
    model = small = randomise(nn.Sequential(*layers).double())
    plans = []
    for ratio in (0.4, 0.25, 0.4):  # 6, 4, 3 and 2 channels in each of 4 groups
        plans.append(sp.plan(sp.analyze(small, images), ratio=ratio))
        small = sp.apply(plans[-1], small)
    whole = plans[0].then(plans[1]).then(plans[2])
    assert sp.apply(whole, model)[0].out_channels == 8
    for made in (small, sp.apply(whole, model)):
        assert_same_outputs(made, masked_original(model, whole), images, "three steps")
