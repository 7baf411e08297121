"""Targets for latency: what is measured is met, and widths land at the right ends of the staircase.

Clocks are noisy, so that most tests count instead, on hardware that works in tiles of eight channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Snapshot, removed_something
from test_budget import net, rows
from torch.utils._python_dispatch import TorchDispatchMode

import structprune as sp
from structprune import decision, latency


class Tiles(TorchDispatchMode):
    """Counts multiply-accumulates as if channels came in eights."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 1.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:
            self.total += out.shape[2] * out.shape[3] * math.prod(8 * math.ceil(n / 8) for n in args[1].shape[:2])
        if function is torch.ops.aten.addmm.default:
            self.total += math.prod(8 * math.ceil(n / 8) for n in args[2].shape)
        return out


def counted(function: Callable[[], Any], seconds: float) -> float:
    with torch.no_grad(), Tiles() as tiles:
        function()
    return tiles.total


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "timed", counted)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("keep", [0.7, 0.5, 0.3])
def test_a_fraction_of_the_time(keep: float, scope: str) -> None:
    model = net()
    before = Snapshot.of(model)
    graph = sp.analyze(model, rows())
    plan = sp.plan(graph, target={"latency": keep}, scope=scope)
    small: Any = sp.apply(plan, model)
    used = counted(lambda: small(rows()), 0) / counted(lambda: model(rows()), 0) / keep
    assert 0.85 < used <= 1  # in tiles of eight, no closer
    for layer in (small.stem, small.inner, small.last):
        assert layer.out_channels % 8 == 0, "any other width takes as long as the next multiple"
    before.assert_unchanged(model)


@pytest.mark.usefixtures("tiled")
def test_iterative_pruning_measures_every_step() -> None:
    """Each step is compared with the one before."""
    model: Any = net()
    whole = counted(lambda: model(rows()), 0)
    target = {"latency": sp.Latency(0.4, seconds=0), "params": 0.9}
    used = []
    for step in sp.iterate(model, rows(), target=target, steps=2):
        small = step.model
        used.append(counted(lambda small=small: small(rows()), 0) / whole)
    assert 0.5 < used[0] <= 0.7
    assert used[1] <= 0.4


@pytest.mark.usefixtures("tiled")
def test_without_the_staircase() -> None:
    graph = sp.analyze(net(), rows())
    plan = sp.plan(graph, target={"latency": sp.Latency(0.5, seconds=0)})
    small: Any = sp.apply(plan, net())
    assert any(layer.out_channels % 8 for layer in (small.stem, small.inner, small.last))
    assert counted(lambda: small(rows()), 0) <= 0.5 * counted(lambda: net()(rows()), 0)


@pytest.mark.usefixtures("tiled")
def test_microseconds_and_other_targets_together() -> None:
    graph = sp.analyze(net(), rows())
    limit = 0.4 * counted(lambda: net()(rows()), 0)
    plan = sp.plan(graph, target={"latency": sp.Latency(limit * 1e6), "params": 0.2})
    small = sp.apply(plan, net())
    assert counted(lambda: small(rows()), 0) <= limit
    assert sum(p.numel() for p in small.parameters()) <= 0.2 * sum(p.numel() for p in net().parameters())


@pytest.mark.usefixtures("tiled")
def test_all_of_the_time_removes_nothing() -> None:
    assert not sp.plan(sp.analyze(net(), rows()), target={"latency": 1})


def test_all_of_the_time_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise would make the model slower than itself."""
    monkeypatch.setattr(latency.Stopwatch, "compare", lambda self, model: (1.0, 1.5))
    assert not sp.plan(sp.analyze(net(), rows()), target={"latency": 1.0})


@pytest.mark.usefixtures("tiled")
def test_a_model_that_cannot_be_as_fast() -> None:
    graph = sp.analyze(net(), rows())
    with pytest.raises(sp.TargetError, match=r"latency is 0\.001; the fastest model that was found takes"):
        sp.plan(graph, target={"latency": 0.001})
    with pytest.raises(sp.TargetError, match="params"):
        sp.plan(graph, target={"latency": 0.5, "params": 0.00001})


@pytest.mark.usefixtures("tiled")
def test_no_plan_that_could_be_timed() -> None:
    with pytest.raises(sp.TargetError, match="no plan with fewer macs was found that could be timed"):
        sp.plan(sp.analyze(net(), rows()), target={"latency": 0.5}, max_ratio=0.0)


def test_the_staircase_has_right_ends() -> None:
    counts = np.array([4, 8, 12, 16, 20])
    assert latency.right_ends(counts, np.array([1.0, 1.0, 2.0, 2.0, 3.0])).tolist() == [8, 16, 20]
    assert latency.right_ends(counts, np.array([1.0, 2.0, 3.0, 4.0, 5.0])).tolist() == counts.tolist()
    assert latency.right_ends(counts, np.array([5.0, 4.0, 3.0, 2.0, 1.0])).tolist() == [20]
    assert latency.right_ends(counts, np.array([1.0, 1.01, 3.0, 2.99, 2.95])).tolist() == [8, 20]


@pytest.mark.parametrize("size", [1, 2, 23, 24, 48, 49, 96, 100, 768, 3072])
def test_widths_that_are_timed(size: int) -> None:
    counts = latency.widths(size)
    assert counts[-1] == size
    assert (np.diff(counts) > 0).all()
    assert min(size, 24) <= len(counts) <= 49


@pytest.mark.usefixtures("tiled")
def test_the_staircase_ends_in_time() -> None:
    graph = sp.analyze(net(), rows())
    assert not latency.staircase(graph, graph.groups, 0)
    assert latency.staircase(graph, graph.groups, 60).keys() == {int(g.units[0]) for g in graph.groups}


def test_on_a_real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loosely: other things run on this machine, too."""
    monkeypatch.setattr(latency, "TURNS", 2)
    monkeypatch.setattr(decision, "TRIALS", 4)
    graph = sp.analyze(net(), rows().repeat(8, 1, 2, 2))
    plan = sp.plan(graph, target={"latency": sp.Latency(0.5, seconds=0.5)})
    assert removed_something(plan)
    first = decision.apply(sp.plan(graph, ratio=0), net())
    whole, small = latency.Stopwatch(first, graph.call, compiled=False).compare(sp.apply(plan, net()))
    assert small < 0.8 * whole


BAD: list[tuple[Any, type[Exception], list[str]]] = [
    (0, sp.ArgumentError, ["latency", "(0, 1]", "0"]),
    (-0.5, sp.ArgumentError, ["latency", "-0.5"]),
    (math.nan, sp.ArgumentError, ["latency", "nan"]),
    (math.inf, sp.ArgumentError, ["latency", "inf"]),
    (True, sp.ArgumentTypeError, ["Latency", "True"]),
    ("10 ms", sp.ArgumentTypeError, ["Latency", "'10 ms'"]),
    (None, sp.ArgumentTypeError, ["Latency", "None"]),
]


@pytest.mark.parametrize(("value", "error", "words"), BAD, ids=[str(v) for v, _, _ in BAD])
def test_impossible_latencies(value: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        sp.plan(sp.analyze(net(), rows()), target={"latency": value})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_impossible_seconds(seconds: float) -> None:
    with pytest.raises(sp.ArgumentError, match="seconds"):
        sp.Latency(0.5, seconds=seconds)
