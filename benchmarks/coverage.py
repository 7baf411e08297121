"""Which models can each tool prune, and does the result compute what the masked original computes?

    python -m benchmarks.coverage [--only 'resnet*'] [--redo] [--timeout 60] [--largest 100]

structprune, Torch-Pruning 1.6.1 and the structured pruner of torch.ao.pruning remove half of the channels of each
layer or group, by the L1 norm, from classifiers of torchvision and timm with random weights and statistics, each in a
process of its own. Torch-Pruning's `MagnitudePruner` is told the output layers and, as in its examples, the heads of
attention with a fused `qkv`; the sizes that such modules and torchvision's ViT hold as attributes (`head_dim`,
`attn_dim`, `hidden_dim`) are set for it afterwards. torch.ao's `SaliencyPruner` is given the layers that begin one of
its patterns (convolution or linear, activation, maybe pooling, the next one), found by its own matcher; batch norms
were not fused for it beforehand. No tool is asked what it removed: every weight carries its position, and what is
gone from the pruned model is set to zero in the original (where structprune folds an RMS norm into its weight, the
plan says what is left of that weight). The two are then compared in float64 on fresh images, in eval and in train mode,
dropout off, batch norms calibrated so that signals survive.

*equal*: within 1e-9 in both modes. *equal but for norms*: equal once the layer, RMS and group norms of the masked
original run over the channels that are left, and its attention divides by the root of the head's dimensions that are
left, as stock modules do in a pruned model. *differs*: neither. *broken*: the pruned model does not run, in one mode at
least. *changed*: weights hold other values, so that what was removed cannot be read. *untouched*: no error, and nothing
removed. *raises*, *timeout*: no pruned model, or none within a minute. Seconds are those of pruning alone.
"""

from __future__ import annotations

import copy
import importlib
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import zoo
from .compat import double_inputs, error, run, to_double, without_dropout
from .harness import (
    OutOfTimeError,
    Row,
    add_row,
    calibrate,
    isolated,
    limit,
    load_rows,
    matches,
    parser,
    portable,
    stopwatch,
    table,
    write_markdown,
)
from .provenance import OverKept, left, marked, masked_original, share_statistics
from .rivals import magnitude_pruner, output_layers, set_sizes

NAME = "coverage"
RATIO = 0.5
TOLERANCE = 1e-9
NOT_CLASSIFIERS = (*zoo.SEGMENTATION, "mc3_18", "r2plus1d_18", "r3d_18")
TIMM = """
    beit_base_patch16_224 cait_xxs24_224 coat_tiny convmixer_768_32 convnext_atto cspresnet50 deit_tiny_patch16_224 dla34 dm_nfnet_f0
    edgenext_xx_small efficientnet_lite0 efficientvit_b0 fastvit_t8 ghostnet_050 hrnet_w18_small levit_128s mixer_s32_224
    mobilenetv3_small_050 mobilevit_xxs nfnet_l0 pit_ti_224 poolformer_s12 pvt_v2_b0 regnety_002 repvgg_a0 res2next50
    resnest14d resnetv2_50 skresnet18 swin_tiny_patch4_window7_224 tiny_vit_5m_224 visformer_tiny vit_tiny_patch16_224 xcit_nano_12_p8_224
""".split()


# -- the tools ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and a way to make it again from the original in float64, if values were computed."""

    model: nn.Module
    again: Callable[[nn.Module], nn.Module] | None = None
    computed: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)  # what is kept of these values


def by_structprune(model: nn.Module, example: Tensor) -> Pruned:
    """Where RMS norms were folded, the plan says what is left of their weights."""
    import structprune as sp

    plan = sp.plan(sp.analyze(model, example), ratio=RATIO)
    small = sp.apply(plan, model)
    folded = {name: plan.kept[name] for name in plan.scales}
    return Pruned(small, (lambda original: sp.apply(plan, original)) if folded else None, folded)


def by_torch_pruning(model: nn.Module, example: Tensor) -> Pruned:
    """In place, at once."""
    pruner = magnitude_pruner(model, example, output_layers(model, example), pruning_ratio=RATIO)
    pruner.step()
    set_sizes(model, pruner)
    return Pruned(model)


def by_torch_ao(model: nn.Module, example: Tensor) -> Pruned:
    """Of the layers that its patterns find; models without any stay as they are."""
    saliency = importlib.import_module("torch.ao.pruning._experimental.pruner.saliency_pruner")
    pruner = saliency.SaliencyPruner({"sparsity_level": RATIO})
    chosen = _starts(model, pruner.patterns)
    if not chosen:
        return Pruned(model)
    pruner.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in chosen])
    pruner.enable_mask_update = True
    pruner.step()
    return Pruned(pruner.prune())


