"""Which models can be pruned, and is every one of them equal to its masked original?

    python -m benchmarks.compat --set torchvision-cnn [--only 'resnet*'] [--redo] [--timeout 180]

Each model is built with random weights and statistics, pruned at ratio 0.5 in a process of its own, and
compared in float64 with the original in which everything that is not in `plan.kept` is zero. The comparison
shares no code with `structprune.verify`. Rows that are in `results/compat.json` already are skipped.
"""

from __future__ import annotations

import copy
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import zoo
from .harness import (
    Row,
    add_row,
    batch_norms,
    calibrate,
    call,
    isolated,
    load_rows,
    matches,
    parser,
    portable,
    randomise,
    stopwatch,
    table,
    write_markdown,
)

RATIO = 0.5
TOLERANCE = {"torchvision-cnn": 1e-10}  # 1e-9 elsewhere
DROPOUTS = (
    "dropout",
    "alpha_dropout",
    "feature_dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
)


# -- the masked original, by hand ------------------------------------------------------------------------


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and tensor attributes by every name they have."""
    found = {}
    for path, module in model.named_modules():
        for store in (module._parameters, module._buffers, vars(module)):
            for name, value in store.items():
                if isinstance(value, Tensor):
                    found[f"{path}.{name}" if path else name] = value
    return found


def masked_original(model: nn.Module, kept: Mapping[str, Mapping[int, tuple[int, ...]]]) -> nn.Module:
    """The original with zeros in everything that is not kept."""
    masked = copy.deepcopy(model)
    named = tensors_of(masked)
    with torch.no_grad():
        for name, dims in kept.items():
            for dim, indices in dims.items():
                gone = torch.ones(named[name].shape[dim], dtype=torch.bool)
                gone[list(indices)] = False
                named[name].index_fill_(dim, gone.nonzero().flatten(), 0)
    return masked


def calibrate_masked(model: nn.Module, kept: Any, forward: Callable[[nn.Module], Any]) -> None:
    """Gives the model the batch statistics of its masked self: with its own, the masked model's signals die."""
    norms = batch_norms(model)
    if norms:
        masked = masked_original(model, kept)
        without_dropout(masked)
        calibrate(masked, lambda: forward(masked))
        for path, norm in batch_norms(masked).items():
            norms[path].running_mean.copy_(norm.running_mean)
            norms[path].running_var.copy_(norm.running_var)


def to_double(model: nn.Module) -> nn.Module:
    """In float64, tensor attributes included."""
    model.double()
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(module)[name] = value.double()
    return model


class Float64(TorchFunctionMode):
    """Dropout does nothing, and what the code casts to float32 stays in float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in DROPOUTS or name == "dropout_":
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = {k: 0.0 if k == "dropout_p" else v for k, v in kwargs.items()}
        if name == "float":
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return function(*args, **kwargs)


def run(model: nn.Module, example: Any, training: bool) -> list[Tensor]:
    """All tensors of the model's output, with the same random numbers each time."""
    model.train(training)
    without_dropout(model)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), Float64():
            return list(flat(call(model, example)))
    finally:
        torch.set_default_dtype(default)


def without_dropout(model: nn.Module) -> None:
    """Switches dropout and stochastic depth off."""
    for module in model.modules():
        if "Drop" in type(module).__name__ or "StochasticDepth" in type(module).__name__:
            for name in ("p", "drop_prob"):
                if isinstance(vars(module).get(name), float):
                    vars(module)[name] = 0.0


