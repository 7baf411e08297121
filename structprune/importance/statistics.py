"""Statistics of activations, one number for each channel, from batches that are not kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .processes import gathered, summed


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


Key = tuple[str, int, str]  # a weight, one of its dimensions, and whether that is "read" along or "made"


class Tally:
    """The statistic of every channel that weights read or make, growing as the model runs."""

    def __init__(self, statistic: Statistic, weights: Mapping[str, Tensor]) -> None:
        self.statistic = statistic
        self.weights = weights
        self.states: dict[Key, Tensor] = {}

    def record(self, name: str, dim: int, start: int, value: Tensor, value_dim: int, role: str) -> None:
        """Adds what one operation shows of a weight's dimension; a grouped one meets it once for each group."""
        if not value.is_floating_point() or not value.numel():
            return
        rows = value.movedim(value_dim, -1)
        samples = len(rows) if value_dim % value.ndim > 0 else 1
        state = self.statistic.of(rows.reshape(samples, -1, rows.shape[-1]))
        whole = state.new_zeros(self.statistic.rows, max(self.weights[name].shape[dim], state.shape[1]))
        whole[:, start : start + state.shape[1]] = state
        key = (name, dim, role)
        self.states[key] = self.statistic.merged(self.states[key], whole) if key in self.states else whole

    def results(self) -> dict[Key, Tensor]:
        """The statistics over all processes, on the CPU. Raises NonFiniteError if a channel held NaN or infinity."""
        shapes: dict[Key, torch.Size] = {}
        for found in gathered({key: state.shape for key, state in self.states.items()}):
            shapes.update(found)
        return {key: self._result(key, shapes[key]) for key in sorted(shapes)}

    def _result(self, key: Key, shape: torch.Size) -> Tensor:
        state = self.states[key] if key in self.states else torch.zeros(shape, dtype=torch.float64, device="cpu")
        found = self.statistic.result(self.statistic.across(state)).double()
        if not bool(found.isfinite().all()):
            bad = int((~found.isfinite()).sum())
            what = f"{key[0]} {'reads' if key[2] == 'read' else 'makes'}"
            raise NonFiniteError(f"{bad} channels of what {what} hold values that are NaN or infinite")
        return found


def precise(values: Tensor) -> torch.dtype:
    """Double precision, where the device has it."""
    return torch.float32 if values.device.type == "mps" else torch.float64
