"""Folding: the constants of channels that go are moved into what reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .inventory import Inventory
from .liveness import Liveness, representative
from .weights import Weight


@dataclass
class Edits:
    """What to add to parameters and buffers, by name; new biases by module path, without the rows that go (float64)."""

    added: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def made(self, model: nn.Module) -> Iterator[None]:
        """Adds to the tensors of a model meanwhile; new biases come after surgery."""
        tensors = Inventory(model).registered
        before = {name: tensors[name].detach().clone() for name in self.added}
        with torch.no_grad():
            for name, change in self.added.items():
                tensors[name].copy_(tensors[name].double() + change.to(tensors[name].device))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, values in before.items():
                    tensors[name].copy_(values)

    def fill(self, small: nn.Module) -> None:
        """Gives the new biases of the smaller model their values."""
        with torch.no_grad():
            for path, values in self.biases.items():
                small.get_submodule(path).bias.copy_(values)  # type: ignore[union-attr, operator]


def edits_of(liveness: Liveness) -> Edits:
    """Every constant that live rows read from dead units, folded into a bias or merged into another constant."""
    edits = Edits()
    for weight in liveness.weights:
        _fold(weight, liveness, edits)
        _merge(weight, liveness, edits)
    return edits


def _fold(weight: Weight, liveness: Liveness, edits: Edits) -> None:
    """Where the sum over a constant is one number for each row, that number is added to the bias."""
    dead = torch.from_numpy(liveness.dead[weight.inputs]).reshape(weight.constants.shape)
    chosen = weight.read(liveness.dead).folded & dead
    if not chosen.any():
        return
    sums = [
        (w[:, at].double().sum(2) * c[at]).sum(1)
        for w, c, at in zip(weight.view, weight.constants, chosen, strict=True)
    ]
    delta = torch.cat(sums)
    for name in weight.outlet.biases:
        _add(edits.added, name, delta)
    for name in weight.outlet.means:
        _add(edits.added, name, -delta)
    for path in weight.outlet.modules:
        edits.biases[path] = delta[~liveness.dead[weight.outputs]]


def _merge(weight: Weight, liveness: Liveness, edits: Edits) -> None:
    """W[:, j] += c_i / c_j * W[:, i]: what is read of plane i is read of plane j, a multiple of it, instead."""
    dead = torch.from_numpy(liveness.dead[weight.inputs]).reshape(weight.constants.shape)
    chosen = weight.read(liveness.dead).constant & dead
    if not chosen.any():
        return
    change = torch.zeros(weight.tensor.shape, dtype=torch.float64, device="cpu")
    view = weight.readers[0].view(change)
    for group in torch.nonzero(chosen.any(1))[:, 0].tolist():
        at = chosen[group]
        target = representative(weight, liveness.dead, group)
        ratios = weight.constants[group][at] / weight.constants[group][target]
        view[group][:, target] = (weight.view[group][:, at].double() * ratios[:, None]).sum(1)
    _add(edits.added, weight.name, change)


def _add(into: dict[str, Tensor], name: str, change: Tensor) -> None:
    into[name] = into[name] + change if name in into else change
