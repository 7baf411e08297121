"""The callbacks: a step each time so many epochs begin, in place, with the optimizer in step."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def stub(monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> None:
    """An empty base class where the package would have its own."""
    parts = package.split(".")
    for i in range(len(parts)):
        path = ".".join(parts[: i + 1])
        monkeypatch.setitem(sys.modules, path, ModuleType(path))
    setattr(sys.modules[package], name, type(name, (), {}))


def widths(model: nn.Sequential) -> list[int]:
    return [layer.out_features for layer in model if isinstance(layer, nn.Linear)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(ROWS).square().mean().backward()
    optimizer.step()


def test_lightning_prunes_a_part_every_other_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "lightning.pytorch", "Callback")
    callback = sp.callbacks.lightning_callback(ROWS, every=2, module=lambda m: m.net, ratio=0.5, steps=2)
    model = nn.Module()
    model.net = net()
    optimizer = torch.optim.Adam(model.parameters())
    trainer = SimpleNamespace(world_size=1, optimizers=[optimizer])
    seen = []
    for _ in range(6):
        callback.on_train_epoch_start(trainer, model)
        seen.append(widths(model.net)[:2])
        train(model.net, optimizer)
    assert seen == [[12, 9], [12, 9], [8, 6], [8, 6], [8, 6], [8, 6]]
    assert widths(sp.apply(callback.pace.plan, net())) == widths(model.net)  # type: ignore[arg-type]


def test_the_trainer_hands_over_a_wrapped_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "transformers", "TrainerCallback")
    callback = sp.callbacks.trainer_callback(ROWS, ratio=0.5, steps=1)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    wrapped = SimpleNamespace(optimizer=optimizer)
    callback.on_epoch_begin(SimpleNamespace(world_size=1), None, None, model=model, optimizer=wrapped)
    assert widths(model) == [8, 6, 3]
    train(model, optimizer)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "lightning.pytorch", "Callback")
    callback = sp.callbacks.lightning_callback(ROWS, ratio=0.5)
    with pytest.raises(sp.UnsupportedModelError, match="2 processes"):
        callback.on_train_epoch_start(SimpleNamespace(world_size=2, optimizers=[]), net())


class Wrapper(nn.parallel.DistributedDataParallel):
    """Made without a group of processes."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def test_a_wrapper_in_one_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "lightning.pytorch", "Callback")
    callback = sp.callbacks.lightning_callback(ROWS, ratio=0.5)
    with pytest.raises(sp.UnsupportedModelError, match="a wrapper of the model"):
        callback.on_train_epoch_start(SimpleNamespace(world_size=1, optimizers=[], model=Wrapper()), net())


def test_a_callback_that_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "lightning.pytorch", "Callback")
    callback = sp.callbacks.lightning_callback(ROWS, ratio=0.5, steps=1)
    for model in (net(), net()):
        callback.on_train_epoch_start(SimpleNamespace(world_size=1, optimizers=[]), model)
        assert widths(model) == [8, 6, 3]


def test_bad_examples_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "lightning.pytorch", "Callback")
    with pytest.raises(sp.ArgumentTypeError, match="example_inputs"):
        sp.callbacks.lightning_callback(3, ratio=0.5)


@pytest.mark.parametrize("every", [0, True, "2"])
def test_bad_pace(monkeypatch: pytest.MonkeyPatch, every: Any) -> None:
    stub(monkeypatch, "lightning.pytorch", "Callback")
    with pytest.raises(sp.ArgumentError, match="every"):
        sp.callbacks.lightning_callback(ROWS, every=every, ratio=0.5)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(sp.MissingPackageError, match=r"lightning\.pytorch or pytorch_lightning"):
        sp.callbacks.lightning_callback(ROWS, ratio=0.5)


@pytest.mark.filterwarnings("ignore")
def test_inside_the_real_trainer(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    model = Model()
    data = [{"x": row, "labels": torch.tensor(i % 3)} for i, row in enumerate(ROWS)]
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        num_train_epochs=3,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = sp.callbacks.trainer_callback({"x": ROWS}, ratio=0.5, steps=2)
    before = [p.clone() for p in sp.apply(sp.plan(sp.analyze(Model(), {"x": ROWS})), Model()).parameters()]
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    assert widths(model.net) == [8, 6, 3]
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
