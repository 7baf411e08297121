"""The demo: a small network learns to read digits, loses half of its channels, and the table says what that changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import safetensors.torch
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.nn.utils import prune as torch_prune
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from .api import prune
from .errors import StructPruneError

BATCH = 64
TEST = 360


class Block(nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)) + self.around(x)
        return out.relu()


class DigitNet(nn.Module):
    """A residual network for images of one channel."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(width, width, 1),
            Block(width, 2 * width, 2),
            Block(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


class Row(NamedTuple):
    """One model in the table."""

    name: str
    accuracy: float
    parameters: int
    macs: int
    bytes: int
    seconds: float  # for a batch of the test images
    error: float | None  # relative, against the masked original


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 handwritten digits, in random order: images [N, 1, 16, 16] and classes [N]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise StructPruneError('the demo needs scikit-learn: pip install "structprune[demo]"') from error
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1
    order = torch.randperm(len(images))
    return interpolate(images, scale_factor=2.0, mode="nearest")[order], torch.from_numpy(data.target)[order]


def train(
    model: nn.Module, images: Tensor, classes: Tensor, epochs: int, rate: float, bar: Progress, title: str
) -> None:
    """Trains by one cycle of SGD, with a progress bar."""
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    task = bar.add_task(title, total=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = cross_entropy(model(images[chosen]), classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.advance(task)
    model.eval()


def mask_filters(model: nn.Module, amount: float) -> nn.Module:
    """A copy in which PyTorch's own structured pruning has set filters to zero."""
    masked = copy.deepcopy(model)
    for module in masked.modules():
        if isinstance(module, nn.Conv2d):
            torch_prune.ln_structured(module, "weight", amount, n=1, dim=0)
            torch_prune.remove(module, "weight")
    return masked


def measure(name: str, model: nn.Module, images: Tensor, classes: Tensor, error: float | None = None) -> Row:
    """The figures of one model."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad():
        with counter:
            model(images[:1])
        accuracy = float((model(images).argmax(1) == classes).double().mean())
        timer = Timer("model(images)", globals={"model": model, "images": images})  # on one thread
        seconds = timer.blocked_autorange(min_run_time=1.0).median
    parameters = sum(p.numel() for p in model.parameters())
    size = len(safetensors.torch.save(dict(model.state_dict())))
    return Row(name, accuracy, parameters, counter.get_total_flops() // 2, size, seconds, error)


def as_table(rows: list[Row], caption: str) -> Table:
    """The rows, ready to print; 80 columns are enough."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=caption, caption_justify="left")
    table.add_column("model", no_wrap=True)
    for heading in ("accuracy", "parameters", "MACs", "file", "latency", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.accuracy:.1%}",
            f"{row.parameters:,}",
            f"{row.macs / 1e6:.2f} M",
            f"{row.bytes / 1e3:,.0f} kB",
            f"{row.seconds * 1e3:.0f} ms",
            "" if row.error is None else f"{row.error:.0e}",
        )
    return table


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other are slow, and their times meaningless, where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _working(bar: Progress, title: str) -> Iterator[None]:
    """A bar without an end, for work that does not say how far it is."""
    task = bar.add_task(title, total=None)
    yield
    bar.update(task, total=1, completed=1)


def run_demo(seed: int = 0, epochs: int = 10, width: int = 32, console: Console | None = None) -> list[Row]:
    """Trains, masks, prunes, fine-tunes, and prints one table. The same seed gives the same models."""
    console = console or Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with _one_thread(), torch.random.fork_rng(devices=[]), Progress(*columns, console=console) as bar:
        torch.manual_seed(seed)
        images, classes = digits()
        data, test = (images[TEST:], classes[TEST:]), (images[:TEST], classes[:TEST])
        dense = DigitNet(width)
        train(dense, *data, epochs, 0.1, bar, "training")
        with _working(bar, "pruning and verifying"):
            masked = mask_filters(dense, 0.5)
            result = prune(dense, images[:1], ratio=0.5)
        check = result.report.verification
        tuned = copy.deepcopy(result.model)
        train(tuned, *data, max(epochs // 2, 1), 0.05, bar, "fine-tuning")
        with _working(bar, "measuring"):
            rows = [
                measure("dense", dense, *test),
                measure("masked by\ntorch.nn.utils.prune", masked, *test),
                measure("structprune", result.model, *test, error=check.max_rel_error if check else None),
                measure("structprune,\nfine-tuned", tuned, *test),
            ]
    caption = (
        f"latency: {TEST} images on one thread of the CPU\n"
        "error: the largest relative difference from the masked original, which is the\n"
        "dense network with zeros for all that structprune removed (in float64)"
    )
    console.print(as_table(rows, caption))
    return rows
