"""Penalties: by hand, by their gradients, and by what training with them does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import masked_original, named_state, randomise
from torch import Tensor, nn

import structprune as sp
from structprune import regularize


def small() -> tuple[Any, sp.ChannelGraph]:
    """Two units with a norm: made by `0`, scaled by `1`, read by `2`."""
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4], [0, 2]]))
        model[0].bias.copy_(torch.tensor([1.0, 0]))
        model[1].weight.copy_(torch.tensor([0.5, -2]))
        model[1].bias.copy_(torch.tensor([0.0, 1]))
        model[2].weight.copy_(torch.tensor([[1.0, -4]]))
    return model, sp.analyze(model, torch.randn(4, 2, dtype=torch.float64))


def value(penalty: Callable[[], Tensor]) -> float:
    found = penalty()
    assert found.shape == ()
    return float(found.detach())


UNITS = [3**2 + 4**2 + 1 + 0.5**2 + 0 + 1, 2**2 + 0 + 2**2 + 1 + 4**2]  # six elements each


def test_group_lasso_by_hand() -> None:
    _, graph = small()
    norms = sum(square**0.5 for square in UNITS)
    assert value(regularize.GroupLasso(graph, 0.1)) == pytest.approx(0.1 * 6**0.5 * norms)
    producers = regularize.GroupLasso(graph, 0.1, slices="producers")
    assert value(producers) == pytest.approx(0.1 * 2**0.5 * (5 + 2))


def test_the_gradient_of_group_lasso() -> None:
    """A unit is pulled toward zero as a whole; at zero there is no pull."""
    model, graph = small()
    regularize.GroupLasso(graph, 0.1)().backward()
    torch.testing.assert_close(model[0].weight.grad[0], 0.1 * 6**0.5 * model[0].weight.detach()[0] / UNITS[0] ** 0.5)
    torch.testing.assert_close(
        model[2].weight.grad[0, 1], 0.1 * 6**0.5 * model[2].weight.detach()[0, 1] / UNITS[1] ** 0.5
    )
    model.zero_grad()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    regularize.GroupLasso(graph)().backward()
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in model.parameters())


def test_bn_scale_by_hand() -> None:
    model, graph = small()
    penalty = regularize.BNScale(graph, 0.1)
    assert value(penalty) == pytest.approx(0.25)
    penalty().backward()
    assert model[1].weight.grad.tolist() == [0.1, -0.1]  # the subgradient
    assert all(p.grad is None for name, p in model.named_parameters() if name != "1.weight")


def test_growing_by_hand() -> None:
    _, graph = small()
    plan = sp.plan(graph)
    assert plan.kept["0.weight"] == {0: (0,)}
    penalty = regularize.Growing(graph, plan, growth=0.4, ceiling=0.5)
    assert value(penalty) == 0
    assert [penalty.grow() for _ in range(3)] == [0.4, 0.5, 0.5]
    assert value(penalty) == pytest.approx(0.5 / 2 * UNITS[1])
    assert regularize.Growing(graph, plan, strength=2.0).grow() == 2  # above the ceiling from the start


def test_growing_penalises_exactly_what_is_cut() -> None:
    """Of tensors that lose rows and columns, too: every element once."""
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3, bias=False))
    model = randomise(nn.Sequential(*layers).double()).eval()
    graph = sp.analyze(model, torch.randn(2, 3, 9, 9, dtype=torch.float64))
    plan = sp.plan(graph)
    masked = named_state(masked_original(model, plan))
    expected = sum(float((p - masked[n]).square().sum().detach()) for n, p in model.named_parameters()) / 2
    assert value(regularize.Growing(graph, plan, strength=1.0)) == pytest.approx(expected)


def trained(model: nn.Module, penalty: Callable[[], Tensor], steps: int, rate: float) -> list[float]:
    """The values of the penalty while it alone trains the model."""
    optimizer = torch.optim.SGD(model.parameters(), rate)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = penalty()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_group_lasso_empties_the_weakest_unit_first() -> None:
    """The penalty follows the parameters as they change; what is weak is gone while the strong is still there."""
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight[2] *= 0.05
        model[0].bias[2] = 0
        model[2].weight[:, 2] *= 0.05
    graph = sp.analyze(model, torch.randn(2, 4, dtype=torch.float64))
    found = trained(model, regularize.GroupLasso(graph, 0.01), 50, 0.1)
    assert all(b < a for a, b in pairwise(found))
    norms = sp.importance.L2(slices="all")(graph.groups[0])
    assert norms[2] < 0.01
    assert sorted(norms)[1] > 0.1


def test_after_growing_the_cut_changes_nothing() -> None:
    model = randomise(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 3)).double()).eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    graph = sp.analyze(model, x)
    plan = sp.plan(graph)
    before = model(x).detach()
    assert float((sp.apply(plan, model)(x) - before).abs().max().detach()) > 0.1
    penalty = regularize.Growing(graph, plan, growth=0.5, ceiling=100.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(400):
        optimizer.zero_grad()
        penalty.grow()
        penalty().backward()
        optimizer.step()
    torch.testing.assert_close(sp.apply(plan, model)(x), model(x), rtol=0, atol=1e-9)
    kept = list(plan.kept["3.weight"][1])
    assert float(model[3].weight.detach()[:, kept].abs().min()) > 0


def test_excluded_layers_are_left_alone() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    graph = sp.analyze(model, torch.randn(2, 4))
    regularize.GroupLasso(graph, exclude="0")().backward()
    assert model[0].weight.grad is None
    assert bool((model[2].weight.grad != 0).all())
    whole, part = regularize.BNScale(graph, 1.0), regularize.BNScale(graph, 1.0, exclude=["0"])
    assert (value(whole), value(part)) == (11, 5)


def test_half_precision_does_not_overflow() -> None:
    model: Any = nn.Sequential(nn.Linear(900, 4), nn.Linear(4, 2))
    graph = sp.analyze(model, torch.randn(1, 900))
    model.half()
    with torch.no_grad():
        model[0].weight.fill_(300)
    penalty = regularize.GroupLasso(graph, 1.0, slices="producers")
    assert value(penalty) == pytest.approx(4 * 900**0.5 * 300 * 900**0.5, rel=1e-3)
    penalty().backward()
    assert bool(model[0].weight.grad.isfinite().all())


def other_plan() -> sp.PruningPlan:
    return sp.plan(sp.analyze(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(2, 4)))


BAD: dict[str, tuple[Callable[[sp.ChannelGraph], Any], type[Exception], list[str]]] = {
    "strength": (lambda g: regularize.GroupLasso(g, -1), sp.ArgumentError, ["strength", "-1"]),
    "strength NaN": (lambda g: regularize.BNScale(g, float("nan")), sp.ArgumentError, ["strength", "nan"]),
    "strength text": (lambda g: regularize.GroupLasso(g, "1"), sp.ArgumentTypeError, ["strength", "'1'"]),  # type: ignore[arg-type]
    "growth": (lambda g: regularize.Growing(g, sp.plan(g), growth=float("inf")), sp.ArgumentError, ["growth", "inf"]),
    "slices": (lambda g: regularize.GroupLasso(g, slices="some"), sp.ArgumentError, ["slices", "'some'"]),
    "exclude": (lambda g: regularize.GroupLasso(g, exclude="9"), sp.UnknownNameError, ["'9'"]),
    "exclude a number": (lambda g: regularize.BNScale(g, exclude=9), sp.ArgumentTypeError, ["exclude", "9"]),  # type: ignore[arg-type]
    "a model": (lambda g: regularize.GroupLasso(g.model), sp.ArgumentTypeError, ["ChannelGraph", "Sequential"]),  # type: ignore[arg-type]
    "no plan": (lambda g: regularize.Growing(g, 0.5), sp.ArgumentTypeError, ["PruningPlan", "float"]),  # type: ignore[arg-type]
    "another plan": (lambda g: regularize.Growing(g, other_plan()), sp.PlanError, ["another model"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    make, kind, words = BAD[name]
    with pytest.raises(kind) as caught:
        make(small()[1])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_no_norm_to_regularise() -> None:
    graph = sp.analyze(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(2, 4))
    with pytest.raises(sp.ArgumentError, match="GroupLasso"):
        regularize.BNScale(graph)