def flat(value: Any) -> Iterator[Tensor]:
    """The tensors of a nested output."""
    if isinstance(value, Tensor):
        yield value.detach().double() if not value.is_complex() else torch.view_as_real(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from flat(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        yield from flat(vars(value))


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """max|a - b| / max|b|, the largest over all outputs; infinite if shapes or NaNs differ."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if b.numel():
            same = (a == b) | (a.isnan() & b.isnan())
            distance = float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf")).max())
            finite = b[b.isfinite()]
            scale = float(finite.abs().max()) if finite.numel() else 0.0
            worst = max(worst, distance / scale if scale else (float("inf") if distance else 0.0))
    return worst


def double_inputs(value: Any) -> Any:
    """Example inputs in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: double_inputs(v) for k, v in value.items()}
    return type(value)(double_inputs(v) for v in value) if isinstance(value, list | tuple) else value


# -- one model -------------------------------------------------------------------------------------------


def measure(case: zoo.Case) -> Iterator[Row]:
    """Prunes one model and compares; yields what is known after every stage."""
    import structprune as sp

    torch.manual_seed(0)
    yield {"stage": "build"}
    model = case.build()
    example = case.inputs(case.examples)
    randomise(model)
    yield {"stage": "analyze", "traced": False, "parameters": sum(p.numel() for p in model.parameters())}
    seconds: dict[str, float] = {}
    with stopwatch(seconds, "analyze_s"):
        graph = sp.analyze(model, example, **case.options)
    yield {
        "stage": "plan",
        "traced": True,
        "groups": len(graph.groups),
        "units": sum(map(len, graph.groups)),
        **seconds,
    }
    try:
        with stopwatch(seconds, "plan_s"):
            plan = sp.plan(graph, ratio=RATIO)
    except sp.NothingToPruneError:
        yield {"left": 1.0, **seconds, "stage": "explain"}
        yield {"fixed": reasons(graph)}
        return
    yield {"stage": "calibrate", **seconds, "notes": list(plan.notes)[:6]}
    sample = case.inputs(2)
    calibrate_masked(model, plan.kept, lambda m: call(m, sample))
    yield {"stage": "apply"}
    with stopwatch(seconds, "apply_s"):
        small = sp.apply(plan, model)
    yield {"stage": "compare", **seconds, "seconds": sum(seconds.values()), **sizes(model, small)}
    del small
    original = to_double(model)
    small = to_double(sp.apply(plan, original))  # again, so that what surgery computes is float64 as well
    yield from compare(original, small, plan.kept, sample, case.inputs(2))
    yield {"stage": "explain"}
    with stopwatch(seconds, "explain_s"):
        found = reasons(graph)
    yield {"fixed": found, "explain_s": seconds["explain_s"]}


def sizes(model: nn.Module, small: nn.Module) -> Row:
    """The fractions of parameters left: of all, and of those outside of embeddings."""
    inside = [
        {id(p) for m in one.modules() if isinstance(m, nn.Embedding) for p in m.parameters()} for one in (model, small)
    ]
    every = [sum(p.numel() for p in one.parameters()) for one in (model, small)]
    others = [
        sum(p.numel() for p in m.parameters() if id(p) not in e) for m, e in zip((model, small), inside, strict=True)
    ]
    return {"left": every[1] / every[0], "left_body": others[1] / max(others[0], 1)}


def compare(original: nn.Module, small: nn.Module, kept: Any, sample: Any, other: Any) -> Iterator[Row]:
    """The errors in eval and in train mode, and how far masking and other inputs move the outputs."""
    masked = masked_original(original, kept)
    example = double_inputs(sample)
    expected = run(masked, example, False)
    effect = error(expected, run(original, example, False))
    response = error(expected, run(masked, double_inputs(other), False))
    yield {"effect": effect, "response": response, "stage": "compare eval"}
    yield {"eval_error": error(run(small, example, False), expected), "stage": "compare train"}
    try:
        expected = run(masked, example, True)
    except Exception as failure:  # the original does not run in train mode: without targets, say
        yield {"train_error": None, "train_note": f"{type(failure).__name__}: {failure}"[:200]}
        return
    yield {"train_error": error(run(small, example, True), expected)}


def reasons(graph: Any, top: int = 4) -> list[list[Any]]:
    """What is fixed and why: the reasons without their places, by the number of parameter dimensions."""
    counts: dict[str, list[Any]] = {}
    for name, why in graph.fixed.items():
        text = re.sub(r"^\d+ of \d+ indices: ", "", portable(why))
        place = re.search(r" \(([^()]*)\)$", text)
        text = text[: place.start()] if place else text
        if text in ("it is a kernel size", "it is an output of the model, which callers rely on"):
            continue
        if text.startswith("it meets the model's input"):
            continue
        entry = counts.setdefault(text, [0, text, f"{name}: {place[1]}" if place else name])
        entry[0] += 1
    return sorted(counts.values(), key=lambda e: -e[0])[:top]


def status(row: Row) -> str:
    """In a word, what came of it."""
    measured = "train_error" in row  # only the explanation is missing then
    if "timeout" in row.get("error", "") and not measured:
        return "timeout"
    if "error" in row and not measured:
        return "crashed" if row["failed_in"] != "build" else "not built"
    if row["left"] > 0.999:
        return "not pruned"
    worst = max(row["eval_error"], row["train_error"] or 0.0)
    if not worst <= TOLERANCE.get(row["set"], 1e-9):
        return "wrong"
    return "ok" if min(row["effect"], row["response"]) > 1e-6 else "vacuous"


# -- the table -------------------------------------------------------------------------------------------


HEADER = (
    "model",
    "status",
    ">left",
    ">left w/o embeddings",
    ">error (eval)",
    ">error (train)",
    ">seconds",
    ">groups",
    "what is fixed",
)


def report(rows: Mapping[str, Row]) -> None:
    """Writes compat.md."""
    parts = [__doc__.split("\n\n")[2].strip() + "\n" if __doc__ else ""]
    for group in zoo.SETS:
        mine = [r for r in rows.values() if r["set"] == group]
        if mine:
            parts.append(f"## {group}\n\n{summary(mine)}\n")
            parts.append(table(HEADER, [line(r) for r in sorted(mine, key=lambda r: r["model"])]))
    write_markdown("compat", "Compatibility", parts)


def summary(rows: list[Row]) -> str:
    """How many are how, and which are not ok."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row["status"], []).append(row["model"])
    listed = [
        f"{len(names)} {kind}" + ("" if kind == "ok" else f" ({', '.join(sorted(names))})")
        for kind, names in sorted(kinds.items())
    ]
    return f"{len(rows)} models: " + "; ".join(listed) + "."


def line(row: Row) -> list[Any]:
    """A row of the table."""
    why = row.get("error") or "; ".join(f"{n} x {text}" for n, text, _ in row.get("fixed", [])[:3])
    keys = ("model", "status", "left", "left_body", "eval_error", "train_error", "seconds", "groups")
    return [*(row.get(k) for k in keys), why[:300]]


def sweep(group: str, chosen: Callable[[str], bool], redo: bool, timeout: float) -> None:
    """Runs the models of a set that have no row yet."""
    for case in zoo.cases(group):
        if not chosen(case.name) or (case.key in load_rows("compat") and not redo):
            continue
        row = isolated(measure, case, timeout=timeout)
        row.update(key=case.key, set=group, model=case.name)
        row["status"] = status(row)
        report(add_row("compat", row))
        print(
            "  ".join(
                str(row.get(k))[:160]
                for k in ("model", "status", "left", "eval_error", "train_error", "seconds", "error")
            ),
            flush=True,
        )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    taken = parser(__doc__)
    taken.add_argument("--set", choices=zoo.SETS, action="append", help="which sets (default: all)")
    taken.add_argument("--status", help="redo the rows with this status, e.g. wrong or crashed")
    taken.add_argument("--timeout", type=float, default=180.0, help="seconds for one model")
    options = taken.parse_args(arguments)
    for group in options.set or zoo.SETS:
        wanted = {k for k, r in load_rows("compat").items() if r["status"] in (options.status or "").split(",")}

        def chosen(name: str, group: str = group, wanted: set[str] = wanted) -> bool:
            if options.status and f"{group}/{name}" not in wanted:
                return False
            return matches(name, options.only)

        sweep(group, chosen, options.redo or bool(options.status), options.timeout)


if __name__ == "__main__":
    main(sys.argv[1:])
