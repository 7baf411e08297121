"""Thin callbacks: `structprune.iterate` inside the training loops of Lightning and of the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn

from .errors import ArgumentError, MissingPackageError, UnsupportedModelError
from .iterate import Step, iterate
from .plan import PruningPlan
from .prepare import calls_of


class Pace:
    """Takes the next step of an iterative pruning each time so many epochs have begun.

    `plan` is the whole of what has been pruned so far: it turns the unpruned model into one of the present shape.
    A run on another model begins with the first step.
    """

    def __init__(self, example_inputs: Any, every: int, settings: dict[str, Any]) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ArgumentError(f"every must be a whole number of epochs from 1, not {every!r}")
        calls_of(example_inputs)  # what is wrong is better said before training than in it
        self.example_inputs = example_inputs
        self.every = every
        self.settings = settings
        self.plan: PruningPlan | None = None
        self._model: nn.Module | None = None
        self._steps: Iterator[Step] = iter(())
        self._epochs = 0

    def begin_epoch(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Prunes the model in place, if it is time; does nothing once the goal is reached."""
        if model is not self._model:
            plain = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]  # accelerate wraps them
            self._steps = iterate(model, self.example_inputs, optimizer=plain, inplace=True, **self.settings)
            self._model, self._epochs = model, 0
        due = self._epochs % self.every == 0
        self._epochs += 1
        step = next(self._steps, None) if due else None
        if step is not None:
            self.plan = step.plan


def lightning_callback(
    example_inputs: Any, *, every: int = 1, module: Callable[[Any], nn.Module] = lambda module: module, **settings: Any
) -> Any:
    """A Lightning callback that prunes the LightningModule in place, a step every so many epochs.

    >>> pruning = structprune.callbacks.lightning_callback(images, target={"macs": 0.5}, steps=5)
    >>> lightning.Trainer(callbacks=[pruning]).fit(module)
    >>> pruning.pace.plan                         # turns the unpruned model into one of this shape

    Args:
        module: finds what to prune in the LightningModule, `lambda module: module.net`; else all of it.
        settings: for `iterate`.

    Strategies that wrap the model (DDP, FSDP) hold its old parameters and are refused, when training begins, with
    UnsupportedModelError. Raises MissingPackageError without Lightning, ArgumentError and ArgumentTypeError.
    """
    base = _base("Callback", "lightning.pytorch", "pytorch_lightning")
    pace = Pace(example_inputs, every, settings)

    def on_train_epoch_start(self: Any, trainer: Any, pl_module: Any) -> None:
        _check_alone(getattr(trainer, "world_size", 1), getattr(trainer, "model", None))
        pace.begin_epoch(module(pl_module), trainer.optimizers)

    return type("PruningCallback", (base,), {"on_train_epoch_start": on_train_epoch_start, "pace": pace})()


def trainer_callback(example_inputs: Any, *, every: int = 1, **settings: Any) -> Any:
    """A callback of the Hugging Face Trainer that prunes the model in place, a step every so many epochs.

    >>> pruning = structprune.callbacks.trainer_callback(batch, ratio=0.5, steps=5)
    >>> transformers.Trainer(model, arguments, train_dataset=data, callbacks=[pruning]).train()

    Args:
        settings: for `iterate`.

    Wrapped models (DDP, FSDP) are refused, when training begins, with UnsupportedModelError. Raises
    MissingPackageError without transformers, ArgumentError and ArgumentTypeError.
    """
    base = _base("TrainerCallback", "transformers")
    pace = Pace(example_inputs, every, settings)

    def on_epoch_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _check_alone(getattr(args, "world_size", 1))
        pace.begin_epoch(kwargs["model"], [kwargs["optimizer"]])

    return type("PruningCallback", (base,), {"on_epoch_begin": on_epoch_begin, "pace": pace})()


def _base(name: str, *packages: str) -> type:
    """The base class from whichever of the packages is installed."""
    for package in packages:
        try:
            found: type = getattr(import_module(package), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != package.partition(".")[0]:
                raise
        else:
            return found
    raise MissingPackageError(f"this callback needs {' or '.join(packages)}: pip install {packages[0].split('.')[0]}")


def _check_alone(processes: int, wrapped: Any = None) -> None:
    wrapper = type(wrapped).__name__
    if processes > 1 or isinstance(wrapped, nn.parallel.DistributedDataParallel) or "FSDP" in wrapper:
        raise UnsupportedModelError(
            f"a wrapper of the model holds its old parameters, in each of {processes} processes; prune between runs "
            "instead, with structprune.iterate"
        )
