"""Targets are met from below by the pruned model itself, as it is counted without structprune."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers import Snapshot, assert_equal_models, masked_original, randomise, removed_something
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_random import Model, architectures
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import structprune as sp
from structprune import cost
from structprune.budget import WINDOW

Target = dict[str, float]


def count_macs(model: nn.Module, inputs: Any) -> int:
    """What PyTorch counts, which is two operations per MAC; it does not see into attention that is one operation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def count_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images(size: int = 32) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A stem, a residual block, and a head, with widths fine enough for any target."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.inner = nn.Conv2d(64, 96, 3, padding=1)
        self.outer = nn.Conv2d(96, 64, 3, padding=1)
        self.last = nn.Conv2d(64, 48, 3, stride=2)
        self.fc = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.fc(self.last(x).relu().mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net().double()).eval()


def rows() -> Tensor:
    return images(8).double()


# -- counting -------------------------------------------------------------------------------------------------


class Products(nn.Module):
    """Every operation that is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, groups=1, bias=False)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.first = nn.Linear(12, 16)
        self.gru = nn.GRU(16, 6)
        self.cell = nn.LSTMCell(6, 5)
        self.mix = nn.Parameter(torch.randn(5, 7))
        self.last = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.grouped(self.conv(x))).flatten(2).transpose(1, 2)
        q = self.first(x)
        q = torch.bmm(torch.bmm(q, q.transpose(1, 2)).relu(), q)
        q, _ = self.gru(q)
        h, _ = self.cell(q[:, 0])
        return self.last(torch.einsum("bi,ij->bj", h, self.mix))


def test_costs_are_those_of_the_flop_counter() -> None:
    model, x = Products().eval(), images(6)
    graph = sp.analyze(model, x)
    assert cost.macs(graph) == count_macs(model, x) == graph.costs.original()["macs"]
    assert cost.parameters(graph) == count_params(model) == graph.costs.original()["params"]


def assert_costs_agree(model: nn.Module, x: Tensor, plan: sp.PruningPlan, graph: sp.ChannelGraph) -> None:
    """The formulas, the walk over the pruned shapes, and the pruned model itself."""
    graph = graph.arranged(None)  # rows of balanced grids may lose different indices
    units = graph.removed(plan)
    found = graph.costs.count(graph.costs.totals - graph.costs.of(units))
    view = graph.view(units)
    assert found["macs"].tolist() == [cost.macs(graph, view)]
    assert found["params"].tolist() == [cost.parameters(graph, view)] == [count_params(sp.apply(plan, model))]


def test_costs_of_many_plans_at_once() -> None:
    graph = sp.analyze(net(), rows())
    units = [np.concatenate([g.units[: len(g) * k // 9] for g in graph.groups]) for k in range(9)]
    kept = np.stack([graph.costs.totals - graph.costs.of(u) for u in units], axis=1)
    together = graph.costs.count(kept)
    for k, removed in enumerate(units):
        view = graph.view(removed)
        assert together["macs"][k] == cost.macs(graph, view)
        assert together["params"][k] == cost.parameters(graph, view)


class Allocated(TorchDispatchMode):
    """The largest sum of storages that are alive at once, beside those that were there before."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        storage = (out[0] if isinstance(out, tuple) else out).untyped_storage()  # not what kernels put aside
        key = id(storage)
        if storage.data_ptr() not in self.known and key not in self.alive:
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def layers() -> nn.Module:
    torch.manual_seed(0)
    body = [
        nn.Conv2d(3, 40, 3, padding=1),
        nn.BatchNorm2d(40),
        nn.ReLU(inplace=True),
        nn.Conv2d(40, 24, 3),
        nn.Sigmoid(),
    ]
    return nn.Sequential(*body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 30), nn.ReLU(), nn.Linear(30, 4)).eval()


