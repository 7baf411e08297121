"""The benchmarks' own oracle can tell right from wrong; the measurements themselves are not tests."""

from __future__ import annotations

import copy
import importlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from benchmarks import __main__ as command
from benchmarks import analysis_speed
from benchmarks.accuracy_curves import data_sets, differences, verdict
from benchmarks.coverage import Pruned, compared, outcome
from benchmarks.networks import NETWORKS, network
from benchmarks.provenance import Cipher, left, marked, masked_original
from benchmarks.rivals import output_layers
from benchmarks.sides import ours, smallest
from benchmarks.tasks import SHAPES, Data, drawn, image_folder, macs
from structprune import importance as imp


class Net(nn.Module):
    """Convolutions, a batch norm, a layer norm, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3)
        self.layer, self.out = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.norm(self.a(x)).relu())
        return self.out(self.layer(x.mean((2, 3))))


def images(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def judged(model: nn.Module, small: nn.Module, ciphers: dict[str, Cipher]) -> tuple[str, dict[str, Any]]:
    """What the benchmark of coverage says of a pruned model."""
    row: dict[str, Any] = {"left": 0.5}
    for part in compared(model, Pruned(small), *left(model, small, ciphers), images(1), images(2)):
        row |= part
    return outcome(row), row


@pytest.mark.parametrize("bits", [20, 23, 40])
def test_every_position_has_a_number_of_its_own(bits: int) -> None:
    cipher = Cipher(-0.3, 0.7, bits, int(0.618 * 2**bits) | 1)
    positions = torch.arange(0, 2**20, 7)
    numbers = cipher.numbers(positions)
    assert torch.equal(cipher.positions(numbers), positions)
    stored = numbers if bits == 40 else numbers.float()
    assert torch.equal(cipher.positions(stored), positions)
    assert float(numbers.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1]) == pytest.approx(0, abs=0.05)


def test_what_is_left_is_read_off_the_weights() -> None:
    model = Net()
    ciphers = marked(model)
    plan = sp.plan(sp.analyze(model, images(0)), ratio=0.5)
    positions, changed = left(model, sp.apply(plan, model), ciphers)
    assert not changed
    masked = masked_original(model, positions)
    expected = sp.mask(plan, model)
    for name, parameter in masked.named_parameters():
        path, _, local = name.rpartition(".")
        assert torch.equal(parameter, getattr(expected.get_submodule(path), local)), name


def test_exact_pruning_is_found_equal() -> None:
    model = Net()
    ciphers = marked(model)
    said, row = judged(model, sp.prune(model, images(0), ratio=0.5).model, ciphers)
    assert said == "equal"
    assert max(row["eval_error"], row["train_error"]) < 1e-13
    assert row["response"] > 1e-3


class Norm(nn.Module):
    """A batch norm that is none by its class, as tracing may leave it."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = nn.Buffer(norm.running_mean), nn.Buffer(norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


def test_statistics_are_shared_with_norms_of_any_class() -> None:
    model = Net()
    ciphers = marked(model)
    small = sp.prune(model, images(0), ratio=0.5).model
    small.norm = Norm(small.norm)  # type: ignore[arg-type]
    assert judged(model, small, ciphers)[0] == "equal"


def test_stock_norms_are_told_from_mistakes() -> None:
    model = Net()
    ciphers = marked(model)
    assert judged(model, sp.prune(model, images(0), ratio=0.5, norm="stock").model, ciphers)[0] == "equal but for norms"


def test_a_wrong_channel_is_found() -> None:
    model = Net()
    ciphers = marked(model)
    small = sp.prune(model, images(0), ratio=0.5).model
    small.b.weight.data = small.b.weight.data.roll(1, 1)  # type: ignore[union-attr]
    assert judged(model, small, ciphers)[0] == "differs"


def test_a_model_that_does_not_run_is_found() -> None:
    model = Net()
    ciphers = marked(model)
    small = sp.prune(model, images(0), ratio=0.5).model
    small.out = nn.Linear(7, 5)
    assert judged(model, small, ciphers)[0] in ("changed", "broken")
    small = sp.prune(model, images(0), ratio=0.5).model
    small.out.weight.data = small.out.weight.data[:, 1:]  # type: ignore[union-attr]
    assert judged(model, small, ciphers)[0] == "broken"


def test_zeros_count_as_removed() -> None:
    model = Net()
    ciphers = marked(model)
    zeroed = copy.deepcopy(model)
    zeroed.a.weight.data[3] = 0
    zeroed.a.bias.data[3] = 0
    assert judged(model, zeroed, ciphers)[0] == "equal"


def test_other_values_are_not_judged() -> None:
    model = Net()
    ciphers = marked(model)
    other = copy.deepcopy(model)
    other.b.bias.data += 0.01
    assert judged(model, other, ciphers)[0] == "changed"


def test_output_layers_are_as_wide_as_the_output() -> None:
    model = Net()
    assert output_layers(model, images(0)) == [model.out]


