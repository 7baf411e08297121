"""Sets of small images, and how networks learn them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

TEST, BATCH = 360, 64

# -- data sets ---------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Images [N, C, H, W] and classes [N]."""

    images: Tensor
    classes: Tensor

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.images.split(size), self.classes.split(size), strict=True))

    def first(self, count: int) -> Data:
        return Data(self.images[:count], self.classes[:count])


Split = tuple[Data, Data]  # for training, and for testing


def digits() -> Split:
    """scikit-learn's handwritten digits, in an order that depends on the seed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.images))
    images = torch.from_numpy(data.images).float().unsqueeze(1)[order] / 8 - 1
    classes = torch.from_numpy(data.target)[order]
    return Data(images[TEST:], classes[TEST:]), Data(images[:TEST], classes[:TEST])


def _bar(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(0.25 - u.abs(), 0.9 - v.abs())


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    sides = [u * math.cos(a) + v * math.sin(a) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    return 0.5 - torch.stack(sides).amax(0)


# What is at least 0 inside a shape of about the size 1, at coordinates from its middle.
SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda u, v: 0.85 - u.hypot(v),
    "ring": lambda u, v: 0.2 - (u.hypot(v) - 0.7).abs(),
    "square": lambda u, v: 0.75 - u.abs().maximum(v.abs()),
    "frame": lambda u, v: 0.18 - (u.abs().maximum(v.abs()) - 0.65).abs(),
    "triangle": _triangle,
    "cross": lambda u, v: _bar(u, v).maximum(_bar(v, u)),
    "star": lambda u, v: 0.6 + 0.35 * (5 * torch.atan2(v, u)).cos() - u.hypot(v),
    "bar": _bar,
    "two bars": lambda u, v: torch.minimum(0.2 - (u.abs() - 0.5).abs(), 0.9 - v.abs()),
    "half disc": lambda u, v: torch.minimum(0.9 - u.hypot(v), v + 0.2),
}


def drawn(seed: int, counts: tuple[int, int] = (1500, 500), size: int = 16) -> Split:
    """Ten shapes, turned by up to 45 degrees, at any place, bright on a dark ground of any colours, with noise."""
    random = torch.Generator().manual_seed(seed)
    total = sum(counts)
    classes = torch.arange(total) % len(SHAPES)
    classes = classes[torch.randperm(total, generator=random)]
    inside = (_drawing(classes, size, random) * size).sigmoid().unsqueeze(1)
    ground, ink = (torch.rand(total, 3, 1, 1, generator=random) * 0.8 + low for low in (-1.0, 0.2))
    images = ground + (ink - ground) * inside + 0.2 * torch.randn(total, 3, size, size, generator=random)
    train, test = (Data(*parts) for parts in zip(images.split(counts), classes.split(counts), strict=True))
    return train, test


def _drawing(classes: Tensor, size: int, random: torch.Generator) -> Tensor:
    """What is at least 0 inside the shape of each image: [N, size, size]."""
    radius, angle, left, top = torch.rand(4, len(classes), 1, 1, generator=random)
    radius, angle = 0.55 + 0.3 * radius, (angle - 0.5) * math.pi / 2
    axis = torch.linspace(-1, 1, size)
    x, y = axis - (2 * left - 1) * (1 - radius), axis[:, None] - (2 * top - 1) * (1 - radius)
    u, v = (x * angle.cos() + y * angle.sin()) / radius, (y * angle.cos() - x * angle.sin()) / radius
    return torch.stack([shape(u, v) for shape in SHAPES.values()])[classes, torch.arange(len(classes))] * radius


def cifar10(folder: str) -> Split | None:
    """CIFAR-10 from a folder that holds it as torchvision lays it out; None if it does not."""
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(folder, train=train) for train in (True, False)]
    except RuntimeError:
        return None
    scaled = [torch.from_numpy(part.data).permute(0, 3, 1, 2).float() / 127.5 - 1 for part in parts]
    train, test = (Data(images, torch.tensor(part.targets)) for images, part in zip(scaled, parts, strict=True))
    return train, test


def image_folder(folder: str, size: int = 64) -> Split | None:
    """ImageNet and its like: `train` and `val`, a folder for each class, at `size` pixels; None if they are not there."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    if not all((Path(folder) / part).is_dir() for part in ("train", "val")):
        return None
    steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
    sets = [ImageFolder(str(Path(folder) / part), transforms.Compose(steps)) for part in ("train", "val")]
    train, test = (Data(torch.stack([2 * x - 1 for x, _ in part]), torch.tensor(part.targets)) for part in sets)
    return train, test


# -- learning ----------------------------------------------------------------------------------------------


def train(model: nn.Module, data: Data, epochs: int, rate: float, adam: bool = False) -> nn.Module:
    """One cycle of SGD, or of AdamW."""
    steps = epochs * (len(data.images) // BATCH)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.images)).split(BATCH)[: len(data.images) // BATCH]:
            optimizer.zero_grad()
            cross_entropy(model(data.images[chosen]), data.classes[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """The share of images whose class is found."""
    found = torch.cat([model(images).argmax(1) for images in data.images.split(500)])
    return float((found == data.classes).double().mean())


def macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds for one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros_like(example[:1]))
    return counter.get_total_flops() // 2
