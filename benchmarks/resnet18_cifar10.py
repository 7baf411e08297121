"""A ResNet-18 for images of 32 x 32: trained, masked by torch.nn.utils.prune, fine-tuned, and made small for real.

    python -m benchmarks.resnet18_cifar10 [--data FOLDER] [--seeds 3] [--width 16]

Masks come in four ways: at once or in steps, filter by filter inside each convolution (`ln_structured`) or element
by element over all convolutions (`global_unstructured`). `structprune.shrink(..., structured="promote")` then removes
every channel of which the masks left little, and the small network is fine-tuned again. CIFAR-10 is read through
torchvision from FOLDER if it lies there (nothing is downloaded); else scikit-learn's handwritten digits stand in,
enlarged to 32 x 32 and coloured at random.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import structprune as sp

from .harness import Row, save_rows, table, write_markdown
from .tasks import cifar10

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scheme:
    """How masks are made: the fraction of each convolution (or of all), in how many steps, and what `shrink` promotes."""

    name: str
    mask: Callable[[nn.Module, float], None]
    amount: float
    steps: int
    threshold: float
    epochs: int  # of the small network


# -- data ------------------------------------------------------------------------------------------------


def coloured_digits(seed: int) -> tuple[Images, Images]:
    """1,297 training and 500 test images of ten classes: bright strokes on a dark ground, in random colours."""
    from sklearn.datasets import load_digits

    random = torch.Generator().manual_seed(seed)
    digits = load_digits()
    strokes = F.interpolate(torch.tensor(digits.images / 16.0).float()[:, None], size=(32, 32), mode="bilinear")
    ground, ink = (torch.rand(len(strokes), 3, 1, 1, generator=random) * 0.8 + low for low in (-1.0, 0.2))
    images = ground + (ink - ground) * strokes + 0.05 * torch.randn(len(strokes), 3, 32, 32, generator=random)
    order = torch.randperm(len(images), generator=random)
    images, classes = images[order], torch.tensor(digits.target)[order]
    return (images[500:], classes[500:]), (images[:500], classes[:500])


# -- the network -----------------------------------------------------------------------------------------


def resnet18(width: int, stride: int) -> nn.Module:
    """torchvision's, with a stem for small images, and `width` instead of 64 channels."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class SmallImages(ResNet):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self._norm_layer, self.inplanes, self.dilation = nn.BatchNorm2d, width, 1
            self.groups, self.base_width = 1, 64
            self.conv1, self.maxpool = nn.Conv2d(3, width, 3, stride, 1, bias=False), nn.Identity()
            self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            for i in range(4):
                setattr(self, f"layer{i + 1}", self._make_layer(BasicBlock, width << i, 2, stride=min(i, 1) + 1))
            self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width << 3, 10)

    return SmallImages()


def train(model: nn.Module, data: Images, epochs: int, rate: float) -> None:
    """AdamW with one cycle of the learning rate."""
    images, classes = data
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    batches = -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), classes[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def predictions(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in images.split(250)])


def evaluate(model: nn.Module, data: Images) -> Row:
    """Accuracy and scikit-learn's classification report, size on disk, latency of 100 images on one thread."""
    from sklearn.metrics import classification_report

    images, classes = data
    found = classification_report(classes, predictions(model, images), output_dict=True, zero_division=0)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        predictions(model, images[:100])
        times.append(time.perf_counter() - start)
    return {
        "accuracy": found["accuracy"], "macro_f1": found["macro avg"]["f1-score"], "kilobytes": len(file.getvalue()) / 1e3,
        "parameters": sum(p.numel() for p in model.parameters()), "milliseconds": 1e3 * statistics.median(times),
    }  # fmt: skip


# -- pruning ---------------------------------------------------------------------------------------------


def convolutions(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def mask_locally(model: nn.Module, amount: float) -> None:
    """The filters of smallest L1 norm of each convolution; `amount` counts those masked before."""
    for conv in convolutions(model):
        before = float(sp.sparsity(conv).parameters["weight"].sparsity)
        wanted = round(amount * conv.weight.shape[0]) - round(before * conv.weight.shape[0])
        prune.ln_structured(conv, "weight", amount=wanted, n=1, dim=0)


def mask_globally(model: nn.Module, amount: float) -> None:
    """The smallest elements of all convolutions together; `amount` counts those masked before."""
    pairs = [(conv, "weight") for conv in convolutions(model)]
    total = sum(conv.weight.numel() for conv, _ in pairs)
    before = sum(int((conv.weight == 0).sum()) for conv, _ in pairs)
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=round(amount * total) - before)


SCHEMES = (
    Scheme("local, at once", mask_locally, 0.875, 1, 0.3, 30),
    Scheme("local, in steps", mask_locally, 0.8125, 3, 0.5, 30),
    Scheme("global, at once", mask_globally, 0.95, 1, 0.05, 10),
    Scheme("global, in steps", mask_globally, 0.97, 3, 0.05, 10),
)


