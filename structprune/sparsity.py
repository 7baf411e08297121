"""Sparsity: how many zeros a model holds, and how much smaller it could be for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.modules import conv

from .inventory import Inventory
from .prepare import check_model, unwrap
from .report import Report
from .shrink import shrink
from .unmask import masks_of, unmask


@dataclass(frozen=True)
class Count:
    """Zeros among elements, and output channels that are zero as a whole among all (0 of 0 for vectors)."""

    zeros: int
    elements: int
    masked: int  # elements under a mask
    dead: int
    channels: int

    @property
    def sparsity(self) -> float:
        """The fraction of elements that are zero."""
        return self.zeros / self.elements if self.elements else 0.0

    @staticmethod
    def total(counts: Iterable[Count]) -> Count:
        rows = [(c.zeros, c.elements, c.masked, c.dead, c.channels) for c in counts]
        return Count(*(sum(column) for column in zip(*rows, strict=True))) if rows else Count(0, 0, 0, 0, 0)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "sparsity": self.sparsity}


@dataclass(frozen=True)
class Sparsity:
    """Zeros by parameter, and in all; printed as a table. `gain` is the report of `shrink`, if inputs were given."""

    parameters: dict[str, Count]
    gain: Report | None

    @property
    def total(self) -> Count:
        """All parameters."""
        return Count.total(self.parameters.values())

    @property
    def weights(self) -> Count:
        """Parameters of two dimensions or more."""
        return Count.total(c for c in self.parameters.values() if c.channels)

    @property
    def biases(self) -> Count:
        """Vectors: biases, scales and shifts of norms."""
        return Count.total(c for c in self.parameters.values() if not c.channels)

    @property
    def sparsity(self) -> float:
        """The fraction of all parameters that is zero."""
        return self.total.sparsity

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        gain = self.gain
        return {
            "parameters": {name: count.to_dict() for name, count in self.parameters.items()},
            "total": self.total.to_dict(),
            "weights": self.weights.to_dict(),
            "biases": self.biases.to_dict(),
            "shrink": None if gain is None else {"params": [*gain.params], "macs": [*gain.macs], "kept": gain.fixed},
        }

    def __rich__(self) -> Table:
        table = Table(title="sparsity", title_justify="left", caption=Text(self._caption()), caption_justify="left")
        table.add_column("parameter")
        for heading in ("elements", "zero", "", "masked", "channels", "all zero"):
            table.add_column(heading, justify="right")
        for name, count in self.parameters.items():
            table.add_row(Text(name), *_cells(count))
        table.add_section()
        for name, count in {"weights": self.weights, "vectors": self.biases, "all": self.total}.items():
            table.add_row(name, *_cells(count))
        return table

    def _caption(self) -> str:
        if self.gain is None:
            return ""
        (params, left), (macs, fewer) = self.gain.params, self.gain.macs
        lines = [
            f"shrink leaves {left:,} of {params:,} parameters ({left / max(params, 1):.0%}), "
            f"{fewer:,} of {macs:,} MACs ({fewer / max(macs, 1):.0%})"
        ]
        return "\n".join(lines + [f"{name}: {why}" for name, why in self.gain.fixed.items()])

    def __str__(self) -> str:
        console = Console(width=120, no_color=True)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def _cells(count: Count) -> tuple[str, ...]:
    channels = (f"{count.channels:,}", f"{count.dead:,}") if count.channels else ("", "")
    masked = f"{count.masked:,}" if count.masked else ""
    return f"{count.elements:,}", f"{count.zeros:,}", f"{count.sparsity:.1%}", masked, *channels


def sparsity(model: nn.Module, example_inputs: Any = None) -> Sparsity:
    """Counts zeros by parameter: elements and whole output channels, of weights and of vectors.

    It is right for masks of `torch.nn.utils.prune` (what a mask hides is zero, whatever lies below) and for plain
    zeros alike; a tied parameter is counted once. With `example_inputs` (see `analyze`) it also tells what `shrink`
    would gain, and which filters are all zero and yet would stay, with the reason.

    >>> print(structprune.sparsity(model))
    >>> structprune.sparsity(model).sparsity
    0.5

    Raises UnsupportedModelError for a model without values (on the meta device, lazy) or of another kind that cannot
    be read, and what `shrink` raises.
    """
    model = unwrap(model)
    plain = unmask(model)
    parts = Inventory(plain)
    check_model(parts)
    masks = {m.qualified: m.mask for m in masks_of(model)}
    transposed = {
        f"{path}.weight" if path else "weight"
        for path, m in parts.modules.items()
        if isinstance(m, conv._ConvTransposeNd)
    }
    found = {}
    for name, parameter in plain.named_parameters():
        found[name] = _count(parameter.detach(), masks.get(name), 1 if name in transposed else 0)
    gain = None
    if example_inputs is not None:
        gain = shrink(plain, example_inputs, verify=False, details=True).report
    return Sparsity(found, gain)


def _count(tensor: Tensor, mask: Tensor | None, dim: int) -> Count:
    zero = tensor == 0
    channels = tensor.shape[dim] if tensor.ndim > 1 else 0
    dead = int(zero.movedim(dim, 0).flatten(1).all(1).sum()) if channels else 0
    return Count(int(zero.sum()), tensor.numel(), 0 if mask is None else int((mask == 0).sum()), dead, channels)
