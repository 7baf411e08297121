"""How long does it take to analyse and prune a model, and how much memory, next to Torch-Pruning?

    python -m benchmarks.analysis_speed [--only 'resnet*'] [--redo] [--runs 5] [--timeout 120]

Ours is `analyze` + `plan` + `apply`, which leaves the model as it is and returns a smaller copy. Theirs is the
construction of a `MagnitudePruner` (with its dependency graph) and one `step()`, which prunes in place: it
gets a fresh deep copy each time, made outside of the measured time. Both use the L1 norm, ratio 0.5, the same
inputs, one thread, and take turns in one process; medians are compared. The floor is one forward pass plus
copying half of every weight. Memory is the growth of the peak resident size in a process of its own for each
side (for Torch-Pruning without the copy), relative to the size of the model.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import zoo
from .harness import (
    Row,
    call,
    commit,
    isolated,
    load_rows,
    model_bytes,
    peak_growth,
    randomise,
    save_rows,
    stopwatch,
    table,
    write_markdown,
)

NAME = "analysis_speed"
CLASSES = {1000, 400, 21}  # the widths of the layers that torchvision's classifiers end in


def heads(model: nn.Module) -> list[nn.Module]:
    """The layers that produce the model's outputs, auxiliary ones included: Torch-Pruning must be told."""
    return [
        m for m in model.modules()
        if (getattr(m, "out_features", None) or getattr(m, "out_channels", None)) in CLASSES
        and isinstance(m, nn.Linear | nn.Conv2d)
    ]  # fmt: skip


def ours(model: nn.Module, example: Any, phases: dict[str, float]) -> nn.Module:
    """One run of structprune, with the seconds of its phases."""
    import structprune as sp

    with stopwatch(phases, "analyze"):
        graph = sp.analyze(model, example)
    with stopwatch(phases, "plan"):
        plan = sp.plan(graph, "l1", ratio=0.5)
    with stopwatch(phases, "apply"):
        return sp.apply(plan, model)


def theirs(model: nn.Module, example: Any, phases: dict[str, float]) -> nn.Module:
    """One run of Torch-Pruning, which changes `model`."""
    import torch_pruning as tp

    with stopwatch(phases, "init"):
        importance = tp.importance.GroupMagnitudeImportance(p=1)
        pruner = tp.pruner.MagnitudePruner(
            model, example, importance=importance, pruning_ratio=0.5, ignored_layers=heads(model)
        )
    with stopwatch(phases, "step"):
        pruner.step()
    return model


