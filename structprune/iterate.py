"""Iterative pruning: prune a little, train a little, and keep everything that trains in step."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .api import analyze
from .constraints import check_fraction, check_ratio
from .errors import ArgumentError, ArgumentTypeError, VerificationError, closest
from .fitting import check_fits
from .graph import ChannelGraph
from .inventory import Inventory
from .latency import Latency
from .optimizers import follower
from .plan import PruningPlan
from .planning import plan, split_target
from .prepare import check_flag, unwrap
from .progress import Checkpoint, read_checkpoint, write_checkpoint
from .schedules import check_steps, cuts
from .storage import check_state, path_of
from .surgery import apply
from .verify import Verification
from .verify import verify as verify_plan

Goals = list[dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """One step of `iterate`.

    `model` is what to train now. `plan` is the whole of it: it turns the unpruned model into one of this shape.
    `number` counts from 1 to `steps`. `trained` is True only where a finished run was resumed: nothing is left to do.
    """

    model: nn.Module
    plan: PruningPlan
    number: int
    steps: int
    verification: Verification | None = None
    trained: bool = False


def iterate(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: Mapping[str, float] | None = None,
    ratio: float | None = None,
    steps: int = 5,
    schedule: Any = "linear",
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] = (),
    ema: nn.Module | Iterable[nn.Module] = (),
    folder: str | Path | None = None,
    inplace: bool = False,
    verify: bool = True,
    norm: str = "exact",
    rigid: str = "keep",
    **settings: Any,
) -> Iterator[Step]:
    """Prunes in several steps, with training between them.

    >>> for step in structprune.iterate(model, images, target={"macs": 0.3}, steps=5, optimizer=optimizer):
    ...     train(step.model, optimizer)
    >>> structprune.apply(step.plan, unpruned)    # the same shape at once

    Units are ranked anew at every step, on the model as it has been trained. The first step makes a small copy of
    `model` (or cuts `model` itself, with `inplace=True`), later ones cut that copy, so `step.model` is one object
    throughout.

    Args:
        target: what to keep in the end, as for `plan` (latency as a fraction); or `ratio`, the fraction of units to
            remove in the end.
        steps: how many steps.
        schedule: `"linear"`, `"cubic"` (AGP), `"exponential"` (1 - (1 - r)^n), or a function of the progress in
            (0, 1] and the final cut that returns the cut.
        optimizer: one or several that hold parameters of `model`; they go on with those of the small model, their
            state cut alike. Schedulers that hold an optimizer go on with it.
        ema: copies of the model (or `torch.optim.swa_utils.AveragedModel`s of it) that are cut alike, in place.
        folder: where the state is written each time the next step is asked for, and taken up from after an
            interruption (with the unpruned `model` and a new optimizer): the step that was being trained then
            starts again. A finished run yields its last step once more, with `trained=True`.
        verify: compare every cut with the masked model of that step.
        norm, rigid: as for `analyze`.
        settings: for `plan`: `importance`, `scope`, `exclude`, `round_to` ...

    Raises what `prune` raises, UnsupportedModelError for an optimizer whose state cannot be cut, and
    FileFormatError or ArgumentError for a folder that holds another run.
    """
    if (target is None) == (ratio is None):
        raise ArgumentError("give iterate a target, {'macs': 0.5}, or a ratio")
    if ratio is not None:
        check_ratio(ratio)
    check_flag(inplace, "inplace")
    check_flag(verify, "verify")
    optimizers = _several(optimizer, torch.optim.Optimizer, "optimizer")
    averages = _several(ema, nn.Module, "ema")
    model = unwrap(model)
    if any(_averaged(average) is model for average in averages):
        raise ArgumentError("ema holds the model itself, which is cut anyway; pass the copies of it that are to follow")
    _check_held(optimizers, model)
    _check_settings(settings)
    for one in () if folder is None else (model, *averages):
        check_state(one)
    analysis = {"norm": norm, "rigid": rigid}
    graph = analyze(model, example_inputs, **analysis)
    goals = _goals(graph, target, ratio, schedule, steps)
    if "min_ratio" in settings:  # at every step as much of it as of the cut
        least = check_fraction(settings.pop("min_ratio"), "min_ratio")
        goals = [{**goal, "min_ratio": cut} for goal, cut in zip(goals, cuts(schedule, steps, least), strict=True)]
    latency = None if target is None else split_target(graph, target)[1]
    run = _Run(model, example_inputs, optimizers, averages, verify, analysis, settings, latency)
    return run.go(goals, graph, None if folder is None else _ready(folder), inplace)


def _check_settings(settings: Iterable[str]) -> None:
    """Raises ArgumentTypeError for a setting that `plan` does not have."""
    known = inspect.signature(plan).parameters
    for name in settings:
        if name not in known:
            raise ArgumentTypeError(f"there is no setting {name!r}; {closest(name, known)}")


def _ready(folder: Any) -> Path:
    """The folder of a run, made before anything is trained that could not be written there."""
    path = path_of(folder, "folder")
    if path.exists() and not path.is_dir():
        raise ArgumentError(f"{path} is a file; name a folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _goals(
    graph: ChannelGraph, target: Mapping[str, float] | None, ratio: float | None, schedule: Any, steps: int
) -> Goals:
    """What is asked of `plan` at each step, in terms of the unpruned model."""
    check_steps(steps)
    if ratio is not None:
        return [{"ratio": cut} for cut in cuts(schedule, steps, ratio)]
    counted, latency = split_target(graph, target)
    original = graph.costs.original()
    ways = {name: cuts(schedule, steps, 1 - limit / original[name]) for name, limit in counted.items()}
    goals = [{"target": {name: original[name] * (1 - way[i]) for name, way in ways.items()}} for i in range(steps)]
    if latency is not None:
        if latency.keep > 1:
            raise ArgumentError(f"iterate takes latency as a fraction to keep, in (0, 1]; {latency.keep!r} was given")
        left = [1.0, *(1 - cut for cut in cuts(schedule, steps, 1 - latency.keep))]
        for i, goal in enumerate(goals):  # a time is compared with that of the step before, measured beside it
            goal["target"]["latency"] = left[i + 1] / left[i]
    return goals


def _several(value: Any, kind: type, name: str) -> list[Any]:
    """One or several as a list."""
    one = isinstance(value, kind | torch.Tensor | np.ndarray | str | Mapping) or not isinstance(value, Iterable)
    found = [value] if one else list(value)
    for one in found:
        if not isinstance(one, kind):
            raise ArgumentTypeError(f"{name} must be a {kind.__module__}.{kind.__name__}, not {type(one).__name__}")
    return found


def _check_held(optimizers: Sequence[torch.optim.Optimizer], model: nn.Module) -> None:
    """Some of the optimizers may be for something else, but not all."""
    own = {id(parameter) for parameter in model.parameters()}
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    if optimizers and own.isdisjoint(held):
        raise ArgumentError("optimizer holds no parameter of the model: build it from model.parameters()")


def _averaged(module: nn.Module) -> nn.Module:
    """The copy of the model inside an `AveragedModel`."""
    return module.module if isinstance(module, torch.optim.swa_utils.AveragedModel) else unwrap(module)


@dataclass
class _Run:
    """A run: what is pruned, what is kept in step with it, and how. An `AveragedModel` counts what it has averaged."""

    model: nn.Module
    examples: Any
    optimizers: list[torch.optim.Optimizer]
    averages: list[nn.Module]
    verify: bool
    analysis: dict[str, str]
    settings: dict[str, Any]
    latency: Latency | None

    def go(self, goals: Goals, graph: ChannelGraph, folder: Path | None, inplace: bool) -> Iterator[Step]:
        """The steps, from wherever the folder says the run was."""
        saved = None if folder is None else self._saved(folder, goals, graph)
        done, whole = (saved.done, saved.plan) if saved is not None else (0, None)
        small = self.model
        if saved is not None:
            small = self._cut(saved.plan, small, inplace)
            saved.fill([small, *self.averages], self.optimizers)
            if done == len(goals):
                yield Step(small, saved.plan, done, done, trained=True)
        for number, goal in enumerate(goals[done:], done + 1):
            if number > 1:
                widths = graph.first_widths()
                graph = analyze(small, self.examples, **self.analysis)
                graph.widths = widths
            made = plan(graph, **self.settings, **self._asked(goal, graph))
            check = self._check(small, made)
            small = self._cut(made, small, inplace or number > 1)
            whole = made if whole is None else whole.then(made)
            yield Step(small, whole, number, len(goals), check)
            if folder is not None:
                state = [small, *self.averages], self.optimizers, self._described()
                write_checkpoint(folder, number, goals, whole, *state)

    def _asked(self, goal: dict[str, Any], graph: ChannelGraph) -> dict[str, Any]:
        """A goal as `plan` takes it: what is met already stays met, and latency is measured as the user said."""
        if "target" not in goal:
            return goal
        present = graph.costs.original()
        target: dict[str, Any] = {n: min(value, present.get(n, value)) for n, value in goal["target"].items()}
        if self.latency is not None:
            target["latency"] = replace(self.latency, keep=target["latency"])
        return {**goal, "target": target}

    def _check(self, model: nn.Module, made: PruningPlan) -> Verification | None:
        """Compares a cut with the masked model, before anything is cut."""
        check = verify_plan(model, made, self.examples) if self.verify else None
        if check is not None and not check.ok:
            raise VerificationError(str(check))
        return check

    def _cut(self, made: PruningPlan, model: nn.Module, inplace: bool) -> nn.Module:
        """Applies a plan to the model, its averages and the optimizer. Averages that do not fit are found first."""
        averages = list(map(_averaged, self.averages))
        for average in averages:
            check_fits(made, Inventory(average))
        following = [follower(optimizer, made, model) for optimizer in self.optimizers]
        small = apply(made, model, inplace=inplace)
        for one in following:
            one.move(small)
        for average in averages:
            apply(made, average, inplace=True)
        return small

    def _saved(self, folder: Path, goals: Goals, graph: ChannelGraph) -> Checkpoint | None:
        saved = read_checkpoint(folder)
        if saved is None:
            return None
        if saved.plan.fingerprint != graph.fingerprint:
            raise ArgumentError(f"{folder} holds the run of another model; choose another folder")
        if saved.goals != goals:
            raise ArgumentError(f"{folder} holds a run with other steps, targets or schedule; choose another folder")
        for name, text in self._described().items():
            if saved.settings.get(name) != text:
                raise ArgumentError(
                    f"{folder} holds a run with {name}={saved.settings.get(name)}, not {text}; choose another folder"
                )
        saved.check_optimizers(self.optimizers)
        return saved

    def _described(self) -> dict[str, str]:
        """What is asked of `analyze` and `plan` at every step, in words; of what is no plain data the class."""
        usual = {name: p.default for name, p in list(inspect.signature(plan).parameters.items())[1:]}
        asked = {**usual, **self.analysis, **self.settings}
        return {name: json.dumps(_said(value)) for name, value in asked.items()}


def _said(value: Any) -> Any:
    """What can be said of a setting from one run to the next."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return sorted([str(_said(key)), _said(item)] for key, item in value.items())
    if isinstance(value, list | tuple):
        return list(map(_said, value))
    if isinstance(value, set | frozenset):
        return sorted(map(str, map(_said, value)))
    kind = value if isinstance(value, type) or inspect.isfunction(value) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
