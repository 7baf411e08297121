"""Iterative pruning: the schedule, the optimizer, averages, and taking up an interrupted run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from helpers import randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import structprune as sp
from structprune.optimizers import follower
from structprune.progress import NAME
from structprune.schedules import cuts


class Net(nn.Module):
    """Convolutions with norms, a residual addition, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1)
        self.outer = nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().double()
    randomise(model)
    return model.train()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 6, 6, generator=random, dtype=torch.float64), torch.randint(5, (8,), generator=random))
        for _ in range(count)
    ]


IMAGES = batches(1)[0][0]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.003, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.003, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> list[float]:
    losses = []
    for images, classes in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), classes)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_with_masks(name: str) -> None:
    """After a cut, every loss is that of the masked model whose optimizer never noticed."""
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, batches(4))
    masked = copy.deepcopy(model)
    unaware = OPTIMIZERS[name](masked.parameters())
    unaware.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    step = next(sp.iterate(model, IMAGES, ratio=0.5, steps=1, optimizer=optimizer))
    masks = {
        key: torch.zeros_like(p).index_put_(
            tuple(torch.meshgrid(*(torch.tensor(step.plan.kept.get(key, {}).get(d, range(n))) for d, n in enumerate(p.shape)), indexing="ij")),
            torch.ones((), dtype=p.dtype),
        )
        for key, p in masked.named_parameters()
    }  # fmt: skip

    def zero() -> None:
        with torch.no_grad():
            for key, p in masked.named_parameters():
                p.mul_(masks[key])

    zero()
    unaware.register_step_post_hook(lambda *_: zero())
    for key, p in masked.named_parameters():
        p.register_hook(lambda grad, key=key: grad * masks[key])
    data = batches(9)[4:]
    found, expected = train(step.model, optimizer, data), train(masked, unaware, data)
    assert sum(p.numel() for p in step.model.parameters()) < 0.6 * sum(p.numel() for p in masked.parameters())
    assert len({round(loss, 6) for loss in expected}) == len(expected)
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_lost_momentum_would_be_noticed() -> None:
    """The test above can fail."""
    model = net()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    train(model, optimizer, batches(4))
    step = next(sp.iterate(model, IMAGES, ratio=0.5, steps=1, optimizer=optimizer))
    again = copy.deepcopy(step.model)
    fresh = OPTIMIZERS["momentum"](again.parameters())
    data = batches(9)[4:]
    assert train(step.model, optimizer, data) != pytest.approx(train(again, fresh, data), rel=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "cubic", "exponential", lambda progress, final: final * progress**2])
def test_the_ratio_is_reached_and_plans_compose(schedule: Any) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    widths = []
    for step in sp.iterate(model, IMAGES, ratio=0.5, steps=4, schedule=schedule):
        assert step.verification is not None
        assert step.verification.max_rel_error < 1e-12
        widths.append(step.model.inner.out_channels)
        train(step.model, torch.optim.SGD(step.model.parameters(), lr=0.05), batches(2))
    assert step.number == step.steps == 4
    assert widths == [24 - int(24 * cut + 1e-9) for cut in cuts(schedule, 4, 0.5)]
    at_once = sp.apply(step.plan, model)
    assert [p.shape for p in at_once.parameters()] == [p.shape for p in step.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_targets_are_of_the_unpruned_model() -> None:
    model = net()
    total = sum(p.numel() for p in model.parameters())
    left = [
        sum(p.numel() for p in step.model.parameters()) / total
        for step in sp.iterate(model, IMAGES, target={"params": 0.4}, steps=3, scope="global")
    ]
    assert left <= [0.8, 0.6, 0.4]
    assert left == pytest.approx([0.8, 0.6, 0.4], abs=0.04)


def test_latency_is_a_fraction() -> None:
    """A time in microseconds would be compared with the unpruned model, which is gone."""
    with pytest.raises(sp.ArgumentError, match="fraction to keep"):
        sp.iterate(net(), IMAGES, target={"latency": 1500})


def test_inplace_cuts_the_model_itself() -> None:
    model = net()
    steps = [step.model is model for step in sp.iterate(model, IMAGES, ratio=0.5, steps=2, inplace=True)]
    assert steps == [True, True]
    assert model.inner.out_channels == 12


def test_averages_and_schedulers_go_along() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    average = torch.optim.swa_utils.AveragedModel(model)
    plain = copy.deepcopy(model)
    for step in sp.iterate(model, IMAGES, ratio=0.5, steps=2, optimizer=optimizer, ema=[average, plain]):
        train(step.model, optimizer, batches(2))
        average.update_parameters(step.model)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.025
    assert {id(p) for p in step.model.parameters()} == {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert average(IMAGES).shape == plain(IMAGES).shape
    assert plain.inner.out_channels == average.module.inner.out_channels == 12


def test_groups_frozen_parameters_and_strangers_stay() -> None:
    model = net()
    model.stem.weight.requires_grad_(False)
    stranger = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.Adam(
        [{"params": [model.head.weight, stranger], "lr": 0.5}, {"params": [p for p in model.parameters() if p is not model.head.weight]}]
    )  # fmt: skip
    step = next(sp.iterate(model, IMAGES, ratio=0.5, steps=1, optimizer=optimizer))
    assert optimizer.param_groups[0]["params"][0] is step.model.head.weight
    assert optimizer.param_groups[0]["params"][1] is stranger
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not step.model.stem.weight.requires_grad


def test_adafactor_keeps_rows_and_columns() -> None:
    model = net()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    train(model, optimizer, batches(2))
    step = next(sp.iterate(model, IMAGES, ratio=0.5, steps=1, optimizer=optimizer))
    assert all(torch.isfinite(torch.tensor(loss)) for loss in train(step.model, optimizer, batches(2)))


def test_a_history_that_cannot_be_cut_is_refused_before_anything_is() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)
    images, classes = batches(1)[0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), classes)
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(sp.UnsupportedModelError, match="build a new optimizer"):
        next(sp.iterate(model, IMAGES, ratio=0.5, steps=1, optimizer=optimizer, inplace=True))
    assert model.inner.out_channels == 24


