"""Importances that ask how the loss would change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, NonFiniteError, UnsupportedModelError
from ..graph import ChannelGraph, Group
from ..prepare import check_flag
from .base import Criterion, Scores, values_of, wide
from .processes import failing_together, summed
from .streaming import check_count, check_loader, explaining, streamed, undisturbed

Loss = Callable[..., Tensor]
Sums = dict[tuple[str, int], Scores]  # one number for each index of a parameter's dimension


class LossCriterion(Criterion):
    """An importance made of the products of weights and their gradients.

    Args:
        loss: `loss(model, batch)`, a function of the model and one batch of `loader`; without a loader
            `loss(model)`. It returns a scalar tensor.
        loader: any iterable of batches; each process of a distributed run brings its own share.
        batches: how many of them to use; all by default.
        train: run the model in train mode (its buffers and random numbers are put back afterwards).
        progress: show a progress bar, on terminals.

    The other options are those of `Criterion`; all slices of a unit count by default, since all go with it. The
    planner calls `prepare(graph)`, which computes one loss and its gradients for each batch and keeps one number
    for each unit. The parameters' own `grad` is not touched, and frozen parameters are frozen again afterwards.

    >>> def loss(model, batch):
    ...     images, classes = batch
    ...     return torch.nn.functional.cross_entropy(model(images), classes)
    >>> plan = structprune.plan(graph, importance=structprune.importance.Taylor(loss, loader))

    Raises ArgumentError for an empty loader and a loss that is no scalar or depends on no weight,
    ExampleInputsError if the loss raises, NonFiniteError for a loss or gradients that are.
    """

    def __init__(
        self,
        loss: Loss,
        loader: Iterable[Any] | None = None,
        *,
        batches: int | None = None,
        train: bool = False,
        progress: bool = True,
        slices: str = "all",
        reduction: str = "sum",
        normalize: str = "mean",
    ) -> None:
        super().__init__(slices, reduction, normalize)
        if not callable(loss):
            raise ArgumentTypeError(f"loss must be a function of the model and a batch, not {type(loss).__name__}")
        check_flag(train, "train")
        check_flag(progress, "progress")
        if loader is not None:
            check_loader(loader, batches)
        self.loss: Loss = loss if loader is not None else (lambda model, batch: loss(model))
        self.loader = loader if loader is not None else [()]
        self.batches, self.train, self.progress = batches, train, progress
        self._scores: Scores | None = None

    def prepare(self, graph: ChannelGraph) -> None:
        """Scores the units of `graph` by the gradients of every batch."""
        total = np.zeros(1 + max((int(group.units.max()) for group in graph.groups), default=0))
        with failing_together():
            count = self._run(graph, total)
        count = check_count(int(summed(torch.tensor(float(count), device="cpu"))))
        self._scores = summed(torch.from_numpy(total)).numpy() / count

    def _run(self, graph: ChannelGraph, total: Scores) -> int:
        """Adds what each batch says to the total of each unit."""
        weights: dict[str, Tensor] = {}
        dims: dict[str, set[int]] = {}
        for part in (part for group in graph.groups for part in self.parts(group)):
            values_of(part)  # on the meta device there are none
            weights[part.name] = part.tensor
            dims.setdefault(part.name, set()).add(part.dim)
        model, title, count = graph.model, type(self).__name__, 0
        with (
            undisturbed(model, self.train),
            torch.inference_mode(False),
            torch.enable_grad(),
            streamed(self.loader, self.batches, model, title, self.progress) as stream,
        ):
            for weight in weights.values():
                if weight.is_inference():
                    raise UnsupportedModelError(
                        "the model was made in torch.inference_mode(), and has no gradients; copy its weights into a "
                        "model made outside of it, or rank by an importance that needs none"
                    )
                weight.requires_grad_(True)
            for count, batch in stream:
                with explaining(model, batch, count):
                    sums = self._sums(weights, dims, self.loss(model, batch), count)
                for group in graph.groups:
                    total[group.units] += self.of_batch(group, sums)
        return count

    def _sums(self, weights: dict[str, Tensor], dims: dict[str, set[int]], loss: Any, number: int) -> Sums:
        """Weights times gradients, summed over all that shares an index of one of these dimensions."""
        check_loss(loss, number)
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}
        if not gradients:
            raise ArgumentError(f"the loss of batch {number} depends on no weight that can be pruned")
        sums: Sums = {}
        for name, gradient in gradients.items():
            product = self.product(weights[name].detach(), gradient)
            own = {(name, dim): _along(product, dim) for dim in dims[name]}
            if not all(np.isfinite(values).all() for values in own.values()):
                bad = int((~torch.isfinite(gradient)).sum())
                raise NonFiniteError(
                    f"the gradient of {name} on batch {number} holds {bad} values that are NaN or infinite"
                )
            sums |= own
        return sums

    def product(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What is summed."""
        return (wide(weight).conj() * wide(gradient)).real

    def combined(self, group: Group, sums: Sums) -> Scores:
        """The sums of a unit over its slices; the largest magnitude for `reduction="max"`."""
        reached = [part for part in self.parts(group) if (part.name, part.dim) in sums]
        found = [(part, sums[part.name, part.dim][part.indices]) for part in reached]
        if self.reduction == "max":
            found = [(part, np.abs(values)) for part, values in found]
        return self.reduce(group, found)

    def of_batch(self, group: Group, sums: Sums) -> Scores:
        """What one batch adds to the scores of a group."""
        raise NotImplementedError

    def __call__(self, group: Group) -> Scores:
        if self._scores is None or group.units.max() >= len(self._scores):
            raise ArgumentError(
                f"call prepare(graph) before asking {type(self).__name__} for scores, as structprune.plan does"
            )
        return self._scores[group.units]