class OutOfTimeError(Exception):
    """A side took longer than it was given."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError in the block after so many seconds."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- time ------------------------------------------------------------------------------------------------


def measure_time(case: zoo.Case, runs: int, seconds: float) -> Iterator[Row]:
    """The sides take turns; a side that fails once sits out the rest."""
    model, example = prepared(case)
    yield {"parameters": sum(p.numel() for p in model.parameters()), "modules": sum(1 for _ in model.modules())}
    yield {"floor_s": floor(model, example)}
    sides: dict[str, Callable[..., nn.Module]] = {"ours": ours, "theirs": theirs}
    samples: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    start = time.perf_counter()
    for turn in range(runs + 1):  # the first turn warms up, and counts only if it is the only one
        for side, prune in list(sides.items()):
            phases: dict[str, float] = {}
            victim = copy.deepcopy(model) if side == "theirs" else model
            try:
                with limit(seconds):
                    small = prune(victim, example, phases)
                samples[side].append(phases)
                if turn == 0:
                    yield {
                        f"{side}_left": sum(p.numel() for p in small.parameters())
                        / sum(p.numel() for p in model.parameters())
                    }
                    yield {f"{side}_runs": ran(small, example)}
            except Exception as error:  # whatever it raises is a result
                del sides[side]
                yield {f"{side}_error": f"{type(error).__name__}: {error}"[:200]}
            yield medians(side, samples[side])
        if time.perf_counter() - start > 2 * seconds:
            return


def medians(side: str, samples: list[dict[str, float]]) -> Row:
    """The median of the total and of each phase, the warm-up left out."""
    counted = samples[1:] or samples
    if not counted:
        return {}
    row: Row = {f"{side}_s": statistics.median(sum(s.values()) for s in counted), f"{side}_samples": len(counted)}
    return row | {f"{side}_{phase}_s": statistics.median(s[phase] for s in counted) for phase in counted[0]}


def prepared(case: zoo.Case) -> tuple[nn.Module, Any]:
    """The model in eval mode with random weights, and its example inputs."""
    torch.manual_seed(0)
    return randomise(case.build()), case.inputs(1)


def floor(model: nn.Module, example: Any) -> float:
    """Seconds of one forward pass and of slicing every weight by half, the median of three."""
    return statistics.median(_floor_once(model, example) for _ in range(3))


def _floor_once(model: nn.Module, example: Any) -> float:
    seconds: dict[str, float] = {}
    with torch.no_grad(), stopwatch(seconds, "floor"):
        call(model, example)
        for parameter in model.parameters():
            _halved(parameter)
    return seconds["floor"]


def _halved(weight: Tensor) -> Tensor:
    for dim in range(min(weight.ndim, 2)):
        weight = weight.index_select(dim, torch.arange(0, weight.shape[dim], 2))
    return weight


def ran(model: nn.Module, example: Any) -> str:
    """Whether the pruned model runs: in eval mode, and in train mode with a batch of two."""
    found = []
    for mode in ("eval", "train"):
        model.train(mode == "train")
        try:
            with torch.no_grad():
                call(model, torch.cat([example, example]))
            found.append(mode)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            pass
    model.eval()
    return "+".join(found)


# -- memory ----------------------------------------------------------------------------------------------


def forward(model: nn.Module, example: Any, phases: dict[str, float]) -> Any:
    """One forward pass, for scale."""
    with torch.no_grad():
        return call(model, example)


def measure_memory(case: zoo.Case, side: str, seconds: float) -> Iterator[Row]:
    """The peak of one side, after a small model has loaded what has to be loaded."""
    prune: Callable[..., Any] = {"ours": ours, "theirs": theirs, "forward": forward}[side]
    warm = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    prune(warm, torch.randn(1, 3, 16, 16), {})
    model, example = prepared(case)
    kept = []
    with limit(seconds):
        grown = peak_growth(lambda: kept.append(prune(model, example, {})))
    yield {f"{side}_memory": grown / model_bytes(model), "bytes": model_bytes(model)}


# -- the table -------------------------------------------------------------------------------------------

HEADER = ("model", ">ours s", ">Torch-Pruning s", ">ratio", ">times the floor", ">analyze", ">plan", ">apply", ">left", ">left TP",
          ">memory", ">memory TP", ">memory forward", "Torch-Pruning's result")  # fmt: skip


def line(row: Row) -> list[Any]:
    """A row of the table."""
    times = [row.get(f"ours_{phase}_s") for phase in ("analyze", "plan", "apply")]
    over = row["ours_s"] / row["floor_s"] if "ours_s" in row else None
    memory = [row.get(f"{side}_memory") for side in ("ours", "theirs", "forward")]
    return [row["model"], row.get("ours_s"), row.get("theirs_s"), row.get("ratio"), over, *times,
            row.get("ours_left"), row.get("theirs_left"), *memory, theirs_result(row)]  # fmt: skip


def theirs_result(row: Row) -> str:
    """Its error, or the modes in which its model does not run."""
    if "theirs_error" in row:
        return str(row["theirs_error"])
    missing = [
        mode
        for mode in ("eval", "train")
        if mode not in row.get("theirs_runs", "") and mode in row.get("ours_runs", "")
    ]
    return f"does not run in {' or '.join(missing)} mode" if missing else "runs"


def report(rows: Mapping[str, Row]) -> None:
    """Writes analysis_speed.md."""
    ordered = sorted(rows.values(), key=lambda r: r["model"])
    assert __doc__ is not None
    write_markdown(
        NAME,
        "Time and memory of pruning",
        [summary(ordered) + "\n", __doc__.split("\n\n")[2] + "\n", table(HEADER, map(line, ordered))],
    )


def summary(rows: list[Row]) -> str:
    """Medians and extremes over all models."""
    ratios = sorted((r["ratio"], r["model"]) for r in rows if "ratio" in r)
    floors = sorted((r["ours_s"] / r["floor_s"], r["model"]) for r in rows if "ours_s" in r)
    memory = sorted((r["ours_memory"], r["model"]) for r in rows if "ours_memory" in r)
    failed = [r["model"] for r in rows if theirs_result(r) != "runs"]
    text = f"{len(rows)} models."
    for name, values, worst in (
        ("Faster than Torch-Pruning by", ratios, 0), ("Times the floor:", floors, -1), ("Memory, in models:", memory, -1),
    ):  # fmt: skip
        if values:
            middle = statistics.median(v for v, _ in values)
            text += f" {name} {middle:.1f} in the median, {values[worst][0]:.1f} at worst ({values[worst][1]})."
    return (
        text
        + f" Torch-Pruning fails, or leaves a broken model, on {len(failed)}"
        + (f": {', '.join(failed)}." if failed else ".")
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="patterns of model names")
    parser.add_argument("--redo", action="store_true", help="measure again what has a row")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each side")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one run of one side")
    options = parser.parse_args(arguments)
    for case in zoo.cases("torchvision-cnn"):
        rows = load_rows(NAME)
        if (case.key in rows and not options.redo) or not any(
            fnmatch.fnmatch(case.name, p) for p in options.only or ["*"]
        ):
            continue
        row = isolated(measure_time, case, options.runs, options.timeout, timeout=10 * options.timeout)
        for side in ("ours", "theirs", "forward"):
            found = isolated(measure_memory, case, side, options.timeout, timeout=4 * options.timeout)
            row.update({k: v for k, v in found.items() if k.endswith("memory") or k == "bytes"})
        if "ours_s" in row and "theirs_s" in row:
            row["ratio"] = row["theirs_s"] / row["ours_s"]
        row.update(key=case.key, model=case.name, commit=commit())
        rows = load_rows(NAME)
        rows[case.key] = row
        save_rows(NAME, rows)
        report(rows)
        print("  ".join(str(v)[:100] for v in line(row)), flush=True)


if __name__ == "__main__":
    main()