def memory_of(model: nn.Module, x: Tensor) -> int:
    held = [*model.parameters(), *model.buffers()]
    with torch.no_grad(), Allocated([*held, x]) as counted:
        model(x)
    return sum(t.nbytes for t in held) + x.nbytes + counted.peak


def test_memory_is_what_is_alive_at_once() -> None:
    model, x = layers(), images(8)
    graph = sp.analyze(model, x)
    assert graph.costs.original()["memory"] == memory_of(model, x)
    for target in ({"memory": 0.7}, {"memory": 0.4}, {"memory": 0.5, "macs": 0.4}):
        small = sp.apply(sp.plan(graph, target=target), model)
        limit = target["memory"] * memory_of(model, x)
        assert memory_of(small, x) <= limit
        assert memory_of(small, x) > WINDOW * limit or "macs" in target


small_hunt = settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


@small_hunt
@given(
    architectures(),
    st.dictionaries(st.sampled_from(["macs", "params"]), st.floats(0.05, 1), min_size=1),
    st.sampled_from([("local", "threshold"), ("global", "threshold"), ("global", "knapsack")]),
    st.sampled_from([1, 1, 2, 4]),
)
def test_random_targets_on_random_architectures(
    drawn: Any, target: Target, how: tuple[str, str], round_to: int
) -> None:
    model = randomise(Model(*drawn).double())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = sp.analyze(model, x)
    try:
        plan = sp.plan(graph, target=target, scope=how[0], allocation=how[1], round_to=round_to)
    except (sp.NothingToPruneError, sp.TargetError):
        return
    assert_costs_agree(model, x, plan, graph)
    small = sp.apply(plan, model)
    assert_equal_models(small, masked_original(model, plan), x)
    for name, found, full in (
        ("macs", count_macs(small.eval(), x), count_macs(model.eval(), x)),
        ("params", count_params(small), count_params(model)),
    ):
        assert name not in target or found <= target[name] * full


# -- meeting targets ------------------------------------------------------------------------------------------

