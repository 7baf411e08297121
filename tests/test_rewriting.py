"""`rigid="rewrite"`: sizes written in the code follow the channels; `"keep"`, the default, keeps both."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import assert_exact, assert_kept, masked_original, randomise
from torch import Tensor, nn

import structprune as sp
from structprune.rewriting import rewritten

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ROWS = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Flattened(nn.Module):
    """x.view(-1, 128)"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.a(x).relu(), 4)
        return self.b(x.view(-1, 128))


class Heads(nn.Module):
    """x.view(b, n, 4, 8)"""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(*io) for io in ((16, 32), (16, 32), (16, 32), (32, 16)))

    def split(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return x.view(b, n, 4, 8).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape[0], -1, 32))


class Sliced(nn.Module):
    """x[:, :4], x[:, 4:6] and x[:, 6:]"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(2, 5, 1)
        self.d = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x[:, :4].sigmoid()) + self.c(x[:, 4:6]) + self.d(x[:, 6:].relu())


class Split(nn.Module):
    """split(4) and split([4, 8])"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(*io, 1) for io in ((3, 12), (4, 12), (4, 5), (8, 5)))

    def forward(self, x: Tensor) -> Tensor:
        u, v, w = self.a(x).split(4, dim=1)
        left, right = self.b(u + v.sigmoid() * w).split([4, 8], dim=1)
        return self.c(left) + self.d(right)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).reshape(*x.shape[:2], 24, 1)
        return self.down(h.relu().reshape(x.size(0), x.size(1), 24)) + x


class Twice(nn.Module):
    """A nested module called twice, and another of its class with sizes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.out = Inner(), Inner(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.other(self.one(self.one(x))))


class Modes(nn.Module):
    """Another path in train mode, with numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(16, 12), nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.training:
            return self.b(h) + self.aux(h.view(-1, 12)).view(h.shape[0], -1, 5)
        return self.b(h.reshape(-1, 12)).unflatten(0, h.shape[:2])


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 5)

    def hidden(self, x: Tensor, scale: float = 2) -> Tensor:
        return self.activate(self.a(x).view(*x.shape[:-1], 3, 4)) * scale

    def activate(self, x: Tensor) -> Tensor:
        return x.relu()


class Child(Parent):
    """Methods of its own and of a base class, `super`, defaults and a lambda."""

    def activate(self, x: Tensor) -> Tensor:
        return super().activate(x) + 2 * x

    def forward(self, x: Tensor, *, gain: int = 3) -> Tensor:
        merge = lambda h: h.reshape(*h.shape[:-2], 12)  # noqa: E731
        return self.b(merge(self.hidden(x))) * gain


class PositionOnly(Flattened):
    def forward(self, x: Tensor, /) -> Tensor:
        return self.b(nn.functional.adaptive_avg_pool2d(self.a(x).relu(), 4).view(-1, 128))


class Joined(nn.Module):
    """reshape(b, n, c): heads are split and joined by the width of what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(b, n, c))


class JoinedOtherwise(Joined):
    """Sizes of a third of the width of all, in lists, read by `size`, computed before."""

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        c, rows = qkv.shape[-1] // 3, x.size(1)
        depth = x.size(-1) // self.heads
        q, k, v = qkv.view([x.shape[0], rows, 3, self.heads, depth]).permute(2, 0, 3, 1, 4)
        h = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2)
        return x + self.out(torch.reshape(h, (x.size(0), rows, x.shape[2]))) + self.out(h.reshape(-1, rows, c))


class Renamed(Joined):
    """Names of sizes that stand for something else as well are left alone."""

    def split(self, x: Tensor, n: Any, c: Any) -> Tensor:
        return torch.reshape(x, (*n, 3, self.heads, c // self.heads))

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2], x.shape[2]
        q, k, v = self.split(self.qkv(x), n, c).permute(2, 0, 3, 1, 4)
        shape = x.shape[2]
        shape = (*x.shape[:2], shape)
        return x + self.out(torch.reshape((q @ k.transpose(-2, -1) / 8 @ v).transpose(1, 2), shape))


class JoinedOneByOne(Joined):
    """Sizes that are read one by one, with a root and a mean in the same class."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.size(0), x.size(1), x.size(dim=2)
        depth: int = c // self.heads
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, depth).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
        return x - self.out((weights @ v).transpose(1, 2).reshape(b, n, c).mean(1, keepdim=True))


