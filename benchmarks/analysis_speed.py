"""How long does it take to analyse and prune a model, and how much memory, next to Torch-Pruning?

    python -m benchmarks.analysis_speed [--only 'resnet*'] [--redo] [--runs 9] [--timeout 60]

Ours is `analyze` + `plan` + `apply`, which leaves the model as it is and returns a smaller copy. Theirs is the
construction of a `MagnitudePruner` (with its dependency graph) and one `step()`, which prunes in place: it
gets a fresh deep copy each time, made outside of the measured time, and is told the output layers and the heads of
fused projections. Both use the L1 norm, ratio 0.5, the same inputs, one thread, and take turns in one process; medians
are compared. The first turn warms up; of the others there are nine, or as many as begin in twenty seconds, but two at
least. A run that takes longer than a minute is stopped, and its side is out. The inputs are one picture or clip, as
small as the model takes it (64 pixels, most often); convolutional networks are measured once more with one as large as
they are made for. The floor is one forward pass on these inputs plus copying half of every weight. Memory is the growth
of the peak resident size in a process of its own for each side (for Torch-Pruning without the copy), relative to the
size of the model. "TP" is Torch-Pruning.
"""

from __future__ import annotations

import copy
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import zoo
from .harness import (
    Row,
    add_row,
    call,
    isolated,
    limit,
    load_rows,
    matches,
    model_bytes,
    parser,
    peak_growth,
    randomise,
    stopwatch,
    table,
    write_markdown,
)
from .rivals import magnitude_pruner, output_layers, set_sizes

NAME = "analysis_speed"
TITLES = {**zoo.TITLES, zoo.FULL_SIZE: "convolutional networks of torchvision, pictures of 224 pixels"}
SECONDS = 60.0  # that one run of one side may take
TURNS = 20.0  # seconds in which turns begin
TIMM = """
    cait_xxs24_224 convmixer_768_32 convnext_atto cspresnet50 deit_tiny_patch16_224 dla34 edgenext_xx_small efficientvit_b0
    fastvit_t8 hrnet_w18_small mixer_s32_224 mobilevit_xxs nfnet_l0 poolformer_s12 pvt_v2_b0 regnety_002 repvgg_a0
    res2next50 resnetv2_50 swin_tiny_patch4_window7_224
""".split()


# -- the sides -------------------------------------------------------------------------------------------


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
    outputs = output_layers(model, example)
    with stopwatch(phases, "init"):
        pruner = magnitude_pruner(model, example, outputs, pruning_ratio=0.5)
    with stopwatch(phases, "step"):
        pruner.step()
    set_sizes(model, pruner)
    return model


SIDES: dict[str, Callable[..., nn.Module]] = {"ours": ours, "theirs": theirs}


# -- time ------------------------------------------------------------------------------------------------


def measure_time(case: zoo.Case, runs: int, seconds: float) -> Iterator[Row]:
    """The size of the model, the floor, and the turns of both sides."""
    model, example = prepared(case)
    yield {"parameters": size(model), "modules": sum(1 for _ in model.modules())}
    yield {"floor_s": floor(model, example)}
    yield from take_turns(model, example, tuple(SIDES), runs, seconds)


def take_turns(model: nn.Module, example: Any, sides: Sequence[str], runs: int, seconds: float) -> Iterator[Row]:
    """One turn to warm up, then `runs`, or as many as begin in time, but two at least; a side that fails is out."""
    samples: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    start = time.perf_counter()
    for turn in range(runs + 1):
        if turn > 2 and time.perf_counter() - start > TURNS:
            return
        for side in list(samples):
            phases: dict[str, float] = {}
            victim = copy.deepcopy(model) if side == "theirs" else model
            try:
                with limit(seconds):
                    small = SIDES[side](victim, example, phases)
            except Exception as error:  # whatever it raises is a result
                del samples[side]
                yield {f"{side}_error": f"{type(error).__name__}: {error}"[:200]}
                continue
            samples[side].append(phases)
            yield medians(side, samples[side])
            if turn == 0:
                yield {f"{side}_left": size(small) / size(model), f"{side}_runs": ran(small, example)}


