"""Every coupling: what can be removed from the models of models.py, and that removing it is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import (
    Snapshot,
    assert_equal_models,
    assert_exact,
    assert_exact_or_nothing,
    assert_kept,
    masked_original,
    randomise,
)
from models import CASES, UNSEEN, Case
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune import surgery

NAMES = [c.name for c in CASES]


def units(case: Case) -> list[int]:
    """The number of units of each group; the one unit of a group of one can never go."""
    return sorted(len(g) for g in sp.analyze(case.make(), case.example()).groups if len(g) > 1)


def test_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_groups(case: Case) -> None:
    assert units(case) == sorted(case.units)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_exact(case: Case) -> None:
    if case.units:
        assert_exact(case.make(), case.example())
    else:
        assert_exact_or_nothing(case.make(), case.example())


@pytest.mark.parametrize("case", [c for c in CASES if c.units], ids=[c.name for c in CASES if c.units])
def test_exact_at_another_ratio(case: Case) -> None:
    assert_exact_or_nothing(case.make(), case.example(), 0.3)


@pytest.mark.parametrize("case", [c for c in CASES if c.units], ids=[c.name for c in CASES if c.units])
def test_exact_in_global_scope(case: Case) -> None:
    """Groups lose different fractions."""
    assert_exact_or_nothing(case.make(), case.example(), scope="global")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("one size for")])
@pytest.mark.parametrize(
    "settings", [{"target": {"params": 0.5}}, {"target": {"macs": 0.3}, "scope": "global"}], ids=str
)
def test_layers_that_share_a_size_meet_targets(name: str, settings: dict[str, Any]) -> None:
    """Layers from which one size is read lose equally many: planned for, not found out when it is too late."""
    case = CASES[NAMES.index(name)]
    assert_exact(case.make(), case.example(), None, **settings)


@pytest.mark.parametrize("case", [c for c in CASES if c.kept], ids=[c.name for c in CASES if c.kept])
def test_kept_with_a_reason(case: Case) -> None:
    for pattern, words in case.kept.items():
        assert_kept(case.make(), case.example(), pattern, words)


@pytest.mark.parametrize("case", [c for c in CASES if c.units], ids=[c.name for c in CASES if c.units])
def test_pruned_twice(case: Case) -> None:
    """What is left is an ordinary model, which can be pruned again."""
    small = sp.prune(case.make(), case.example(), ratio=0.3).model
    assert_exact_or_nothing(small, case.example(), 0.5)


@pytest.mark.parametrize("case", [c for c in CASES if c.units], ids=[c.name for c in CASES if c.units])
def test_float32(case: Case) -> None:
    """Verification in float64 holds for models in the default dtype too."""
    example = case.example(torch.float32)
    result = sp.prune(case.make(torch.float32), example)
    assert result.report.verification is not None
    assert result.report.verification.ok


@pytest.mark.parametrize("case", UNSEEN, ids=[c.name for c in UNSEEN])
def test_caught_by_verification(case: Case) -> None:
    """What no trace can see is refused as a whole, and the model is as it was."""
    model = case.make()
    before = Snapshot.of(model)
    with pytest.raises(sp.VerificationError, match="DIFFERS"):
        sp.prune(model, case.example())
    before.assert_unchanged(model)


# -- sabotage: a test that could not fail would prove nothing ----------------------------------------------------


def wrong_by_one(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dim: int) -> None:
    """From now on surgery takes the neighbour of every kept index, in one dimension of the tensors of this shape."""
    right = surgery.slice_tensor

    def wrong(tensor: torch.Tensor, kept: Mapping[int, tuple[int, ...]], *rest: Any) -> torch.Tensor:
        if tensor.shape == shape and dim in kept:
            kept = {**kept, dim: tuple(sorted((k + 1) % shape[dim] for k in kept[dim]))}
        return right(tensor, kept, *rest)

    monkeypatch.setattr(surgery, "slice_tensor", wrong)


SABOTAGED = [
    ("inverted residual", (16, 8, 1, 1), 1, "e"),  # a consumer
    ("inverted residual", (8, 3, 3, 3), 0, "a"),  # a producer
    ("inverted residual", (16, 1, 3, 3), 0, "d"),  # a depthwise filter
    ("inverted residual", (16,), 0, "e"),  # biases
    ("inverted residual", (4, 8, 3, 3), 1, "out"),  # the last consumer
    ("flatten", (4, 512), 1, "out"),
    ("flatten after NHWC", (4, 512), 1, "out"),
    ("BatchNorm1d on rows", (4, 8), 1, "out"),
    ("channel shuffle by hand", (4, 8, 3, 3), 1, "out"),
    ("dense connections", (6, 9, 3, 3), 1, "c"),
    ("tokens through linear", (6, 8), 1, "b"),
    ("squeeze and excite", (4, 8, 1, 1), 1, "s"),
]


@pytest.mark.parametrize(
    ("name", "shape", "dim", "module"), SABOTAGED, ids=[f"{s[0]} {s[3]} {s[1]}" for s in SABOTAGED]
)
def test_sabotage_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], dim: int, module: str
) -> None:
    case = CASES[NAMES.index(name)]
    model = case.make()
    before = Snapshot.of(model)
    sp.prune(model, case.example())
    wrong_by_one(monkeypatch, shape, dim)
    with pytest.raises(sp.VerificationError, match=rf"first difference in {module}\b"):
        sp.prune(model, case.example())
    before.assert_unchanged(model)


def test_sabotage_of_bookkeeping_is_caught_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle of these tests does not trust the library's own verification."""
    case = CASES[NAMES.index("residual chain")]
    wrong_by_one(monkeypatch, (4, 8, 3, 3), 1)
    with pytest.raises(AssertionError, match=r"out\.weight"):
        assert_exact(case.make(), case.example(), verify=False)


