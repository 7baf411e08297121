"""Importances: against definitions by hand and by brute force; what they leave behind; what they refuse."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Snapshot, call, randomise, tensors
from models import CASES, Case, Net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import structprune as sp
from structprune import importance as imp
from structprune.importance.base import slice_norms


def group_of(graph: sp.ChannelGraph, name: str) -> sp.Group:
    return next(g for g in graph.groups if g.name == name)


def prepared(criterion: Any, graph: sp.ChannelGraph) -> Any:
    criterion.prepare(graph)
    return criterion


@pytest.mark.parametrize("shape", [(5, 16, 3, 3), (5, 7, 3), (300, 4096), (6, 1), (3, 300_000), (4, 3, 0)])
@pytest.mark.parametrize("kept_dim", [0, 1])
def test_l1_of_float32_is_that_of_float64_up_to_the_last_digit(shape: tuple[int, ...], kept_dim: int) -> None:
    """Sixteen numbers are added in float32; never so many that it shows, nor such that they overflow."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, shape[0]).view(
        -1, *[1] * (len(shape) - 1)
    )
    for values in (weight, weight / max(weight.abs().sum(), 1) * 3e38, weight.sign() * 3e38):
        part = sp.graph.Slice("w", kept_dim, np.arange(shape[kept_dim]), np.arange(shape[kept_dim]), True, values, None)
        found = imp.base.slice_norms(part)
        wanted = values.double().abs().movedim(kept_dim, 0).reshape(shape[kept_dim], -1).sum(1).numpy()
        np.testing.assert_allclose(found, wanted, rtol=3e-7)


def test_l1_does_not_depend_on_how_a_weight_lies_in_memory() -> None:
    weight = torch.randn(24, 48, 3, 3, generator=torch.Generator().manual_seed(0))
    found = [
        imp.base.slice_norms(sp.graph.Slice("w", 0, np.arange(24), np.arange(24), True, values, None))
        for values in (weight, weight.to(memory_format=torch.channels_last), weight.mT.contiguous().mT)
    ]
    assert all((one == found[0]).all() for one in found)


