"""The core of the promise on a CUDA device; what is cheap runs on the CPU as well, with the same bodies.

python -m pytest -m gpu
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    Snapshot,
    assert_bookkeeping,
    assert_varied,
    call,
    fresh,
    masked_original,
    named_state,
    no_dropout,
    randomise,
    removed_something,
    resized,
    tensors,
)
from models import CASES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import structprune as sp

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)
DEVICES = ["cpu", CUDA]
DTYPES = [torch.float64, torch.float32]
# max|a - b| / max|b|. A channel in the wrong place makes it about 1.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}

AWKWARD = [
    "conv2d without bias", "conv3d", "few wide groups", "depthwise, multiplier 2", "inverted residual",
    "transposed, narrow groups", "tied embedding and classifier", "BatchNorm2d with cumulative average",
    "PReLU with a slope per channel", "residual chain", "squeeze and excite", "dense connections", "gated by chunks",
    "boolean mask over tokens", "flatten", "heads as a number of the model's own", "nn.ChannelShuffle", "pixel shuffle",
    "weight standardisation", "class token", "low rank adapter", "in-place on a chunk", "auxiliary head in train mode",
    "hooks that compute",
]  # fmt: skip


class Norms(nn.Module):
    """Norms over channels, which count the original channels after pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.group, self.layer, self.rms = nn.GroupNorm(2, 8), nn.LayerNorm(12), nn.RMSNorm(16)
        self.c, self.out = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.group(self.a(x)).relu())
        x = self.layer(x.permute(0, 2, 3, 1))
        return self.out(self.rms(F.gelu(self.c(x))).mean((1, 2)))


class Tokens(nn.Module):
    """Attention and a wide MLP around a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.patches(x).flatten(2).mT).mean(1))


class Recurrent(nn.Module):
    """Two layers, in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 10)
        self.lstm = nn.LSTM(10, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.inside(x).relu())[0])


class Plain(nn.Module):
    """Convolutions with a batch norm, a residual addition, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.inner, self.outer = nn.Conv2d(16, 24, 3), nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.outer(self.inner(x).relu()).mean((2, 3)))


def images(size: int = 8) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    """It keeps ten bits of float32's twenty-three."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def placed(model: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """A randomised model on a device, in eval mode."""
    return randomise(model).to(device, dtype).eval()


def moved(inputs: Any, device: str, dtype: torch.dtype) -> Any:
    return resized(inputs, lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device))


def assert_placed(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Every tensor is where it was, and what it was."""
    for name, tensor in named_state(model).items():
        assert tensor.device.type == device, name
        assert tensor.dtype == dtype or not tensor.is_floating_point(), name


def assert_same(small: nn.Module, masked: nn.Module, inputs: Any, tolerance: float, what: str) -> None:
    """Both compute the same, and it is not constant."""
    with torch.no_grad(), no_dropout(small, masked):
        found, expected = list(tensors(call(small, inputs))), list(tensors(call(masked, inputs)))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape, what
        error, scale = float((a - b).abs().max()), float(b.abs().max())
        assert error <= tolerance * scale, f"{what}: differs by {error:.3g}, where the largest value is {scale:.3g}"
    assert_varied([t.double() for t in expected], what)


def assert_pruned_exactly(model: nn.Module, inputs: Any, dtype: torch.dtype, modes: tuple[bool, ...]) -> sp.Result:
    """Pruned where it lies, against the masked original of the tests' own."""
    device = next(model.parameters()).device.type
    before = Snapshot.of(model)
    result = sp.prune(model, inputs, ratio=0.5)
    before.assert_unchanged(model)
    assert removed_something(result.plan)
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert_placed(result.model, device, dtype)
    assert_bookkeeping(result.model)
    other = moved(fresh(resized(inputs, Tensor.cpu), 7), device, dtype)
    small, masked = copy.deepcopy(result.model), masked_original(model, result.plan)
    for training in modes:
        small.train(training)
        masked.train(training)
        assert_same(small, masked, other, TOLERANCES[dtype], "train" if training else "eval")
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_models(name: str, dtype: torch.dtype, device: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model, inputs = case.make(dtype).to(device).eval(), moved(case.example(dtype), device, dtype)
    assert_pruned_exactly(model, inputs, dtype, (False, True))


@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [Norms, Tokens, Recurrent, Plain])
def test_layers_that_devices_compute_in_their_own_way(kind: type[nn.Module], dtype: torch.dtype, device: str) -> None:
    inputs = torch.randn(2, 7, 6) if kind is Recurrent else images()
    assert_pruned_exactly(placed(kind(), device, dtype), moved(inputs, device, dtype), dtype, (False, True))


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "convnext_tiny", "swin_t", "vit_b_32"],
)
def test_torchvision(name: str, dtype: torch.dtype, device: str) -> None:
    models = pytest.importorskip("torchvision").models
    size = 224 if name.startswith("vit") else 64
    model = placed(models.get_model(name, weights=None), device, dtype)
    modes = (False, True) if dtype == torch.float64 else (False,)  # batch norms of two images magnify rounding
    assert_pruned_exactly(model, images(size).to(device, dtype), dtype, modes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, device: str) -> None:
    result = assert_pruned_exactly(placed(Plain(), device, dtype), images().to(device, dtype), dtype, (False,))
    assert result.report.verification is not None
    assert result.report.verification.max_rel_error < 1e-10  # in float64


