"""Models that a zoo has to cope with; light, since a process for each of them imports this."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn


class Good(nn.Sequential):
    """Three layers, and what they take."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(), nn.Linear(width * 16, 5)
        )

    def example_inputs(self) -> Tensor:
        return torch.randn(2, 3, 8, 8)


class Stubborn(nn.Linear):
    """Nothing can be removed from it."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.example_inputs = (torch.randn(2, 3),)


def hungry() -> nn.Module:
    return nn.Linear(1 << 15, 1 << 15)  # 4 GB


def broken() -> nn.Module:
    raise RuntimeError("out of order")


def sleeps() -> nn.Module:
    time.sleep(600)
    return Good()