class Registered(nn.Module):
    """A base that keeps a register of its subclasses, by a name that they must give."""

    register: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, *, key: str) -> None:
        if key in cls.register:
            raise ValueError(key)
        cls.register[key] = cls


class Announced(Registered, key="announced"):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).reshape(-1, 12))


class ManyNumbers(nn.Module):
    """More numbers than tuples are looked through for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        scales = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
        return self.b(self.a(x * scales[1]).reshape(-1, 12))


class Folded(nn.Module):
    """Heads in the batch: a size that depends on how large the batch is cannot be put right by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Conv1d(7, 96, 1), nn.Conv1d(32, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, n = x.shape
        many = b * self.heads
        q, k, v = self.qkv(x).chunk(3, 1)
        q, k, v = q.reshape(b * self.heads, 8, n), k.reshape(many, 8, n), v.reshape(many, 8, -1)
        h = v @ (q.transpose(-2, -1) @ k).softmax(-1)
        return self.out(h.reshape(b, 32, n))


class Response(nn.Module):
    """A norm by hand with a number in its code: it keeps its substitute."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(12))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=1, keepdim=True)
        return x + self.gain * (x * (size / (size.mean(-1, keepdim=True) + 1e-6)))


class Stream(nn.Module):
    """Heads that are joined by the width of a stream which shrinks, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b, self.head = nn.Linear(16, 16), Joined(), JoinedOtherwise(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.embed(x))))


CASES: dict[str, tuple[type[nn.Module], Tensor, str]] = {
    "view of everything": (Flattened, IMAGES, "0.a"),
    "view by heads": (Heads, ROWS, "0.q"),
    "slices": (Sliced, IMAGES, "0.a"),
    "splits": (Split, IMAGES, "0.a"),
    "called twice": (Twice, ROWS, "0.one.up"),
    "two modes": (Modes, ROWS, "0.a"),
    "positions only": (PositionOnly, IMAGES, "0.a"),
    "super, defaults, a lambda": (Child, ROWS, "0.a"),
    "a width that is read": (Joined, ROWS, "0.qkv"),
    "heads in the batch": (Folded, ROWS, "0.qkv"),
    "widths one by one": (JoinedOneByOne, ROWS, "0.qkv"),
    "a register of classes": (Announced, ROWS, "0.a"),
    "many numbers": (ManyNumbers, ROWS, "0.a"),
    "widths in other words": (JoinedOtherwise, ROWS, "0.qkv"),
}


def model_of(kind: type[nn.Module]) -> Any:
    return randomise(nn.Sequential(kind()).double())


@pytest.mark.parametrize("name", CASES)
def test_rewritten(name: str, tmp_path: Path) -> None:
    kind, inputs, layer = CASES[name]
    model = model_of(kind)
    result = assert_rewritten(model, inputs)
    weight = result.model.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    assert weight.shape[0] <= model.get_submodule(layer).weight.shape[0] / 2
    assert list(result.model.state_dict()) == list(model.state_dict())
    sp.save(result, tmp_path / "out")
    masked = masked_original(model, result.plan)
    for again in (sp.load(tmp_path / "out", model), copy.deepcopy(result.model), sp.apply(result.plan, model_of(kind))):
        again = again.double()
        again.load_state_dict(result.model.state_dict())
        torch.testing.assert_close(again.eval()(inputs), masked.eval()(inputs))
        torch.testing.assert_close(again.train()(inputs[:1]), masked.train()(inputs[:1]))


