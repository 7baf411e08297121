"""Checkpoints of an iterative pruning: weights, optimizer and plan in one safetensors file. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import ArgumentTypeError, FileFormatError
from .plan import PruningPlan
from .storage import write

NAME = "iterate.safetensors"
_TEXTS = ("done", "goals", "optimizers", "kinds", "settings")


@dataclass(frozen=True)
class Checkpoint:
    """The state after a step: how many are done, the goals of all, the plan so far, and every tensor."""

    done: int
    goals: list[dict[str, Any]]
    plan: PruningPlan
    tensors: dict[str, Tensor]
    optimizers: list[Any]  # their state_dicts, packed
    kinds: list[str]  # the names of their classes
    settings: dict[str, str]

    def check_optimizers(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Raises FileFormatError unless there are as many as were saved, of the same classes: asked before anything is
        cut."""
        if len(optimizers) != len(self.optimizers):
            raise FileFormatError(
                f"the checkpoint holds {len(self.optimizers)} optimizers; {len(optimizers)} were given"
            )
        for saved, given in zip(self.kinds, _kinds(optimizers), strict=True):
            if saved != given:
                raise FileFormatError(f"the checkpoint holds the state of an optimizer {saved}; {given} was given")

    def fill(self, models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Loads the weights into models of the right shapes (the model, its averages), and the optimizers' state."""
        for i, model in enumerate(models):
            prefix = f"{i}."
            state = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                raise FileFormatError(f"the checkpoint does not fit the model: {error}") from error
        for optimizer, packed in zip(optimizers, self.optimizers, strict=True):
            try:
                optimizer.load_state_dict(unpack(packed, self.tensors))
            except (LookupError, ValueError, TypeError, AttributeError) as error:  # where its tables are damaged
                raise FileFormatError(f"the checkpoint does not fit the optimizer: {error}") from error


def write_checkpoint(
    folder: Path,
    done: int,
    goals: list[dict[str, Any]],
    plan: PruningPlan,
    models: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    settings: dict[str, str],
) -> None:
    """Writes the file whole or not at all."""
    tensors = {
        f"{i}.{name}": value.detach().clone(memory_format=torch.contiguous_format)
        for i, model in enumerate(models)
        for name, value in model.state_dict().items()
    }
    packed = [pack(one.state_dict(), tensors, f"optimizer.{i}") for i, one in enumerate(optimizers)]
    texts = {
        "done": done, "goals": goals, "optimizers": packed, "kinds": _kinds(optimizers), "settings": settings,
    }  # fmt: skip
    metadata = {**{key: json.dumps(value) for key, value in texts.items()}, "plan": plan.to_json()}
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / NAME, lambda at: safetensors.torch.save_file(tensors, str(at), metadata=metadata))


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or None. Raises FileFormatError if it is damaged."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            done, goals, packed, kinds, settings = (json.loads(metadata[key]) for key in _TEXTS)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            whole = PruningPlan.from_json(metadata["plan"])
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a checkpoint of an iterative pruning: {error!r}") from error
    counted = type(done) is int and isinstance(goals, list) and 1 <= done <= len(goals)
    listed = isinstance(packed, list) and isinstance(kinds, list) and len(kinds) == len(packed)
    if not counted or not listed or not isinstance(settings, dict):
        raise FileFormatError(f"{path} is not a checkpoint of an iterative pruning: its numbers of steps are damaged")
    return Checkpoint(done, goals, whole, tensors, packed, kinds, settings)


def _kinds(optimizers: Sequence[torch.optim.Optimizer]) -> list[str]:
    return [type(optimizer).__name__ for optimizer in optimizers]


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Plain data for JSON; tensors go into `tensors`, under names that say where they were."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, pack(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [pack(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArgumentTypeError(f"{name} is a {type(value).__name__}, which cannot be written without pickling it")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(unpack(item, tensors) for item in value["tuple"])
    return {key: unpack(item, tensors) for key, item in value["dict"]}
