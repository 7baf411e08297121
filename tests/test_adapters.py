"""Adapters of peft: ordinary modules around the layers of a model, pruned with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import assert_equal_models, masked_original, randomise, removed_something
from torch import Tensor, nn

import structprune as sp

pytestmark = pytest.mark.zoo  # importing peft imports transformers


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.mid(torch.relu(self.up(x)))))


@pytest.mark.parametrize("layers", [["up", "mid", "down"], ["mid"]])
@pytest.mark.filterwarnings("ignore")
def test_lora(layers: list[str]) -> None:
    """The wrapped layer, its adapter's other side and the rank shrink; merging afterwards gives the same model."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=layers, lora_dropout=0.1)
    model: Any = randomise(peft.get_peft_model(Mlp().double(), config).double()).eval()
    rows = torch.randn(3, 16, dtype=torch.float64)
    result = sp.prune(model, rows)
    small: Any = result.model
    assert removed_something(result.plan)
    assert_equal_models(copy.deepcopy(small), masked_original(model, result.plan), rows)
    mid = small.base_model.model.mid
    assert mid.base_layer.weight.shape == (12, 12)
    assert mid.lora_A.default.weight.shape == (2, 12)
    assert mid.lora_B.default.weight.shape == (12, 2)
    assert not mid.base_layer.weight.requires_grad
    assert mid.lora_A.default.weight.requires_grad
    expected = small(rows)
    merged = copy.deepcopy(small).merge_and_unload()
    assert type(merged.mid) is nn.Linear
    torch.testing.assert_close(merged(rows), expected, rtol=1e-12, atol=1e-12)
    with small.disable_adapter():
        assert not torch.allclose(small(rows), expected)