@pytest.mark.parametrize("device", DEVICES)
def test_verification_uses_cuda_where_there_is_one(device: str) -> None:
    model, inputs = placed(Plain(), device, torch.float32), images().to(device)
    result = sp.prune(model, inputs, ratio=0.5)
    check = result.report.verification
    assert check is not None
    assert {torch.device(c.device).type for c in check.comparisons} == {"cuda" if torch.cuda.is_available() else "cpu"}
    assert {c.dtype for c in check.comparisons} == {"float64", "float32"}
    assert sp.verify(model, result.plan, inputs, device="cpu").ok


@pytest.mark.parametrize("device", DEVICES)
def test_memory_format_gradients_and_ties_stay_on_the_device(device: str) -> None:
    model = placed(Plain(), device, torch.float32).to(memory_format=torch.channels_last)
    model(images().to(device)).sum().backward()
    model.stem.weight.requires_grad_(False)
    result = sp.prune(model, images().to(device), ratio=0.5, inplace=True)
    small: Any = result.model
    assert small is model
    assert small.inner.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.stem.weight.requires_grad
    assert small.inner.weight.grad.shape == small.inner.weight.shape
    assert small.inner.weight.grad.device == small.inner.weight.device
    assert_placed(small, device, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_masks_and_back(device: str) -> None:
    """A plan made on one device is as good on another."""
    model, inputs = placed(Plain(), device, torch.float64), images().to(device, torch.float64)
    result = sp.prune(model, inputs, ratio=0.5)
    masked = sp.mask(result.plan, model)
    assert_same(result.model, masked, inputs, 1e-12, "mask")
    assert_placed(masked, device, torch.float64)
    assert sp.plan_from_masks(masked, inputs) == result.plan
    full = sp.inflate(result.plan, result.model, model)
    assert_placed(full, device, torch.float64)
    assert_same(full, masked, inputs, 1e-12, "inflate")
    elsewhere = copy.deepcopy(model).cpu()
    assert sp.plan(sp.analyze(elsewhere, inputs.cpu()), ratio=0.5) == result.plan
    assert_same(sp.apply(result.plan, elsewhere), result.model.cpu(), inputs.cpu(), 1e-12, "applied elsewhere")


@pytest.mark.parametrize("device", DEVICES)
def test_shrink(device: str) -> None:
    """Filters of zeros leave constants, which are folded into biases, means and new biases."""
    model, inputs = placed(Plain(), device, torch.float64), images().to(device, torch.float64)
    for layer in (model.stem, model.inner, model.outer):
        prune.ln_structured(layer, "weight", amount=0.5, n=1, dim=0)
    small = sp.shrink(model, inputs)
    assert_placed(small, device, torch.float64)
    assert small.inner.out_channels == small.outer.in_channels == 12
    assert_same(small, model, torch.randn_like(inputs), 1e-10, "shrink")
    assert sp.sparsity(model, inputs).weights.dead > 0


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> float:
    """One update; the loss before it."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model.train()(inputs), torch.arange(len(inputs), device=inputs.device))
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("device", DEVICES)
def test_iterate(device: str, tmp_path: Path) -> None:
    """The optimizer goes on with the small model on its device, and so does a run that was interrupted."""
    unpruned, inputs = placed(Plain(), device, torch.float64), images().to(device, torch.float64)

    def run(count: int) -> tuple[sp.Step, torch.optim.Optimizer]:
        model = copy.deepcopy(unpruned)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        train(model, optimizer, inputs)
        goals = {"target": {"macs": 0.3}, "steps": 3, "schedule": "cubic", "scope": "global"}
        steps = sp.iterate(model, inputs, optimizer=optimizer, folder=tmp_path, **goals)  # type: ignore[arg-type]
        for step in steps:
            assert step.verification is not None
            assert step.verification.ok
            train(step.model, optimizer, inputs)
            if step.number == count:
                break
        return step, optimizer

    assert run(2)[0].number == 2  # interrupted while the second step was being trained: it starts again
    step, optimizer = run(3)
    assert step.number == 3
    assert_placed(step.model, device, torch.float64)
    for parameter in step.model.parameters():
        moments = optimizer.state[parameter]
        assert moments["exp_avg"].shape == parameter.shape
        assert moments["exp_avg"].device == parameter.device
    assert sum(p.numel() for p in step.model.parameters()) < sum(p.numel() for p in unpruned.parameters())
    assert [p.shape for p in sp.apply(step.plan, unpruned).parameters()] == [p.shape for p in step.model.parameters()]


@pytest.mark.parametrize("device", DEVICES)
def test_files_are_the_same_from_every_device(device: str, tmp_path: Path) -> None:
    model, inputs = placed(Plain(), device, torch.float32), images().to(device)
    result = sp.prune(model, inputs, ratio=0.5)
    sp.save(result, tmp_path / "small")
    for again, where in ((sp.load(tmp_path / "small", Plain), "cpu"), (sp.load(tmp_path / "small", model), device)):
        assert_placed(again, where, torch.float32)
        for (name, loaded), saved in zip(again.state_dict().items(), result.model.state_dict().values(), strict=True):
            assert torch.equal(loaded.cpu(), saved.cpu()), name