def size(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


def medians(side: str, samples: list[dict[str, float]]) -> Row:
    """The median of the total and of each phase, the warm-up left out if there is more."""
    counted = samples[1:] or samples
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
        except Exception:  # whatever it raises, it does not run
            continue
        found.append(mode)
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
    return [row["model"], row.get("ours_s", row.get("ours_error")), row.get("theirs_s"), row.get("ratio"), over, *times,
            row.get("ours_left"), row.get("theirs_left"), *memory, theirs_result(row)]  # fmt: skip


def theirs_result(row: Row) -> str:
    """Its error, or the modes in which its model does not run."""
    if "theirs_s" not in row or "theirs_error" in row:
        return str(row.get("theirs_error", row.get("error", "not asked")))
    missing = [
        mode
        for mode in ("eval", "train")
        if mode not in row.get("theirs_runs", "") and mode in row.get("ours_runs", "")
    ]
    return f"does not run in {' or '.join(missing)} mode" if missing else "runs"


def report(rows: Mapping[str, Row]) -> None:
    """Writes analysis_speed.md."""
    assert __doc__ is not None
    ordered = sorted(rows.values(), key=lambda r: r["model"])
    parts = [__doc__.split("\n\n")[2] + "\n"]
    for group, title in TITLES.items():
        mine = [row for row in ordered if row["key"].startswith(f"{group}/")]
        parts += [f"## {title}\n", summary(mine) + "\n", table(HEADER, map(line, mine))] if mine else []
    write_markdown(NAME, "Time and memory of pruning", parts)


def summary(rows: list[Row]) -> str:
    """Medians and extremes over some models."""
    ratios = sorted((r["ratio"], r["model"]) for r in rows if "ratio" in r)
    floors = sorted((r["ours_s"] / r["floor_s"], r["model"]) for r in rows if "ours_s" in r)
    memory = sorted((r["ours_memory"], r["model"]) for r in rows if "ours_memory" in r)
    text = f"{len(rows)} models."
    for name, values, worst in (
        ("Faster than Torch-Pruning by", ratios, 0), ("Times the floor:", floors, -1), ("Memory, in models:", memory, -1),
    ):  # fmt: skip
        if values:
            middle = statistics.median(v for v, _ in values)
            text += f" {name} {middle:.1f} in the median, {values[worst][0]:.1f} at worst ({values[worst][1]})."
    return text + failures(rows)


def failures(rows: list[Row]) -> str:
    """The models on which a side has no result, or one that does not run."""
    theirs_failed = [r["model"] for r in rows if theirs_result(r) != "runs"]
    ours_failed = [r["model"] for r in rows if "ours_error" in r]
    text = f" structprune fails on {len(ours_failed)}: {', '.join(ours_failed)}." if ours_failed else ""
    names = f": {', '.join(theirs_failed)}" if theirs_failed else ""
    return f"{text} Torch-Pruning fails, or leaves a broken model, on {len(theirs_failed)}{names}."


def measure(case: zoo.Case, runs: int, seconds: float) -> Row:
    """The row of a model: times first, then the memory of each side that was in time."""
    row = isolated(measure_time, case, runs, seconds, timeout=10 * seconds)
    for side in ("ours", "theirs", "forward"):
        if f"{side}_error" not in row:
            found = isolated(measure_memory, case, side, seconds, timeout=4 * seconds)
            row.update({k: v for k, v in found.items() if k.endswith("memory") or k == "bytes"})
    if "ours_s" in row and "theirs_s" in row:
        row["ratio"] = row["theirs_s"] / row["ours_s"]
    return {**row, "key": case.key, "model": case.name}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    taken = parser(__doc__)
    taken.add_argument("--runs", type=int, default=9, help="measured runs of each side")
    taken.add_argument("--timeout", type=float, default=SECONDS, help="seconds for one run of one side")
    options = taken.parse_args(arguments)
    torch.set_num_threads(1)
    for tool in ("torch_pruning", "torchvision", "timm", "structprune"):
        importlib.import_module(tool)  # once, and not in every process
    for case in [*zoo.classifiers(TIMM), *zoo.full_size()]:
        asked = matches(case.name, options.only) or matches(case.key, options.only)
        if asked and (options.redo or case.key not in load_rows(NAME)):
            row = measure(case, options.runs, options.timeout)
            report(add_row(NAME, row))
            print("  ".join(str(v)[:100] for v in line(row)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