def run(folder: Path | None, stop_in: int | None = None) -> tuple[nn.Module, list[int]]:
    """Four steps of pruning and training, stopped in the training of one of them."""
    model = net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    average = copy.deepcopy(model)
    numbers = []
    for step in sp.iterate(model, IMAGES, ratio=0.5, steps=4, optimizer=optimizer, ema=average, folder=folder):
        numbers.append(step.number)
        if step.trained:
            break
        train(step.model, optimizer, batches(step.number))
        if step.number == stop_in:
            break
    return step.model, numbers


def test_an_interrupted_run_is_taken_up(tmp_path: Path) -> None:
    whole, _ = run(None)
    _, first = run(tmp_path, stop_in=3)
    model, rest = run(tmp_path)
    assert (first, rest) == ([1, 2, 3], [3, 4])
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True))
    done, last = run(tmp_path)
    assert last == [4]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), done.state_dict().values(), strict=True))


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, stop_in=2)
    with pytest.raises(sp.ArgumentError, match="other steps"):
        next(sp.iterate(net(), IMAGES, ratio=0.25, steps=4, folder=tmp_path))
    with pytest.raises(sp.ArgumentError, match="another model"):
        next(
            sp.iterate(
                nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).double(),
                IMAGES,
                ratio=0.5,
                steps=4,
                folder=tmp_path,
            )
        )
    (tmp_path / NAME).write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(sp.FileFormatError, match="not a checkpoint"):
        next(sp.iterate(net(), IMAGES, ratio=0.5, steps=4, folder=tmp_path))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({}, sp.ArgumentError, "a target, .* or a ratio"),
        ({"ratio": 0.5, "target": {"macs": 0.5}}, sp.ArgumentError, "a target, .* or a ratio"),
        ({"ratio": 1.5}, sp.ArgumentError, "ratio"),
        ({"ratio": 0.5, "steps": 0}, sp.ArgumentError, "steps"),
        ({"ratio": 0.5, "steps": True}, sp.ArgumentTypeError, "steps"),
        ({"target": {"latency": 0.5}, "steps": "3"}, sp.ArgumentTypeError, "steps"),
        ({"ratio": 0.5, "schedule": "cubical"}, sp.ArgumentError, "'linear', 'cubic', 'exponential'"),
        ({"ratio": 0.5, "schedule": lambda p, f: f * (1 - p)}, sp.ArgumentError, "must rise"),
        ({"ratio": 0.5, "schedule": lambda p, f: None}, sp.ArgumentTypeError, "schedule must return"),
        ({"ratio": 0.5, "min_ratio": "least"}, sp.ArgumentTypeError, "min_ratio"),
        ({"ratio": 0.5, "optimizer": "adam"}, sp.ArgumentTypeError, "optimizer"),
        ({"ratio": 0.5, "ema": ["copy"]}, sp.ArgumentTypeError, "ema"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    """They are refused at once, not when the first step is asked for."""
    with pytest.raises(error, match=words):
        sp.iterate(net(), IMAGES, **settings)


@pytest.mark.parametrize("asked", [{"ratio": 0.5}, {"target": {"macs": 0.4}, "scope": "global"}])
def test_the_least_of_every_group_grows_with_the_cut(asked: dict[str, Any]) -> None:
    """Half of it at the first of two steps, whose cut it would exceed."""
    first, last = (
        (step.model.stem.out_channels, step.model.inner.out_channels)
        for step in sp.iterate(net(), IMAGES, steps=2, min_ratio=0.375, **asked)
    )
    assert first[0] <= 13
    assert first[1] <= 19
    assert last[0] <= 10 < first[0]
    assert last[1] <= 15 < first[1]


DAMAGED: list[dict[str, str]] = [
    *({"done": value} for value in ("NaN", "1e400", "99", "0", "-1", "true", '"1"', "[", "9" * 5000)),
    *({"goals": value} for value in ("null", "{}", "3")),
    *({"optimizers": value} for value in ("null", "{}", "[" * 100_000, '[{"dict": [[1]]}]', '[{"tensor": []}]', "[3]")),
    {"plan": "3"},
]


@pytest.mark.parametrize("change", DAMAGED, ids=lambda change: "".join(f"{k} {v[:12]}" for k, v in change.items()))
def test_damaged_metadata_is_no_checkpoint(change: dict[str, str], tmp_path: Path) -> None:
    model = net()
    settings: dict[str, Any] = {"ratio": 0.5, "steps": 2, "folder": tmp_path}
    steps = sp.iterate(model, IMAGES, optimizer=OPTIMIZERS["momentum"](model.parameters()), **settings)
    next(steps)
    next(steps)
    with safetensors.safe_open(tmp_path / NAME, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(tmp_path / NAME)
    safetensors.torch.save_file(tensors, tmp_path / NAME, metadata={**metadata, **change})
    model = net()
    with pytest.raises((sp.FileFormatError, sp.PlanError)):
        next(sp.iterate(model, IMAGES, optimizer=OPTIMIZERS["momentum"](model.parameters()), **settings))
    assert model.inner.out_channels == 24


def test_limits_are_of_the_unpruned_model() -> None:
    """A largest ratio of each group, asked for at every step, is not taken from what is left again and again."""
    settings: dict[str, Any] = {"target": {"params": 0.6}, "steps": 3, "scope": "global"}
    free = [step.model.stem.out_channels for step in sp.iterate(net(), IMAGES, **settings)]
    bound = [step.model.stem.out_channels for step in sp.iterate(net(), IMAGES, **settings, max_ratio=0.25)]
    assert free[-1] < 12
    assert bound[-1] == 12


def test_follower_leaves_state_alone_until_it_moves() -> None:
    model = net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, batches(1))
    plan = sp.plan(sp.analyze(model, IMAGES))
    following = follower(optimizer, plan, model)
    assert optimizer.state[model.inner.weight]["exp_avg"].shape == model.inner.weight.shape
    small = sp.apply(plan, model)
    following.move(small)
    assert optimizer.state[small.inner.weight]["exp_avg"].shape == small.inner.weight.shape
    assert model.inner.weight not in optimizer.state


@pytest.mark.parametrize("inplace", [False, True])
def test_an_average_that_does_not_fit_leaves_everything_as_it_was(inplace: bool) -> None:
    model = net()
    optimizer, good, bad = OPTIMIZERS["momentum"](model.parameters()), copy.deepcopy(model), nn.Linear(3, 3)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(sp.PlanError):
        next(sp.iterate(model, IMAGES, ratio=0.5, steps=1, optimizer=optimizer, ema=[good, bad], inplace=inplace))
    for one in (model, good):
        assert one.stem.weight.shape == (16, 3, 3, 3)
        assert one.inner.out_channels == 24
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == held


def test_the_model_is_no_average_of_itself() -> None:
    model = net()
    with pytest.raises(sp.ArgumentError, match="the model itself"):
        next(sp.iterate(model, IMAGES, ratio=0.5, steps=1, ema=model))
    assert model.inner.out_channels == 24


@pytest.mark.parametrize("count", [0, 2])
def test_a_run_taken_up_with_other_optimizers_cuts_nothing(count: int, tmp_path: Path) -> None:
    first = net()
    steps = sp.iterate(
        first, IMAGES, ratio=0.5, steps=2, optimizer=OPTIMIZERS["momentum"](first.parameters()), folder=tmp_path
    )
    next(steps)
    next(steps)
    model = net()
    optimizers = [OPTIMIZERS["momentum"](model.parameters()) for _ in range(count)]
    held = [id(p) for one in optimizers for group in one.param_groups for p in group["params"]]
    with pytest.raises(sp.FileFormatError, match=f"1 optimizers; {count} were given"):
        next(sp.iterate(model, IMAGES, ratio=0.5, steps=2, optimizer=optimizers, folder=tmp_path, inplace=True))
    assert model.inner.out_channels == 24
    assert [id(p) for one in optimizers for group in one.param_groups for p in group["params"]] == held


def test_a_run_taken_up_with_another_kind_of_optimizer(tmp_path: Path) -> None:
    model = net()
    steps = sp.iterate(
        model, IMAGES, ratio=0.5, steps=2, optimizer=torch.optim.Adam(model.parameters()), folder=tmp_path
    )
    next(steps)
    next(steps)
    model = net()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(sp.FileFormatError, match="the state of an optimizer Adam; SGD was given"):
        next(sp.iterate(model, IMAGES, ratio=0.5, steps=2, optimizer=sgd, folder=tmp_path))


def ranked_by_hand(group: Any) -> Any:
    return torch.arange(len(group))


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"exclude": ["inner"]}, "exclude"),
    ({"importance": "l2"}, "importance"),
    ({"importance": ranked_by_hand}, "importance"),
    ({"round_to": 4}, "round_to"),
    ({"norm": "stock"}, "norm"),
    ({"include": {"inner"}}, "include"),
    ({"exclude": nn.Linear}, "exclude"),
    ({"ratios": {nn.Linear: 0.25, "inner": 0.5}}, "ratios"),
]


