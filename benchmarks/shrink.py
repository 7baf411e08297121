"""Masked convolutional networks of torchvision, made smaller: exactly, and how much.

    python -m benchmarks.shrink [--only 'resnet*'] [--redo] [--timeout 300]

Each model is built with random weights and statistics. Half of the filters of every convolution, those with
the smallest L1 norm, are masked by `torch.nn.utils.prune.ln_structured`, and `structprune.shrink` removes what is
dead. The result is compared with the masked model in float64 on fresh images, at another batch size and at
another image size, saved, and loaded again (the largest model is compared in float32, and not saved). Rows that are
in `results/shrink.json` already are skipped.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import structprune as sp

from . import zoo
from .harness import (
    Row,
    add_row,
    calibrate,
    call,
    isolated,
    load_rows,
    matches,
    parser,
    randomise,
    stopwatch,
    table,
    write_markdown,
)

AMOUNT = 0.5
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
DOUBLE_UP_TO = (
    3e8  # parameters: larger models are compared in float32, since five copies in float64 take too much memory
)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def mask_filters(model: nn.Module, permanent: bool) -> int:
    """Masks half of the filters of every convolution; how many they are."""
    count = 0
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            prune.ln_structured(module, "weight", amount=AMOUNT, n=1, dim=0)
            count += int((module.weight_mask.flatten(1).sum(1) == 0).sum())
            if permanent:
                prune.remove(module, "weight")
    return count


def larger(case: zoo.Case, batch: int) -> Tensor:
    """Images with 32 pixels more along each side."""
    size: Any = case.inputs.keywords["size"]  # type: ignore[attr-defined]
    grown = size + 32 if isinstance(size, int) else (size[0], *(n + 32 for n in size[1:]))
    return zoo.image(batch, grown)


def outputs(value: Any) -> list[Tensor]:
    """The tensors that a model returned."""
    if isinstance(value, Tensor):
        return [value]
    return [t for item in (value.values() if isinstance(value, Mapping) else value) for t in outputs(item)]


def error(small: nn.Module, masked: nn.Module, images: Tensor) -> tuple[float, float]:
    """max|a - b| / max|b|, and how far apart the outputs of two images are, by the same measure."""
    images = images.to(next(masked.parameters()).dtype)
    with torch.no_grad():
        found, expected = outputs(call(small, images)), outputs(call(masked, images))
    scales = [float(b.abs().max()) for b in expected]
    errors = [float((a - b).abs().max()) / s for a, b, s in zip(found, expected, scales, strict=True)]
    spreads = [float((b[0] - b[-1]).abs().max()) / s for b, s in zip(expected, scales, strict=True)]
    return max(errors), min(spreads)


def measure(case: zoo.Case) -> Iterator[Row]:
    """One model. One that is too large for five copies in float64 is neither verified nor saved, and its masks are
    made permanent."""
    torch.manual_seed(0)
    yield {"stage": "build"}
    model = randomise(case.build())
    exact = sum(p.numel() for p in model.parameters()) < DOUBLE_UP_TO
    sample = case.inputs(2)
    calibrate(model, lambda: call(model, sample))
    yield {"masked_filters": mask_filters(model, permanent=not exact), "stage": "shrink"}
    seconds: Row = {"dtype": "float64" if exact else "float32"}
    with stopwatch(seconds, "seconds"):
        result = sp.shrink(model, case.inputs(case.examples), details=True, verify=exact)
    params, macs = result.report.params, result.report.macs
    yield {"params": params[0], "params_left": params[1], "macs": macs[0], "macs_left": macs[1], **seconds}
    yield {"kept": len(result.report.fixed), "kept_filters": _filters(result.report.fixed), "stage": "save"}
    small = result.model
    if exact:
        yield {"loads": _loads(result, case), "stage": "compare"}
        small = sp.shrink(model.double(), sample.double(), verify=False)  # what is folded is float64 as well
    rows = [error(small, model, images) for images in (case.inputs(3), larger(case, 2))]
    yield {"max_error": max(e for e, _ in rows), "response": min(r for _, r in rows)}


def _loads(result: sp.Result, case: zoo.Case) -> bool:
    """Whether what is saved comes back bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        sp.save(result, Path(folder) / "out")
        loaded = sp.load(Path(folder) / "out", case.build).state_dict()
    saved = result.model.state_dict()
    return saved.keys() == loaded.keys() and all(torch.equal(loaded[name], value) for name, value in saved.items())


def _filters(kept: Mapping[str, str]) -> int:
    """`3 of 64 filters: why; 2 of 64 filters: why` is five."""
    return sum(int(part.partition(" of ")[0]) for text in kept.values() for part in text.split("; ") if " of " in part)


def status(row: Row) -> str:
    """In a word, what came of it."""
    if "failed_in" in row:
        return "timeout" if "timeout" in row["error"] else "crashed"
    if (
        not row["max_error"] <= TOLERANCE[row["dtype"]]
        or not row.get("loads", True)
        or row["params_left"] > row["params"]
    ):
        return "wrong"
    kind = "ok" if row["dtype"] == "float64" else "ok (float32)"
    return kind if row["response"] > 1e-6 else "vacuous"


HEADER = ("model", "status", ">parameters", ">left", ">", ">MACs left", ">error", ">dead filters", ">kept", ">seconds")


def report(rows: Mapping[str, Row]) -> None:
    """Writes shrink.md."""
    count = sum(r["status"].startswith("ok") for r in rows.values())
    about = __doc__.split("\n\n")[2].strip() if __doc__ else ""
    columns = (
        "*dead filters*: those that the masks emptied; *kept*: those of them that stay, because their constant is read "
        "under zero padding, meets something that varies in a residual sum, or their place in a grouped convolution is "
        "not dead in every group.\n"
    )
    lines = [_line(row) for row in sorted(rows.values(), key=lambda r: r["model"])]
    write_markdown(
        "shrink",
        "Shrinking masked networks",
        [f"{about}\n", f"{len(rows)} models: {count} ok.\n", columns, table(HEADER, lines)],
    )


def _line(row: Row) -> list[Any]:
    if "params_left" not in row:
        return [row["model"], row["status"], *[None] * 7, row.get("error", "")[:200]]
    left, macs = row["params_left"] / row["params"], row["macs_left"] / row["macs"]
    counts = f"{row['params']:,}", f"{row['params_left']:,}", f"{left:.0%}", f"{macs:.0%}"
    return [
        row["model"],
        row["status"],
        *counts,
        row.get("max_error"),
        row["masked_filters"],
        row.get("kept_filters"),
        row["seconds"],
    ]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    taken = parser(__doc__)
    taken.add_argument("--timeout", type=float, default=300.0, help="seconds for one model")
    options = taken.parse_args(arguments)
    for case in zoo.cases("torchvision-cnn"):
        if not matches(case.name, options.only) or (case.key in load_rows("shrink") and not options.redo):
            continue
        row = isolated(measure, case, timeout=options.timeout)
        row.update(key=case.key, model=case.name)
        row["status"] = status(row)
        report(add_row("shrink", row))
        print(
            "  ".join(
                str(row.get(k))[:200]
                for k in ("model", "status", "params", "params_left", "max_error", "seconds", "error")
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
