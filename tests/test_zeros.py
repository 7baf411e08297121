"""What is taken to be zero in the masked original is zero there: every value of every model of the other tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_exact, assert_kept, masked_original, named_state, randomise
from models import CASES
from test_rules import USES, build
from test_spellings import SPELLINGS
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune import trace
from structprune.inventory import Inventory
from structprune.labels import Labels
from structprune.nodes import Graph, Node
from structprune.prepare import calls_of
from structprune.recorder import Recorder
from structprune.rules import has_rule
from structprune.rules.zeros import is_zero
from structprune.swaps import stand_ins


class Watching(Recorder):
    """Keeps what every operation computed."""

    def bind(self, node: Node, out: Any) -> None:
        super().bind(node, out)
        if isinstance(out, Tensor) and not out.is_nested:
            node.meta["computed"] = out.detach().clone()


def computed(model: nn.Module, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """A trace of a model in eval mode, with values."""
    monkeypatch.setattr(trace, "Recorder", Watching)
    call = calls_of(inputs)[0]
    return trace._trace(Inventory(model), call, has_rule, stand_ins(), (), [], computing=True).program.graph


def check(model: nn.Module, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The operations whose results were taken to be zero and are not; those that are right count as `""`."""
    space = (graph := sp.analyze(model, inputs)).space
    try:
        plan = sp.plan(graph, ratio=0.5)
    except sp.NothingToPruneError:
        return
    masked = masked_original(model, plan)
    view, state = graph.under(plan), named_state(masked)
    nodes, again = space.programs[0].graph.nodes, computed(masked, inputs, monkeypatch).nodes
    assert [n.meta["op"] for n in nodes] == [n.meta["op"] for n in again]
    memo: dict[Node, bool] = {}
    known: dict[Node, bool] = {}
    for node, other in zip(nodes, again, strict=True):
        labels = space.values[node]
        if not isinstance(labels, Labels) or not is_zero(node, space.values, memo, known):
            continue
        value = other.meta.get("computed", state.get(node.meta.get("tensor", "")))
        for coordinate in labels.coordinates if value is not None else ():
            gone = torch.from_numpy(np.broadcast_to(view.gone(coordinate), tuple(value.shape)).copy())
            yield f"{node.meta['op']} at {node.meta['where']}" if value[gone].any() else ""