def test_what_slices_are() -> None:
    """Who makes a unit, who reads it (a layer of one output, too), and who stands in between."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.one(m.norm(F.linear(x, m.a)).relu()) + (m.norm(x @ m.b.T) * m.scale).sum(1, keepdim=True)

    model = Net(
        forward, a=nn.Parameter(torch.randn(6, 4)), b=nn.Parameter(torch.randn(6, 4)), scale=nn.Parameter(torch.ones(6)),
        norm=nn.BatchNorm1d(6), one=nn.Linear(6, 1),
    )  # fmt: skip
    slices = {(p.name, p.dim): p for g in sp.analyze(model, torch.randn(3, 4)).groups for p in g.slices}
    assert {name for (name, _), part in slices.items() if part.produces} == {"a", "b"}
    assert {name for (name, _), part in slices.items() if part.consumes} == {"one.weight"}
    readers = {name: part.reader for (name, _), part in slices.items()}
    assert readers["a"] == "linear.weight"
    assert readers["norm.weight"] == "batch_norm.weight"
    assert readers["scale"].startswith("mul")


# -- weights, by hand -----------------------------------------------------------------------------------------


def small() -> tuple[nn.Module, sp.Group]:
    """Three units with a norm: made by `0`, scaled by `1`, read by `2`."""
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4], [0, 1], [6, 8]]))
        model[0].bias.copy_(torch.tensor([1.0, 2, -3]))
        model[1].weight.copy_(torch.tensor([0.5, -2, 1]))
        model[1].bias.copy_(torch.tensor([0.0, -1, 0]))
        model[2].weight.copy_(torch.tensor([[1.0, -2, 2], [2, 2, -1]]))
    (group,) = sp.analyze(model, torch.randn(4, 2)).groups
    return model, group


R34, R153, R85 = 34**0.5, 153**0.5, 85**0.5
BY_HAND: dict[str, tuple[Any, list[float]]] = {
    "l1": (imp.L1(), [7, 1, 14]),
    "l1 of consumers": (imp.L1(slices="consumers"), [3, 4, 3]),
    "l1 of all": (imp.L1(slices="all"), [7 + 1 + 0.5 + 0 + 3, 1 + 2 + 2 + 1 + 4, 14 + 3 + 1 + 0 + 3]),
    "l1 of the group": (imp.L1(group=True), [11.5, 10, 21]),
    "l1, mean": (imp.L1(slices="all", reduction="mean"), [11.5 / 5, 10 / 5, 21 / 5]),
    "l1, max": (imp.L1(slices="all", reduction="max"), [7, 4, 14]),
    "l2": (imp.L2(), [5, 1, 10]),
    "l2 of consumers": (imp.L2(slices="consumers"), [5**0.5, 8**0.5, 5**0.5]),
    "l2 of all": (imp.L2(slices="all"), [(25 + 1 + 0.25 + 5) ** 0.5, (1 + 4 + 4 + 1 + 8) ** 0.5, (100 + 9 + 1 + 5) ** 0.5]),
    "lamp": (imp.LAMP(), [25 / 125, 1 / 126, 1]),
    "fpgm": (imp.FPGM(), [R34 + R153, R34 + R85, R153 + R85]),
    "bn scale": (imp.BNScale(), [0.5, 2, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_scores_by_hand(name: str) -> None:
    criterion, expected = BY_HAND[name]
    np.testing.assert_allclose(criterion(small()[1]), expected, rtol=1e-7)


def test_lamp_of_equal_and_of_empty_units() -> None:
    model, group = small()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0]]))
    np.testing.assert_allclose(imp.LAMP()(group), [0.5, 0.5, 0])


def test_a_group_without_a_norm_has_relative_scales() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1], [2, 2], [0, 6]]))
    (group,) = sp.analyze(model, torch.randn(4, 2)).groups
    np.testing.assert_allclose(imp.BNScale()(group), [0.5, 1, 1.5])


def attention() -> Any:
    """Self-attention or cross-attention of two heads."""
    return Net(
        lambda m, q, k, v: m.a(q, k, v, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)
    ).double()


def test_a_unit_of_several_indices_is_reduced_over_all_of_them() -> None:
    """A head of four rows in each of query, key and value."""
    model = randomise(attention()).eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    (group,) = sp.analyze(model, (x, x, x)).groups
    rows = model.a.in_proj_weight.detach().abs().sum(1).numpy().reshape(3, 2, 4)
    np.testing.assert_allclose(imp.L1()(group), rows.sum((0, 2)))
    np.testing.assert_allclose(imp.L1(reduction="mean")(group), rows.mean((0, 2)))
    np.testing.assert_allclose(imp.L1(reduction="max")(group), rows.max((0, 2)))


def test_fpgm_by_brute_force() -> None:
    """More filters than are compared at once; two of them equal."""
    weight = torch.randn(300, 5, dtype=torch.float64) + 100
    weight[7] = weight[290]
    model: Any = nn.Sequential(nn.Linear(5, 300), nn.Linear(300, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(weight)
    group = sp.analyze(model, torch.randn(2, 5, dtype=torch.float64)).groups[0]
    expected = (weight[:, None] - weight).norm(dim=2).sum(1).numpy()
    np.testing.assert_allclose(imp.FPGM()(group), expected, rtol=1e-9)


def test_half_precision_is_scored_in_double() -> None:
    """Sums and squares that float16 cannot hold."""
    model: Any = nn.Sequential(nn.Linear(900, 4), nn.Linear(4, 2)).half()
    with torch.no_grad():
        model[0].weight.fill_(300).mul_(torch.tensor([1, 2, 4, 8]).half()[:, None])
    graph = sp.analyze(model.float(), torch.randn(1, 900))
    model.half()
    for criterion, power in ((imp.L1(), 1), (imp.L2(), 2)):
        expected = np.array([1, 2, 4, 8]) * 300 * 900 ** (1 / power)
        np.testing.assert_allclose(criterion(graph.groups[0]), expected)
    assert np.isfinite(imp.FPGM()(graph.groups[0])).all()


def test_random_depends_on_the_seed_and_the_group_alone() -> None:
    graph = sp.analyze(nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), torch.randn(2, 8))
    scores = [imp.Random(3)(g) for g in graph.groups]
    again = [imp.Random(3)(g) for g in reversed(graph.groups)][::-1]
    np.testing.assert_array_equal(scores, again)
    assert (scores[0] != scores[1]).all()
    assert (imp.Random(4)(graph.groups[0]) != scores[0]).all()
    assert scores[0][:2].tolist() == RANDOM  # in any process, on any machine


RANDOM = [0.3063700945275024, 0.20250027580102392]


@pytest.mark.parametrize("name", imp.NAMED)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_names(name: str, scope: str) -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).double())
    result = sp.prune(model, torch.randn(2, 3, 8, 8, dtype=torch.float64), importance=name, scope=scope)
    assert len(result.plan.kept["0.weight"][0]) == 4


# -- activations: the same layer, spelled in other ways ---------------------------------------------------------

X = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Spelling = Callable[[Any, Tensor], Tensor]


def fused(m: Any, x: Tensor) -> Tensor:
    """One product makes the layer and another one, as in a fused projection."""
    return F.linear(x, m.both).chunk(2, -1)[0]


SPELLINGS: dict[str, Spelling] = {
    "linear": lambda m, x: F.linear(x, m.a),
    "keywords": lambda m, x: F.linear(input=x, weight=m.a),
    "matmul": lambda m, x: torch.matmul(x, m.a.T),
    "operator": lambda m, x: x @ m.a.mT,
    "keyword of matmul": lambda m, x: torch.matmul(x, other=m.a.t()),
    "transposed input": lambda m, x: (m.a @ x.mT).mT,
    "addmm": lambda m, x: torch.addmm(x.new_zeros(1), x.flatten(0, 1), m.a.T).unflatten(0, (-1, 5)),
    "einsum": lambda m, x: torch.einsum("nti,oi->nto", x, m.a),
    "einsum with an ellipsis": lambda m, x: torch.einsum("...i,oi->...o", x, m.a),
    "einsum, weight first": lambda m, x: torch.einsum("oi,nti->nto", m.a, x),
    "convolution": lambda m, x: F.conv1d(x.mT, m.a[..., None]).mT,
    "transposed convolution": lambda m, x: F.conv_transpose1d(x.mT, m.a.T[..., None]).mT,
    "scaled weight": lambda m, x: F.linear(x, (m.a * 0.5) / 0.5),
    "row by row": lambda m, x: torch.stack([F.linear(x, row) for row in m.a], -1),
    "two calls": lambda m, x: torch.cat([F.linear(x[:3], m.a), F.linear(x[3:], m.a)]),
}
READERS: dict[str, Spelling] = {
    "linear": lambda m, x: F.linear(x, m.b),
    "matmul": lambda m, x: x @ m.b.T,
    "einsum": lambda m, x: torch.einsum("nto,po->ntp", x, m.b),
    "convolution": lambda m, x: F.conv1d(x.mT, m.b[..., None]).mT,
}


def spelled(first: Spelling, second: Spelling) -> Any:
    def forward(m: Any, x: Tensor) -> Tensor:
        return second(m, torch.sigmoid(first(m, x)))

    torch.manual_seed(1)
    a, b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 4))
    return Net(forward, a=a, b=b).double()


def data_criteria(loader: Any, **options: Any) -> list[Any]:
    kinds = (imp.ActivationNorm, imp.Wanda, imp.FLAP)
    return [kind(loader, slices=s, **options) for kind in kinds for s in ("producers", "consumers", "all")]


def reference(model: Any) -> list[np.ndarray]:
    """The definitions, from activations that are kept."""
    a, b = model.a.detach(), model.b.detach()
    hidden = X @ a.T
    read = hidden.sigmoid()
    norms = [v.abs().mean(1).square().mean(0).sqrt() for v in (hidden, read)]
    rms = [v.square().mean((0, 1)).sqrt() for v in (X, read)]
    wanda = [a.abs() @ rms[0], b.abs().sum(0) * rms[1]]
    variances = [v.flatten(0, 1).var(0) for v in (X, read)]
    flap = [a.square() @ variances[0], b.square().sum(0) * variances[1]]
    return [np.asarray(v) for made, reads in (norms, wanda, flap) for v in (made, reads, made + reads)]


def batches(sizes: tuple[int, ...]) -> list[tuple[Tensor, int]]:
    return [(part, 0) for part in X.split(sizes)]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_activations_however_the_layer_is_spelled(spelling: str, reader: str) -> None:
    """In batches of any size, equal to the definitions over all activations at once."""
    model = spelled(SPELLINGS["linear"], READERS["linear"])
    graph = sp.analyze(model, X)
    (group,) = graph.groups
    model.compute = spelled(SPELLINGS[spelling], READERS[reader]).compute
    for criterion, expected in zip(data_criteria(batches((3, 1, 3))), reference(model), strict=True):
        if spelling == "addmm" and isinstance(criterion, imp.ActivationNorm):
            continue  # samples and positions are one dimension: it cannot tell them apart
        if spelling == "row by row" and not isinstance(criterion, imp.Wanda):
            continue  # nothing is made that has channels, and what is read counts once for each row
        np.testing.assert_allclose(prepared(criterion, graph)(group), expected, rtol=1e-10, err_msg=repr(criterion))


def test_grouped_and_depthwise_convolutions() -> None:
    """Each block of filters reads channels of its own."""
    for groups in (2, 8):
        model: Any = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 8, 3, groups=groups), nn.Conv2d(8, 2, 1)
        )
        model = randomise(model.double()).eval()
        x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
        graph = sp.analyze(model, x)
        read = model[:2](x).detach()
        rms = read.square().mean((0, 2, 3)).sqrt().numpy()
        weight = model[2].weight.detach().abs().sum((2, 3)).numpy()  # [8, 8 / groups]
        each = (
            np.repeat(rms.reshape(groups, -1), 8 // groups, 0) * weight
        )  # what every filter reads, channel by channel
        criterion = prepared(imp.Wanda([x], slices="consumers"), graph)
        for group in graph.groups:
            for part in (p for p in group.slices if p.name == "2.weight"):
                np.testing.assert_allclose(criterion.values(part), each.sum(1 - part.dim)[part.indices])


def test_cross_attention_reads_through_chunks_of_its_weight() -> None:
    """PyTorch multiplies queries by the first third of the packed weight, keys and values by the rest at once;
    what it multiplies has the positions first."""
    model = randomise(attention()).eval()
    q, kv = torch.randn(3, 4, 8, dtype=torch.float64), 5 * torch.randn(3, 6, 8, dtype=torch.float64)
    graph = sp.analyze(model, (q, kv, kv))
    criterion = prepared(imp.ActivationNorm([(q, kv)], inputs=lambda b: (b[0], b[1], b[1]), slices="producers"), graph)
    weights, biases = model.a.in_proj_weight.chunk(3), model.a.in_proj_bias.chunk(3)
    made = [F.linear(v, w, b).detach() for v, w, b in zip((q, kv, kv), weights, biases, strict=True)]
    norms = torch.cat([v.abs().mean(0).square().mean(0) for v in made]).sqrt().numpy()
    (group,) = graph.groups
    np.testing.assert_allclose(criterion(group), norms.reshape(3, 2, 4).sum((0, 2)))


def test_embeddings() -> None:
    model: Any = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    tokens = torch.randint(0, 9, (3, 5))
    graph = sp.analyze(model, tokens)
    expected = model[0](tokens).abs().mean(1).square().mean(0).sqrt().detach().numpy()
    for slices in ("producers", "consumers"):
        criterion = prepared(imp.ActivationNorm([tokens], slices=slices), graph)
        np.testing.assert_allclose(criterion(graph.groups[0]), expected, rtol=1e-5)


def test_large_offsets_do_not_drown_the_variance() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.fill_(1e7)
        model[1].weight.fill_(1)
    x = torch.randn(64, 2, dtype=torch.float64)
    graph = sp.analyze(model, x)
    criterion = prepared(imp.FLAP(x.split(7)), graph)
    np.testing.assert_allclose(criterion(graph.groups[0]), 2 * x.var(0), rtol=1e-6)


# -- gradients ------------------------------------------------------------------------------------------------


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    model = nn.Sequential(*layers)
    return randomise(model.double()).eval()  # type: ignore[return-value]


def images(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 6, 6, generator=random, dtype=torch.float64)
    return list(zip(x.split(2), torch.randint(0, 5, (count,), generator=random).split(2), strict=True))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def changed(model: nn.Module, group: sp.Group, unit: int, factor: float) -> nn.Module:
    """The model with everything learned of one unit scaled."""
    other = copy.deepcopy(model)
    state = dict(other.named_parameters())
    with torch.no_grad():
        for part in group.slices:
            if part.name in state:
                for index in part.indices[part.units == unit]:
                    state[part.name].select(part.dim, int(index)).mul_(factor)
    return other


def test_taylor_is_the_slope_of_the_loss_as_a_unit_fades() -> None:
    model = net()
    graph = sp.analyze(model, images()[0][0])
    taylor, fisher = (prepared(kind(loss, images()), graph) for kind in (imp.Taylor, imp.Fisher))
    for group in graph.groups:
        slopes = np.array([[slope(model, group, unit, batch) for unit in range(len(group))] for batch in images()])
        np.testing.assert_allclose(taylor(group), np.abs(slopes).mean(0), rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(fisher(group), (slopes**2).mean(0) / 2, rtol=1e-5, atol=1e-9)


def slope(model: nn.Module, group: sp.Group, unit: int, batch: Any, step: float = 1e-5) -> float:
    """A central difference."""
    with torch.no_grad():
        more, less = (loss(changed(model, group, unit, 1 + sign * step), batch) for sign in (1, -1))
    return float(more - less) / (2 * step)


def test_obd_by_brute_force() -> None:
    model = net()
    graph = sp.analyze(model, images()[0][0])
    group, weight = graph.groups[0], model[0].weight
    expected = 0
    for batch in images():
        (gradient,) = torch.autograd.grad(loss(model, batch), weight)
        expected += (weight * gradient).square().sum((1, 2, 3)).detach().numpy() / 2 / len(images())
    np.testing.assert_allclose(prepared(imp.OBD(loss, images(), slices="producers"), graph)(group), expected)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_reductions_of_gradients(reduction: str) -> None:
    model, (batch, *_) = net(), images()
    graph = sp.analyze(model, batch[0])
    products = {n: (p * g).detach() for (n, p), g in zip(model.named_parameters(), torch.autograd.grad(loss(model, batch), list(model.parameters())), strict=True)}  # fmt: skip
    made, read = products["0.weight"].sum((1, 2, 3)), products["3.weight"].sum((0, 2, 3))
    entries = torch.stack([made, products["0.bias"], products["1.weight"], products["1.bias"], read])
    expected = entries.mean(0).abs() if reduction == "mean" else entries.abs().amax(0)
    found = prepared(imp.Taylor(loss, [batch], reduction=reduction), graph)(graph.groups[0])
    np.testing.assert_allclose(found, expected.numpy())


def test_a_loss_without_a_loader() -> None:
    graph = sp.analyze(net(), images()[0][0])
    whole = prepared(imp.Taylor(lambda model: loss(model, images()[0])), graph)
    np.testing.assert_array_equal(
        whole(graph.groups[0]), prepared(imp.Taylor(loss, images()[:1]), graph)(graph.groups[0])
    )


# -- all of them ----------------------------------------------------------------------------------------------


def every(loader: Any, inputs: Any = None, criterion: Any = loss, **options: Any) -> list[Any]:
    watching = [kind(loader, inputs=inputs, **options) for kind in (imp.ActivationNorm, imp.Wanda, imp.FLAP)]
    return watching + [kind(criterion, loader, **options) for kind in (imp.Taylor, imp.Fisher, imp.OBD)]


def some_loss(model: nn.Module, inputs: Any) -> Tensor:
    outputs = [t for t in tensors(call(model, inputs)) if t.is_floating_point() or t.is_complex()]
    return torch.stack([t.abs().square().sum() for t in outputs]).sum()


AWKWARD = [c for c in CASES if c.units and c.name not in ("a forward without gradients",)]


@pytest.mark.parametrize("case", AWKWARD, ids=[c.name for c in AWKWARD])
def test_awkward_models(case: Case) -> None:
    """Every group gets finite scores, and the model is as it was."""
    model, inputs = case.make(), case.example()
    loader = inputs if isinstance(inputs, list) else [inputs]
    graph = sp.analyze(model, inputs)
    before = Snapshot.of(model)
    for criterion in every(loader, lambda batch: batch, some_loss)[1:4]:
        criterion.prepare(graph)
        for group in graph.groups:
            scores = criterion(group)
            assert scores.shape == (len(group),)
            assert np.isfinite(scores).all()
            assert (scores >= 0).all()
    before.assert_unchanged(model)


@pytest.mark.parametrize("train", [False, True])
def test_the_model_is_left_as_it_was(train: bool) -> None:
    model: Any = nn.Sequential(*net(), nn.Dropout(0.3), nn.Linear(5, 5).double())
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    graph = sp.analyze(model, images()[0][0])
    before, grad, modes = Snapshot.of(model), model[3].weight.grad, [m.training for m in model.modules()]
    random = torch.get_rng_state()
    dataset = TensorDataset(*(torch.cat(parts) for parts in zip(*images(), strict=True)))
    for criterion in every(DataLoader(dataset, 2, shuffle=True), train=train):
        assert sp.plan(graph, importance=criterion).kept["0.weight"]
        before.assert_unchanged(model)
        assert torch.equal(torch.get_rng_state(), random)
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 9
        assert model[3].weight.grad is grad
        assert bool((grad == 1).all())
        assert [p.grad is None for p in model.parameters()].count(False) == 1


def test_modes_without_gradients_do_not_matter() -> None:
    graph = sp.analyze(net(), images()[0][0])
    expected = [prepared(criterion, graph)(graph.groups[0]) for criterion in every(images())]
    criteria = every(images())
    with torch.inference_mode():
        for criterion, scores in zip(criteria, expected, strict=True):
            np.testing.assert_array_equal(prepared(criterion, graph)(graph.groups[0]), scores)


def unreachable(*args: Any) -> Any:
    raise AssertionError("a compiler was asked")


def test_compiled_modules_run_as_they_are_written() -> None:
    model = net()
    graph = sp.analyze(model, images()[0][0])
    expected = [prepared(criterion, graph)(graph.groups[0]) for criterion in every(images())]
    model[3].compile(backend=unreachable)
    compiled = vars(model[3])["_compiled_call_impl"]
    for criterion, scores in zip(every(images()), expected, strict=True):
        np.testing.assert_array_equal(prepared(criterion, graph)(graph.groups[0]), scores)
    assert vars(model[3])["_compiled_call_impl"] is compiled


def test_frozen_parameters_are_scored_alike() -> None:
    model = net()
    graph = sp.analyze(model, images()[0][0])
    expected = prepared(imp.Taylor(loss, images()), graph)(graph.groups[0])
    model.requires_grad_(False)
    np.testing.assert_array_equal(prepared(imp.Taylor(loss, images()), graph)(graph.groups[0]), expected)
    assert not any(p.requires_grad for p in model.parameters())


def test_no_activation_survives_its_batch() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = m.a(x).sigmoid()
        alive.append(weakref.ref(hidden))
        return m.b(hidden)

    model = Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    graph = sp.analyze(model, torch.randn(2, 4))

    def loader() -> Iterator[Tensor]:
        for _ in range(4):
            assert not any(ref() is not None for ref in alive)
            yield torch.randn(2, 4)

    for criterion in every([], criterion=lambda m, x: m(x).square().mean()):
        alive.clear()
        criterion.loader = loader()
        criterion.prepare(graph)
        assert len(alive) == 4
        assert not any(ref() is not None for ref in alive)
        state = [v for v in vars(criterion).values() if isinstance(v, np.ndarray | Tensor)]
        assert all(np.size(v) < 20 for v in state)


def test_batches_in_the_forms_that_loaders_have() -> None:
    """A tensor, a pair, a dict, and whatever `inputs` makes of it; only as many as are asked for."""
    model = net()
    graph = sp.analyze(model, images()[0][0])
    x, y = images()[0]
    forms: list[tuple[Any, Any]] = [
        (x, None), ((x, y), None), ([x, y], None), ({"input": x}, None), (({"input": x}, y), None),
        ({"image": x}, lambda b: b["image"]), ({"image": x}, lambda b: {"input": b["image"]}), ((y, x), lambda b: (b[1],)),
    ]  # fmt: skip
    found = [
        prepared(imp.Wanda([batch, "never read"], inputs=inputs, batches=1), graph)(graph.groups[0])
        for batch, inputs in forms
    ]
    for scores in found:
        np.testing.assert_array_equal(scores, found[0])


@pytest.mark.parametrize("show", [True, False])
def test_progress_is_shown_on_terminals(show: bool, monkeypatch: Any, capsys: Any) -> None:
    graph = sp.analyze(net(), images()[0][0])
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes anything for a terminal
        for criterion in every(iter(images() * 6), progress=show, batches=3):
            criterion.prepare(graph)
            shown = capsys.readouterr()
            assert shown.out == ""
            assert (type(criterion).__name__ in shown.err) == (terminal and show)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_scores_on_an_accelerator() -> None:
    """The same as on the CPU; batches are moved to the model."""
    named = [make() for make in imp.NAMED.values()]
    model, found = net(), []
    for device in ("cpu", "cuda"):
        model.to(device)
        graph = sp.analyze(model, images()[0][0].to(device))
        for criterion in every(images()):
            criterion.prepare(graph)
            found.append(criterion(graph.groups[0]))
        found += [criterion(graph.groups[0]) for criterion in named]
    half = len(found) // 2
    for one, other in zip(found[:half], found[half:], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-8)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_pruning_with_data(scope: str) -> None:
    for criterion in every(images()):
        result = sp.prune(net(), images()[0][0], importance=criterion, scope=scope)
        assert result.report.verification is not None
        assert result.report.verification.ok
        kept = [len(result.plan.kept.get(f"{i}.weight", {0: range(size)})[0]) for i, size in ((0, 6), (3, 4))]
        assert sum(kept) == 5


# -- comparing groups -----------------------------------------------------------------------------------------


def stack(*layers: nn.Module) -> tuple[sp.Group, ...]:
    return sp.analyze(nn.Sequential(*layers), torch.randn(1, 4)).groups


def test_normalisation_by_hand() -> None:
    groups = stack(nn.Linear(4, 2), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    scores = [np.array([1.0, 3]), np.array([10.0, 20, 60]), np.array([5.0, 5, 5])]
    expected = {
        "none": scores,
        "mean": [[0.5, 1.5], [1 / 3, 2 / 3, 2], [1, 1, 1]],
        "max": [[1 / 3, 1], [1 / 6, 1 / 3, 1], [1, 1, 1]],
        "standardise": [[-1, 1], (scores[1] - 30) / (1400 / 3) ** 0.5, [0, 0, 0]],
        "isomorphic": [
            [0.3, 0.7],
            [0.1, 0.5, 0.9],
            [0.5, 0.5, 0.5],
        ],  # over each group's mean; the third has a norm: it is compared with itself
    }
    assert set(expected) == set(imp.NORMALIZATIONS)
    for how, values in expected.items():
        for found, value in zip(imp.normalized(groups, scores, how), values, strict=True):
            np.testing.assert_allclose(found, value, err_msg=how)
    assert [a.tolist() for a in scores] == [[1, 3], [10, 20, 60], [5, 5, 5]]


@pytest.mark.parametrize("how", imp.NORMALIZATIONS)
def test_zeros_and_constants_stay_finite(how: str) -> None:
    groups = stack(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    with np.errstate(all="raise"):
        found = imp.normalized(groups, [np.zeros(3), np.full(3, 0.1)], how)
    assert all(np.isfinite(values).all() and len(set(values.tolist())) == 1 for values in found)


def test_the_planner_prepares_once_and_asks_how_to_compare() -> None:
    class Own:
        normalize = "none"

        def __init__(self) -> None:
            self.calls: list[str] = []

        def prepare(self, graph: sp.ChannelGraph) -> None:
            assert isinstance(graph, sp.ChannelGraph)
            self.calls.append("prepare")

        def __call__(self, group: sp.Group) -> Tensor:
            self.calls.append("score")
            return torch.arange(len(group)) + (100 if group.name == "0" else 0)

    graph = sp.analyze(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(2, 4))
    own = Own()
    plan = sp.plan(graph, importance=own, ratio=3 / 8, scope="global")
    assert own.calls == ["prepare", "score", "score"]
    assert "0.weight" not in plan.kept
    assert plan.kept["1.weight"][0] == (3,)
    assert imp.normalization_of(own) == "none"
    assert imp.normalization_of(lambda group: 0) == "mean"


# -- several processes ----------------------------------------------------------------------------------------

SCRIPT = """
import sys; sys.path[:0] = {path!r}
import json, os, torch, test_importance as t, structprune as sp
rank = int(sys.argv[1])
store = torch.distributed.FileStore({store!r}, 2)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
graph = sp.analyze(t.net(), t.images()[0][0])
own = t.images()[:2] if rank == 0 else t.images()[2:]
plans = [sp.plan(graph, importance=c, scope="global").to_json() for c in t.every(own)]
try:
    sp.plan(graph, importance=sp.importance.Wanda(own if rank == 0 else [torch.zeros(1, 2, 3)]))