def test_oracle_sees_a_plan_that_is_incomplete() -> None:
    """A plan that forgets a consumer is not the masked original of the same small model."""
    case = CASES[NAMES.index("activation Sigmoid")]
    model = case.make()
    result = sp.prune(model, case.example())
    kept = {name: dims for name, dims in result.plan.kept.items() if name != "out.weight"}
    forgetful = masked_original(model, replace(result.plan, kept=kept))
    with pytest.raises(AssertionError, match="differs by"):
        assert_equal_models(result.model, forgetful, case.example())


class AllTogether(nn.Module):
    """Every channel of `a` is added to its neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c(self.b(h + h.roll(1, -1)).relu())


def test_a_single_unit_is_explained() -> None:
    """It is kept by every plan: readers learn why."""
    graph = sp.analyze(randomise(AllTogether()).double(), torch.randn(2, 4).double())
    assert {len(group) for group in graph.groups} == {1, 8}
    for name in ("a.weight[0]", "a.bias[0]", "b.weight[1]"):
        assert "all would go at once" in graph.fixed[name]
    assert "1 unit (its indices are coupled" in graph.explain("a")
    every = [line for name in ("a.weight[0]", "a.weight[1]", "a.bias[0]") for line in graph.explain(name).split("\n")]
    assert every == graph.explain("a").split("\n")
    assert "b.weight[0]" not in graph.fixed


class TiedHeads(nn.Module):
    """The heads are joined into the width of `x`, which callers rely on."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        h = self.values(x).view(b, n, self.heads, -1).softmax(1)
        return x + self.out(h.reshape(b, n, c))


def test_a_size_that_was_read_elsewhere_is_on_the_way_to_the_reason() -> None:
    model = nn.Sequential(nn.Linear(5, 8), TiedHeads())
    assert_kept(model, torch.randn(2, 3, 5), "1.values.weight[0]", "it is an output of the model")
    steps = sp.analyze(model, torch.randn(2, 3, 5)).explain("1.values.bias").splitlines()
    (joined,) = [step for step in steps if "- reshape in 1" in step]
    assert joined.endswith("- linear[2]"), "the result of the first layer, whose shape is read"