def wrong(cases: Iterable[tuple[str, nn.Module, Any]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All mistakes; that most values were looked at is checked, too."""
    found: list[str] = []
    looked = models = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, model, inputs in cases:
            models += 1
            for what in check(model.eval(), inputs, monkeypatch):
                looked += 1
                found += [f"{name}: {what}"] if what else []
    assert looked > 2 * models > 0
    return found


def test_couplings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wrong(((case.name, case.make(), case.example()) for case in CASES), monkeypatch)


@pytest.mark.parametrize("table", [USES, SPELLINGS], ids=["rules", "spellings"])
def test_operations(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uses = ((name, use) for name, uses in table.items() for use in uses)
    assert not wrong(((name, randomise(build(use)), use.example) for name, use in uses), monkeypatch)


KEEPING: dict[str, Any] = {
    "grid_sample": lambda h: F.grid_sample(h, torch.zeros(2, 3, 3, 2).to(h), align_corners=False),
    "lp_pool2d": lambda h: F.lp_pool2d(h, 2, 2),
    "max_pool2d with indices": lambda h: F.max_pool2d(h, 2, return_indices=True)[0],
    "upsample_nearest2d": lambda h: torch.ops.aten.upsample_nearest2d(h, [8, 8]),
    "reflection_pad2d": lambda h: torch.ops.aten.reflection_pad2d(h, [1, 1, 1, 1]),
    "where": lambda h: torch.where(h > 0.1, h, 0.0),
    "where the other way round": lambda h: torch.where(h < 0.1, 0, h),
    "where a zero is": lambda h: torch.where(h > 0.1, h, torch.tensor(0.0, dtype=h.dtype)),
    "where zeros are": lambda h: torch.where(h > 0.1, h, torch.full((4,), 0.0, dtype=h.dtype)),
    "softsign": F.softsign,
    "hardswish": F.hardswish,
    "tanhshrink": F.tanhshrink,
    "sort": lambda h: h.sort(-1)[0],
    "topk": lambda h: h.topk(2, -1)[0],
    "median": lambda h: h.median(-1, keepdim=True)[0],
    "prod": lambda h: h.prod(-1, keepdim=True),
    "std": lambda h: h.std(-1, keepdim=True),
    "diff": lambda h: h.diff(dim=-1),
    "var_mean": lambda h: torch.stack(torch.var_mean(h, -1)).permute(1, 2, 3, 0),
    "baddbmm": lambda h: torch.baddbmm(*[h.flatten(0, 1)] * 3).view_as(h),
    "einsum": lambda h: torch.einsum("nchw,nhv->ncvw", h, h.detach().new_ones(2, 4, 3)),
}


@pytest.mark.parametrize("name", KEEPING)
def test_norms_behind_what_keeps_zeros(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(KEEPING[name](self.a(x).relu())))  # type: ignore[no-any-return]

    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert [len(group) for group in sp.analyze(Model().double(), images).groups] == [8]
    assert_exact(randomise(Model().double()), images)


def test_where_that_puts_numbers_in() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.where((h := self.a(x)) > 0, h, 0.5)
            return self.b(h / h.norm(dim=1, keepdim=True))  # type: ignore[no-any-return]

    assert sp.analyze(Model().double(), torch.randn(4, 6, dtype=torch.float64)).groups == ()


DIVIDED: dict[str, tuple[Any, bool]] = {
    "by a norm above a bound": (lambda h: h / h.norm(dim=1, keepdim=True).clamp(min=0.1), True),
    "by a norm between bounds": (lambda h: h / h.norm(dim=1, keepdim=True).clamp(0.1, 9.0), True),
    "by a norm below a bound": (lambda h: h / h.norm(dim=1, keepdim=True).expand_as(h).clamp(max=9.0), False),
    "by what may be below zero": (lambda h: h / h.clamp(-1.0, 9.0), False),
    "by an absolute value": (lambda h: h / h.abs(), False),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_zeros_over_something(name: str) -> None:
    """A sum over channels behind it takes zeros, and not what 0 / 0 is."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(DIVIDED[name][0](self.a(x)).square().sum(1, keepdim=True))  # type: ignore[no-any-return]

    free = bool(sp.analyze(Model().double(), torch.randn(4, 6, dtype=torch.float64)).groups)
    assert free == DIVIDED[name][1]


# -- what is zero, though nothing that it is made of is ---------------------------------------------------------


class Divided(nn.Module):
    """Channels that are divided by something made of a parameter of theirs."""

    def __init__(self, below: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.below = nn.Linear(4, 16), nn.Linear(16, 24), nn.Linear(24, 2), below
        self.rate = nn.Parameter(torch.rand(16) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x) / self.below(self.rate)).relu())  # type: ignore[no-any-return]


POLES: dict[str, Callable[[Tensor], Tensor]] = {
    "1 - exp(-|p|)": lambda p: 1 - torch.exp(-p.abs()),
    "cos(p) - 1": lambda p: p.cos() - 1,
    "sigmoid(p) - 0.5": lambda p: p.sigmoid() - 0.5,
    "the difference of two": lambda p: (0.1 + p).clamp(max=9) - (0.1 + p.square()),
    "of two dimensions": lambda p: (p.cosh() - 1)[None].expand(3, -1),
    "a logarithm": lambda p: torch.log(2 * p.sigmoid() - 1),
}


@pytest.mark.parametrize("name", POLES)
def test_divisors_that_cancel(name: str) -> None:
    model = Divided(POLES[name]).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    assert_kept(model, x, "a.weight[0]", "not finite where it would become zero")
    assert assert_exact(model, x).model.b.out_features == 12


@pytest.mark.parametrize("below", [lambda p: 1 + p.square(), lambda p: p.exp(), lambda p: 2 - (1 - p).sigmoid()])
def test_divisors_that_do_not_vanish(below: Callable[[Tensor], Tensor]) -> None:
    assert assert_exact(Divided(below).double(), torch.randn(3, 4, dtype=torch.float64)).model.a.out_features == 8


# -- what is zero along one dimension ---------------------------------------------------------------------------


class Prototypes(nn.Module):
    """What has a channel less has no prototype less: each is at some distance from nothing."""

    def __init__(self, distance: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.centres, self.distance = nn.Linear(3, 16), nn.Parameter(torch.randn(5, 16)), distance

    def forward(self, x: Tensor) -> Tensor:
        return self.distance(self.inner(x)[:, None] - self.centres)


DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "squares": lambda d: d.pow(2).sum(-1),
    "a norm": lambda d: d.norm(dim=2),
    "exponentials": lambda d: torch.exp(-d.abs().sum(2)),
    "of unit length": lambda d: F.normalize(d, dim=2).sum(2),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_from_several(name: str) -> None:
    model = randomise(Prototypes(DISTANCES[name]).double())
    small: Any = assert_exact(model, torch.randn(4, 3, dtype=torch.float64)).model
    assert small.centres.shape == (5, 8)


def test_sums_over_prototypes_keep_them() -> None:
    model = randomise(Prototypes(lambda d: d.pow(2).sum((1, 2))).double())
    assert_kept(model, torch.randn(4, 3, dtype=torch.float64), "centres[0]", "sum runs over it")
