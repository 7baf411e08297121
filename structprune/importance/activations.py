"""Importances that watch what flows through the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..graph import ChannelGraph, Group, Slice
from ..prepare import check_flag
from .base import Criterion, Scores, check_finite, values_of, wide
from .processes import failing_together, summed
from .statistics import Key, Magnitude, MeanSquare, Statistic, Tally, Variance
from .streaming import Inputs, arguments, check_count, check_loader, explaining, streamed, undisturbed
from .watcher import Watcher


class ActivationCriterion(Criterion):
    """An importance made of statistics of the activations that weights read and make.

    Args:
        loader: any iterable of batches; each process of a distributed run brings its own share.
        batches: how many of them to use; all by default.
        inputs: makes the model's input of a batch: a tensor, a tuple of arguments, or a dict of keyword
            arguments. By default a tensor is the input, of a tuple or list its first element, and a dict holds
            keyword arguments.
        train: run the model in train mode (its buffers and random numbers are put back afterwards).
        progress: show a progress bar, on terminals.

    The other options are those of `Criterion`. The planner calls `prepare(graph)`, which runs the model once on
    every batch, without gradients; what is kept is a few numbers for each channel. Layers are recognised by the
    weight that an operation is given, so bare parameters, fused projections, grouped convolutions, transposes
    and chunks count like modules; the inside of recurrent and scripted layers cannot be seen.

    Raises ArgumentError for an empty loader and for a group none of whose weights is reached,
    ExampleInputsError if the model does not run on a batch, NonFiniteError for activations that are.
    """

    statistic: Statistic

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        batches: int | None = None,
        inputs: Inputs | None = None,
        train: bool = False,
        progress: bool = True,
        slices: str = "consumers",
        reduction: str = "sum",
        normalize: str = "mean",
    ) -> None:
        super().__init__(slices, reduction, normalize)
        check_flag(train, "train")
        check_flag(progress, "progress")
        check_loader(loader, batches)
        if inputs is not None and not callable(inputs):
            raise ArgumentTypeError(f"inputs must be a function of a batch, not {type(inputs).__name__}")
        self.loader, self.batches, self.inputs, self.train, self.progress = loader, batches, inputs, train, progress
        self._found: dict[Key, Tensor] | None = None

    def prepare(self, graph: ChannelGraph) -> None:
        """Runs the model of `graph` on the batches and keeps the statistics of its channels."""
        parts = [part for group in graph.groups for part in group.slices if part.produces or part.consumes]
        tally = Tally(self.statistic, {part.name: values_of(part) for part in parts})
        with failing_together():
            count = self._run(graph, tally)
        check_count(int(summed(torch.tensor(float(count), device="cpu"))))
        self._found = tally.results()

    def _run(self, graph: ChannelGraph, tally: Tally) -> int:
        model, title, count = graph.model, type(self).__name__, 0
        watcher = Watcher(tally.weights, tally.record)
        with (
            undisturbed(model, self.train),
            torch.no_grad(),
            streamed(self.loader, self.batches, model, title, self.progress) as stream,
        ):
            for count, batch in stream:
                with explaining(model, batch, count):
                    call = arguments(batch, self.inputs)
                    with watcher:
                        model(*call.args, **call.kwargs)
        return count

    @property
    def found(self) -> dict[Key, Tensor]:
        """The statistics; raises ArgumentError before `prepare`."""
        if self._found is None:
            raise ArgumentError(
                f"call prepare(graph) before asking {type(self).__name__} for scores, as structprune.plan does"
            )
        return self._found

    def values(self, part: Slice) -> Scores:
        """One value for each index of a slice."""
        raise NotImplementedError

    def __call__(self, group: Group) -> Scores:
        parts = self.parts(group)
        if not parts:
            raise ArgumentError(f"no batch reaches a weight of {group!r}; exclude it, or bring inputs that do")
        return self.reduce(group, ((part, self.values(part)) for part in parts))


class ActivationNorm(ActivationCriterion):
    """How strong a unit's activations are where the following weights read them.

    Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), NeurIPS
    2024, with the aggregation they found best: the mean magnitude over positions, then the L2 norm over samples
    (here the root of the mean square, so that the number of samples does not matter). The first dimension of a
    value counts as its samples; inside `nn.MultiheadAttention` that is the position. `slices="producers"` takes
    the activations as the filters make them, before norm and activation function.
    """

    statistic = Magnitude()

    def _key(self, part: Slice) -> Key:
        return (part.name, part.dim, "made" if part.produces else "read")

    def uses(self, part: Slice) -> bool:
        return self._key(part) in self.found

    def values(self, part: Slice) -> Scores:
        squares = self.found[self._key(part)].reshape(-1, part.tensor.shape[part.dim]).sum(0)
        norms: Scores = squares.sqrt().numpy()[part.indices]
        return norms


class _WeightTimesActivation(ActivationCriterion):
    """Powers of a weight times a statistic of the channel that it multiplies, summed over a slice."""

    power: int

    def _keys(self, part: Slice) -> list[Key]:
        """The statistics of what a parameter reads, that along the slice's own dimension first."""
        dims = [part.dim, *range(part.tensor.ndim)]
        return [key for dim in dims if (key := (part.name, dim, "read")) in self.found]

    def uses(self, part: Slice) -> bool:
        return bool(self._keys(part))

    def scale(self, statistic: Tensor) -> Tensor:
        return statistic

    def values(self, part: Slice) -> Scores:
        key, weight = self._keys(part)[0], values_of(part)
        scale = _beside(weight, key[1], self.scale(self.found[key]).to(weight.device))
        weight, scale = weight.movedim(part.dim, 0), scale.movedim(part.dim, 0)
        at_once = max(1, _ELEMENTS * len(weight) // weight.numel())
        sums = [
            (wide(w).abs() ** self.power * s).flatten(1).sum(1)
            for w, s in zip(weight.split(at_once), scale.split(at_once), strict=True)
        ]
        total = torch.cat(sums).cpu()
        if not bool(total.isfinite().all()):
            check_finite(part)
        found: Scores = total.numpy()[part.indices]
        return found


_ELEMENTS = 1 << 20


def _beside(weight: Tensor, dim: int, statistic: Tensor) -> Tensor:
    """The statistic of the channel that each element of a weight multiplies, in the shape of the weight.

    A grouped convolution [O, I / groups, ...] reads other channels in each block of its filters.
    """
    shape = [size if d == dim else 1 for d, size in enumerate(weight.shape)]
    blocks = statistic.reshape(-1, weight.shape[dim])
    if len(blocks) > 1:
        shape[0] = len(weight)
        blocks = blocks.repeat_interleave(len(weight) // len(blocks), 0)
    return blocks.reshape(shape).expand(weight.shape)


class Wanda(_WeightTimesActivation):
    """Magnitude times activation: the sum of |W_ij| ||X_j|| over a slice.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024; summed over the
    column that a unit is read by, as An et al. (FLAP, AAAI 2024) do for structures. ||X_j|| is the root mean
    square of channel j, so that the number of tokens does not matter.
    """

    statistic = MeanSquare()
    power = 1

    def scale(self, statistic: Tensor) -> Tensor:
        return statistic.sqrt()


class FLAP(_WeightTimesActivation):
    """Fluctuation: the variance of channel j times the squared norm of the column W_j that reads it.

    An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024 (WIFV): what
    hardly varies could be replaced by a bias. Groups are compared by standardised scores, as in the paper.
    """

    statistic = Variance()
    power = 2

    def __init__(self, loader: Iterable[Any], *, normalize: str = "standardise", **options: Any) -> None:
        super().__init__(loader, normalize=normalize, **options)