def compress(dense: nn.Module, scheme: Scheme, train_data: Images, test_data: Images) -> dict[str, Row]:
    """Masks, fine-tunes, shrinks, fine-tunes."""
    masked = copy.deepcopy(dense)
    for step in range(1, scheme.steps + 1):
        scheme.mask(masked, scheme.amount * (1 - (1 - step / scheme.steps) ** 3))  # the cubic schedule of Zhu and Gupta
        train(masked, train_data, 2, 2e-3)
    result = sp.shrink(masked, test_data[0][:2], structured="promote", threshold=scheme.threshold, details=True)
    rows = {"masked": {**evaluate(masked, test_data), "zeros": sp.sparsity(masked).sparsity}}
    rows["shrunk"] = {**evaluate(result.model, test_data), "deviation": result.report.deviation}
    small = result.model
    train(small, train_data, scheme.epochs, 1e-2)
    rows["fine-tuned"] = evaluate(small, test_data)
    return rows


def measure(seed: int, width: int, data: tuple[Images, Images] | None) -> list[Row]:
    """All rows of one seed."""
    torch.manual_seed(seed)
    train_data, test_data = data or coloured_digits(seed)
    dense = resnet18(width, stride=1 if data else 2)  # digits have no detail that a finer grid would show
    train(dense, train_data, 12, 3e-3)
    start = evaluate(dense, test_data)
    rows = [{"seed": seed, "scheme": "", "network": "dense", **start}]
    for scheme in SCHEMES:
        torch.manual_seed(seed)
        for network, row in compress(dense, scheme, train_data, test_data).items():
            rows.append({"seed": seed, "scheme": scheme.name, "network": network, **row})
            rows[-1]["times_fewer"] = start["parameters"] / row["parameters"]
    return [{**row, "key": f"{seed}/{row['scheme']}/{row['network']}"} for row in rows]


# -- the table -------------------------------------------------------------------------------------------


HEADER = ("masks", "network", ">parameters", ">times fewer", ">accuracy", ">macro F1", ">ms for 100", ">kB", ">zeros")


def report(rows: Mapping[str, Row], data: str) -> None:
    """Writes resnet18_cifar10.md: the mean over the seeds, and the range of accuracies."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows.values():
        groups.setdefault((row["scheme"], row["network"]), []).append(row)
    order = {name: i for i, name in enumerate(("", *(s.name for s in SCHEMES)))}
    stages = ("dense", "masked", "shrunk", "fine-tuned")
    lines = [_line(*key, groups[key]) for key in sorted(groups, key=lambda k: (order[k[0]], stages.index(k[1])))]
    about = (__doc__ or "").split("\n\n")[2].strip()
    seeds = len({row["seed"] for row in rows.values()})
    explained = (
        f"Data: {data}. Means over {seeds} seeds, in brackets the range of accuracies in per cent. *masked*: with the masks of "
        "torch.nn.utils.prune, fine-tuned; *shrunk*: made small, before any training; *fine-tuned*: the small network trained on.\n"
    )
    write_markdown(
        "resnet18_cifar10", "ResNet-18, masked and made small", [f"{about}\n", explained, table(HEADER, lines)]
    )


def _line(scheme: str, network: str, rows: list[Row]) -> list[Any]:
    def mean(key: str) -> float:
        return statistics.fmean(row.get(key, 0) for row in rows)

    accuracies = [100 * row["accuracy"] for row in rows]
    accuracy = f"{statistics.fmean(accuracies):.1f} ({min(accuracies):.1f} to {max(accuracies):.1f})"
    fewer = f"{mean('times_fewer'):.0f}" if network != "dense" else ""
    zeros = f"{mean('zeros'):.0%}" if network == "masked" else ""
    cells = f"{mean('parameters'):,.0f}", fewer, accuracy, f"{mean('macro_f1'):.3f}"
    return [scheme, network, *cells, f"{mean('milliseconds'):.0f}", f"{mean('kilobytes'):,.0f}", zeros]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="the folder with CIFAR-10, as torchvision lays it out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = cifar10(options.data)
    rows: dict[str, Row] = {}
    for seed in range(options.seeds):
        start = time.perf_counter()
        for row in measure(seed, options.width, data):
            rows[row["key"]] = row
            kind, fewer = f"{row['scheme']} {row['network']}".strip(), row.get("times_fewer", 1.0)
            print(
                f"{seed}  {kind}: {row['accuracy']:.1%}, {row['parameters']:,} parameters, {fewer:.0f} times fewer",
                flush=True,
            )
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
        save_rows("resnet18_cifar10", rows)
        report(rows, "coloured digits in place of CIFAR-10" if data is None else "CIFAR-10")


if __name__ == "__main__":
    main(sys.argv[1:])
