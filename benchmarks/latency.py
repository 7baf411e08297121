"""Does it get faster? Dense, masked and pruned networks at half of the MACs, timed beside one another.

    python -m benchmarks.latency [--only 'resnet*'] [--redo] [--rounds 5] [--seconds 0.2] [--compiled some]

Each network is cut by Torch-Pruning 1.6.1 (a MagnitudePruner in fifty steps, stopped at the first that leaves at most
half of the multiply-accumulates), and to as many of them as it leaves, half where it fails, by structprune
(`target={"macs": ...}`, plainly and with `round_to="auto"`); and to half of its latency as measured in an eager call with
one image (`target={"latency": 0.5}`). Masked is the plain plan written as masks of `torch.nn.utils.prune`. Everything ranks by the L1 norm, within each layer or group. MACs
are counted by structprune on every one of these models, attention included. All sides are timed by
`torch.utils.benchmark` in one process and take turns; a speed-up is the median over the rounds of the dense time divided
by that of the side. *Realised* is the speed-up divided by the one that the MACs promise. Every side is timed eager, and
all but the masked one compiled by `torch.compile`, anew for each batch size; on CUDA in float32, float16 and bfloat16.
On the CPU, where one model takes up to two minutes to compile, `--compiled some` leaves out batch 1, the latency target,
densenet121 and swin_t.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import structprune as sp
from structprune import cost

from .harness import Row, add_row, limit, load_rows, matches, parser, portable, randomise, table, write_markdown
from .rivals import magnitude_pruner, output_layers, set_sizes

NAME = "latency"
MACS = 0.5
STEPS = 50  # of Torch-Pruning
MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
)
SIDES = ("masked", "structprune", "structprune, rounded", "structprune, latency", "Torch-Pruning")
LONG_TO_COMPILE = ("densenet121", "swin_t")


# -- the sides ---------------------------------------------------------------------------------------------


def build(name: str, pixels: int) -> nn.Module:
    """A network of torchvision with random weights, for square images of so many pixels."""
    models = importlib.import_module("torchvision").models
    options = {"image_size": pixels} if name.startswith("vit") else {}
    return randomise(models.get_model(name, weights=None, **options))


def macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of one call."""
    return cost.macs(sp.analyze(model, images))


def torch_pruning(model: nn.Module, images: Tensor) -> nn.Module:
    """Cut in steps, until half of the MACs are left."""
    small, most = copy.deepcopy(model), MACS * macs(model, images)
    pruner = magnitude_pruner(small, images, output_layers(small, images), iterative_steps=STEPS, pruning_ratio=1.0)
    for _ in range(STEPS):
        pruner.step()
        set_sizes(small, pruner)
        if macs(small, images) <= most:
            return small
    raise RuntimeError(f"more than {MACS:.0%} of the MACs are left after all steps")


def sides(model: nn.Module, images: Tensor, share: float) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Each side of ours, and how it is made with this share of the MACs."""
    graph = sp.analyze(model, images)

    def cut(**settings: Any) -> nn.Module:
        return sp.apply(sp.plan(graph, **settings), model)

    yield "masked", lambda: sp.mask(sp.plan(graph, target={"macs": share}), model)
    yield "structprune", lambda: cut(target={"macs": share})
    yield "structprune, rounded", lambda: cut(target={"macs": share}, round_to="auto")
    yield "structprune, latency", lambda: cut(target={"latency": MACS})


def made(name: str, device: str, pixels: int, seconds: float) -> tuple[dict[str, nn.Module], dict[str, Row]]:
    """The models of all sides in float32, and what is known of each; a side that raises, or is late, has its error."""
    torch.manual_seed(0)
    model, images = build(name, pixels).to(device), torch.randn(1, 3, pixels, pixels, device=device)
    models: dict[str, nn.Module] = {}
    facts: dict[str, Row] = {}

    def take(side: str, make: Callable[[], nn.Module]) -> None:
        try:
            with limit(seconds):
                models[side] = make().eval()
            counted = model if side == "masked" else models[side]
            facts[side] = {
                "macs": macs(counted, images),
                "parameters": sum(p.numel() for p in models[side].parameters()),
            }
        except Exception as error:  # whatever a side raises is a result
            models.pop(side, None)
            facts[side] = _said(error)

    take("dense", lambda: model)
    take("Torch-Pruning", lambda: torch_pruning(model, images))
    share = facts["Torch-Pruning"]["macs"] / facts["dense"]["macs"] if "Torch-Pruning" in models else MACS
    for side, make in sides(model, images, share):
        take(side, make)
    return models, facts


def _said(error: Exception) -> Row:
    return {"error": " ".join(portable(f"{type(error).__name__}: {error}").split())[:200]}


# -- time --------------------------------------------------------------------------------------------------


def times(models: Mapping[str, nn.Module], images: Tensor, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds for one call, round by round: the sides take turns, each for about `seconds`."""
    timers = {side: _timer(model, images) for side, model in models.items()}
    warm = {side: timer.timeit(1).mean for side, timer in timers.items()}
    found: dict[str, list[float]] = {side: [] for side in models}
    for _ in range(rounds):
        for side, timer in timers.items():
            found[side].append(timer.timeit(max(int(seconds / warm[side]), 1)).mean)
    return found