def _starts(model: nn.Module, patterns: Mapping[Any, Any]) -> list[str]:
    """The layers that begin one of its patterns, those that end in the output left out."""
    match = importlib.import_module("torch.ao.pruning._experimental.pruner.match_utils").apply_match
    traced = torch.fx.symbolic_trace(model)
    modules, inner = dict(traced.named_modules()), [p for p in patterns if "output" not in p]
    return [
        node.target for node in traced.graph.nodes
        if node.op == "call_module" and any(match(modules, p, node, []) for p in inner)
    ]  # fmt: skip


TOOLS: dict[str, Callable[[nn.Module, Tensor], Pruned]] = {
    "structprune": by_structprune,
    "Torch-Pruning": by_torch_pruning,
    "torch.ao": by_torch_ao,
}


# -- one model, one tool -----------------------------------------------------------------------------------


def measure(case: zoo.Case, tool: str, seconds: float, largest: float) -> Iterator[Row]:
    """Prunes, reads off what was removed, and compares."""
    torch.manual_seed(0)
    yield {"stage": "build"}
    model = case.build()
    before = sum(p.numel() for p in model.parameters())
    yield {"parameters": before}
    if before > largest * 1e6:
        return
    ciphers = marked(model)
    dtype = next(model.parameters()).dtype
    example, sample, other = (case.inputs(n).to(dtype) for n in (1, 2, 2))
    yield {"stage": "prune"}
    spent: Row = {}
    victim = copy.deepcopy(model)
    with limit(seconds), stopwatch(spent, "seconds"):
        pruned = TOOLS[tool](victim, example)
    yield {**spent, "left": sum(p.numel() for p in pruned.model.parameters()) / before, "stage": "read"}
    yield from compared(model, pruned, *left(model, pruned.model, ciphers), sample, other)


def compared(
    model: nn.Module, pruned: Pruned, positions: dict[str, Tensor], changed: list[str], sample: Tensor, other: Tensor
) -> Iterator[Row]:
    """The errors of the pruned model, and how far its masked original responds to other inputs."""
    for name in set(changed) & set(pruned.computed):
        shape = model.get_parameter(name).shape
        positions[name] = torch.arange(shape.numel()).view(shape)[_grid(pruned.computed[name], shape)].flatten()
    unread = [name for name in changed if name not in positions]
    if unread:
        yield {"changed": unread[:5]}
        return
    original = to_double(copy.deepcopy(model))
    small = to_double(pruned.again(original) if pruned.again else pruned.model)
    masked = masked_original(original, positions)
    without_dropout(masked)
    sample, other = double_inputs(sample), double_inputs(other)
    calibrate(masked, lambda: run(masked, sample, False))
    share_statistics(masked, small, positions)
    yield {"response": error(run(masked, sample, False), run(masked, other, False))}
    for mode in ("eval", "train"):
        yield {"stage": f"compare {mode}"}
        yield {f"{mode}_{key}": value for key, value in errors(small, masked, sample, mode == "train").items()}


def _grid(dims: Mapping[int, tuple[int, ...]], shape: torch.Size) -> Any:
    """An index of the kept slices of each dimension."""
    return torch.meshgrid([torch.tensor(dims.get(d, range(n))) for d, n in enumerate(shape)], indexing="ij")


def errors(small: nn.Module, masked: nn.Module, sample: Tensor, training: bool) -> Row:
    """Against the masked original, and against one whose norms run over what is left; what the pruned model raises."""
    rows: Row = {}
    ways: tuple[tuple[str, AbstractContextManager[Any]], ...] = (("error", nullcontext()), ("norms", OverKept()))
    state, own = copy.deepcopy(masked.state_dict()), copy.deepcopy(small.state_dict())
    for key, way in ways:
        masked.load_state_dict(state)
        small.load_state_dict(own)  # train mode moves statistics
        with way:
            expected = run(masked, sample, training)
        try:
            rows[key] = error(run(small, sample, training), expected)
        except Exception as failure:  # whatever it raises is a result
            return {"broken": portable(f"{type(failure).__name__}: {failure}")[:200]}
        if rows[key] <= TOLERANCE:
            break
    return rows


def outcome(row: Row) -> str:
    """In a word, what came of it."""
    if "error" in row:
        late = "timeout" in row["error"] or OutOfTimeError.__name__ in row["error"]
        return ("timeout" if late else "raises") if row.get("failed_in") in ("prune", "start") else "not judged"
    if "left" not in row:
        return "too large"
    if "eval_broken" in row or "train_broken" in row:
        return "broken"
    if row["left"] > 0.999:
        return "untouched"
    if "changed" in row:
        return "changed"
    if row["response"] < 1e-6:
        return "not judged"
    worst = [
        max(row[f"{mode}_{key}"] for mode in ("eval", "train") if f"{mode}_{key}" in row)
        for key in KEYS
        if _has(row, key)
    ]
    return (
        "equal"
        if worst[0] <= TOLERANCE
        else ("equal but for norms" if min(worst[1:], default=1.0) <= TOLERANCE else "differs")
    )


