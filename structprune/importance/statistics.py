"""Statistics of activations, one number for each channel, from batches that are not kept."""

from __future__ import annotations

import torch
from torch import Tensor

from .processes import summed


class Statistic:
    """A row or more of running numbers for each channel, and what they come to.

    `of` makes the rows of one batch, `merged` joins two, `across` joins those of all processes, and `result` is
    the statistic. Numbers are kept in float64 (float32 on devices that lack it).
    """

    rows = 2

    def of(self, values: Tensor) -> Tensor:
        """[samples, positions, channels] -> [rows, channels]"""
        raise NotImplementedError

    def merged(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def across(self, state: Tensor) -> Tensor:
        return summed(state)

    def result(self, state: Tensor) -> Tensor:
        """The second row over the first, which counts."""
        return state[1] / state[0].clamp(min=1)


class MeanSquare(Statistic):
    """The mean of the squares over samples and positions."""

    def of(self, values: Tensor) -> Tensor:
        squares = torch.linalg.vector_norm(values, 2, (0, 1), dtype=precise(values)).square()
        return torch.stack([torch.full_like(squares, values[..., 0].numel()), squares])


class Magnitude(Statistic):
    """The mean over samples of the squared mean magnitude over positions."""

    def of(self, values: Tensor) -> Tensor:
        means = torch.linalg.vector_norm(values, 1, 1, dtype=precise(values)) / max(values.shape[1], 1)
        return torch.stack([torch.full_like(means[0], len(means)), means.square().sum(0)])


class Variance(Statistic):
    """The variance over samples and positions; count, mean and squared deviations are joined as in Chan et al. 1979."""

    rows = 3

    def of(self, values: Tensor) -> Tensor:
        variance, mean = torch.var_mean(values.to(precise(values)), (0, 1), correction=0)
        count = values[..., 0].numel()
        return torch.stack([torch.full_like(mean, count), mean, variance * count])

    def merged(self, a: Tensor, b: Tensor) -> Tensor:
        count = a[0] + b[0]
        apart, share = b[1] - a[1], b[0] / count.clamp(min=1)
        return torch.stack([count, a[1] + apart * share, a[2] + b[2] + apart.square() * a[0] * share])

    def across(self, state: Tensor) -> Tensor:
        count = summed(state[0])
        mean = summed(state[0] * state[1]) / count.clamp(min=1)
        own = state.cpu()
        return torch.stack([count, mean, summed(own[2] + own[0] * (own[1] - mean).square())])

    def result(self, state: Tensor) -> Tensor:
        return state[2] / (state[0] - 1).clamp(min=1)


def precise(values: Tensor) -> torch.dtype:
    """Double precision, where the device has it."""
    if values.is_complex():
        return torch.complex64 if values.device.type == "mps" else torch.complex128
    return torch.float32 if values.device.type == "mps" else torch.float64
