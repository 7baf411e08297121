"""Are targets met, how closely, and how long does it take to plan?

    python -m benchmarks.budgets [--only 'swin*'] [--redo]

Five torchvision models at their usual image size, every target at 0.7, 0.5 and 0.3, in both scopes and by both
allocations. What is left is counted on the pruned model itself: parameters by adding them up, MACs by
`torch.utils.flop_counter`, with attention taken apart so that it is seen. `used` is what was counted over the
target: at most 1, and above 0.98 where it is met closely. `same bytes`: planned again from a second analysis, the
plan came out byte-identical. Weights are those of a fresh model after `torch.manual_seed(0)`.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .harness import Row, add_row, load_rows, matches, parser, table, write_markdown

NAME = "budgets"
MODELS = ("resnet50", "densenet121", "mobilenet_v3_large", "vit_b_16", "swin_t")
FRACTIONS = (0.7, 0.5, 0.3)
WAYS = (("local", "threshold"), ("global", "threshold"), ("global", "knapsack"))
HEADER = ("model", "target", "scope", "allocation", "MACs used", "parameters used", "CPU seconds to plan", "same bytes")


def count(model: nn.Module, images: Tensor) -> dict[str, int]:
    """MACs and parameters of a model as it stands."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return {"macs": counter.get_total_flops() // 2, "params": sum(p.numel() for p in model.parameters())}


def wanted(name: str) -> dict[str, dict[str, Any]]:
    """What is asked of a model, by the key of its row."""
    ways = itertools.product(FRACTIONS, (("macs",), ("params",), ("macs", "params")), WAYS)
    return {
        f"{name} {' and '.join(names)} {fraction} {scope} {allocation}": {
            "target": dict.fromkeys(names, fraction), "scope": scope, "allocation": allocation
        }
        for fraction, names, (scope, allocation) in ways
    }  # fmt: skip


def measure(name: str, asked: Mapping[str, dict[str, Any]]) -> Iterator[Row]:
    """One row for each target and way of meeting it."""
    import structprune as sp

    torch.manual_seed(0)
    model, images = getattr(torchvision.models, name)().eval(), torch.randn(1, 3, 224, 224)
    graph, again = sp.analyze(model, images), sp.analyze(model, images)
    whole = count(model, images)
    for key, settings in asked.items():
        start = time.process_time()
        plan = sp.plan(graph, **settings)
        seconds = time.process_time() - start
        left = count(sp.apply(plan, model), images)
        target = settings["target"]
        yield {
            "key": key, "model": name, "scope": settings["scope"], "allocation": settings["allocation"],
            "target": f"{' and '.join(target)} {min(target.values())}", "seconds": seconds,
            "used": {cost: left[cost] / whole[cost] / keep for cost, keep in target.items()},
            "same_bytes": sp.plan(again, **settings).to_json() == plan.to_json(),
        }  # fmt: skip


def line(row: Row) -> list[Any]:
    used = [f"{row['used'][key]:.4f}" if key in row["used"] else "" for key in ("macs", "params")]
    same = "yes" if row["same_bytes"] else "no"
    return [row["model"], row["target"], row["scope"], row["allocation"], *used, f"{row['seconds']:.3f}", same]


def report(rows: Mapping[str, Row]) -> None:
    """Writes budgets.md."""
    assert __doc__ is not None
    write_markdown(
        NAME,
        "Targets",
        [summary(list(rows.values())) + "\n", __doc__.split("\n\n")[2] + "\n", table(HEADER, map(line, rows.values()))],
    )


def summary(rows: list[Row]) -> str:
    """How many plans met their targets, and how closely."""
    below = sum(max(row["used"].values()) <= 1 for row in rows)
    close = {
        way: [min(row["used"].values()) > 0.98 for row in rows if row["allocation"] == way]
        for way in ("threshold", "knapsack")
    }
    slowest = max(row["seconds"] for row in rows)
    said = ", ".join(f"{sum(found)} of {len(found)} by {way}" for way, found in close.items())
    return (
        f"{below} of {len(rows)} plans are at or below every target; every target is used up to more than 98 % in "
        f"{said}. Planning took {slowest:.2f} s of one thread at most."
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = parser(__doc__).parse_args(arguments)
    for name in filter(lambda name: matches(name, options.only), MODELS):
        known = {} if options.redo else load_rows(NAME)
        asked = {key: settings for key, settings in wanted(name).items() if key not in known}
        for row in measure(name, asked) if asked else ():
            report(add_row(NAME, row))
            print("  ".join(map(str, line(row))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