def assert_rewritten(model: nn.Module, inputs: Tensor, **settings: Any) -> sp.Result:
    before = {path: type(m) for path, m in model.named_modules()}
    result = assert_exact(model, inputs, rigid="rewrite", **settings)
    assert {path: type(m) for path, m in model.named_modules()} == before
    assert any(name == "rewrite" for name, _ in result.plan.swaps.values())
    return result


@pytest.mark.parametrize("name", CASES)
def test_kept_by_default(name: str) -> None:
    kind, inputs, layer = CASES[name]
    model = model_of(kind)
    kept = sp.analyze(model, inputs).fixed
    assert "written in the code" in kept[f"{layer}.weight[0]"] or "commute" in kept[f"{layer}.weight[0]"]


def test_a_model_that_is_itself_rewritten() -> None:
    model = randomise(Flattened().double())
    result = sp.prune(model, IMAGES, rigid="rewrite")
    small: Any = result.model
    assert isinstance(small, Flattened)
    assert small.code_sizes == (4, 64)
    assert not hasattr(model, "code_sizes")
    assert repr(small).startswith("RewrittenFlattened(")
    larger = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(small(larger), masked_original(model, result.plan)(larger), rtol=1e-12, atol=1e-12)
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(larger), small(larger))
    exported = torch.export.export(small, (larger,)).module()
    torch.testing.assert_close(exported(larger), small(larger))
    again = sp.prune(small, IMAGES).model  # its numbers are attributes now
    assert again.code_sizes == (4, 32)


def test_a_rewritten_model_can_be_saved(tmp_path: Path) -> None:
    small = sp.prune(model_of(Heads), ROWS, rigid="rewrite").model
    torch.save(small, tmp_path / "small.pt")
    assert torch.equal(torch.load(tmp_path / "small.pt", weights_only=False)(ROWS), small(ROWS))


def test_inplace() -> None:
    model, other = model_of(Flattened), model_of(Flattened)
    small = sp.prune(other, IMAGES, rigid="rewrite").model
    assert sp.prune(model, IMAGES, rigid="rewrite", inplace=True).model is model
    assert torch.equal(model(IMAGES), small(IMAGES))


def test_step_by_step(tmp_path: Path) -> None:
    """The subclass of the first step goes on through the others, and through an interruption."""
    model = model_of(Heads)
    settings: dict[str, Any] = {"ratio": 0.5, "steps": 2, "rigid": "rewrite", "folder": tmp_path}
    next(iter(sp.iterate(model, ROWS, **settings)))
    for step in sp.iterate(model, ROWS, **settings):
        assert (step.model[0].q.out_features, step.number) in ((24, 1), (16, 2))
    assert step.number == 2
    for small in (step.model, sp.apply(step.plan, model)):
        torch.testing.assert_close(small(ROWS), masked_original(model, step.plan)(ROWS), rtol=1e-12, atol=1e-12)


