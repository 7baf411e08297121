"""Constraints hold in every scope, alone and together: what may shrink, by how much, and to which widths."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers import assert_exact, masked_original, randomise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_random import Model, architectures
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune.constraints import preferred_multiple, stride


class Block(nn.Module):
    """A transformer block, written out: heads of 4 channels, an inner width, a stream."""

    def __init__(self, width: int = 32, heads: int = 8) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, self.size)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(found)
        return x + self.down(F.gelu(self.up(x)))


class Mixed(nn.Module):
    """One group of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 12)
        self.gru = nn.GRU(12, 16, batch_first=True)
        self.wide = nn.Linear(16, 24)
        self.project = nn.Linear(24, 32)
        self.block = Block()
        self.conv1, self.conv2 = nn.Conv1d(32, 20, 3), nn.Conv1d(20, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.wide(self.gru(self.words(x))[0]).relu())
        return self.conv2(self.conv1(self.block(x).transpose(1, 2)).relu())


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Mixed().double()).eval()


def words() -> Tensor:
    return torch.arange(18).reshape(2, 9) % 11


def graph() -> sp.ChannelGraph:
    return sp.analyze(mixed(), words())


KINDS = {
    "words": "embedding", "gru.weight_ih_l0": "state", "wide": "mlp", "project": "residual", "block.qkv": "head",
    "block.up": "mlp", "conv1": "channel",
}  # fmt: skip


def shrunk(plan: sp.PruningPlan) -> dict[str, float]:
    """For every group that shrinks, the fraction of its units that goes."""
    found = {}
    for group in graph().groups:
        part = next(s for s in group.slices if s.produces)
        if part.dim in plan.kept.get(part.name, {}):
            kept = np.unique(part.units[np.isin(part.indices, plan.kept[part.name][part.dim])])
            if len(kept) < len(group):
                found[group.name] = 1 - len(kept) / len(group)
    return found


# -- kinds ----------------------------------------------------------------------------------------------------


def test_kinds_come_from_the_operations() -> None:
    assert {group.name: group.kind for group in graph().groups} == KINDS
    assert all(f", {group.kind}: " in repr(group) for group in graph().groups)


def test_names_tell_nothing() -> None:
    class Misnamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_head, self.residual = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.residual(self.attention_head(x).relu())

    assert [g.kind for g in sp.analyze(Misnamed(), torch.randn(1, 3, 4, 4)).groups] == ["channel"]


def test_a_head_that_is_a_slice_of_the_stream_is_of_both_kinds() -> None:
    swin = sp.analyze(torchvision.models.swin_t().eval(), torch.randn(1, 3, 32, 32))
    assert [g.kinds for g in swin.groups][:2] == [("head", "residual"), ("mlp",)]
    plan = sp.plan(swin, exclude="kind:residual")
    assert plan
    assert not any(s.dim in plan.kept.get(s.name, {}) for s in swin.groups[0].slices)


# -- what may shrink ------------------------------------------------------------------------------------------

EXCLUDED: list[tuple[Any, set[str]]] = [
    ("conv1", {"conv1"}),
    ("block.*", {"block.qkv", "block.up", "project"}),
    (["conv1", "kind:head"], {"conv1", "block.qkv"}),
    ("kind:residual", {"project"}),
    ("kind:mlp", {"wide", "block.up"}),
    ("kind:state", {"gru.weight_ih_l0"}),
    ("kind:embedding", {"words"}),
    (nn.Conv1d, {"conv1"}),
    (nn.GRU, {"gru.weight_ih_l0"}),
    ([nn.Embedding, nn.GRU, "kind:channel"], {"words", "gru.weight_ih_l0", "conv1"}),
    (Block, {"block.qkv", "block.up", "project"}),
    ("block.norm", {"project"}),
    (nn.LayerNorm, {"project"}),
    ("conv1.bias", {"conv1"}),
    (["block.norm.weight", "block.up.bias"], {"project", "block.up"}),
    ("conv2", set()),  # an output: it keeps its filters anyway
    ("conv2.bias", set()),
]


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(("exclude", "kept"), EXCLUDED, ids=[str(e) for e, _ in EXCLUDED])
def test_exclude(exclude: Any, kept: set[str], scope: str) -> None:
    plan = sp.plan(graph(), ratio=0.75, scope=scope, exclude=exclude)
    assert not set(shrunk(plan)) & kept
    assert set(shrunk(plan)) == set(KINDS) - kept or scope == "global"


INCLUDED: list[tuple[Any, set[str]]] = [
    ("conv1", {"conv1"}),
    ("block.*", {"block.qkv", "block.up"}),  # the stream has a filter outside
    (["block.*", "project"], {"block.qkv", "block.up", "project"}),
    ("kind:head", {"block.qkv"}),
    (["kind:mlp", nn.Embedding], {"wide", "block.up", "words"}),
    ("*", set(KINDS)),
    ("block.norm", {"project"}),
    (["conv1.bias", nn.LayerNorm], {"conv1", "project"}),
]


