"""Train mode is traced only where it may do something else, and always where it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_kept, masked_original, randomise
from torch import Tensor, nn

import structprune as sp
from structprune.verify import TOLERANCES


class Depth(nn.Module):
    """Stochastic depth: in train mode whole examples are dropped."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype).bernoulli_(0.5).div_(0.5)


class Softly(nn.Module):
    """In train mode channels are mixed: none of them can go."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.softmax(1) if self.training else x


class Scaled(Depth):
    """An argument by keyword, which is not seen from outside."""

    def forward(self, x: Tensor, mixed: bool = False) -> Tensor:
        return x.softmax(1) if self.training and mixed else x


class Kept(Depth):
    """Asks for the mode outside of `forward`."""

    def go(self, x: Tensor) -> Tensor:
        return x.softmax(1) if self.training else x


class Net(nn.Module):
    """Many layers, and one small module between them, called in some way."""

    def __init__(self, between: nn.Module, how: str = "call") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3)
        self.between, self.how, self.calls = between, how, 0
        self.last = nn.Sequential(nn.Conv2d(12, 8, 3), *(nn.ReLU() for _ in range(9)), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(self.how)
        x = self.first(x)
        if self.how == "keyword":
            x = self.between(x, mixed=True)
        elif self.how == "method":
            x = self.between.go(x)
        else:
            x = self.between(x)
        return self.last(x)


class Direct(Net):
    """Goes past `__call__`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between.forward(self.first(x)))


RUNS: list[str] = []  # of the whole model


def asks(module: nn.Module, x: Tensor) -> Tensor:
    """A function that asks a module for its mode."""
    return x * x.softmax(1) if module.training else x


def asks_another(module: nn.Module, x: Tensor) -> Tensor:
    return asks(module, x)


class ByFunction(nn.Module):
    """A function elsewhere reads the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return asks_another(self, x)


class ByName(nn.Module):
    """The mode is read by its name."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.softmax(1) if getattr(self, "training") else x  # noqa: B009


def images() -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def made(model: nn.Module) -> Any:
    return randomise(model.double())


def test_what_does_the_same_is_not_traced_again() -> None:
    model = made(Net(Depth()))
    RUNS.clear()
    graph = sp.analyze(model, images())
    assert len(RUNS) == len(graph.space.programs) == 1
    assert not any(program.visits for program in graph.space.programs)
    assert sp.prune(model, images()).model.first.out_channels == 6  # verified in both modes


@pytest.mark.parametrize("model", [
    Net(Softly()), Net(Scaled(), "keyword"), Net(Kept(), "method"), Direct(Softly()), Net(nn.Sequential(Softly())),
    Net(ByFunction()), Net(ByName()),
], ids=["mixes", "keyword", "method", "forward", "inside", "a function", "by name"])  # fmt: skip
def test_what_does_something_else_counts(model: nn.Module) -> None:
    assert_kept(made(model), images(), "first.weight[0]", "softmax")


def test_a_module_that_is_never_called_asks_nothing() -> None:
    model = made(Net(Depth()))
    model.spare = Softly()
    RUNS.clear()
    assert len(sp.analyze(model, images()).space.programs) == len(RUNS) == 1


class Dropping(nn.Module):
    """Does the same in both modes, but for the probability."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1, self.training)


def test_counting_batches_makes_no_second_program() -> None:
    """A batch norm reads one buffer more in train mode."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Dropping(), Dropping(), nn.Conv2d(8, 4, 3)).double()
    assert len(sp.analyze(model, images()).space.programs) == 1


class LowRank(nn.Linear):
    """Hu et al., "LoRA": `eval()` adds the product to the weight, `train()` takes it out again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(4, inputs)), nn.Parameter(torch.randn(outputs, 4))
        self.merged = False

    def train(self, mode: bool = True) -> LowRank:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (self.up @ self.down) * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0 if self.merged else x @ self.down.T @ self.up.T)


class Table(nn.Module):
    """Graham et al., "LeViT": `eval()` looks up a table, `train()` deletes it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bias = nn.Linear(6, 16), nn.Linear(16, 3), nn.Parameter(torch.randn(4))

    def train(self, mode: bool = True) -> Table:
        super().train(mode)
        if mode and hasattr(self, "table"):
            del self.table
        else:
            self.table = self.bias[:3].detach()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) + (self.bias[:3] if self.training else self.table)  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [False, True])
