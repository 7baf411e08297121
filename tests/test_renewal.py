"""Tensors that code can make anew: whether they are there already must not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_exact, randomise
from torch import Tensor, nn

import structprune as sp
from structprune.renewal import made_anew

SHORT, LONG = (torch.randn(2, n, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (5, 9))


def encoding(length: int, width: int) -> Tensor:
    return (torch.arange(length)[:, None] * torch.arange(1, width + 1)[None] / width).sin().double()


class Encoded(nn.Module):
    """Adds an encoding of positions, made for as many as there ever were."""

    def __init__(self, buffer: bool, apart: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.apart = apart
        if buffer:
            self.register_buffer("table", None, persistent=False)
        else:
            self.table = None

    def renew(self, length: int, width: int) -> None:
        self.table = encoding(length, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.table is None or len(self.table) < x.shape[1]:
            if self.apart:
                self.renew(x.shape[1], h.shape[-1])
            else:
                self.table = encoding(x.shape[1], h.shape[-1])
        return self.c(self.b(h + self.table[: x.shape[1]]).relu())


def fill(module: Any, length: int, width: int) -> None:
    module.table = encoding(length, width)


class BySetattr(Encoded):
    def renew(self, length: int, width: int) -> None:
        setattr(self, "table", encoding(length, width))  # noqa: B010


class ByDict(Encoded):
    def renew(self, length: int, width: int) -> None:
        (self._buffers if "table" in self._buffers else self.__dict__)["table"] = encoding(length, width)


class ByUpdate(Encoded):
    def renew(self, length: int, width: int) -> None:
        (self._buffers if "table" in self._buffers else vars(self)).update(table=encoding(length, width))


class ByFunction(Encoded):
    def renew(self, length: int, width: int) -> None:
        fill(self, length, width)


class ByData(Encoded):
    def renew(self, length: int, width: int) -> None:
        if self.table is None:
            fill(self, length, width)
        else:
            self.table.data = encoding(length, width)


class ByAnother(Encoded):
    """Another module holds the cache."""

    def __init__(self, buffer: bool, apart: bool) -> None:
        super().__init__(buffer, apart)
        self.inner = Encoded(buffer, apart)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.inner.table is None or len(self.inner.table) < x.shape[1]:
            self.inner.table = encoding(x.shape[1], h.shape[-1])
        return self.c(self.b(h + self.inner.table[: x.shape[1]]).relu())


@pytest.mark.parametrize("buffer", [False, True], ids=["attribute", "buffer"])
@pytest.mark.parametrize("kind", [BySetattr, ByDict, ByUpdate, ByFunction, ByData, ByAnother])
def test_ways_of_making_it_anew(kind: Any, buffer: bool) -> None:
    model = randomise(kind(buffer, apart=True).double()).eval()
    model(SHORT)
    result = sp.prune(model, SHORT, ratio=0.5)
    masked = sp.mask(result.plan, model)
    assert (result.model.eval()(LONG) - masked(LONG)).abs().max() < 1e-12


@pytest.mark.parametrize("apart", [False, True], ids=["in forward", "in a method"])
@pytest.mark.parametrize("buffer", [False, True], ids=["attribute", "buffer"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_cache_for_a_longer_input(warm: bool, buffer: bool, apart: bool) -> None:
    model = randomise(Encoded(buffer, apart).double()).eval()
    if warm:
        model(SHORT)
    result = sp.prune(model, SHORT, ratio=0.5)
    assert result.model.b.out_features == 8
    masked = sp.mask(result.plan, model)
    assert (result.model.eval()(LONG) - masked(LONG)).abs().max() < 1e-12


def test_the_code_is_named() -> None:
    model = Encoded(buffer=True, apart=True).double()
    model(SHORT)
    why = sp.analyze(model, SHORT).explain("a.bias")
    assert "table can be made anew by Encoded." in str(why)
    assert "(test_renewal.py:" in str(why)


class Remembering(nn.Module):
    """Its memory is computed from what it was before: nothing is kept for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("memory", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        self.memory = 0.9 * self.memory + 0.1 * self.a(x).mean((0, 1))
        return self.b(self.a(x) * self.memory)


def test_what_is_computed_from_itself() -> None:
    assert len(sp.analyze(Remembering().double(), SHORT).groups[0]) == 16
    assert_exact(Remembering().double(), SHORT)


def test_what_a_class_sets() -> None:
    assert set(made_anew(Encoded)) == {"table"}
    assert made_anew(Remembering) == made_anew(nn.BatchNorm1d) == made_anew(nn.ModuleList) == {}


class Causal(nn.Conv1d):
    """A convolution that masks its weight each time, as PixelCNN does: the mask itself is never made anew."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, padding=1)
        self.register_buffer("mask", torch.ones_like(self.weight).bool())
        self.mask[..., 2:] = False

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


def test_what_data_is_multiplied_by_is_not_made_anew() -> None:
    model = nn.Sequential(Causal(3, 16, 3), nn.ReLU(), Causal(16, 16, 3), nn.ReLU(), nn.Conv1d(16, 2, 1))
    result = assert_exact(randomise(model.double()), torch.randn(2, 3, 9, dtype=torch.float64))
    assert result.model[2].mask.shape == (8, 8, 3)


class Distances(nn.Module):
    """Registers a buffer that is no part of the state in the first call, as encodings of positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "far"):
            self.register_buffer("far", torch.arange(9.0).to(x)[:, None], persistent=False)
        return self.b(self.a(x).relu() + self.far[: x.shape[1]])


def test_buffers_that_a_call_registers_are_no_other_model(tmp_path: Path) -> None:
    """Pruned, trained, and then saved; and a plan serves models that were called and those that were not."""
    cold, warm = (randomise(Distances().double()) for _ in range(2))
    warm(SHORT)
    plans = [sp.plan(sp.analyze(model, SHORT)) for model in (cold, warm)]
    assert plans[0] == plans[1]
    assert torch.equal(sp.apply(plans[0], warm)(SHORT), sp.apply(plans[1], cold)(SHORT))
    result = sp.prune(cold, SHORT)
    expected = result.model(LONG)
    sp.save(result, tmp_path / "small")
    assert torch.equal(sp.load(tmp_path / "small", Distances().double())(LONG), expected)