TARGETS: list[Target] = [{"macs": f} for f in (0.7, 0.5, 0.3)] + [{"params": f} for f in (0.7, 0.5, 0.3)]
TARGETS += [{"macs": f, "params": f} for f in (0.7, 0.5, 0.3)]
MODELS: dict[str, dict[str, Any]] = {
    "resnet50": {}, "densenet121": {}, "mobilenet_v3_large": {}, "vit_b_16": {"image_size": 32}, "swin_t": {},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_targets_are_met_within_two_percent(name: str, scope: str) -> None:
    torch.manual_seed(0)
    model, x = getattr(torchvision.models, name)(**MODELS[name]).eval(), images()
    graph = sp.analyze(model, x)
    full = {"macs": count_macs(model, x), "params": count_params(model)}
    assert full.items() <= graph.costs.original().items()
    for target in TARGETS if scope == "global" else TARGETS[::2]:
        start = time.process_time()
        plan = sp.plan(graph, target=target, scope=scope)
        assert time.process_time() - start < 1
        small = sp.apply(plan, model)
        found = {"macs": count_macs(small, x), "params": count_params(small)}
        for key, fraction in target.items():
            assert WINDOW * fraction < found[key] / full[key] <= fraction, (name, scope, target, found)


@pytest.mark.parametrize("allocation", ["threshold", "knapsack"])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("target", TARGETS[::2], ids=str)
def test_what_meets_a_target_is_exact(target: Target, scope: str, allocation: str) -> None:
    model, x = net(), rows()
    result = sp.prune(model, x, target=target, scope=scope, allocation=allocation)
    assert removed_something(result.plan)
    assert_equal_models(result.model, masked_original(model, result.plan), x)
    for name, (before, after) in (("macs", result.report.macs), ("params", result.report.params)):
        if name in target:
            assert WINDOW * target[name] * before < after <= target[name] * before


def test_absolute_targets() -> None:
    graph = sp.analyze(net(), rows())
    limit = graph.costs.original()["params"] // 2
    plan = sp.plan(graph, target={"params": limit})
    assert WINDOW * limit < count_params(sp.apply(plan, net())) <= limit
    assert sp.plan(graph, target={"params": float(limit)}) == plan


def test_targets_that_hold_already_remove_nothing() -> None:
    graph = sp.analyze(net(), rows())
    assert not sp.plan(graph, target={"macs": 1.0, "params": 1})
    assert not sp.plan(graph, target={"params": graph.costs.original()["params"]})


def test_local_targets_take_about_the_same_from_every_group() -> None:
    graph = sp.analyze(net(), rows())
    plan = sp.plan(graph, target={"macs": 0.4})
    left = [len(plan.kept[f"{name}.weight"][0]) / width for name, width in (("stem", 64), ("inner", 96), ("last", 48))]
    assert max(left) - min(left) < 2 / 48


def test_the_knapsack_loses_less_score() -> None:
    graph = sp.analyze(net(), rows())

    def rising(group: sp.Group) -> Any:
        return np.arange(1.0, len(group) + 1)

    def lost(target: Target, allocation: str) -> float:
        plan = sp.plan(graph, rising, scope="global", target=target, allocation=allocation)
        names = {"stem.weight": 64, "inner.weight": 96, "last.weight": 48}
        gone = {name: set(range(n)) - set(plan.kept.get(name, {}).get(0, range(n))) for name, n in names.items()}
        return sum((i + 1) / (names[name] + 1) for name, units in gone.items() for i in units)

    for target in ({"macs": 0.6}, {"params": 0.4}, {"macs": 0.2}):
        assert lost(target, "knapsack") < lost(target, "threshold")


def test_what_is_needed_is_spared_and_the_target_is_still_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that turn out to be needed when the plan settles come back, and others go instead."""
    from structprune import decision

    graph = sp.analyze(net(), rows())
    needed = graph.groups[1].units[:30]
    settle = decision.settle
    monkeypatch.setattr(decision, "settle", lambda g, units: settle(g, np.setdiff1d(units, needed)))
    plan = sp.plan(graph, target={"macs": 0.4})
    small = sp.apply(plan, net())
    assert set(range(30)) <= set(plan.kept["inner.weight"][0])
    assert WINDOW * 0.4 < count_macs(small, rows()) / count_macs(net(), rows()) <= 0.4


# -- the same bytes -------------------------------------------------------------------------------------------

SCRIPT = """
import sys; sys.path[:0] = {path!r}
import warnings; warnings.simplefilter("ignore")
import structprune as sp, test_budget
graph = sp.analyze(test_budget.net(), test_budget.rows())
for target in test_budget.TARGETS:
    for allocation in ("threshold", "knapsack"):
        print(sp.plan(graph, target=target, scope="global", allocation=allocation).to_json())
"""


def test_two_processes_make_the_same_bytes() -> None:
    def run(seed: str) -> str:
        command = [sys.executable, "-c", SCRIPT.format(path=sys.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout

    assert run("1") == run("2") != ""


def test_two_runs_make_the_same_bytes() -> None:
    graph = sp.analyze(net(), rows())
    for target in TARGETS:
        assert len({sp.plan(graph, target=target, scope="global").to_json() for _ in range(2)}) == 1


# -- what cannot be -------------------------------------------------------------------------------------------

BAD_TARGETS: list[tuple[Any, type[Exception], list[str]]] = [
    ({"macs": 0}, sp.ArgumentError, ["macs", "(0, 1]", "0"]),
    ({"macs": 0.0}, sp.ArgumentError, ["macs", "(0, 1]"]),
    ({"macs": -1}, sp.ArgumentError, ["macs", "-1"]),
    ({"macs": -0.5}, sp.ArgumentError, ["macs", "-0.5"]),
    ({"params": math.nan}, sp.ArgumentError, ["params", "nan"]),
    ({"params": math.inf}, sp.ArgumentError, ["params", "inf"]),
    ({"params": 10**12}, sp.ArgumentError, ["params", "1,000,000,000,000", "more than"]),
    ({"params": True}, sp.ArgumentTypeError, ["params", "True"]),
    ({"params": "half"}, sp.ArgumentTypeError, ["params", "'half'"]),
    ({"params": None}, sp.ArgumentTypeError, ["params", "None"]),
    ({"flops": 0.5}, sp.ArgumentError, ["'flops'", "macs, params, memory, latency"]),
    ({3: 0.5}, sp.ArgumentError, ["3", "macs, params"]),
    ({}, sp.ArgumentError, ["macs, params"]),
    (0.5, sp.ArgumentTypeError, ["0.5", "{'macs': 0.5}"]),
    ([("macs", 0.5)], sp.ArgumentTypeError, ["macs"]),
]


@pytest.mark.parametrize(("target", "error", "words"), BAD_TARGETS, ids=[str(t) for t, _, _ in BAD_TARGETS])
def test_an_impossible_target(target: Any, error: type[Exception], words: list[str]) -> None:
    model = net()
    before = Snapshot.of(model)
    with pytest.raises(error) as caught:
        sp.prune(model, rows(), target=target)
    for word in words:
        assert word in str(caught.value)
    before.assert_unchanged(model)


def test_a_cost_that_the_model_does_not_have() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.words(x).sum(-1)

    words = torch.arange(4)
    with pytest.raises(sp.ArgumentError, match="macs of this model is 0"):
        sp.prune(Sum(), words, target={"macs": 0.5})
    assert sp.prune(Sum(), words, target={"params": 0.5}).model.words.weight.shape == (5, 4)


def test_ratio_and_target_together() -> None:
    with pytest.raises(sp.ArgumentError, match="not both"):
        sp.prune(net(), rows(), ratio=0.5, target={"macs": 0.5})


@pytest.mark.parametrize("allocation", ["greedy", None, 3])
def test_an_unknown_allocation(allocation: Any) -> None:
    with pytest.raises(sp.ArgumentError, match="'threshold', 'knapsack'"):
        sp.prune(net(), rows(), target={"macs": 0.5}, allocation=allocation)


def test_a_knapsack_needs_a_budget() -> None:
    with pytest.raises(sp.ArgumentError, match="give a target"):
        sp.prune(net(), rows(), ratio=0.5, allocation="knapsack")


UNREACHABLE: list[tuple[Mapping[str, Any], list[str]]] = [
    ({}, ["0.0001", "kept, ", "output of the model"]),
    ({"max_ratio": 0.5}, ["without max_ratio it could be"]),
    ({"exclude": ["stem", "last"]}, ["without exclude it could be"]),
    ({"include": ["last"]}, ["without include it could be"]),
    ({"ratios": {"inner": 0.1}}, ["without ratios it could be"]),
    ({"round_to": 16}, ["without round_to it could be"]),
    ({"max_ratio": 0.5, "exclude": "inner"}, ["max_ratio", "exclude"]),
]


@pytest.mark.parametrize(("settings", "words"), UNREACHABLE, ids=[str(s) for s, _ in UNREACHABLE])
def test_a_target_out_of_reach(settings: Mapping[str, Any], words: list[str]) -> None:
    """The message says how far one can get, and what is in the way."""
    graph = sp.analyze(net(), rows())
    with pytest.raises(sp.TargetError, match="the target for params is") as caught:
        sp.plan(graph, target={"params": 0.0001}, **settings)
    for word in words:
        assert word in str(caught.value)
    least = float(str(caught.value).partition(" stay, ")[2].partition(":")[0])
    plan = sp.plan(graph, target={"params": least + 0.01}, **settings)
    assert count_params(sp.apply(plan, net())) <= (least + 0.01) * count_params(net())