def _timer(model: nn.Module, images: Tensor) -> Timer:
    """Waits for the device where there is one; its own threads are those of the process."""
    names = {"model": model, "images": images, "torch": torch}
    return Timer("with torch.inference_mode(): model(images)", globals=names, num_threads=torch.get_num_threads())


@dataclass(frozen=True)
class Way:
    """How networks are run."""

    device: str
    dtype: torch.dtype
    compiled: bool

    def __str__(self) -> str:
        return f"{self.device}/{str(self.dtype).removeprefix('torch.')}/{'compiled' if self.compiled else 'eager'}"


def ways(name: str, device: str, amount: str) -> list[Way]:
    """Each dtype, and whether it is compiled."""
    dtypes = [torch.float32, torch.float16, torch.bfloat16] if device == "cuda" else [torch.float32]
    eager = amount == "none" or (amount == "some" and device == "cpu" and name in LONG_TO_COMPILE)
    return [Way(device, dtype, compiled) for dtype in dtypes for compiled in ([False] if eager else [False, True])]


def scope(way: Way, amount: str, large: int) -> tuple[set[str], tuple[int, ...]]:
    """The sides that are left out of a way to run, and the batch sizes."""
    if not way.compiled:
        return set(), (1, large)
    if way.device == "cpu" and amount == "some":
        return {"masked", "structprune, latency"}, (large,)
    return {"masked"}, (1, large)


def measure(name: str, wanted: list[Way], options: argparse.Namespace) -> Iterator[Row]:
    """One row for each way to run and batch size, if the dense network runs that way."""
    device = wanted[0].device
    pixels = options.pixels or (224 if device == "cuda" else 128)
    large = options.batch or (64 if device == "cuda" else 8)
    models, facts = made(name, device, pixels, options.timeout)
    for way in wanted:
        out, batches = scope(way, options.compiled, large)
        for batch in batches:
            images = torch.randn(batch, 3, pixels, pixels, device=device, dtype=way.dtype)
            runs, failed = running({side: m for side, m in models.items() if side not in out}, way, images)
            if "dense" not in runs:
                print(f"{way}, {name}: {failed['dense']['error']}", flush=True)
                continue
            found = results(times(runs, images, options.rounds, options.seconds), facts)
            described = {
                "key": f"{way}/{name}/{batch}",
                "way": str(way),
                "model": name,
                "batch": batch,
                "pixels": pixels,
            }
            yield described | {"sides": {side: fact | failed.get(side, {}) for side, fact in found.items()}}


def running(models: Mapping[str, nn.Module], way: Way, images: Tensor) -> tuple[dict[str, nn.Module], dict[str, Row]]:
    """The models that run in a way on these images, compiled for them if need be, and the errors of the others."""
    torch._dynamo.reset()
    found: dict[str, nn.Module] = {}
    failed: dict[str, Row] = {}
    for side, model in models.items():
        try:
            ready = _prepared(model, way)
            with torch.inference_mode():
                ready(images)
            found[side] = ready
        except Exception as error:  # whatever a side raises is a result
            failed[side] = _said(error)
    return found, failed


def _prepared(model: nn.Module, way: Way) -> nn.Module:
    """The model itself in another dtype: a masked one cannot be copied, and speed does not depend on the values."""
    model.to(way.dtype)
    if not way.compiled:
        return model
    torch._dynamo.config.recompile_limit = 64  # the sides share their code, and each is compiled for itself
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


def results(measured: Mapping[str, list[float]], facts: Mapping[str, Row]) -> dict[str, Row]:
    """Of each side: median seconds, how far apart the quarters are, the speed-up, and what the MACs promise."""
    dense = measured["dense"]
    rows = {side: dict(fact) for side, fact in facts.items()}
    for side, seconds in measured.items():
        low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        speedup = statistics.median(a / b for a, b in zip(dense, seconds, strict=True))
        promised = facts["dense"]["macs"] / facts[side]["macs"]
        median = statistics.median(seconds)
        rows[side] |= {"seconds": median, "spread": (high - low) / median, "speedup": speedup, "promised": promised}
    return rows


