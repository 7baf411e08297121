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
import copy
import fnmatch
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import structprune as sp
from structprune import cost
from structprune import importance as imp

from .harness import RESULTS, Row, load_rows, save_rows, table, write_markdown

NAME = "accuracy"
SHOWN = (0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the MACs that are kept
TUNED = 0.1  # and before fine-tuning
LEVELS = (*SHOWN, TUNED)
TEST, CALIBRATION, BATCH = 360, 512, 64
EPOCHS, TUNING = 12, 2

# -- data and models ---------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Images [N, 1, 8, 8] and classes [N]."""

    images: Tensor
    classes: Tensor

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.images.split(size), self.classes.split(size), strict=True))


def digits() -> tuple[Data, Data]:
    """Training and test set, in an order that depends on the seed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.images))
    images = torch.from_numpy(data.images).float().unsqueeze(1)[order] / 8 - 1
    classes = torch.from_numpy(data.target)[order]
    return Data(images[TEST:], classes[TEST:]), Data(images[:TEST], classes[:TEST])


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(out)) + self.around(x)).relu()


class ResNet20(nn.Module):
    """He et al., CVPR 2016, section 4.2, for images of one channel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        shapes = [(width, width, 1), (width, width, 1), (width, width, 1)]
        for inputs in (width, 2 * width):
            shapes += [(inputs, 2 * inputs, 2), (2 * inputs, 2 * inputs, 1), (2 * inputs, 2 * inputs, 1)]
        self.blocks = nn.Sequential(*(Block(*shape) for shape in shapes))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class VGG(nn.Module):
    """Three pairs of convolutions, and two linear layers."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for outputs in (width, 2 * width, 4 * width):
            for _ in range(2):
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(inputs, 4 * width)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.features(x).flatten(1)).relu())


MODELS: dict[str, Callable[[], nn.Module]] = {"resnet20": ResNet20, "vgg": VGG}


def train(model: nn.Module, data: Data, epochs: int, rate: float) -> nn.Module:
    """One cycle of SGD."""
    steps = epochs * (len(data.images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.images)).split(BATCH)[: len(data.images) // BATCH]:
            optimizer.zero_grad()
            cross_entropy(model(data.images[chosen]), data.classes[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    return float((model(data.images).argmax(1) == data.classes).double().mean())


def macs(model: nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 8, 8))
    return counter.get_total_flops() // 2


# -- pruning to a share of the MACs --------------------------------------------------------------------------

Pruned = Iterator[tuple[float, nn.Module]]  # the level, and the model that meets it
Prune = Callable[[nn.Module, Data], Pruned]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def smallest(fits: Callable[[float], bool], steps: int = 8) -> float:
    """The smallest ratio between 0 and 1 that fits, by bisection."""
    low, high = 0.0, 1 - 1e-9
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def ours(make: Callable[[list[Any]], Any]) -> Prune:
    """structprune, with the importance that `make` returns for some batches."""

    def prune(model: nn.Module, data: Data) -> Pruned:
        graph = sp.analyze(model, data.images[:1])
        criterion = make(data.batches(BATCH))
        if hasattr(criterion, "prepare"):
            criterion.prepare(graph)
        scores = {id(group): criterion(group) for group in graph.groups}
        whole = cost.macs(graph)

        def stored(group: sp.Group) -> Any:
            return scores[id(group)]

        stored.normalize = imp.normalization_of(criterion)  # type: ignore[attr-defined]

        def fits(ratio: float) -> bool:
            plan = sp.plan(graph, stored, ratio, "global")
            return macs(sp.apply(plan, model)) <= level * whole

        for level in LEVELS:
            yield level, sp.apply(sp.plan(graph, stored, smallest(fits), "global"), model)

    return prune


def theirs(
    make: Callable[[], Any], prepare: Callable[[Any, nn.Module, Data], None] | None = None, **options: Any
) -> Prune:
    """Torch-Pruning, with a fresh copy of the model for each ratio that is tried."""
    import torch_pruning as tp

    def prune(model: nn.Module, data: Data) -> Pruned:
        whole, criterion = macs(model), make()
        model = copy.deepcopy(model)

        def cut(ratio: float) -> nn.Module:
            copied = copy.deepcopy(model)
            if prepare:
                prepare(criterion, copied, data)
            tp.pruner.BasePruner(
                copied, data.images[:1], importance=criterion, pruning_ratio=ratio, global_pruning=True,
                ignored_layers=[copied.head], **options,
            ).step()  # fmt: skip
            return copied

        for level in LEVELS:
            yield level, cut(smallest(lambda ratio, level=level: macs(cut(ratio)) <= level * whole))

    return prune


def take_gradients(criterion: Any, model: nn.Module, data: Data) -> None:
    """What GroupTaylorImportance reads: the gradients of the loss over all the data."""
    cross_entropy(model(data.images), data.classes).backward()


def take_squares(criterion: Any, model: nn.Module, data: Data) -> None:
    """What GroupHessianImportance reads: the squared gradients of single examples."""
    criterion.zero_grad()
    for one in cross_entropy(model(data.images[:32]), data.classes[:32], reduction="none"):
        model.zero_grad()
        one.backward(retain_graph=True)
        criterion.accumulate_grad(model)


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
    dense = train(MODELS[name](), data, EPOCHS, 0.1)
    whole, chosen = macs(dense), Data(data.images[:CALIBRATION], data.classes[:CALIBRATION])
    yield {"method": "dense", "seed": seed, "model": name, "macs": whole, "accuracy": accuracy(dense, test)}
    for method, prune in methods().items():
        torch.manual_seed(seed)
        start = time.perf_counter()
        row: Row = {"method": method, "seed": seed, "model": name, "left": [], "at once": []}
        for level, small in prune(dense, chosen):
            row["left"].append(macs(small) / whole)
            row["at once"].append(accuracy(small, test))
            if level == TUNED:
                row["seconds"] = time.perf_counter() - start
                torch.manual_seed(seed)
                row["tuned"] = accuracy(train(small, data, TUNING, 0.05), test)
        yield row


HEADER = ("importance", *(f">{level:.0%} of MACs" for level in SHOWN), f">{TUNED:.0%}, fine-tuned", ">MACs left, %")


def mean(values: list[float]) -> str:
    """In percent, with the standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


def line(method: str, rows: list[Row]) -> list[Any]:
    """One row of the table."""
    each = [mean([row["at once"][i] for row in rows]) for i in range(len(SHOWN))]
    left = " / ".join(f"{100 * statistics.mean(row['left'][i] for row in rows):.0f}" for i in range(len(LEVELS)))
    return [method, *each, mean([row["tuned"] for row in rows]), left]


def report(rows: dict[str, Row]) -> None:
    """The tables and the plot."""
    parts = ["\n\n".join(__doc__.split("\n\n")[2:])]
    for name in MODELS:
        own = [row for row in rows.values() if row["model"] == name]
        dense = [row for row in own if row["method"] == "dense"]
        if dense:
            base = mean([row["accuracy"] for row in dense])
            by_method = {method: [row for row in own if row["method"] == method] for method in methods()}
            lines = [line(method, found) for method, found in by_method.items() if found]
            parts.append(f"## {name}: {dense[0]['macs'] / 1e6:.2f} M MACs, {base} % correct\n\n" + table(HEADER, lines))
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