def test_medians_are_those_of_the_turns_after_the_first() -> None:
    turns = [{"analyze": 9.0, "plan": 9.0}, {"analyze": 1.0, "plan": 5.0}, {"analyze": 2.0, "plan": 2.0}]
    expected = {"ours_s": 6.0, "ours_samples": 3, "ours_analyze_s": 2.0, "ours_plan_s": 2.0}
    assert analysis_speed.medians("ours", [*turns, {"analyze": 6.0, "plan": 1.0}]) == expected


def test_a_late_side_is_out_and_the_other_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(model: nn.Module, example: Any, phases: dict[str, float]) -> nn.Module:
        time.sleep(10)
        return model

    monkeypatch.setitem(analysis_speed.SIDES, "theirs", late)
    row: dict[str, Any] = {}
    for part in analysis_speed.take_turns(Net().eval(), images(0, 1), ("ours", "theirs"), 3, 1.0):
        row |= part
    assert "OutOfTimeError" in row["theirs_error"]
    assert "theirs_s" not in row
    assert (
        row["ours_s"] >= max(row[f"ours_{phase}_s"] for phase in ("analyze", "plan", "apply")) > 0
    )  # medians of turns
    assert row["ours_samples"] in (2, 3)
    assert row["ours_runs"] == "eval+train"


def test_every_question_has_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--list"])
    shown = capsys.readouterr().out
    for name in command.QUESTIONS:
        assert name in shown
        assert callable(importlib.import_module(f"benchmarks.{name}").main)
    with pytest.raises(SystemExit):
        command.main(["speed of light"])


def test_drawn_shapes_depend_on_the_seed_alone() -> None:
    train, test = drawn(3, (40, 20), size=16)
    again, _ = drawn(3, (40, 20), size=16)
    other, _ = drawn(4, (40, 20), size=16)
    assert train.images.shape == (40, 3, 16, 16)
    assert torch.equal(train.images, again.images)
    assert not torch.equal(train.images, other.images)
    assert torch.bincount(torch.cat([train.classes, test.classes])).tolist() == [6] * len(SHAPES)


def test_every_shape_has_an_inside_and_an_outside_of_its_own() -> None:
    axis = torch.linspace(-1, 1, 32)
    areas = [(shape(axis.expand(32, 32), axis[:, None].expand(32, 32)) >= 0) for shape in SHAPES.values()]
    assert all(0.1 < area.double().mean() < 0.75 for area in areas)
    assert all((a != b).double().mean() > 0.05 for i, a in enumerate(areas) for b in areas[:i])


def test_folders_of_images_are_read(tmp_path: Path) -> None:
    for part, name, value in (("train", "cat", 0), ("train", "dog", 255), ("val", "cat", 0), ("val", "dog", 255)):
        folder = tmp_path / part / name
        folder.mkdir(parents=True)
        Image.new("RGB", (12, 8), (value,) * 3).save(folder / "1.png")
    assert image_folder(str(tmp_path / "train")) is None
    split = image_folder(str(tmp_path), size=4)
    assert split is not None
    for part in split:
        assert part.images.shape == (2, 3, 4, 4)
        assert part.classes.tolist() == [0, 1]
        assert part.images[:, 0, 0, 0].tolist() == [-1, 1]
    assert list(data_sets(str(tmp_path))) == ["digits", "drawn", "folder"]
    assert list(data_sets(str(tmp_path / "train"))) == ["digits", "drawn"]


def test_the_smallest_ratio_is_found_though_larger_ones_do_not_fit() -> None:
    assert smallest(lambda ratio: 0.3 <= ratio < 0.5) == pytest.approx(0.3, abs=1 / 256)
    assert smallest(lambda ratio: ratio > 0.999) == pytest.approx(1)
    assert smallest(lambda ratio: False) is None


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("example", [torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 20, 20)], ids=["grey", "colour"])
def test_networks_are_cut_to_a_share_of_their_macs(name: str, example: Tensor) -> None:
    model = network(name, example, 10).eval()
    (level, small), *_ = ours(lambda _: imp.L1(slices="all"))(model, Data(example, torch.zeros(1)), [0.5])
    assert level == 0.5
    assert small(example).shape == (1, 10)
    assert 0.4 < macs(small, example) / macs(model, example) <= 0.5


def test_pairs_are_compared_seed_by_seed() -> None:
    def row(method: str, seed: int, **found: float) -> tuple[str, dict[str, Any]]:
        return f"digits/vgg/{method}/{seed}", {"method": method, "seed": seed, "tuned": found}

    rows = dict([row("L1", 0, x=0.9), row("TP L1", 0, x=0.8), row("L1", 1, x=0.7), row("TP L1", 1), row("L1", 2)])
    assert differences(rows, "L1", "TP L1", "tuned", "x") == [pytest.approx(0.1)]
    assert differences(rows, "TP L1", "L1", "tuned", "x") == [pytest.approx(-0.1)]
    assert verdict([0.1, 0.3, -0.1, 0.1]) == "+10.0 ± 8.2 (3:1)"
    assert verdict([0.1]) == ""
