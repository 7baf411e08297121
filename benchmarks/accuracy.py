"""Which importance keeps the most accuracy? On scikit-learn's digits, at equal MACs, beside Torch-Pruning.

    python -m benchmarks.accuracy [--seeds 3] [--only 'resnet*'] [--redo]

A residual network of 20 layers and a VGG-like one learn 1437 images of handwritten digits. Each importance ranks
all their channels together and removes as many as leave at most the given share of the MACs, at once; the 360
other images are then classified, as the network is, and at a tenth of the MACs after two epochs of fine-tuning.
Structprune's importances and Torch-Pruning's (TP) have their default options, except that both rank globally and
as named; what needs data gets the same 512 training images. The last layer's classes stay. MACs are counted by
PyTorch's FlopCounterMode on the pruned models. Accuracies, in percent, are means over the seeds, with their
standard deviation; the last column says which shares of the MACs were left on average.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from structprune import importance as imp

from .harness import RESULTS, Row, load_rows, percent, save_rows, table, write_markdown
from .networks import network
from .sides import Prune, loss, ours, take_gradients, take_squares, theirs
from .tasks import accuracy, digits, macs, train

NAME = "accuracy"
SHOWN = (0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the MACs that are kept
TUNED = 0.1  # and before fine-tuning
LEVELS = (*SHOWN, TUNED)
MODELS = ("resnet20", "vgg")
CALIBRATION = 512
EPOCHS, TUNING = 12, 2


def methods() -> dict[str, Prune]:
    """Every importance of both libraries."""
    import torch_pruning as tp

    their = tp.importance
    return {
        "L1": ours(lambda b: imp.L1()),
        "L2": ours(lambda b: imp.L2()),
        "L2, all slices": ours(lambda b: imp.L2(slices="all")),
        "LAMP": ours(lambda b: imp.LAMP()),
        "FPGM": ours(lambda b: imp.FPGM()),
        "BN scale": ours(lambda b: imp.BNScale()),
        "random": ours(lambda b: imp.Random()),
        "activation norm": ours(lambda b: imp.ActivationNorm(b)),
        "Wanda": ours(lambda b: imp.Wanda(b)),
        "FLAP": ours(lambda b: imp.FLAP(b)),
        "Taylor": ours(lambda b: imp.Taylor(loss, b)),
        "Taylor, not normalised": ours(lambda b: imp.Taylor(loss, b, normalize="none")),
        "Taylor, isomorphic": ours(lambda b: imp.Taylor(loss, b, normalize="isomorphic")),
        "Fisher": ours(lambda b: imp.Fisher(loss, b)),
        "Fisher, not normalised": ours(lambda b: imp.Fisher(loss, b, normalize="none")),
        "OBD": ours(lambda b: imp.OBD(loss, b)),
        "TP magnitude L1": theirs(lambda: their.GroupMagnitudeImportance(p=1)),
        "TP magnitude L2": theirs(lambda: their.GroupMagnitudeImportance(p=2)),
        "TP magnitude L2, isomorphic": theirs(lambda: their.GroupMagnitudeImportance(p=2), isomorphic=True),
        "TP LAMP": theirs(lambda: their.LAMPImportance()),
        "TP FPGM": theirs(lambda: their.FPGMImportance()),
        "TP BN scale": theirs(lambda: their.BNScaleImportance()),
        "TP random": theirs(lambda: their.RandomImportance()),
        "TP Taylor": theirs(lambda: their.GroupTaylorImportance(), take_gradients),
        "TP Taylor, isomorphic": theirs(lambda: their.GroupTaylorImportance(), take_gradients, isomorphic=True),
        "TP Hessian": theirs(lambda: their.GroupHessianImportance(), take_squares),
    }


# -- the comparison ------------------------------------------------------------------------------------------


def measure(name: str, seed: int) -> Iterator[Row]:
    """All methods on one trained network; a row for each."""
    torch.manual_seed(seed)
    data, test = digits()
    dense = train(network(name, data.images, 10), data, EPOCHS, 0.1)
    whole = macs(dense, data.images)
    yield {"method": "dense", "seed": seed, "model": name, "macs": whole, "accuracy": accuracy(dense, test)}
    for method, prune in methods().items():
        torch.manual_seed(seed)
        start = time.perf_counter()
        row: Row = {"method": method, "seed": seed, "model": name, "left": [], "at once": []}
        for level, small in prune(dense, data.first(CALIBRATION), LEVELS):
            row["left"].append(macs(small, data.images) / whole)
            row["at once"].append(accuracy(small, test))
            if level == TUNED:
                row["seconds"] = time.perf_counter() - start
                torch.manual_seed(seed)
                row["tuned"] = accuracy(train(small, data, TUNING, 0.05), test)
        yield row


HEADER = ("importance", *(f">{level:.0%} of MACs" for level in SHOWN), f">{TUNED:.0%}, fine-tuned", ">MACs left, %")


def line(method: str, rows: list[Row]) -> list[Any]:
    """One row of the table."""
    each = [percent([row["at once"][i] for row in rows]) for i in range(len(SHOWN))]
    left = " / ".join(f"{100 * statistics.mean(row['left'][i] for row in rows):.0f}" for i in range(len(LEVELS)))
    return [method, *each, percent([row["tuned"] for row in rows]), left]


def report(rows: dict[str, Row]) -> None:
    """The tables and the plot."""
    parts = ["\n\n".join(__doc__.split("\n\n")[2:])]
    for name in MODELS:
        own = [row for row in rows.values() if row["model"] == name]
        dense = [row for row in own if row["method"] == "dense"]
        if dense:
            base = percent([row["accuracy"] for row in dense])
            by_method = {method: [row for row in own if row["method"] == method] for method in methods()}
            lines = [line(method, found) for method, found in by_method.items() if found]
            parts.append(
                f"## {name}: {dense[0]['macs'] / 1e6:.2f} M MACs, {base} % correct, seeds: {len(dense)}\n\n"
                + table(HEADER, lines)
            )
    parts.append(f"![accuracy against MACs]({NAME}.png)\n")
    write_markdown(NAME, "Accuracy at equal MACs", parts)
    plot(rows)


PLOTTED = ("L1", "magnitude L1", "LAMP", "FPGM", "BN scale", "activation norm", "Wanda", "FLAP", "Taylor", "Fisher", "OBD", "Hessian", "random")  # fmt: skip


def plot(rows: dict[str, Row]) -> None:
    """Accuracy at once against MACs: solid lines are structprune's, dashed ones of the same colour Torch-Pruning's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(MODELS), figsize=(13, 5.5), sharey=True)
    colours = dict(zip(PLOTTED, pyplot.get_cmap("tab20").colors, strict=False))
    colours |= {"magnitude L1": colours["L1"], "Hessian": colours["OBD"]}
    for panel, name in zip(panels, MODELS, strict=True):
        for method in methods():
            kind = method.removeprefix("TP ")
            found = [r for r in rows.values() if r["model"] == name and r["method"] == method]
            if found and kind in PLOTTED:
                means = [100 * statistics.mean(r["at once"][k] for r in found) for k in range(len(SHOWN))]
                style = "-" if kind == method else "--"
                panel.plot([100 * x for x in SHOWN], means, style, marker=".", color=colours[kind], label=method)
        panel.set(title=name, xlabel="MACs kept, %")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("correct without fine-tuning, %")
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(RESULTS / f"{NAME}.png", dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="*", help="pattern of model names")
    parser.add_argument("--redo", action="store_true", help="measure again what has rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in fnmatch.filter(MODELS, options.only):
        for seed in range(options.seeds):
            known = load_rows(NAME)
            if not options.redo and all(f"{name}/{method}/{seed}" in known for method in methods()):
                continue
            for row in measure(name, seed):
                key = f"{name}/{row['method']}/{seed}"
                save_rows(NAME, {**load_rows(NAME), key: {"key": key, **row}})
                print(key, row.get("at once", row.get("accuracy")), row.get("tuned", ""), flush=True)
    report(load_rows(NAME))


if __name__ == "__main__":
    main()