def check_loss(loss: Any, number: int) -> None:
    """Raises ArgumentTypeError, ArgumentError or NonFiniteError unless a loss can be differentiated."""
    if not isinstance(loss, Tensor):
        raise ArgumentTypeError(f"loss must return a scalar tensor, not {type(loss).__name__}")
    if loss.numel() != 1 or loss.is_complex():
        raise ArgumentError(
            f"loss must return a real scalar; for batch {number} it returned a tensor of shape {tuple(loss.shape)}: "
            "take its mean()"
        )
    if not loss.requires_grad:
        raise ArgumentError(
            "the loss carries no gradient: it does not depend on the model's parameters, or was made under no_grad"
        )
    if not bool(loss.isfinite()):
        raise NonFiniteError(f"the loss of batch {number} is {float(loss.detach())}")


def _along(product: Tensor, dim: int) -> Scores:
    sums: Scores = product.movedim(dim, 0).reshape(product.shape[dim], -1).sum(1).cpu().numpy()
    return sums


class Taylor(LossCriterion):
    """First-order change of the loss if the unit goes: the mean over batches of |sum of weight times gradient|.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, over all coupled slices.
    """

    def of_batch(self, group: Group, sums: Sums) -> Scores:
        return np.abs(self.combined(group, sums))


class Fisher(LossCriterion):
    """Second-order change of the loss with the empirical Fisher matrix for the Hessian: half the mean over batches
    of (sum of weight times gradient) squared, the unit taken as a whole.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018; Liu et al., "Group Fisher
    Pruning", ICML 2021. Batches of one example give the Fisher matrix; larger ones mix their gradients.
    """

    def of_batch(self, group: Group, sums: Sums) -> Scores:
        change: Scores = self.combined(group, sums) ** 2 / 2
        return change


class OBD(LossCriterion):
    """Second-order change of the loss with the diagonal of the empirical Fisher matrix: half the mean over batches
    of the sum of (weight times gradient) squared.

    LeCun et al., "Optimal Brain Damage", NeurIPS 1989, with the Fisher diagonal for that of the Hessian. See
    `Fisher` for what the size of a batch does.
    """

    def product(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return super().product(weight, gradient).square()

    def of_batch(self, group: Group, sums: Sums) -> Scores:
        return self.combined(group, sums) / 2
