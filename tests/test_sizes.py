"""Numbers that a model's Python computes with: sizes, and floats among its attributes."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import assert_exact, assert_exact_or_nothing, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune.sizes import Computed, DimOf, Size

ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Parts(nn.Module):
    """A layer whose channels are split into parts of so many, and what is left."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        for i in range(count):
            setattr(self, f"width{i}", 4)
        self.a, self.b = nn.Linear(8, 4 * count + 4), nn.Linear(4, 3)
        self.c = nn.ModuleList(nn.Linear(4, 3) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        widths = [getattr(self, f"width{i}") for i in range(self.count)]
        *parts, rest = h.split([*widths, h.shape[1] - sum(widths)], -1)
        return sum((c(part) for c, part in zip(self.c, parts, strict=True)), self.b(rest))


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_any_number_of_attributes_may_be_sizes_of_one_operation(count: int) -> None:
    model = Parts(count).double()
    assert [len(group) for group in sp.analyze(model, ROWS).groups] == [4]
    assert_exact(model, ROWS)


class Rows(nn.Module):
    """A size that becomes 0 once channels are gone, and that another is divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        rows = h.shape[1] // 32
        return self.b(h.view(len(h), rows, h.shape[1] // rows).sum(1))


def test_a_size_that_becomes_zero_keeps_its_channels() -> None:
    assert sp.analyze(Rows().double(), ROWS).groups == ()


TABLE = {"w16": 2.0, "w8": 3.0, "w4": 5.0}


class Looking(nn.Module):
    """Looks a number up by a name that a size is part of, in a method that is called like one of structprune's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def _run(self, h: Tensor) -> Tensor:
        return h * TABLE[f"w{h.shape[1]}"]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self._run(self.a(x)))


def test_what_methods_are_called_does_not_matter() -> None:
    with pytest.raises(sp.NothingToPruneError, match="Python looks at its size"):
        sp.prune(Looking().double(), ROWS)


class Norm(nn.Module):
    """An RMS norm by hand, and its epsilon once more."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(16)), 0.25

    def forward(self, x: Tensor) -> Tensor:
        normed = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        return normed * math.sqrt(self.eps)


def test_math_sees_the_numbers_that_it_takes() -> None:
    assert_exact(nn.Sequential(nn.Linear(8, 16), Norm(), nn.Linear(16, 3)).double(), ROWS)


def test_rounding_a_size() -> None:
    size = Size(64, DimOf("value", 1))
    assert round(size) is size
    assert round(size, 1) is size
    assert round(size, -1) == 60
    assert isinstance(round(size, -1).origin, Computed)


@dataclass
class Answer:
    values: Tensor
    width: int
    again: Any = None


class Answering(nn.Module):
    """Tells how many channels there are, in an object that may hold itself."""

    def __init__(self, circle: bool) -> None:
        super().__init__()
        self.a, self.b, self.circle = nn.Linear(8, 16), nn.Linear(16, 3), circle

    def forward(self, x: Tensor) -> Answer:
        h = self.a(x)
        answer = Answer(self.b(h), 0 if self.circle else h.shape[1])
        answer.again = answer if self.circle else None
        return answer


def test_sizes_in_objects_are_outputs() -> None:
    with pytest.raises(sp.NothingToPruneError, match="Python looks at its size"):
        sp.prune(Answering(circle=False).double(), ROWS)


def test_an_output_that_holds_itself() -> None:
    assert sp.prune(randomise(Answering(circle=True).double()), ROWS).model.a.out_features == 8


class ByName(nn.Module):
    """Operands by their names, in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, bias=self.a.bias, weight=self.a.weight)
        return self.b(h) * torch.numel(input=h[0, :1])


def test_macs_of_operands_by_name() -> None:
    graph = sp.analyze(ByName().double(), ROWS)
    assert graph.costs.original()["macs"] == 3 * (8 * 16 + 16 * 3)
    assert_exact(ByName().double(), ROWS)


class Through(nn.Module):
    """What Python, or a tensor, makes of the number of channels."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(self.function(h, x))


def _counted(h: Tensor, x: Tensor) -> Tensor:
    count = (x[:, 0] > -9).sum()
    return h * 2 if bool(count * h.shape[1] != 8 * count) else h


def _counted_item(h: Tensor, x: Tensor) -> Tensor:
    count = (x[:, 0] > -9).sum()
    return h * 2 if (count * h.shape[1]).item() != 256 else h


def test_a_check_of_a_size_inside_of_a_tensor_keeps_it() -> None:
    for function in (_counted, _counted_item):
        model = randomise(Through(function).double())
        graph = sp.analyze(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
        assert not graph.groups, function
        assert "Python looks at its size" in graph.fixed["a.weight[0]"]


def test_copies_of_sizes_are_plain_numbers() -> None:
    seen: set[type] = set()

    def copied(h: Tensor, x: Tensor) -> Tensor:
        n = h.shape[1]
        made = [type(n)(3), copy.copy(n), copy.deepcopy(n), pickle.loads(pickle.dumps(n)), *copy.deepcopy(h.shape)]
        seen.update(map(type, made))
        return h.view(copy.deepcopy(h.shape))

    assert_exact_or_nothing(randomise(Through(copied).double()), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert seen == {int}


def test_copies_of_constants_are_plain_numbers() -> None:
    seen: set[type] = set()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.eps = nn.Linear(6, 8), nn.Linear(8, 3), 0.5

        def forward(self, x: Tensor) -> Tensor:
            made = copy.copy(self.eps), copy.deepcopy(self.eps), pickle.loads(pickle.dumps(self.eps))
            seen.update(map(type, made))
            return self.b(self.a(x) * made[0])

    assert_exact(randomise(Scaled().double()), torch.randn(4, 6, dtype=torch.float64))
    assert seen == {float}