KEYS = ("error", "norms")


def _has(row: Row, key: str) -> bool:
    return any(f"{mode}_{key}" in row for mode in ("eval", "train"))


# -- the table ---------------------------------------------------------------------------------------------

OUTCOMES = (
    "equal",
    "equal but for norms",
    "differs",
    "broken",
    "changed",
    "untouched",
    "raises",
    "timeout",
    "not judged",
)


def cases() -> list[zoo.Case]:
    """Classifiers of torchvision, and some of timm."""
    return [case for case in zoo.classifiers(TIMM) if not matches(case.name, NOT_CLASSIFIERS)]


def report(rows: Mapping[str, Row]) -> None:
    """Writes coverage.md."""
    text = (__doc__ or "").split("\n\n")
    measured = [r for r in rows.values() if any(r[t]["outcome"] != "too large" for t in TOOLS)]
    skipped = sorted(r["model"] for r in rows.values() if r not in measured)
    parts = ["\n\n".join(text[2:]) + "\n", table(SUMMARY, summary(measured))]
    if skipped:
        parts.append(f"Not measured, since they are large: {', '.join(skipped)}.\n")
    header = ("model", *(h for tool in TOOLS for h in (tool, ">left", ">s")))
    for group in zoo.TITLES.values():
        mine = sorted((r for r in measured if r["set"] == group), key=lambda r: r["model"])
        parts += [f"## {group}\n", table(header, map(line, mine)), *notes(mine)] if mine else []
    write_markdown(NAME, "Coverage of three tools", parts)


SUMMARY = ("models", "tool", *(f">{o}" for o in OUTCOMES), ">parameters left, median", ">seconds, median")


def summary(rows: list[Row]) -> Iterator[list[Any]]:
    """One line for each set and tool; medians are over the models that the tool pruned."""
    for group in zoo.TITLES.values():
        mine = [r for r in rows if r["set"] == group]
        for tool in TOOLS if mine else ():
            found = [r[tool] for r in mine]
            counts = [sum(f["outcome"] == o for f in found) or None for o in OUTCOMES]
            cut = [f for f in found if f.get("left", 1.0) < 0.999]
            middle = [statistics.median(f[key] for f in cut) if cut else None for key in ("left", "seconds")]
            share = None if middle[0] is None else f"{middle[0]:.0%}"
            yield [f"{len(mine)} {group}", tool, *counts, share, middle[1]]


def line(row: Row) -> list[Any]:
    """A row of the table."""
    cells: list[Any] = [row["model"]]
    for tool in TOOLS:
        found = row[tool]
        share = f"{found['left']:.0%}" if "left" in found else None
        cells += [found["outcome"], share, found.get("seconds")]
    return cells


def notes(rows: list[Row]) -> Iterator[str]:
    """What was raised, and how far off the results are that differ."""
    lines = []
    for row in rows:
        for tool in TOOLS:
            found = row[tool]
            said = found.get("error") or ", ".join(_amiss(found))
            if said:
                lines.append(f"- {row['model']}, {tool}: {said[:160]}")
    if lines:
        yield "\n".join(lines) + "\n"


def _amiss(found: Row) -> Iterator[str]:
    """What is wrong in either mode, if the result differs or does not run."""
    for mode in ("eval", "train") if found["outcome"] in ("differs", "broken") else ():
        if f"{mode}_broken" in found:
            yield f"in {mode} mode {found[f'{mode}_broken']}"
        elif found[f"{mode}_error"] > TOLERANCE:
            yield f"in {mode} mode off by {found[f'{mode}_error']:.0e}"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    taken = parser(__doc__)
    taken.add_argument("--timeout", type=float, default=60.0, help="seconds that a tool may take")
    taken.add_argument("--largest", type=float, default=100.0, help="million parameters; larger models are left out")
    options = taken.parse_args(arguments)
    torch.set_num_threads(1)
    for tool in ("torch_pruning", "torchvision", "timm", "structprune"):
        importlib.import_module(tool)  # once, and not in every process
    for case in cases():
        if not matches(case.name, options.only) or (case.key in load_rows(NAME) and not options.redo):
            continue
        row: Row = {"key": case.key, "model": case.name, "set": zoo.TITLES[case.group]}
        for tool in TOOLS:
            found = isolated(measure, case, tool, options.timeout, options.largest, timeout=6 * options.timeout)
            found.pop("traceback", None)
            row[tool] = found | {"outcome": outcome(found)}
        report(add_row(NAME, row))
        print("  ".join(str(cell)[:40] for cell in line(row)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