class Told(nn.Module):
    """An attribute says how many channels there are, and is the size of something else, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.width = 8

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).view(len(x), self.width, 8, 8)
        return self.b(h).unflatten(3, (-1, self.width)).sum(-1)  # type: ignore[no-any-return]


def test_a_size_that_an_attribute_tells_is_met_by_name() -> None:
    model = randomise(Told().double())
    assert_kept(model, torch.randn(2, 3, 8, 8, dtype=torch.float64), "a.weight[0]", "unflatten with these sizes")


class Modes(nn.Module):
    """The first sum of each mode is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) + 0.1 if self.training else self.a(x)
        centred = h - h.mean(1, keepdim=True)
        return self.b(centred) + (centred * centred).mean(1, keepdim=True)  # type: ignore[no-any-return]


def test_values_of_other_calls_are_not_taken_for_one_another() -> None:
    model = randomise(Modes().double())
    assert_kept(model, torch.randn(2, 3, 8, 8, dtype=torch.float64), "a.weight[0]", "mean runs over it")


class Statistics(nn.Module):
    """The first norm is read whole; of the second the statistics alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)
        self.one, self.two = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.one(self.a(x)))
        return self.c(F.batch_norm(h, self.two.running_mean, self.two.running_var))  # type: ignore[no-any-return]


def test_a_norm_of_which_a_part_is_read_stays_whole() -> None:
    """`num_features` tells the size of all of it."""
    model = randomise(Statistics().double())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert_kept(model, x, "b.weight[0]", "two.num_features is the size of two.weight, too, which is read nowhere")
    result = assert_exact(model, x)
    assert result.model.one.num_features == 4  # type: ignore[union-attr]


class Scaled(Statistics):
    """Weight and statistics of the second norm are read for channels of different layers."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h * self.two.weight[:, None, None] + self.two.bias[:, None, None]
        h = self.b(self.one(h))
        return self.c(F.batch_norm(h, self.two.running_mean, self.two.running_var))  # type: ignore[no-any-return]


def test_the_parts_of_a_norm_lose_the_same_channels() -> None:
    plan = assert_exact(randomise(Scaled().double()), torch.randn(2, 3, 4, 4, dtype=torch.float64)).plan
    assert plan.kept["two.weight"] == plan.kept["two.running_mean"] == {0: plan.kept["a.weight"][0]}


MEETINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "the result of arange": lambda h: h * torch.arange(8)[:, None, None],
    "the result of avg_pool3d": lambda h: F.local_response_norm(h, 3),
    "the result of cumprod": lambda h: h * (h + 1).cumprod(1),
    "the model's input": lambda h: h,
}


@pytest.mark.parametrize("what", MEETINGS)
def test_what_was_moved_about_goes_by_what_it_was(what: str) -> None:
    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = MEETINGS[what](self.a(x))
            if "input" in what:
                h = h + x.mean(1, keepdim=True).expand(-1, 8, -1, -1)
            return self.b(h)  # type: ignore[no-any-return]

    reason = f"it meets {what}, whose size is fixed"
    assert_kept(randomise(Meeting().double()), torch.randn(2, 3, 4, 4, dtype=torch.float64), "a.weight[0]", reason)


class Interleaved(nn.Module):
    """A channel shuffle of what is free and what a written number keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.kept, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept(x).view(-1, 6)
        both = torch.cat([self.free(x), kept], 1)
        return self.out(both.view(-1, 2, both.shape[1] // 2).transpose(1, 2).flatten(1))


def test_what_meets_fixed_indices_is_told_where() -> None:
    assert_kept(Interleaved(), torch.randn(2, 4), "free.weight[0]", ["it meets indices that cannot be removed", "view"])


class ChannelsLast(nn.Module):
    """Pooling over time of [N, T, C], as a picture of one channel."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.a, self.pool, self.b = nn.Linear(4, 8), pool, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.pool(self.a(x)))