class OneNumber(nn.Module):
    """The same number in the code twice, for different things, of which one cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        for width in (12, 12):
            h = h.view(*h.shape[:2], width)
        return self.b(h * len(range(12)))


def test_one_number_for_two_things() -> None:
    assert_rewritten(model_of(OneNumber), ROWS)


class Super(Parent):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(super().hidden(x).flatten(-2))

    def hidden(self, x: Tensor, scale: float = 2) -> Tensor:
        raise NotImplementedError


class Decorated(Flattened):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.adaptive_avg_pool2d(self.a(x).relu(), 4).view(-1, 128))


class Private(Flattened):
    def forward(self, x: Tensor) -> Tensor:
        self.__seen = True
        return self.b(nn.functional.adaptive_avg_pool2d(self.a(x).relu(), 4).view(-1, 128))


class Rebound(Flattened):
    def forward(self, x: Tensor) -> Tensor:
        flat = (lambda self: self.view(-1, 128))(nn.functional.adaptive_avg_pool2d(self.a(x).relu(), 4))
        return self.b(flat)


def without_source() -> type[nn.Module]:
    namespace: dict[str, Any] = {"Flattened": Flattened, "nn": nn}
    body = "self.b(nn.functional.adaptive_avg_pool2d(self.a(x).relu(), 4).view(-1, 128))"
    exec(f"class Made(Flattened):\n    def forward(self, x):\n        return {body}", namespace)
    return namespace["Made"]


@pytest.mark.parametrize("kind", [Super, Decorated, Private, Rebound, without_source()])
def test_what_cannot_be_rewritten_is_kept(kind: type[nn.Module]) -> None:
    inputs = ROWS if issubclass(kind, Parent) else IMAGES
    model = model_of(kind)
    assert "written in the code" in sp.analyze(model, inputs, rigid="rewrite").fixed["0.a.weight[0]"]
    assert_kept(model, inputs, "0.a.weight[0]", "written in the code")


def test_an_attribute_of_that_name_is_left_alone() -> None:
    model = model_of(Flattened)
    model[0].code_sizes = (1, 2)
    assert "written in the code" in sp.analyze(model, IMAGES, rigid="rewrite").fixed["0.a.weight[0]"]
    assert model[0].code_sizes == (1, 2)


# -- plans ----------------------------------------------------------------------------------------------------


def test_bad_plans() -> None:
    model = model_of(Flattened)
    plan = sp.plan(sp.analyze(model, IMAGES, rigid="rewrite"))
    assert plan.attributes["0"] == {"code_sizes": (4, 64)}
    for numbers in ((64,), 64, (4, 64, 2)):
        with pytest.raises(sp.PlanError, match="no such number there"):
            sp.apply(replace(plan, attributes={**plan.attributes, "0": {"code_sizes": numbers}}), model)
    with pytest.raises(sp.PlanError, match="no such number there"):
        sp.apply(replace(plan, swaps={}), model)
    with pytest.raises(sp.PlanError, match="the code of Flattened is not what it was"):
        sp.apply(replace(plan, swaps={"0": ("rewrite", 1)}), model)
    with pytest.raises(sp.PlanError, match=r"swaps '0\.a', which is a Conv2d"):
        sp.apply(replace(plan, swaps={**plan.swaps, "0.a": ("rewrite", 1)}), model)
    data = plan.to_dict()
    data["attributes"]["0"]["code_sizes"] = [4, "64"]
    with pytest.raises(sp.PlanError, match=r"attributes\.0\.code_sizes: expected int"):
        sp.PruningPlan.from_dict(data)


@pytest.mark.parametrize("rigid", ["Rewrite", "", None, True, 1, ["keep"]])
def test_another_word_is_refused(rigid: Any) -> None:
    with pytest.raises(sp.ArgumentError, match=r"rigid must be 'keep' .* or 'rewrite'"):
        sp.prune(model_of(Flattened), IMAGES, rigid=rigid)
    with pytest.raises(sp.ArgumentError, match="rigid must be 'keep'"):
        sp.analyze(model_of(Flattened), IMAGES, rigid=rigid)


def test_nothing_to_gain() -> None:
    assert rewritten(nn.Conv2d) is None
    assert rewritten(nn.Sequential) is None


def test_heads_and_the_stream_that_they_are_joined_by(tmp_path: Path) -> None:
    """Both shrink, each by its own ranking: what is added to a width is their difference."""
    model = randomise(Stream().double())
    result = assert_rewritten(model, ROWS, ratios={"a.qkv": 0.25, "b.qkv": 0.75})
    small: Any = result.model
    assert (small.embed.out_features, small.a.qkv.out_features, small.b.qkv.out_features) == (8, 36, 12)
    assert small.a.code_sizes[-1] == 4  # 8 + 4 of what heads make
    assert -4 in small.b.code_sizes
    sp.save(result, tmp_path / "out")
    wider = torch.randn(2, 9, 16, dtype=torch.float64)
    masked = masked_original(model, result.plan)
    for again in (small, sp.load(tmp_path / "out", model)):
        torch.testing.assert_close(again(wider), masked(wider), rtol=1e-12, atol=1e-12)


class Outlook(nn.Module):
    """Windows of values, weighted and put back: Yuan et al., VOLO, 2021. Their size is a product with the width."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.kernel = 4, 3
        self.v, self.a, self.out = nn.Linear(16, 16), nn.Linear(16, 324), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        v = nn.functional.unfold(self.v(x).permute(0, 3, 1, 2), self.kernel, padding=1)
        v = v.reshape(b, self.heads, c // self.heads, self.kernel * self.kernel, h * w).permute(0, 1, 4, 3, 2)
        a = self.a(x).reshape(b, h * w, self.heads, self.kernel * self.kernel, -1).permute(0, 2, 1, 3, 4)
        y = (a.softmax(-1) @ v).permute(0, 1, 4, 3, 2).reshape(b, c * self.kernel * self.kernel, h * w)
        return x + self.out(nn.functional.fold(y, (h, w), self.kernel, padding=1).permute(0, 2, 3, 1))


def test_products_with_a_width_that_shrinks() -> None:
    model = randomise(nn.Sequential(nn.Linear(3, 16), Outlook(), nn.Linear(16, 4)).double())
    images = torch.randn(2, 5, 6, 3, dtype=torch.float64)
    small: Any = assert_rewritten(model, images, ratios={"1.v": 0.25}).model
    assert (small[0].out_features, small[1].v.out_features, small[1].kernel) == (8, 12, 3)
    assert assert_exact(model, images).model[0].out_features == 8


class Area(nn.Module):
    """What is read depends on how large an image is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        size = x.flatten(1).shape[1]
        return self.b(self.a(x).reshape(b, size).relu().reshape(b, c, h, w))


class Clips(nn.Module):
    """What is read depends on how long a clip is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        frames = x.reshape(b, -1, h, w).shape[1]
        y = nn.functional.avg_pool2d(self.a(x).reshape(b, frames, h, w), 3, 1, 1)
        return self.b(y.reshape(b, c, t, h, w))


class Batches(nn.Module):
    """What is read depends on how large a batch is."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        many = x.reshape(b, n, 4, 4).transpose(1, 2).flatten(0, 1).shape[0]
        v = self.v(x).reshape(b, n, 4, 4).transpose(1, 2).reshape(many, n, 4)
        return self.out(v.reshape(b, 4, n, 4).transpose(1, 2).reshape(b, n, c))


@pytest.mark.parametrize(("kind", "shape"), [(Area, (2, 4, 4, 4)), (Clips, (2, 4, 3, 5, 5)), (Batches, (2, 7, 16))])
def test_what_no_weight_says_the_size_of_is_no_width(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    """One number would be right for the example alone."""
    with pytest.raises(sp.NothingToPruneError, match="commute"):
        sp.prune(randomise(kind().double()), torch.randn(shape, dtype=torch.float64), rigid="rewrite")


class Stages(nn.Module):
    """One method for stages of which only one is as wide as the input."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.ModuleList([nn.Linear(16, 16), nn.Linear(32, 32)]), nn.Linear(32, 3)
        self.down = nn.Linear(16, 32)

    def mixed(self, i: int, x: Tensor) -> Tensor:
        b, n, c = x.shape
        y = self.q[i](x).reshape(b, n, 4, c // 4).transpose(1, 2).softmax(-2)
        return x + y.transpose(1, 2).reshape(b, n, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mixed(1, self.down(self.mixed(0, x))))


class Shuffled(nn.Module):
    """Both of two sizes could shrink, if one were not written."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return self.b(self.a(x).view(b, n, 4, -1).transpose(2, 3).reshape(b, n, -1))


@pytest.mark.parametrize("kind", [Stages, Shuffled])
def test_where_rewriting_frees_less_nothing_is_rewritten(kind: type[nn.Module]) -> None:
    model = randomise(kind().double())
    plan = assert_exact(model, ROWS, rigid="rewrite").plan
    assert plan.kept == sp.prune(model, ROWS).plan.kept


def test_names_that_are_more_than_a_width_are_left_alone() -> None:
    model = randomise(Renamed().double())
    with pytest.raises(sp.NothingToPruneError, match="commute"):
        sp.prune(model, ROWS, rigid="rewrite")


def test_norms_keep_their_substitutes() -> None:
    """A class that is rewritten could not be one that counts channels."""
    model = randomise(nn.Sequential(nn.Linear(16, 12), Response(), nn.Linear(12, 3)).double())
    plan = assert_exact(model, ROWS, rigid="rewrite").plan
    assert plan.swaps == {"1": ("counted", 12)}


class Blocks(nn.Module):
    """Heads by `split` and `cat`, over the root of an attribute: Lee et al., Set Transformer, 2019."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.heads = 16, 4
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        depth = self.width // self.heads
        q, k, v = (torch.cat(t(x).split(depth, 2), 0) for t in (self.q, self.k, self.v))
        weights = torch.softmax(q.bmm(k.transpose(1, 2)) / math.sqrt(self.width), 2)
        return self.out(torch.cat((q + weights.bmm(v)).split(x.size(0), 0), 2))


class Scaled(nn.Module):
    """The root of a width that is read, and one over it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        key = self.a(x)
        width = key.size(-1)
        gates = (self.b(key) / np.sqrt(width)).softmax(1)
        return self.out(gates * key * width**-0.5 + gates / key.shape[-1])


class Embedded(nn.Module):
    """The root of the attribute of a layer: Kang and McAuley, SASRec, 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Linear(16, 12, bias=False), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        h = h * self.embedding.out_features**0.5
        return self.out(h) + h.pow(2).sum(-1, keepdim=True) * 2**0.5


class Annotated(nn.Module):
    """Attention as in The Annotated Transformer (Rush, 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.d_k = 4, 4
        self.linears = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            lin(x).view(x.size(0), -1, self.h, self.d_k).transpose(1, 2)
            for lin in list(self.linears)[:3]
        )  # fmt: skip
        d_k = q.size(-1)
        y = (q @ k.transpose(-2, -1) / math.sqrt(d_k)).softmax(-1) @ v
        return self.linears[-1](y.transpose(1, 2).contiguous().view(x.size(0), -1, self.h * self.d_k))  # type: ignore[no-any-return]


class Lengths(nn.Module):
    """One over how much there is of an image, channels and all, is no number that could be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h) / math.sqrt(h.flatten(1).shape[1])


SCALES: dict[str, tuple[type[nn.Module], str]] = {
    "the root of an attribute": (Blocks, "0.q"),
    "roots and parts of a width": (Scaled, "0.a"),
    "the root of another layer's attribute": (Embedded, "0.embedding"),
}


@pytest.mark.parametrize("name", SCALES)
def test_scales_keep_their_value(name: str, tmp_path: Path) -> None:
    kind, layer = SCALES[name]
    model = model_of(kind)
    assert "Python looks at its size" in sp.analyze(model, ROWS).fixed[f"{layer}.weight[0]"]
    result = assert_rewritten(model, ROWS)
    assert len(result.plan.kept[f"{layer}.weight"][0]) <= len(model.get_submodule(layer).weight) / 2  # type: ignore[arg-type]
    sp.save(result, tmp_path / "out")
    other = torch.randn(2, 9, 16, dtype=torch.float64)
    masked = masked_original(model, result.plan)
    for again in (result.model, sp.load(tmp_path / "out", model)):
        torch.testing.assert_close(again(other), masked(other), rtol=1e-12, atol=1e-12)
    twice = assert_exact(result.model, ROWS)
    torch.testing.assert_close(
        twice.model(other), masked_original(result.model, twice.plan)(other), rtol=1e-12, atol=1e-12
    )


def test_attention_over_the_root_of_the_width_of_heads() -> None:
    small: Any = assert_exact(model_of(Annotated), ROWS, rigid="rewrite").model
    assert small[0].linears[0].out_features == 8


def test_a_scale_that_depends_on_the_image_is_left_alone() -> None:
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with pytest.raises(sp.NothingToPruneError, match="Python looks at its size"):
        sp.prune(model_of(Lengths), x, rigid="rewrite")