@pytest.mark.parametrize(("include", "free"), INCLUDED, ids=[str(e) for e, _ in INCLUDED])
def test_include(include: Any, free: set[str]) -> None:
    assert set(shrunk(sp.plan(graph(), include=include))) == free
    assert set(shrunk(sp.plan(graph(), include=include, exclude="block.up"))) == free - {"block.up"}


def test_modules_of_the_model() -> None:
    model: Any = mixed()
    here = sp.analyze(model, words())
    assert sp.plan(here, exclude=model.block) == sp.plan(here, exclude="block.*")
    assert sp.plan(here, exclude=[model.conv1, model.gru]) == sp.plan(here, exclude=["conv1", "gru"])
    chain = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6)), nn.Linear(6, 2))
    with pytest.raises(sp.NothingToPruneError, match="2 groups are excluded"):  # a module that can be iterated over
        sp.plan(sp.analyze(chain, torch.randn(2, 3)), exclude=chain[0])


@pytest.mark.parametrize("scope", ["local", "global"])
def test_ratios(scope: str) -> None:
    """What has a ratio of its own keeps to it; the rest goes by `ratio`."""
    plan = sp.plan(graph(), ratio=0.5, scope=scope, ratios={"block.*": 0.25, "kind:head": 0.5, nn.Conv1d: 0})
    found = shrunk(plan)
    assert found["block.qkv"] == 0.5, "the last that names a group counts"
    assert found["block.up"] == found["project"] == 0.25
    assert "conv1" not in found
    assert scope == "global" or found["wide"] == 0.5


def test_ratios_with_a_target() -> None:
    plan = sp.plan(graph(), target={"params": 0.5}, ratios={"block.*": 0.25})
    assert shrunk(plan)["block.up"] == 0.25
    small = sp.apply(plan, mixed())
    assert 0.98 * 0.5 < sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in mixed().parameters()) <= 0.5


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("how", [{"ratio": 0.4}, {"target": {"params": 0.4}}], ids=str)
def test_least_and_largest_ratios(scope: str, how: dict[str, Any]) -> None:
    found = shrunk(sp.plan(graph(), scope=scope, min_ratio=0.25, max_ratio=0.5, **how))
    assert set(found) == set(KINDS)
    assert all(0.25 <= ratio <= 0.5 for ratio in found.values())


def test_the_default_ratio_gives_way_to_limits() -> None:
    assert sp.plan(graph(), max_ratio=0.25) == sp.plan(graph(), ratio=0.25)


def test_no_layer_is_emptied() -> None:
    plan = sp.plan(graph(), ratio=0.99, scope="global")
    assert all(indices for dims in plan.kept.values() for indices in dims.values())
    assert sp.apply(plan, mixed())(words()).shape == (2, 6, 5)


# -- widths ---------------------------------------------------------------------------------------------------


def produced_widths(model: nn.Module) -> dict[str, int]:
    return {
        "words": model.words.embedding_dim, "gru": 3 * model.gru.hidden_size, "wide": model.wide.out_features,
        "project": model.project.out_features, "qkv": model.block.qkv.out_features, "up": model.block.up.out_features,
        "conv1": model.conv1.out_channels,
    }  # fmt: skip


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("how", [{"ratio": 0.3}, {"ratio": 0.7}, {"target": {"params": 0.4}}], ids=str)
@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_round_to(scope: str, how: dict[str, Any], multiple: int) -> None:
    before, after = (
        produced_widths(mixed()),
        produced_widths(sp.apply(sp.plan(graph(), scope=scope, round_to=multiple, **how), mixed())),
    )
    assert before != after
    for name, width in after.items():
        assert width % multiple == 0 or width == before[name], (name, width)
        assert width >= min(multiple, before[name])


def test_rounding_removes_more_rather_than_less() -> None:
    after = produced_widths(sp.apply(sp.plan(graph(), ratio=0.3, round_to=8), mixed()))
    assert after["up"] == 88  # 128 - 38 = 90
    assert after["wide"] == 16  # 24 - 7 = 17
    assert after["conv1"] == 8  # 20 - 6 = 14
    assert after["qkv"] == 72  # heads of 3 x 4 channels go two at a time
    assert produced_widths(sp.apply(sp.plan(graph(), ratio=0.3, round_to=64), mixed()))["conv1"] == 20


def test_a_unit_of_several_channels_counts_with_all_of_them() -> None:
    heads = next(g for g in graph().groups if g.name == "block.qkv")
    assert [stride(heads, m) for m in (1, 2, 3, 4, 8, 12, 24)] == [1, 1, 1, 1, 2, 1, 2]


def test_auto_is_what_the_dtype_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    linear = nn.Linear(4, 4)
    assert [preferred_multiple(linear.to(t)) for t in (torch.float64, torch.float32, torch.bfloat16)] == [4, 8, 16]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert preferred_multiple(linear.to(torch.float32)) == 4
    assert preferred_multiple(nn.Identity()) == 1
    plan = sp.plan(graph(), ratio=0.3, round_to="auto")
    assert plan == sp.plan(graph(), ratio=0.3, round_to=preferred_multiple(mixed()))


@settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(
    architectures(), st.floats(0, 0.5), st.floats(0.5, 1), st.sampled_from([1, 2, 4]),
    st.sampled_from(["local", "global"]),
)  # fmt: skip
def test_random_constraints(drawn: Any, least: float, most: float, round_to: int, scope: str) -> None:
    """Within limits, in multiples, and exact."""
    model = randomise(Model(*drawn).double())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here = sp.analyze(model, x)
    try:
        plan = sp.plan(here, ratio=0.5, scope=scope, min_ratio=least, max_ratio=most, round_to=round_to)
    except sp.NothingToPruneError:
        return
    assert sp.verify(model, plan, x).ok or not plan
    masked_original(model, plan)
    for group in () if plan.notes else here.groups:
        part = next(s for s in group.slices if s.produces)  # rows of a grid may lose different indices, but as many
        lost = ~np.isin(part.indices, plan.kept.get(part.name, {}).get(part.dim, part.indices))
        gone = int(lost.sum()) * len(group) / len(part.indices)
        assert gone <= math.floor(most * len(group) + 1e-9)
        assert gone >= min(math.ceil(least * len(group) - 1e-9), len(group) - 1, math.floor(most * len(group) + 1e-9))


def test_constraints_in_prune_are_exact() -> None:
    result = assert_exact(
        mixed(), words(), 0.5, scope="global", exclude=["kind:state"], include="*", ratios={nn.Conv1d: 0.25},
        min_ratio=0.1, max_ratio=0.75, round_to=2,
    )  # fmt: skip
    assert result.model.conv1.out_channels == 14


# -- what cannot be -------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"exclude": "kind:heads"}, sp.ArgumentError, ["'heads'", "head, state, residual"]),
    ({"include": ["kind:"]}, sp.ArgumentError, ["kind", "residual"]),
    ({"ratios": {"kind:width": 0.5}}, sp.ArgumentError, ["'width'", "mlp"]),
    ({"include": "conv3"}, sp.UnknownNameError, ["'conv3'", "'conv2'"]),
    ({"ratios": {"conv3": 0.5}}, sp.UnknownNameError, ["'conv3'", "'conv2'"]),
    ({"exclude": nn.Conv2d}, sp.UnknownNameError, ["Conv2d", "'Conv1d'"]),
    ({"exclude": int}, sp.ArgumentTypeError, ["exclude", "int"]),
    ({"exclude": nn.Linear(2, 2)}, sp.UnknownNameError, ["exclude", "Linear", "not a part of this model"]),
    ({"include": 3}, sp.ArgumentTypeError, ["include", "3"]),
    ({"include": [None]}, sp.ArgumentTypeError, ["include", "None"]),
    ({"ratios": [0.5]}, sp.ArgumentTypeError, ["ratios", "{'layer1.*': 0.2}"]),
    ({"ratios": {3: 0.5}}, sp.ArgumentTypeError, ["ratios", "3"]),
    ({"ratios": {"conv1": 1}}, sp.ArgumentError, ["'conv1'", "[0, 1)"]),
    ({"ratios": {"conv1": math.nan}}, sp.ArgumentError, ["'conv1'", "nan"]),
    ({"ratios": {"conv1": "half"}}, sp.ArgumentTypeError, ["'conv1'", "'half'"]),
    ({"min_ratio": 0.5, "max_ratio": 0.4}, sp.ArgumentError, ["min_ratio", "0.5", "0.4"]),
    ({"min_ratio": -0.1}, sp.ArgumentError, ["min_ratio", "-0.1"]),
    ({"max_ratio": 1.5}, sp.ArgumentError, ["max_ratio", "1.5"]),
    ({"max_ratio": math.nan}, sp.ArgumentError, ["max_ratio", "nan"]),
    ({"max_ratio": True}, sp.ArgumentTypeError, ["max_ratio", "True"]),
    ({"min_ratio": "0"}, sp.ArgumentTypeError, ["min_ratio", "'0'"]),
    ({"ratio": 0.5, "max_ratio": 0.4}, sp.ArgumentError, ["ratio", "0.4", "0.5"]),
    ({"ratio": 0.1, "min_ratio": 0.2}, sp.ArgumentError, ["ratio", "0.1", "0.2"]),
    ({"round_to": 0}, sp.ArgumentError, ["round_to", "0"]),
    ({"round_to": -8}, sp.ArgumentError, ["round_to", "-8"]),
    ({"round_to": 8.0}, sp.ArgumentTypeError, ["round_to", "8.0", "'auto'"]),
    ({"round_to": True}, sp.ArgumentTypeError, ["round_to", "True"]),
    ({"round_to": "eight"}, sp.ArgumentTypeError, ["round_to", "'eight'", "'auto'"]),
    ({"include": "kind:head", "exclude": "block.qkv"}, sp.NothingToPruneError, ["7 groups are excluded"]),
]


@pytest.mark.parametrize(("given", "error", "words_"), BAD, ids=[str(s) for s, _, _ in BAD])
def test_impossible_constraints(given: dict[str, Any], error: type[Exception], words_: list[str]) -> None:
    with pytest.raises(error) as caught:
        sp.plan(graph(), **given)
    for word in words_:
        assert word in str(caught.value)