def test_models_that_do_something_when_their_mode_changes(training: bool) -> None:
    rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for model in (nn.Sequential(LowRank(6, 16), nn.ReLU(), LowRank(16, 3)), Table()):
        made(model).train(training)
        graph = sp.analyze(model, rows)
        assert not {"0.down", "0.up", "bias"} & set(graph.unreached)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        result = sp.prune(model, rows, ratio=0.5)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert model.training == training
        masked = masked_original(model, result.plan)
        for mode in (True, False, True):
            small, other = result.model.train(mode), masked.train(mode)
            assert torch.allclose(small(rows), other(rows), atol=1e-12)
    assert model.bias.shape == (4,)


def test_slopes_that_are_drawn_in_train_mode() -> None:
    model = made(nn.Sequential(nn.Linear(6, 16), nn.RReLU(), nn.Linear(16, 8), nn.RReLU(0.2, 0.4), nn.Linear(8, 3)))
    check = sp.prune(model, torch.randn(4, 6, dtype=torch.float64), ratio=0.5).report.verification
    assert check is not None
    assert {row.mode for row in check.comparisons} == {"eval", "train"}
    assert check.max_rel_error < 1e-12


def test_times_grow_along_with_the_images_of_a_batch() -> None:
    """A model that takes one number for each example is compared in train mode and at another batch size, too."""

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.t, self.b = nn.Linear(6, 16), nn.Linear(1, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor, times: Tensor) -> Tensor:
            return self.b((self.a(x) + self.t(times[:, None].to(x.dtype))).relu())

    rows = torch.randn(2, 6, dtype=torch.float64), torch.tensor([3, 7])
    check = sp.prune(made(Timed()), rows, ratio=0.5).report.verification
    assert check is not None
    assert [(row.mode, row.batch) for row in check.comparisons] == [("eval", 2), ("eval", 3), ("train", 2)]


class Asks(nn.Module):
    """A width that train mode centres."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h - h.mean(-1, keepdim=True) if self.hot() else h)  # type: ignore[no-any-return]

    def hot(self) -> bool:
        raise NotImplementedError


class AsksByProperty(Asks):
    busy = property(lambda self: self.training)

    def hot(self) -> bool:
        return self.busy  # type: ignore[no-any-return]


class AsksStatically(Asks):
    @staticmethod
    def of(module: nn.Module) -> bool:
        return module.training

    def hot(self) -> bool:
        return self.of(self)


class AsksWhatItHolds(Asks):
    def __init__(self) -> None:
        super().__init__()
        self.asked = lambda module: module.training

    def hot(self) -> bool:
        return self.asked(self)  # type: ignore[no-any-return]


class Noted(Asks):
    """A mode that is noted when it changes, and was never noted before."""

    noted = False

    def train(self, mode: bool = True) -> Noted:
        self.noted = mode
        return super().train(mode)

    def hot(self) -> bool:
        return self.noted


@pytest.mark.parametrize("kind", [AsksByProperty, AsksStatically, AsksWhatItHolds, Noted])
def test_ways_of_asking_for_the_mode(kind: Any) -> None:
    rows = torch.randn(4, 6, dtype=torch.float64)
    try:
        result = sp.prune(made(kind()).train(), rows, ratio=0.5)
    except sp.NothingToPruneError:
        return
    masked = masked_original(made(kind()), result.plan)
    assert torch.allclose(result.model.train()(rows), masked.train()(rows), atol=1e-12)


def test_models_that_magnify_rounding_are_measured_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if float32 deserved more than it can give: the masked model is not equal to itself in float64, either."""
    monkeypatch.setitem(TOLERANCES, torch.float32, 1e-12)
    torch.manual_seed(0)
    model, rows = (
        nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 512), nn.Linear(512, 3)),
        torch.randn(8, 512),
    )
    plan = sp.plan(sp.analyze(model, rows), ratio=0.5)
    row = sp.verify(model, plan, rows, device="cpu").comparisons[-1]
    assert row.dtype == "float32"
    assert row.ok
    assert 1e-12 < row.tolerance < 1e-5
    small: Any = sp.apply(plan, model)
    with torch.no_grad():
        small[3].weight[0, 0] += 0.1
    assert not sp.verify(model, plan, rows, small=small).ok
