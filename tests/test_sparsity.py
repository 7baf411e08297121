"""Sparsity reports: what is counted, and how it is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from helpers import Snapshot, randomise
from torch import Tensor, nn
from torch.nn.utils import prune

import structprune as sp


def model() -> Any:
    layers = (nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 2))
    return randomise(nn.Sequential(*layers).double()).eval()


def images() -> Tensor:
    return torch.randn(1, 3, 8, 8, dtype=torch.float64)


def by_hand(net: nn.Module) -> tuple[int, int]:
    """What tutorials do: zeros of the weights that modules compute with."""
    zeros = elements = 0
    for module in net.modules():
        for name in ("weight", "bias"):
            value = getattr(module, name, None)
            if value is not None:
                zeros += int((value == 0).sum())
                elements += value.nelement()
    return zeros, elements


@pytest.mark.parametrize("removed", [False, True])
def test_counts_are_those_made_by_hand(removed: bool) -> None:
    """Masks and plain zeros count alike."""
    net = model()
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    prune.ln_structured(net[2], "weight", amount=0.5, n=1, dim=0)
    prune.random_unstructured(net[2], "bias", amount=0.25)
    if removed:
        for layer, name in ((net[0], "weight"), (net[2], "weight"), (net[2], "bias")):
            prune.remove(layer, name)
    report = sp.sparsity(net)
    assert (report.total.zeros, report.total.elements) == by_hand(net)
    assert report.sparsity == pytest.approx(by_hand(net)[0] / by_hand(net)[1])
    assert report.parameters["2.weight"].sparsity == 0.5
    assert (report.parameters["2.weight"].dead, report.parameters["2.weight"].channels) == (2, 4)
    assert report.parameters["0.weight"].dead == 0
    assert report.parameters["2.weight"].masked == (0 if removed else 144)
    assert report.biases.zeros == 1
    assert report.weights.elements == 216 + 288 + 96


def test_repeated_prunings_and_what_lies_below_a_mask() -> None:
    net = model()
    prune.l1_unstructured(net[0], "weight", amount=50)
    prune.l1_unstructured(net[0], "weight", amount=50)
    assert sp.sparsity(net).parameters["0.weight"].zeros == 100


def test_channels_of_a_transposed_convolution_are_its_second_dimension() -> None:
    net = model()
    with torch.no_grad():
        net[3].weight[:, [0, 5]] = 0
    count = sp.sparsity(net).parameters["3.weight"]
    assert (count.dead, count.channels) == (2, 6)


def test_tied_parameters_count_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert sp.sparsity(net).total.elements == 16 + 8


def test_what_shrink_would_gain_and_what_would_stay() -> None:
    net = model()
    prune.ln_structured(net[0], "weight", amount=4, n=1, dim=0)
    before = Snapshot.of(net)
    report = sp.sparsity(net, images())
    before.assert_unchanged(net)
    small = sp.shrink(net, images())
    assert report.gain is not None
    assert report.gain.params == (sum(p.numel() for p in net.parameters()), sum(p.numel() for p in small.parameters()))
    assert list(report.gain.fixed) == ["0"]
    text = str(report)
    for words in ("0.weight", "50.0%", "shrink leaves", "has padding"):
        assert words in text
    data = json.loads(json.dumps(report.to_dict()))
    assert data["total"]["zeros"] == 108
    assert data["shrink"]["params"] == list(report.gain.params)
    assert data["shrink"]["kept"] == report.gain.fixed
    assert sp.sparsity(net).to_dict()["shrink"] is None


def test_a_fully_dense_model_and_an_empty_one() -> None:
    assert sp.sparsity(model()).sparsity == 0
    assert sp.sparsity(nn.ReLU()).sparsity == 0
    assert "all" in str(sp.sparsity(nn.ReLU()))


def test_a_model_without_values() -> None:
    with pytest.raises(sp.UnsupportedModelError, match=r"weight is on the meta device"):
        sp.sparsity(nn.Linear(3, 3, device="meta"))