@pytest.mark.parametrize(("settings", "name"), SETTINGS, ids=[str(settings) for settings, _ in SETTINGS])
def test_a_run_taken_up_with_other_settings(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    steps = sp.iterate(net(), IMAGES, ratio=0.5, steps=2, folder=tmp_path, importance="l1")
    next(steps)
    next(steps)
    with pytest.raises(sp.ArgumentError, match=f"holds a run with {name}="):
        next(sp.iterate(net(), IMAGES, ratio=0.5, steps=2, folder=tmp_path, **settings))
    assert next(sp.iterate(net(), IMAGES, ratio=0.5, steps=2, folder=tmp_path, scope="local")).number == 2


def test_an_average_that_is_taken_up_knows_what_it_has_averaged(tmp_path: Path) -> None:
    for stop in (2, 3):
        model = net()
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        for step in sp.iterate(model, IMAGES, ratio=0.5, steps=3, optimizer=optimizer, ema=average, folder=tmp_path):
            if step.number == stop:
                break
            train(step.model, optimizer, batches(1))
            average.update_parameters(step.model)
        assert int(average.n_averaged) == stop - 1


def test_what_a_step_yields_is_saved(tmp_path: Path) -> None:
    *_, step = sp.iterate(net(), IMAGES, ratio=0.5, steps=2)
    sp.save(step, tmp_path / "small", record={"epochs": 3})
    again = sp.load(tmp_path / "small", net()).eval()
    assert torch.equal(again(IMAGES), step.model.eval()(IMAGES))


class Versioned(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 3}


def test_a_state_that_is_no_tensors_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    model, rows = nn.Sequential(Versioned(4, 8), nn.Linear(8, 2)), torch.randn(3, 4)
    for start in (
        lambda: sp.iterate(model, rows, ratio=0.5, folder=tmp_path / "run"),
        lambda: sp.save(sp.prune(model, rows, ratio=0.5), tmp_path / "small"),
    ):
        with pytest.raises(sp.UnsupportedModelError, match=r"0\._extra_state of the model's state is a dict"):
            start()
    assert list(tmp_path.iterdir()) == []


class Fused(nn.Module):
    """One layer of two parts, which are groups of one name."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.stem = nn.Linear(6, first + second)
        self.a, self.b = nn.Linear(first, 3), nn.Linear(second, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.stem(x).split([self.first, self.second], 1)
        return self.a(one.relu()) + self.b(other.tanh())


@pytest.mark.parametrize("widths", [(8, 16), (16, 8)])
def test_parts_of_a_fused_layer_reach_their_own_goals(widths: tuple[int, int]) -> None:
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    *_, step = sp.iterate(randomise(Fused(*widths)), rows, ratio=0.5, steps=2)
    assert (step.model.a.in_features, step.model.b.in_features) == (widths[0] // 2, widths[1] // 2)


def test_a_setting_that_there_is_not() -> None:
    with pytest.raises(sp.ArgumentTypeError, match="no setting 'scop'; the closest are 'scope'"):
        sp.iterate(net(), IMAGES, ratio=0.5, scop="global")
