"""How accurate are pruned networks at 2 to 8 times fewer MACs, beside Torch-Pruning's at equal information?

    python -m benchmarks.accuracy_curves [--seeds 3] [--only 'digits/resnet*'] [--data FOLDER] [--redo]

Five networks (ResNet-20 and ResNet-56, a VGG, a MobileNet of inverted residuals, a ViT) learn scikit-learn's digits
and ten shapes that are drawn here; CIFAR-10 or an ImageNet-like folder too if FOLDER holds them (nothing is
downloaded). Both libraries rank the channels of the whole network by the same numbers (the L1 or L2 norm of all
that goes with a channel, its Taylor expansion on the same 512 training images, the scales of its batch norms) and
remove as many as leave at most the given share of the MACs. The test images are classified by what is left, at once
and after the same two epochs of fine-tuning (four for the ViT). The last layer's classes stay. MACs are counted by
PyTorch's FlopCounterMode on the pruned models. Accuracies, in percent, are means over the seeds, with their standard
deviation.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from structprune import importance as imp

from .harness import RESULTS, Row, load_rows, percent, portable, save_rows, table, write_markdown
from .networks import NETWORKS, network
from .sides import Prune, loss, ours, take_gradients, theirs
from .tasks import Data, Split, accuracy, cifar10, digits, drawn, image_folder, macs, train

NAME = "accuracy_curves"
SPEEDUPS = (1.25, 1.5, 2, 4, 8)
TUNED = (2, 4, 8)  # where what is left is trained on
CALIBRATION = 512
EPOCHS, TUNING = 12, 2


def methods() -> dict[str, Prune]:
    """Every importance of both libraries that is compared."""
    import torch_pruning as tp

    their = tp.importance
    return {
        "L1": ours(lambda b: imp.L1(slices="all")),
        "L2": ours(lambda b: imp.L2(slices="all")),
        "Taylor": ours(lambda b: imp.Taylor(loss, b)),
        "BN scale": ours(lambda b: imp.BNScale()),
        "L1, standardised": ours(lambda b: imp.L1(slices="all", normalize="standardise")),
        "BN scale, not normalised": ours(lambda b: imp.BNScale(normalize="none")),
        "BN scale, mean, not normalised": ours(lambda b: imp.BNScale("mean", normalize="none")),
        "TP L1": theirs(lambda: their.GroupMagnitudeImportance(p=1)),
        "TP L2": theirs(lambda: their.GroupMagnitudeImportance(p=2)),
        "TP Taylor": theirs(lambda: their.GroupTaylorImportance(), take_gradients),
        "TP BN scale": theirs(lambda: their.BNScaleImportance()),
        "TP L1, standardised": theirs(lambda: their.GroupMagnitudeImportance(p=1, normalizer="gaussian")),
        "TP BN scale, not normalised": theirs(lambda: their.BNScaleImportance(normalizer=None)),
    }


def learn(name: str, model: nn.Module, data: Data, epochs: int, share: float = 1.0) -> nn.Module:
    """Training at a share of the full rate: SGD, or AdamW for the ViT, twice as long."""
    adam = name == "vit"
    return train(model, data, epochs * (2 if adam else 1), share * (3e-3 if adam else 0.1), adam)


# -- the comparison ------------------------------------------------------------------------------------------


def measure(name: str, split: Split, seed: int, compared: Mapping[str, Prune]) -> Iterator[Row]:
    """All methods on one trained network; a row for each."""
    data, test = split
    torch.manual_seed(seed)
    start = time.perf_counter()
    dense = learn(name, network(name, data.images, int(data.classes.max()) + 1), data, EPOCHS)
    yield {
        "method": "dense", "macs": macs(dense, data.images), "accuracy": accuracy(dense, test),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip
    for method, prune in compared.items():
        start = time.perf_counter()
        row: Row = {"method": method, "left": {}, "at once": {}, "tuned": {}}
        try:
            torch.manual_seed(seed)
            for part, speedup, value in curve(name, dense, prune, split, seed):
                row[part][f"{speedup:g}"] = value
        except Exception as error:  # whatever a side raises is a result
            row["error"] = portable(f"{type(error).__name__}: {error}")[:300]
        yield {**row, "seconds": time.perf_counter() - start}


def curve(name: str, dense: nn.Module, prune: Prune, split: Split, seed: int) -> Iterator[tuple[str, float, float]]:
    """What is left of the MACs at each speed-up, and how accurate that is."""
    data, test = split
    whole = macs(dense, data.images)
    levels = prune(dense, data.first(CALIBRATION), [1 / speedup for speedup in SPEEDUPS])
    for speedup, (_, small) in zip(SPEEDUPS, levels, strict=True):
        yield "left", speedup, macs(small, data.images) / whole
        yield "at once", speedup, accuracy(small, test)
        if speedup in TUNED:
            torch.manual_seed(seed)
            yield "tuned", speedup, accuracy(learn(name, small, data, TUNING, 0.5), test)


def data_sets(folder: str) -> dict[str, Callable[[int], Split]]:
    """The sets that there are, by name: what makes them for a seed."""
    found: dict[str, Callable[[int], Split]] = {"digits": lambda seed: digits(), "drawn": drawn}
    for name, read in (("cifar10", cifar10), ("folder", image_folder)):
        split = read(folder)
        if split:
            found[name] = lambda seed, split=split: split  # type: ignore[misc]
    return found


# -- the report ----------------------------------------------------------------------------------------------

EXPLAINED = """\
The first table compares the libraries pair by pair, over all networks, data sets and seeds: percentage points that
structprune is ahead (negative: behind) of Torch-Pruning (TP) with the same network and seed, their standard error, and in
how many cases it is ahead and behind. Of Torch-Pruning's ways to normalise (mean, max, gaussian, none), and the mean with
isomorphic ranking, which were tried on a ResNet-20 of another seed, gaussian was best for L1, none for the scales of batch
norms, and the default for the others: these are rows of their own, *standardised* and *not normalised*. structprune's
scales are summed over the norms of a channel by default; *mean* is their mean, as Torch-Pruning's. Sums that are not
normalised leave the MobileNet's last convolution one channel of 128, since only one norm reads it; `max_ratio=0.9` prevents
that. Torch-Pruning spares layers that would lose all their channels, and its scales say nothing of groups without a batch
norm, as a ViT's are.
"""
KINDS = ("L1", "L1, standardised", "L2", "Taylor", "BN scale", "BN scale, not normalised")
PAIRS = [
    *((kind, f"TP {kind}") for kind in KINDS),
    ("BN scale, mean, not normalised", "TP BN scale, not normalised"),
]
PLOTTED = [pair for pair in PAIRS if pair[0] in ("L1", "L2", "Taylor", "BN scale")]


def differences(rows: Mapping[str, Row], ours: str, theirs: str, part: str, speedup: str) -> list[float]:
    """How much more accurate the one is than the other, wherever both were measured."""
    found = []
    for key, row in rows.items():
        other = rows.get(key.replace(f"/{ours}/", f"/{theirs}/"), {})
        if row["method"] == ours and speedup in row[part] and speedup in other.get(part, {}):
            found.append(row[part][speedup] - other[part][speedup])
    return found


def verdict(values: list[float]) -> str:
    """Percentage points ahead, their standard error, and how often ahead and behind."""
    if len(values) < 2:
        return ""
    error = statistics.stdev(values) / len(values) ** 0.5
    ahead, behind = sum(v > 0 for v in values), sum(v < 0 for v in values)
    return f"{100 * statistics.mean(values):+.1f} ± {100 * error:.1f} ({ahead}:{behind})"


COLUMNS = [("at once", x) for x in SPEEDUPS if x <= 2] + [("tuned", x) for x in TUNED]
TITLES = [f">{x:g}x, {'at once' if part == 'at once' else 'fine-tuned'}" for part, x in COLUMNS]


def _values(rows: list[Row], part: str, speedup: float) -> list[float]:
    return [row[part][f"{speedup:g}"] for row in rows if f"{speedup:g}" in row[part]]


def line(method: str, rows: list[Row]) -> list[str]:
    """One row of the table of a network; errors stand in the last column."""
    cells = []
    for part, speedup in COLUMNS:
        values = _values(rows, part, speedup)
        cells.append(percent(values) if values else "")
    left = [_values(rows, "left", speedup) for speedup in SPEEDUPS]
    shares = " / ".join(f"{100 * statistics.mean(values):.0f}" for values in left if values)
    return [method, *cells, next((row["error"] for row in rows if "error" in row), shares)]


def section(name: str, rows: list[Row]) -> str:
    """The table of one network on one data set."""
    dense = [row for row in rows if row["method"] == "dense"]
    lines = [line(m, found) for m in methods() if (found := [row for row in rows if row["method"] == m])]
    base = percent([row["accuracy"] for row in dense])
    head = f"## {name}: {dense[0]['macs'] / 1e6:.2f} M MACs, {base} % correct, seeds: {len(dense)}\n\n"
    return head + table(("importance", *TITLES, ">MACs left, %"), lines)


def report(rows: dict[str, Row]) -> None:
    """The tables and the plot."""
    pairs = [
        [f"{ours} - {theirs}", *(verdict(differences(rows, ours, theirs, part, f"{x:g}")) for part, x in COLUMNS)]
        for ours, theirs in PAIRS
    ]
    by_task: dict[str, list[Row]] = {}
    for key, row in rows.items():
        by_task.setdefault("/".join(key.split("/")[:2]), []).append(row)
    tasks = [
        f"{data}/{name}"
        for data in ("digits", "drawn", "cifar10", "folder")
        for name in NETWORKS
        if f"{data}/{name}" in by_task
    ]
    sections = [section(task, by_task[task]) for task in tasks]
    about = "\n\n".join(__doc__.split("\n\n")[2:])
    picture = f"![accuracy against the speed-up]({NAME}.png)\n"
    write_markdown(
        NAME,
        "Accuracy from 2 to 8 times fewer MACs",
        [about, EXPLAINED, table(("pair", *TITLES), pairs), picture, *sections],
    )
    plot(by_task, tasks)


def plot(by_task: Mapping[str, list[Row]], tasks: list[str]) -> None:
    """A column for each network; for each data set a row at once and one fine-tuned. Torch-Pruning's lines are dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = list(dict.fromkeys(task.split("/")[0] for task in tasks))
    size = (2.6 * len(NETWORKS) + 1, 5 * len(sets))
    figure, panels = pyplot.subplots(2 * len(sets), len(NETWORKS), figsize=size, sharey="row", squeeze=False)
    for i, data in enumerate(sets):
        for k, name in enumerate(NETWORKS):
            rows = by_task.get(f"{data}/{name}", [])
            draw(panels[2 * i, k], rows, "at once", SPEEDUPS)
            draw(panels[2 * i + 1, k], rows, "tuned", TUNED)
            panels[2 * i, k].set_title(f"{name}, {data}")
        panels[2 * i, 0].set_ylabel("correct at once, %")
        panels[2 * i + 1, 0].set_ylabel("correct after fine-tuning, %")
    for panel in panels[-1]:
        panel.set_xlabel("times fewer MACs")
    panels[0, -1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(RESULTS / f"{NAME}.png", dpi=90)


def draw(panel: Any, rows: list[Row], part: str, speedups: Sequence[float]) -> None:
    """One panel: the means over the seeds, a colour for each pair."""
    for i, pair in enumerate(PLOTTED):
        for method, style in zip(pair, ("-", "--"), strict=True):
            own = [row for row in rows if row["method"] == method]
            means = {x: 100 * statistics.mean(values) for x in speedups if (values := _values(own, part, x))}
            panel.plot(list(means), list(means.values()), style, marker=".", color=f"C{i}", label=method)
    panel.set_xscale("log", base=2)
    panel.set_xticks(speedups, [f"{x:g}" for x in speedups], fontsize=7)
    panel.grid(alpha=0.3)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="*", help="pattern of data sets and networks, `drawn/vgg`")
    parser.add_argument("--data", default="data", help="a folder with CIFAR-10, or with train/ and val/")
    parser.add_argument("--redo", action="store_true", help="measure again what has rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sets = data_sets(options.data)
    for seed in range(options.seeds):
        for task in fnmatch.filter((f"{data}/{name}" for data in sets for name in NETWORKS), options.only):
            known = {} if options.redo else load_rows(NAME)
            missing = {m: prune for m, prune in methods().items() if f"{task}/{m}/{seed}" not in known}
            if missing:
                add(task, seed, sets[task.split("/")[0]], missing)
    report(load_rows(NAME))


def add(task: str, seed: int, make: Callable[[int], Split], missing: Mapping[str, Prune]) -> None:
    """Measures what is missing, and saves each row at once."""
    torch.manual_seed(seed)
    for row in measure(task.split("/")[1], make(seed), seed, missing):
        key = f"{task}/{row['method']}/{seed}"
        save_rows(NAME, {**load_rows(NAME), key: {"key": key, "seed": seed, **row}})
        print(key, row.get("accuracy", row.get("at once")), row.get("tuned", ""), row.get("error", ""), flush=True)


if __name__ == "__main__":
    main()
