"""How does the time of pruning grow with the depth and the width of a model, and with the images that it is shown?

    python -m benchmarks.growth [--only '*depth'] [--redo] [--runs 15] [--timeout 20] [--limit 1000]

*ResNet depth*: a residual network for small images, three stages of 16, 32 and 64 channels, 20 to 998 layers. *Transformer
depth*: torchvision's VisionTransformer, width 64, 2 to 96 blocks. *ResNet width*: the network of 20 layers, 16 to 256 channels in
the first stage; its parameters grow with the square of that. *Batch*: torchvision's VisionTransformer of 12 blocks, width 64,
given 1 to 256 images as an example. Ours is `analyze`, `plan` and `apply`; theirs is
Torch-Pruning's `MagnitudePruner` and its `step()`, on a fresh copy. Both remove half by the L1 norm, on one
thread, take turns in one process, and have a limit of twenty seconds for each run; medians without the first turn are
compared, of fifteen turns, or as many, two at least, as begin in twenty seconds. A side that was too slow once is not
asked for larger models. The slope is that of the logarithm of the time by that of the
size: 1 is linear. It is fitted over all points, and given as well from the last point but one to the last, where growth shows most.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .analysis_speed import SIDES, TURNS, take_turns, theirs_result
from .harness import RESULTS, Row, add_row, isolated, load_rows, matches, parser, randomise, table, write_markdown

NAME = "growth"
CLASSES = 21
NEAR_LINEAR = 1.2
OURS = ("analyze", "plan", "apply")


# -- models that grow --------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        same = inside == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def resnet(blocks: int, width: int = 16) -> nn.Module:
    """6 * blocks + 2 layers in three stages."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inside = width
    for stage in range(3):
        for block in range(blocks):
            layers.append(Block(inside, width * 2**stage, 2 if stage and not block else 1))
            inside = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, CLASSES))


def transformer(blocks: int) -> nn.Module:
    """Sixteen patches, four heads."""
    kind = importlib.import_module("torchvision").models.VisionTransformer
    model: nn.Module = kind(16, 4, blocks, 4, 64, 128, num_classes=CLASSES)
    return model


@dataclass(frozen=True)
class Series:
    """Models of growing size."""

    name: str
    unit: str
    build: Callable[[int], nn.Module]
    sizes: tuple[int, ...]  # what `build` takes
    size: Callable[[int], int] = int  # what the size is called
    batch: bool = False  # whether it is the number of images that grows


SERIES = (
    Series("ResNet depth", "layers", resnet, (3, 6, 12, 24, 48, 96, 166), lambda n: 6 * n + 2),
    Series("Transformer depth", "blocks", transformer, (2, 4, 8, 16, 32, 64, 96)),
    Series("ResNet width", "channels", lambda width: resnet(3, width), (16, 32, 64, 128, 256)),
    Series("Batch", "images", lambda _: transformer(12), (1, 4, 16, 64, 256), batch=True),
)


# -- time --------------------------------------------------------------------------------------------------


def measure(series: Series, step: int, sides: tuple[str, ...], runs: int, seconds: float) -> Iterator[Row]:
    """The size of the model, and the turns of the sides."""
    torch.manual_seed(0)
    model, example = randomise(series.build(step)), torch.randn(step if series.batch else 1, 3, 16, 16)
    yield {"parameters": sum(p.numel() for p in model.parameters())}
    yield from take_turns(model, example, sides, runs, seconds)


def sweep(series: Series, options: argparse.Namespace) -> None:
    """The points of a series that have no row yet, small ones first."""
    failed: set[str] = set()
    for step in series.sizes:
        size = series.size(step)
        key, rows = f"{series.name}/{size:05d}", load_rows(NAME)
        if size > options.limit:
            return
        if key not in rows or options.redo:
            sides = tuple(side for side in SIDES if side not in failed)
            row = isolated(measure, series, step, sides, options.runs, options.timeout, timeout=10 * options.timeout)
            rows = add_row(NAME, row | {"key": key, "series": series.name, "size": size})
            report(rows)
            print("  ".join([series.name, *map(str, line(rows[key]))]), flush=True)
        failed |= {side for side in SIDES if f"{side}_error" in rows[key] or f"{side}_s" not in rows[key]}