# -- the table ---------------------------------------------------------------------------------------------


def line(row: Row) -> list[Any]:
    """A row of the table: dense time and throughput, and the speed-up of each side, with the MACs left if they are not half."""
    found = row["sides"]
    seconds = found["dense"]["seconds"]
    cells = [_cell(found.get(side, {})) for side in SIDES]
    ours, rounded = (_realised(found.get(side, {})) for side in SIDES[1:3])
    return [row["model"], row["batch"], f"{1000 * seconds:.1f}", f"{row['batch'] / seconds:.0f}", *cells, ours, rounded]


def _cell(side: Row) -> str:
    if "speedup" not in side:
        return side.get("error", "").partition(":")[0]
    left = 1 / side["promised"]
    return f"{side['speedup']:.2f}" + ("" if abs(left - MACS) < 0.01 or left == 1 else f" ({left:.0%})")


def _realised(side: Row) -> str:
    return f"{side['speedup'] / side['promised']:.0%}" if "speedup" in side else ""


def report(rows: Mapping[str, Row]) -> None:
    """Writes latency.md."""
    about = __doc__.split("\n\n")[2].strip() if __doc__ else ""
    parts = [f"{about}\n", "Numbers in parentheses are the MACs left where they are not half.\n"]
    if not any(row["way"].startswith("cuda") for row in rows.values()):
        parts.append("Measured on the CPU alone: there was no CUDA device.\n")
    for way in sorted({row["way"] for row in rows.values()}):
        mine = sorted(
            (r for r in rows.values() if r["way"] == way), key=lambda r: (MODELS.index(r["model"]), r["batch"])
        )
        header = (
            "model",
            ">batch",
            ">dense ms",
            ">images/s",
            *(f">{s}" for s in SIDES),
            ">realised",
            ">realised, rounded",
        )
        title = f"## {way.replace('/', ', ')}, {mine[0]['pixels']} pixels\n"
        parts += [title, summary(mine), table(header, map(line, mine)), errors(mine)]
    write_markdown(NAME, "Speed of pruned networks", parts)


def summary(rows: list[Row]) -> str:
    """The medians of each side."""
    text = []
    for side in SIDES:
        found = [r["sides"][side] for r in rows if "speedup" in r["sides"].get(side, {})]
        if found:
            middle = statistics.median(f["speedup"] for f in found)
            realised = statistics.median(f["speedup"] / f["promised"] for f in found)
            text.append(f"{side} {middle:.2f}" + ("" if side == "masked" else f" ({realised:.0%} realised)"))
    spread = statistics.median(s["spread"] for r in rows for s in r["sides"].values() if "spread" in s)
    return f"Speed-up, median of {len(rows)} rows: {', '.join(text)}. Quartiles of the rounds are {spread:.0%} apart in the median.\n"


def errors(rows: list[Row]) -> str:
    """What the sides raised, once each."""
    found = {f"{r['model']}, {side}: {s['error']}" for r in rows for side, s in r["sides"].items() if "error" in s}
    return "".join(f"- {text}\n" for text in sorted(found))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    taken = parser(__doc__)
    taken.add_argument("--rounds", type=int, default=5, help="turns of each side")
    taken.add_argument("--seconds", type=float, default=0.2, help="of each turn, about")
    taken.add_argument("--timeout", type=float, default=60.0, help="seconds that a side may take to prune")
    taken.add_argument("--threads", type=int, default=1, help="of the CPU")
    taken.add_argument("--pixels", type=int, help="along each side of an image (default: 128; 224 on CUDA)")
    taken.add_argument("--batch", type=int, help="the large batch (default: 8; 64 on CUDA)")
    taken.add_argument(
        "--compiled", choices=("none", "some", "all"), default="some", help="what torch.compile is tried on"
    )
    options = taken.parse_args(arguments)
    torch.set_num_threads(options.threads)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if len(devices) == 1:
        print("no CUDA device: measuring on the CPU alone")
    for name in filter(lambda name: matches(name, options.only), MODELS):
        known = () if options.redo else {(row["way"], row["model"]) for row in load_rows(NAME).values()}
        for device in devices:
            wanted = [way for way in ways(name, device, options.compiled) if (str(way), name) not in known]
            for row in measure(name, wanted, options) if wanted else ():
                report(add_row(NAME, row))
                print("  ".join([row["way"], *map(str, line(row))]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