@pytest.mark.parametrize(
    ("pool", "free"),
    [
        (nn.MaxPool2d((2, 1)), True),
        (nn.MaxPool2d((2, 1), return_indices=False, ceil_mode=True), True),
        (nn.AvgPool2d((3, 1), stride=(2, 1), padding=(1, 0)), True),
        (nn.AvgPool2d(1), True),
        (nn.MaxPool2d((2, 1), stride=1, dilation=2), True),
        (nn.AvgPool2d((2, 3), stride=1, padding=(0, 1)), False),
        (nn.MaxPool2d((2, 1), stride=(2, 2)), False),
    ],
)
def test_windows_of_one_place(pool: nn.Module, free: bool) -> None:
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    if isinstance(pool, nn.MaxPool2d) and pool.stride == (2, 2):
        model = nn.Sequential(nn.Linear(4, 8), pool, nn.Linear(4, 3)).double()
        assert_kept(randomise(model), x, "0.weight[0]", "max_pool2d works along it")
    elif free:
        assert assert_exact(randomise(ChannelsLast(pool)).double(), x).model.a.out_features == 4
    else:
        assert_kept(randomise(ChannelsLast(pool)).double(), x, "a.weight[0]", "works along it")


def test_indices_of_maxima_count_all_places() -> None:
    class Unpooled(ChannelsLast):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)[:, None]
            return self.b(nn.functional.max_unpool2d(*self.pool(h), (2, 1))[:, 0])

    model = Unpooled(nn.MaxPool2d((2, 1), return_indices=True))
    assert_kept(randomise(model).double(), torch.randn(2, 6, 4).double(), "a.weight[0]", "works along it")


def test_weights_normalised_at_each_place_of_a_kernel() -> None:
    """As the positional convolution of wav2vec 2.0: filters of zeros stay zero, whatever their norm is taken with."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 8)
            self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3, padding=1), dim=2)
            self.norm, self.b = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(self.norm(h + self.conv(h.transpose(1, 2)).transpose(1, 2)))

    result = assert_exact(randomise(Positions().double()), torch.randn(2, 6, 4, dtype=torch.float64))
    assert result.model.a.out_features == 4


class PooledKeys(nn.Module):
    """Keys go through a convolution over the width of a head, which all heads share; queries do not, as in MViT."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(5, 32), nn.Linear(5, 32), nn.Linear(5, 32), nn.Linear(32, 3)
        self.pool, self.heads = nn.Conv1d(8, 8, 3, padding=1, groups=8), 4

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        k = self.pool(k.flatten(0, 1).transpose(1, 2)).transpose(1, 2).view(x.shape[0], self.heads, x.shape[1], -1)
        return self.out(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_queries_that_meet_keys_without_free_heads() -> None:
    """The channels of a head go, the same ones in each."""
    result = assert_exact(randomise(PooledKeys().double()), torch.randn(2, 6, 5, dtype=torch.float64))
    assert [getattr(result.model, name).out_features for name in "qkv"] == [16, 16, 16]
    assert result.model.pool.groups == 4


# -- few and wide groups that are heads ---------------------------------------------------------------------------


class Retention(nn.Module):
    """Four heads of eight channels, each normalised by itself: Sun et al., Retentive Network, 2023."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.q, self.k, self.v = (nn.Linear(size, 32) for size in (3, 32, 32, 32))
        self.norm, self.out = nn.GroupNorm(4, 32), nn.Linear(32, 3)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.norm.num_groups, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        q, k, v = map(self.heads, (self.q(x), self.k(x), self.v(x)))
        y = (q @ k.mT @ v).transpose(1, 2).flatten(2)
        return self.out(self.norm(y.flatten(0, 1)).unflatten(0, x.shape[:2]))  # type: ignore[no-any-return]


class Mixed(Retention):
    """A convolution with a group for each head, of what heads were added to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(32, 32, 3, padding=1, groups=4), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        q, k, v = map(self.heads, (self.q(x), self.k(x), self.v(x)))
        x = x + (q @ k.mT @ v).transpose(1, 2).flatten(2)
        return self.out((x + self.conv(x.mT).mT).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Retention, Mixed])
def test_groups_that_are_heads_leave_with_them(kind: type[Retention]) -> None:
    model = randomise(kind().double())
    result = assert_exact(model, torch.randn(2, 5, 3, dtype=torch.float64))
    assert result.model.q.out_features == result.model.out.in_features == 16
