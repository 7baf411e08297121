"""Sensitivity is measured on masks, one group at a time, and says what a plan may take."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Snapshot, masked_original, randomise, removed_something
from torch import Tensor, nn

import structprune as sp


class Net(nn.Module):
    """A stem and a residual block, with a norm that would not forgive a wrong count."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.fc(x)


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net().double()).eval()


def rows() -> Tensor:
    return torch.randn(32, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def fit(model: nn.Module) -> float:
    """Minus the distance from what the whole model says: 0 at best."""
    with torch.no_grad():
        return -float((model(rows()) - net()(rows())).square().mean())


def measured(**settings: Any) -> sp.Sensitivity:
    return sp.sensitivity(sp.analyze(net(), rows()), fit, **settings)


def test_it_measures_the_masked_original() -> None:
    graph = sp.analyze(net(), rows())
    found = sp.sensitivity(graph, fit, (0.25, 0.5))
    assert found.baseline == 0
    assert [(row.name, row.kind, row.units) for row in found.rows] == [("stem", "residual", 16), ("up", "mlp", 24)]
    for row in found.rows:
        for ratio in (0.25, 0.5):
            plan = sp.plan(graph, ratio=0, ratios={row.name: ratio})
            assert removed_something(plan)
            assert row.drops[ratio] == pytest.approx(-fit(masked_original(net(), plan)), rel=1e-12)
            assert row.drops[ratio] == pytest.approx(-fit(sp.apply(plan, net())), rel=1e-9)
        assert 0 < row.drops[0.25] != row.drops[0.5]


def test_coupled_layers_are_told_together() -> None:
    assert [row.layers for row in measured().rows] == [("stem", "down"), ("up",)]


def test_the_model_stays_as_it_is_whatever_evaluate_does() -> None:
    model = net()
    before = Snapshot.of(model)

    def careless(copy: nn.Module) -> float:
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.fill_(3)
        copy.train()
        return 1.0

    found = sp.sensitivity(sp.analyze(model, rows()), careless)
    assert all(drop == 0 for row in found.rows for drop in row.drops.values())
    before.assert_unchanged(model)


def test_ratios_for_a_tolerated_drop() -> None:
    """The largest ratio before the first that loses too much; the plan that uses them takes that."""
    graph = sp.analyze(net(), rows())
    found = sp.sensitivity(graph, fit)
    _, up = (row.drops for row in found.rows)
    tolerated = up[0.5]
    ratios = found.ratios(max_drop=tolerated)
    assert ratios["up"] >= 0.5
    for row in found.rows:
        within = [ratio for ratio in row.drops if ratio <= ratios[row.name]]
        assert all(row.drops[ratio] <= tolerated for ratio in within)
    plan = sp.plan(graph, ratios=ratios)
    assert len(plan.kept["up.weight"][0]) == 24 - math.floor(ratios["up"] * 24 + 1e-9)
    assert not any(found.ratios(max_drop=0).values())
    assert set(found.ratios(max_drop=math.inf).values()) == {0.9}


def test_a_drop_that_recovers_is_not_passed_over() -> None:
    row = sp.sensitivity(sp.analyze(net(), rows()), fit).rows[0]
    bumpy = type(row)("stem", "residual", 16, ("stem",), {0.1: 0.0, 0.5: 2.0, 0.9: 1.0})
    assert sp.Sensitivity(0.0, (bumpy,)).ratios(max_drop=1.0) == {"stem": 0.1}


def test_small_groups_are_not_measured_twice_for_the_same_units() -> None:
    calls = []

    def count(model: nn.Module) -> float:
        calls.append(model)
        return float(len(calls))

    sp.sensitivity(sp.analyze(net(), rows()), count, (0.01, 0.02, 0.5, 0.51))
    assert len(calls) == 1 + 2


def test_what_is_excluded_is_not_measured() -> None:
    assert [row.name for row in measured(exclude="kind:residual").rows] == ["up"]
    assert [row.name for row in measured(include="up").rows] == ["up"]


def test_the_metric_may_be_any_number() -> None:
    graph = sp.analyze(net(), rows())
    found = sp.sensitivity(graph, lambda model: torch.tensor(fit(model)), 0.5)
    assert found.rows[0].drops[0.5] == pytest.approx(measured().rows[0].drops[0.5], rel=1e-6)


def test_it_prints_a_table_and_becomes_json() -> None:
    found = measured()
    text = str(found)
    assert all(word in text for word in ("stem", "residual", "up", "mlp", "10%", "90%", "drop"))
    data = json.loads(json.dumps(found.to_dict()))
    assert data["rows"][0]["layers"] == ["stem", "down"]


def test_it_is_plotted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = measured()
    found.plot(tmp_path / "sensitivity.png")
    for path, error in ((tmp_path / "a.nope", sp.ArgumentError), (3, sp.ArgumentTypeError)):
        with pytest.raises(error):
            found.plot(path)  # type: ignore[arg-type]
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_plotting_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = measured()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(sp.MissingPackageError, match=r"structprune\[plot\]"):
        found.plot(tmp_path / "sensitivity.png")


BAD: list[tuple[Any, dict[str, Any], type[Exception], list[str]]] = [
    ("accuracy", {}, sp.ArgumentTypeError, ["evaluate", "'accuracy'"]),
    (None, {}, sp.ArgumentTypeError, ["evaluate", "None"]),
    (lambda model: None, {}, sp.ArgumentTypeError, ["evaluate", "None"]),
    (lambda model: torch.ones(2), {}, sp.ArgumentTypeError, ["evaluate", "tensor"]),
    (lambda model: "0.5", {}, sp.ArgumentError, ["evaluate", "'0.5'"]),
    (lambda model: True, {}, sp.ArgumentError, ["evaluate", "True"]),
    (lambda model: math.nan, {}, sp.ArgumentError, ["evaluate", "nan"]),
    (fit, {"ratios": ()}, sp.ArgumentError, ["ratios", "()"]),
    (fit, {"ratios": 0}, sp.ArgumentError, ["ratios"]),
    (fit, {"ratios": [0.5, 1]}, sp.ArgumentError, ["ratios", "1"]),
    (fit, {"ratios": "half"}, sp.ArgumentTypeError, ["ratios", "'half'"]),
    (fit, {"ratios": [math.nan]}, sp.ArgumentError, ["ratios", "nan"]),
    (fit, {"importance": "l3"}, sp.ArgumentError, ["'l3'"]),
    (fit, {"exclude": "conv"}, sp.UnknownNameError, ["'conv'"]),
    (fit, {"exclude": "*"}, sp.NothingToPruneError, ["2 groups are excluded"]),
]


@pytest.mark.parametrize(("evaluate", "settings", "error", "words"), BAD)
def test_impossible_arguments(
    evaluate: Any, settings: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        sp.sensitivity(sp.analyze(net(), rows()), evaluate, **settings)
    for word in words:
        assert word in str(caught.value)


def test_what_is_not_a_graph() -> None:
    with pytest.raises(sp.ArgumentTypeError, match="analyze"):
        sp.sensitivity(net(), fit)  # type: ignore[arg-type]


@pytest.mark.parametrize("drop", [-0.1, math.nan, "a", True, None])
def test_impossible_drops(drop: Any) -> None:
    with pytest.raises((sp.ArgumentError, sp.ArgumentTypeError), match="max_drop"):
        measured().ratios(drop)