# -- slopes, table, plot -----------------------------------------------------------------------------------


def points(rows: Mapping[str, Row], series: Series, key: str) -> list[tuple[int, float]]:
    """Sizes and seconds."""
    return sorted((r["size"], r[key]) for r in rows.values() if r["series"] == series.name and key in r)


def slopes(found: list[tuple[int, float]]) -> tuple[float, float] | None:
    """Over all points, and between the last two."""
    if len(found) < 3:
        return None
    x, y = np.log(np.array(found, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def line(row: Row) -> list[Any]:
    """A row of the table."""
    ratio = row["theirs_s"] / row["ours_s"] if "ours_s" in row and "theirs_s" in row else None
    phases = [row.get(f"ours_{phase}_s") for phase in OURS]
    seconds = row.get("ours_s", row.get("ours_error"))
    return [row["size"], row.get("parameters"), seconds, *phases, row.get("theirs_s"), ratio, theirs_result(row)]


def verdict(rows: Mapping[str, Row], series: Series) -> str:
    """The slopes of all phases, and which of ours grow faster than nearly linearly."""
    text, steep = [], []
    names = {"ours_s": "structprune", **{f"ours_{p}_s": p for p in OURS}, "theirs_s": "Torch-Pruning"}
    for key, name in names.items():
        if slope := slopes(points(rows, series, key)):
            text.append(f"{name} {slope[0]:.2f} ({slope[1]:.2f} at the end)")
            steep += [name] if slope[1] > NEAR_LINEAR and name in OURS else []
    judged = f"Not near linear at the end: {', '.join(steep)}." if steep else "All of ours is near linear."
    return f"Slopes by {series.unit}: {', '.join(text)}. {judged}\n" if text else ""


def report(rows: Mapping[str, Row]) -> None:
    """Writes growth.md and growth.png."""
    header = (">size", ">parameters", ">ours s", *(f">{p}" for p in OURS), ">Torch-Pruning s", ">ratio", "its result")
    parts = ["\n\n".join((__doc__ or "").split("\n\n")[2:]).strip() + "\n"]
    for series in SERIES:
        mine = sorted((r for r in rows.values() if r["series"] == series.name), key=lambda r: r["size"])
        if mine:
            parts += [f"## {series.name}\n", verdict(rows, series), table(header, map(line, mine))]
    write_markdown(NAME, "Growth with depth, width and batch", [*parts, f"![growth]({NAME}.png)\n"])
    plot(rows)


def plot(rows: Mapping[str, Row]) -> None:
    """Seconds by size, both axes logarithmic, with a dotted line for linear growth."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    figure, panels = importlib.import_module("matplotlib.pyplot").subplots(1, len(SERIES), figsize=(14, 3.4))
    names = {"ours_s": "structprune", **{f"ours_{p}_s": p for p in OURS}, "theirs_s": "Torch-Pruning"}
    for panel, series in zip(panels, SERIES, strict=True):
        for key, name in names.items():
            if found := points(rows, series, key):
                thin = {"linewidth": 0.8, "linestyle": "--"} if name in OURS else {"linewidth": 2, "marker": "o"}
                panel.loglog(*zip(*found, strict=True), label=name, **thin)
        if found := points(rows, series, "ours_s"):
            ends = [found[0], (found[-1][0], found[0][1] * found[-1][0] / found[0][0])]
            panel.loglog(*zip(*ends, strict=True), ":k", linewidth=0.8, label="linear")
        panel.set(title=series.name, xlabel=series.unit)
    panels[0].set_ylabel("seconds")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{NAME}.png", dpi=110)
    importlib.import_module("matplotlib.pyplot").close(figure)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    taken = parser(__doc__)
    taken.add_argument("--runs", type=int, default=15, help="measured runs of each side")
    taken.add_argument("--timeout", type=float, default=TURNS, help="seconds for one run of one side")
    taken.add_argument("--limit", type=int, default=1000, help="the largest size")
    options = taken.parse_args(arguments)
    torch.set_num_threads(1)
    for tool in ("torch_pruning", "torchvision", "structprune"):
        importlib.import_module(tool)  # once, and not in every process
    for series in SERIES:
        if matches(series.name, options.only):
            sweep(series, options)


if __name__ == "__main__":
    main(sys.argv[1:])