except sp.StructPruneError as error:
    plans.append(str(error))
try:
    sp.plan(graph, importance=sp.importance.Wanda([]))
except sp.ArgumentError as error:
    plans.append(str(error))
plans.append(sp.plan(graph, importance=sp.importance.Wanda(t.images() if rank == 0 else [])).to_json())
print(json.dumps(plans), flush=True)
store.set(f"done {{rank}}", "yes")
store.wait(["done 0", "done 1"])
os._exit(0)  # gloo sometimes aborts the process while it ends its threads
"""


def test_two_processes_share_what_they_saw(tmp_path: Path) -> None:
    """Each sees a part of the data; both make the plan that one process makes of all of it, byte for byte."""
    script = SCRIPT.format(path=sys.path, store=str(tmp_path / "store"))
    command = [sys.executable, "-c", script]
    processes = [subprocess.Popen([*command, str(rank)], stdout=-1, stderr=-1, text=True) for rank in (0, 1)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)  # gloo may print, too
    graph = sp.analyze(net(), images()[0][0])
    alone = [sp.plan(graph, importance=c, scope="global").to_json() for c in every(images())]
    assert first[:6] == second[:6] == alone
    assert "process 1 failed" in first[6]
    assert "(1, 2, 3)" in first[6]
    assert first[6].endswith(second[6])
    assert "yields no batch" in first[7]
    assert first[7] == second[7]
    assert first[8] == second[8] == sp.plan(graph, importance=imp.Wanda(images())).to_json()


# -- what is refused ------------------------------------------------------------------------------------------


def exhausted() -> Iterator[Any]:
    batches = iter(images())
    list(batches)
    return batches


BAD_ARGUMENTS: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "slices": (lambda: imp.L1(slices="most"), sp.ArgumentError, ["slices", "'producers'", "'most'"]),
    "reduction": (lambda: imp.L2(reduction="min"), sp.ArgumentError, ["reduction", "'sum'", "'min'"]),
    "normalize": (lambda: imp.LAMP(normalize="l2"), sp.ArgumentError, ["normalize", "'isomorphic'", "'l2'"]),
    "seed": (lambda: imp.Random(0.5), sp.ArgumentTypeError, ["seed", "0.5"]),  # type: ignore[arg-type]
    "a tensor as loader": (lambda: imp.Wanda(torch.zeros(2, 3)), sp.ArgumentTypeError, ["loader", "Tensor", "[batch]"]),
    "a dict as loader": (lambda: imp.Wanda({}), sp.ArgumentTypeError, ["loader", "dict"]),
    "no loader": (lambda: imp.Wanda(None), sp.ArgumentTypeError, ["loader", "NoneType"]),  # type: ignore[arg-type]
    "batches": (lambda: imp.Wanda([], batches=0), sp.ArgumentError, ["batches", "0"]),
    "batches, fraction": (lambda: imp.Wanda([], batches=0.5), sp.ArgumentTypeError, ["batches", "0.5"]),  # type: ignore[arg-type]
    "inputs": (lambda: imp.Wanda([], inputs=0), sp.ArgumentTypeError, ["inputs", "int"]),  # type: ignore[arg-type]
    "no loss": (lambda: imp.Taylor("mse"), sp.ArgumentTypeError, ["loss", "function", "str"]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str) -> None:
    make, kind, words = BAD_ARGUMENTS[name]
    with pytest.raises(kind) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def nan_gradient(model: Any, batch: Any) -> Tensor:
    return (model(batch[0]) * 0).square().sum().sqrt()


BAD_DATA: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "empty": (lambda: imp.Wanda([]), sp.ArgumentError, ["no batch", "iterator"]),
    "used up": (lambda: imp.Taylor(loss, exhausted()), sp.ArgumentError, ["no batch", "iterator"]),
    "empty batch": (lambda: imp.Wanda([()]), sp.ArgumentError, ["empty batch"]),
    "channels": (lambda: imp.Wanda([torch.zeros(2, 4, 6, 6).double()]), sp.ExampleInputsError, ["batch 1", "(2, 4, 6, 6)", "in 0:"]),
    "size": (lambda: imp.FLAP([images()[0], (torch.zeros(2, 3, 9, 9).double(), 0)]), sp.ExampleInputsError, ["batch 2", "(2, 3, 9, 9)", "in 5:"]),
    "dtype": (lambda: imp.Wanda([torch.zeros(2, 3, 6, 6)]), sp.ExampleInputsError, ["batch 1", "in 0:", "double"]),
    "keyword": (lambda: imp.Wanda([{"pixels": images()[0][0]}]), sp.ExampleInputsError, ["batch 1", "'pixels'"]),
    "classes": (lambda: imp.Taylor(loss, [(images()[0][0], torch.tensor([7, 7]))]), sp.ExampleInputsError, ["batch 1", "(2, 3, 6, 6), (2,)", "Target 7"]),
    "NaN inputs": (lambda: imp.Wanda([torch.full((2, 3, 6, 6), np.nan).double()]), sp.NonFiniteError, ["0.weight makes", "6 channels"]),
    "no reduction": (lambda: imp.Taylor(lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), images()), sp.ArgumentError, ["(2,)", "mean()"]),
    "no tensor": (lambda: imp.Taylor(lambda m, b: 0.5, images()), sp.ArgumentTypeError, ["scalar tensor", "float"]),
    "detached": (lambda: imp.Taylor(lambda m, b: loss(m, b).detach(), images()), sp.ArgumentError, ["no gradient", "no_grad"]),
    "of something else": (lambda: imp.Taylor(lambda m, b: torch.ones(1, requires_grad=True).sum(), images()), sp.ArgumentError, ["depends on no weight"]),
    "NaN loss": (lambda: imp.Taylor(lambda m, b: loss(m, b) * np.nan, images()), sp.NonFiniteError, ["batch 1", "nan"]),
    "NaN gradient": (lambda: imp.Fisher(nan_gradient, images()), sp.NonFiniteError, ["gradient of 0.weight", "batch 1", "162"]),
    "batch without a loader": (lambda: imp.Taylor(loss), sp.ExampleInputsError, ["batch"]),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(name: str) -> None:
    make, kind, words = BAD_DATA[name]
    model = net().train()
    graph = sp.analyze(model, images()[0][0])
    before = Snapshot.of(model)
    with pytest.raises(kind) as caught:
        sp.plan(graph, importance=make())
    assert all(word in str(caught.value) for word in words), str(caught.value)
    before.assert_unchanged(model)


def test_scores_before_preparation() -> None:
    group = sp.analyze(net(), images()[0][0]).groups[0]
    for criterion in every(images()):
        with pytest.raises(sp.ArgumentError, match="prepare"):
            criterion(group)


def test_a_group_that_no_batch_reaches() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(m.b(x).relu()) if len(x) == 1 else m.c(m.a(x).relu())

    model = Net(forward, a=nn.Linear(4, 8), b=nn.Linear(4, 8), c=nn.Linear(8, 2))
    both = [torch.randn(1, 4), torch.randn(2, 4)]
    graph = sp.analyze(Net(forward, a=nn.Linear(4, 8), b=nn.Linear(4, 8), c=nn.Linear(8, 2)), both)
    assert sp.plan(graph, importance=imp.Wanda(both[:1])).kept  # `c` is reached either way
    model = Net(lambda m, x: m.c(m.a(x).relu()) if len(x) > 1 else m.d(m.b(x).relu()),
                a=nn.Linear(4, 8), b=nn.Linear(4, 8), c=nn.Linear(8, 2), d=nn.Linear(8, 2))  # fmt: skip
    graph = sp.analyze(model, both)
    with pytest.raises(sp.ArgumentError, match=r"no batch reaches a weight of Group\(a, mlp: 8 units") as caught:
        sp.plan(graph, importance=imp.Wanda(both[:1]))
    assert "exclude" in str(caught.value)
    assert sp.plan(graph, importance=imp.Wanda(both[:1]), exclude="a").kept


@pytest.mark.parametrize("name", ["l2", "lamp", "fpgm", "bn_scale"])
def test_weights_that_are_not_finite(name: str) -> None:
    model = net()
    for module in model:
        if hasattr(module, "weight"):
            module.weight.data.view(-1)[0] = np.nan
    with pytest.raises(sp.NonFiniteError, match="weight holds 1 values"):
        sp.plan(sp.analyze(model, images()[0][0]), importance=name)


def test_a_class_and_a_name_that_needs_data() -> None:
    graph = sp.analyze(net(), images()[0][0])
    with pytest.raises(sp.ArgumentTypeError, match=r"L1\(...\), not the class"):
        sp.plan(graph, importance=imp.L1)
    with pytest.raises(sp.ArgumentError, match=r"Taylor\(loss, loader\), not 'taylor'"):
        sp.plan(graph, importance="taylor")


def test_a_normalisation_that_is_none() -> None:
    def own(group: sp.Group) -> np.ndarray:
        return np.ones(len(group))

    own.normalize = "always"  # type: ignore[attr-defined]
    with pytest.raises(sp.ArgumentError, match="'isomorphic', not 'always'"):
        sp.plan(sp.analyze(net(), images()[0][0]), importance=own)
    with pytest.raises(sp.ArgumentError, match="'always'"):
        imp.normalized([], [], "always")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(70000, 5), (1000, 33), (5, 70000), (33, 1000), (3, 7, 9)])
def test_equal_slices_have_equal_norms(shape: tuple[int, ...], threads: int) -> None:
    """Whichever dimension they are slices of, and however many threads add them up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dim in range(len(shape)):
            one = torch.randn([1 if d == dim else n for d, n in enumerate(shape)])
            part: Any = SimpleNamespace(
                tensor=one.expand(shape).contiguous(), dim=dim, indices=np.arange(shape[dim]), name="w"
            )
            norms = slice_norms(part)
            assert len(set(norms.tolist())) == 1
            assert norms[0] == pytest.approx(float(one.abs().sum(dtype=torch.float64)), rel=1e-6)
    finally:
        torch.set_num_threads(before)
