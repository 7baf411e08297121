"""Random architectures: whatever is put together from these parts is pruned exactly, or not at all.

`STRUCTPRUNE_EXAMPLES=5000 STRUCTPRUNE_SEED=1 pytest tests/test_random.py` hunts for longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers import assert_exact_or_nothing, randomise
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

EXAMPLES = int(os.environ.get("STRUCTPRUNE_EXAMPLES", "60"))
SEED = os.environ.get("STRUCTPRUNE_SEED")

Forward = Callable[[nn.ModuleDict, list[Tensor]], Tensor]


@dataclass
class Architecture:
    """A list of steps. Each makes one more value from the values before it; all values are [N, C, 8, 8] images."""

    parts: dict[str, nn.Module] = field(default_factory=dict)
    steps: list[tuple[str, Forward]] = field(default_factory=list)
    widths: list[int] = field(default_factory=lambda: [3])

    def part(self, module: nn.Module) -> str:
        name = f"p{len(self.parts)}"
        self.parts[name] = module
        return name

    def add(self, text: str, width: int, forward: Forward) -> int:
        """Records a step; the number of the value that it makes."""
        self.steps.append((f"v{len(self.widths)} [{width}] = {text}", forward))
        self.widths.append(width)
        return len(self.widths) - 1

    def __str__(self) -> str:
        parts = [f"{name}: {module}" for name, module in self.parts.items()]
        return "\n".join([*parts, *(text for text, _ in self.steps)])


class Model(nn.Module):
    """Runs the steps of an architecture; `head` reads the last values."""

    def __init__(self, architecture: Architecture, reads: Sequence[int], flat: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(architecture.parts)
        self.steps = [step for _, step in architecture.steps]
        self.reads, self.flat = list(reads), flat
        self.heads = nn.ModuleList(nn.Linear(architecture.widths[i] * (4 if flat else 1), 3) for i in reads)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for step in self.steps:
            values.append(step(self.parts, values))
        found = [F.adaptive_avg_pool2d(values[i], 2 if self.flat else 1).flatten(1) for i in self.reads]
        return tuple(head(value) for head, value in zip(self.heads, found, strict=True))


Step = Callable[[Any, Architecture], None]
STEPS: list[Step] = []


def step(function: Step) -> Step:
    STEPS.append(function)
    return function


def choose(draw: Any, net: Architecture, where: Callable[[int], bool] = lambda width: True) -> int | None:
    """One of the later values whose width is right; later ones are preferred."""
    found = [i for i, width in enumerate(net.widths) if where(width)]
    return found[-1 - draw(st.integers(0, min(len(found) - 1, 3)))] if found else None


def width_of(draw: Any) -> int:
    return draw(st.sampled_from([2, 4, 6, 8, 12]))


def one(text: str, where: Callable[[int], bool], width: Callable[[int], int], f: Callable[[Tensor], Tensor]) -> None:
    """A step on one value without parts."""

    def add(draw: Any, net: Architecture) -> None:
        i = choose(draw, net, where)
        if i is not None:
            net.add(text.replace("{x}", f"v{i}"), width(net.widths[i]), lambda m, v: f(v[i]))

    STEPS.append(add)


def apply_part(net: Architecture, i: int, module: nn.Module, width: int) -> int:
    name = net.part(module)
    return net.add(f"{name}(v{i})", width, lambda m, v: m[name](v[i]))


@step
def conv(draw: Any, net: Architecture) -> None:
    i, width = choose(draw, net), width_of(draw)
    kernel, bias = draw(st.sampled_from([1, 3])), draw(st.booleans())
    apply_part(net, i, nn.Conv2d(net.widths[i], width, kernel, padding=kernel // 2, bias=bias), width)


STEPS += [conv, conv]  # what channels come from


@step
def grouped_conv(draw: Any, net: Architecture) -> None:
    i = choose(draw, net, lambda width: width % 2 == 0)
    if i is not None:
        groups = draw(st.sampled_from([g for g in (2, 3, 4, 6, 8, 12) if net.widths[i] % g == 0]))
        width = groups * draw(st.integers(1, 3))
        kind = draw(st.sampled_from([nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d]))
        apply_part(net, i, kind(net.widths[i], width, 3, padding=1, groups=groups), width)


@step
def transposed_conv(draw: Any, net: Architecture) -> None:
    i, width = choose(draw, net), width_of(draw)
    apply_part(net, i, nn.ConvTranspose2d(net.widths[i], width, 3, padding=1), width)


@step
def shared_conv(draw: Any, net: Architecture) -> None:
    """A conv of the model, called on another value."""
    known = [(n, p) for n, p in net.parts.items() if isinstance(p, nn.Conv2d)]
    if known:
        name, module = draw(st.sampled_from(known))
        i = choose(draw, net, lambda width: width == module.in_channels)
        if i is not None:
            net.add(f"{name}(v{i})", module.out_channels, lambda m, v: m[name](v[i]))


@step
def tied_weight(draw: Any, net: Architecture) -> None:
    """The transpose of a known weight."""
    known = [
        (n, p) for n, p in net.parts.items() if isinstance(p, nn.Conv2d) and p.groups == 1 and p.kernel_size == (1, 1)
    ]
    if known:
        name, module = draw(st.sampled_from(known))
        i = choose(draw, net, lambda width: width == module.out_channels)
        if i is not None:
            net.add(
                f"F.conv2d(v{i}, {name}.weight.transpose(0, 1))",
                module.in_channels,
                lambda m, v: F.conv2d(v[i], m[name].weight.transpose(0, 1)),
            )


@step
def norm(draw: Any, net: Architecture) -> None:
    i = choose(draw, net)
    width, affine = net.widths[i], draw(st.booleans())
    kinds = [
        nn.BatchNorm2d(width, affine=affine),
        nn.InstanceNorm2d(width, affine=affine, track_running_stats=True),
        nn.PReLU(width),
    ]
    kinds += [nn.GroupNorm(g, width, affine=affine) for g in (1, 2, 4) if width % g == 0]
    apply_part(net, i, draw(st.sampled_from(kinds)), width)


@step
def channels_last(draw: Any, net: Architecture) -> None:
    i, width = choose(draw, net), width_of(draw)
    n = net.widths[i]
    layers = [nn.Linear(n, width)] if draw(st.booleans()) else [nn.LayerNorm(n), nn.Linear(n, width)]
    name = net.part(nn.Sequential(*layers))
    net.add(f"{name}(v{i}) in NHWC", width, lambda m, v: m[name](v[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@step
def gate(draw: Any, net: Architecture) -> None:
    i = choose(draw, net)
    width, inner = net.widths[i], width_of(draw)
    name = net.part(
        nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, width, 1), nn.Sigmoid()
        )
    )
    net.add(f"v{i} * {name}(v{i})", width, lambda m, v: v[i] * m[name](v[i]))


@step
def scale(draw: Any, net: Architecture) -> None:
    i = choose(draw, net)
    name = net.part(nn.ParameterDict({"s": nn.Parameter(torch.ones(net.widths[i], 1, 1))}))
    net.add(f"v{i} * {name}.s", net.widths[i], lambda m, v: v[i] * m[name]["s"])


@step
def meet(draw: Any, net: Architecture) -> None:
    i = choose(draw, net)
    j = choose(draw, net, lambda width: width in (net.widths[i], 1))
    name, function = draw(
        st.sampled_from([("+", torch.add), ("*", torch.mul), ("-", torch.sub), ("max", torch.maximum)])
    )
    net.add(f"v{i} {name} v{j}", net.widths[i], lambda m, v: function(v[i], v[j]))


STEPS.append(meet)


@step
def cat(draw: Any, net: Architecture) -> None:
    found = [choose(draw, net) for _ in range(draw(st.integers(2, 3)))]
    if sum(net.widths[i] for i in found) <= 32:
        net.add(f"cat({found})", sum(net.widths[i] for i in found), lambda m, v: torch.cat([v[i] for i in found], 1))


@step
def stack(draw: Any, net: Architecture) -> None:
    i = choose(draw, net, lambda width: width <= 12)
    j = choose(draw, net, lambda width: width == net.widths[i])
    dim = draw(st.sampled_from([1, 2]))
    net.add(
        f"stack(v{i}, v{j}, dim={dim}), flattened",
        2 * net.widths[i],
        lambda m, v: torch.stack([v[i], v[j]], dim).flatten(1, 2),
    )


@step
def chunk(draw: Any, net: Architecture) -> None:
    parts = draw(st.sampled_from([2, 3]))
    i = choose(draw, net, lambda width: width % parts == 0 and width > parts)
    if i is not None:
        k, width = draw(st.integers(0, parts - 1)), net.widths[i] // parts
        net.add(f"v{i}.chunk({parts}, 1)[{k}]", width, lambda m, v: v[i].chunk(parts, 1)[k])


@step
def split(draw: Any, net: Architecture) -> None:
    i = choose(draw, net, lambda width: width >= 4)
    if i is not None:
        size = draw(st.integers(1, net.widths[i] - 1))
        net.add(f"v{i}.split({size}, 1)[0]", size, lambda m, v: v[i].split(size, 1)[0])


@step
def slices(draw: Any, net: Architecture) -> None:
    i = choose(draw, net, lambda width: width >= 4)
    if i is not None:
        a, b, s = draw(st.integers(0, 2)), draw(st.sampled_from([None, -1, 3, 4])), draw(st.integers(1, 2))
        width = len(range(net.widths[i])[a:b:s])
        if width:
            net.add(f"v{i}[:, {a}:{b}:{s}]", width, lambda m, v: v[i][:, a:b:s])


@step
def half(draw: Any, net: Architecture) -> None:
    i = choose(draw, net, lambda width: width % 2 == 0)
    if i is not None:
        first = draw(st.booleans())
        net.add(
            f"v{i}'s {'first' if first else 'second'} half",
            net.widths[i] // 2,
            lambda m, v: v[i][:, : v[i].shape[1] // 2] if first else v[i][:, v[i].shape[1] // 2 :],
        )


@step
def index(draw: Any, net: Architecture) -> None:
    i = choose(draw, net)
    positions = draw(st.lists(st.integers(0, net.widths[i] - 1), min_size=1, max_size=6))
    net.add(f"v{i}[:, {positions}]", len(positions), lambda m, v: v[i][:, torch.tensor(positions)])


@step
def roll(draw: Any, net: Architecture) -> None:
    i = choose(draw, net)
    by = draw(st.sampled_from([1, 3, None]))
    net.add(f"v{i}.roll({by or 'half'}, 1)", net.widths[i], lambda m, v: v[i].roll(by or v[i].shape[1] // 2, 1))


@step
def pad(draw: Any, net: Architecture) -> None:
    i = choose(draw, net)
    before, after, value = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.sampled_from([0.0, 1.5]))
    net.add(
        f"v{i} padded by {before}, {after}",
        net.widths[i] + before + after,
        lambda m, v: F.pad(v[i], (0, 0, 0, 0, before, after), value=value),
    )


@step
def shuffle(draw: Any, net: Architecture) -> None:
    groups = draw(st.sampled_from([2, 3, 4]))
    i = choose(draw, net, lambda width: width % groups == 0 and width > groups)
    if i is None:
        return
    if draw(st.booleans()):
        net.add(
            f"channel_shuffle(v{i}, {groups})",
            net.widths[i],
            lambda m, v: v[i].unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2),
        )
    else:
        apply_part(net, i, nn.ChannelShuffle(groups), net.widths[i])


@step
def attention(draw: Any, net: Architecture) -> None:
    """Heads over positions; queries, keys and values from one conv."""
    i, heads = choose(draw, net), draw(st.sampled_from([1, 2, 4]))
    width = heads * draw(st.integers(1, 3))
    name = net.part(nn.Conv2d(net.widths[i], 3 * width, 1))

    def forward(m: nn.ModuleDict, v: list[Tensor]) -> Tensor:
        qkv = m[name](v[i])
        b, c, h, w = qkv.shape
        q, k, u = qkv.reshape(b, 3, heads, c // 3 // heads, h * w).transpose(3, 4).unbind(1)
        return F.scaled_dot_product_attention(q, k, u).transpose(2, 3).reshape(b, c // 3, h, w)

    net.add(f"attention({name}(v{i}), {heads} heads)", width, forward)


@step
def gathered_products(draw: Any, net: Architecture) -> None:
    """Channel attention: a C x C matrix between two values."""
    i, j = choose(draw, net), choose(draw, net)

    def forward(m: nn.ModuleDict, v: list[Tensor]) -> Tensor:
        weights = torch.bmm(v[i].flatten(2), v[j].flatten(2).mT)
        return torch.tanh(torch.bmm(weights, v[j].flatten(2)).unflatten(2, v[j].shape[2:]))

    net.add(f"tanh(v{i} v{j}' v{j})", net.widths[i], forward)


@step
def space_to_depth(draw: Any, net: Architecture) -> None:
    """Pixel shuffle and back to the same size of image."""
    i = choose(draw, net, lambda width: width % 4 == 0)
    if i is not None and draw(st.booleans()):
        net.add(f"pixel_shuffle(v{i})", net.widths[i] // 4, lambda m, v: F.max_pool2d(F.pixel_shuffle(v[i], 2), 2))
    elif (i := choose(draw, net, lambda width: width <= 4)) is not None:
        net.add(
            f"pixel_unshuffle(v{i})",
            net.widths[i] * 4,
            lambda m, v: F.pixel_unshuffle(F.interpolate(v[i], scale_factor=2), 2),
        )


@step
def in_place(draw: Any, net: Architecture) -> None:
    i = choose(draw, net)
    j = choose(draw, net, lambda width: width == net.widths[i])
    kind = draw(st.sampled_from(["add_", "mul_", "sigmoid_", "view", "two views", "read before", "setitem", "share"]))

    def forward(m: nn.ModuleDict, v: list[Tensor]) -> Tensor:
        x = v[i].clone()
        if kind == "setitem":
            x[:, :, 0] = v[j][:, :, 1]
        elif kind == "view":
            x = x.contiguous()
            x.flatten(2).add_(v[j].flatten(2)).sigmoid_()
        elif kind in ("two views", "read before"):
            x = x.contiguous()
            before = x.sum(1, keepdim=True) if kind == "read before" else 0
            y = x.flatten(2).mT
            y += v[j].flatten(2).mT
            x = y.mT.unflatten(2, x.shape[2:]) + before
        elif kind == "share":
            x[:, : x.shape[1] // 2] = v[j][:, : x.shape[1] // 2]
        else:
            x = x.sigmoid_() if kind == "sigmoid_" else getattr(x, kind)(v[j])
        return x

    net.add(f"in place: v{i}.{kind}(v{j})", net.widths[i], forward)


class Twice(nn.Module):
    """Two layers whose values are viewed by one attribute."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width, self.first, self.second = width, nn.Conv2d(inputs, width, 1), nn.Conv2d(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = (layer(x).view(x.shape[0], self.width, *x.shape[2:]) for layer in (self.first, self.second))
        return torch.cat([one.relu(), other], 1)


@step
def twice(draw: Any, net: Architecture) -> None:
    i, width = choose(draw, net), draw(st.sampled_from([2, 4, 6]))
    apply_part(net, i, Twice(net.widths[i], width), 2 * width)


@step
def shift(draw: Any, net: Architecture) -> None:
    """A share of the channels is moved in space, written into zeros or joined again."""
    parts = draw(st.sampled_from([2, 3, 4]))
    i = choose(draw, net, lambda width: width % parts == 0)
    written = draw(st.booleans())

    def forward(m: nn.ModuleDict, v: list[Tensor]) -> Tensor:
        x = v[i]  # type: ignore[index]
        fold = x.shape[1] // parts
        if not written:
            return torch.cat([x[:, :fold].roll(1, 2), x[:, fold:]], 1)
        out = torch.zeros_like(x)
        out[:, :fold, 1:] = x[:, :fold, :-1]
        out[:, fold:] = x[:, fold:]
        return out

    if i is not None:
        net.add(f"v{i}, 1 of {parts} parts shifted", net.widths[i], forward)


@step
def filters_of_length_one(draw: Any, net: Architecture) -> None:
    i, width = choose(draw, net), width_of(draw)
    name = net.part(nn.Conv2d(net.widths[i], width, 1))

    def forward(m: nn.ModuleDict, v: list[Tensor]) -> Tensor:
        return F.conv2d(v[i], F.normalize(m[name].weight.flatten(1), dim=1)[..., None, None])

    net.add(f"{name}(v{i}), filters of length one", width, forward)


@step
def learned_queries(draw: Any, net: Architecture) -> None:
    """A table of queries looks at all places; what they see is standardised, and added up in every place."""
    i, rows = choose(draw, net), draw(st.integers(1, 3))
    width = net.widths[i]
    name = net.part(nn.ParameterDict({"q": nn.Parameter(torch.ones(rows, width))}))
    norm = net.part(nn.LayerNorm(width))

    def forward(m: nn.ModuleDict, v: list[Tensor]) -> Tensor:
        h = v[i].flatten(2)
        seen = m[norm](torch.softmax(torch.tanh(m[name]["q"] @ h), -1) @ h.mT)
        return seen.sum(1)[:, :, None, None].expand_as(v[i])

    net.add(f"{rows} queries of v{i}", width, forward)


def anything(width: int) -> bool:
    return True


one("relu({x})", anything, lambda w: w, torch.relu)
one("sigmoid({x})", anything, lambda w: w, torch.sigmoid)
one("2 ** tanh({x})", anything, lambda w: w, lambda x: 2 ** torch.tanh(x))
one("max_pool({x})", anything, lambda w: w, lambda x: F.max_pool2d(x, 3, 1, 1))
one("{x}.flip(1)", anything, lambda w: w, lambda x: x.flip(1))
one("{x}.repeat(1, 2, 1, 1)", lambda w: w <= 8, lambda w: 2 * w, lambda x: x.repeat(1, 2, 1, 1))
one("{x}.repeat_interleave(2, 1)", lambda w: w <= 8, lambda w: 2 * w, lambda x: x.repeat_interleave(2, 1))
one("{x}.sum(1)", anything, lambda w: 1, lambda x: x.sum(1, keepdim=True))
one("{x}.mean(1)", anything, lambda w: 1, lambda x: x.mean(1, keepdim=True))
one("{x}.amax(1)", anything, lambda w: 1, lambda x: x.amax(1, keepdim=True))
one("{x}.softmax(1)", anything, lambda w: w, lambda x: x.softmax(1))
one("{x}.mean((2, 3))", anything, lambda w: w, lambda x: x.mean((2, 3), keepdim=True).expand_as(x))
one("{x} / {x}.shape[1]", anything, lambda w: w, lambda x: x / x.shape[1])
one("{x}.detach()", anything, lambda w: w, lambda x: x.detach())
one("maxout of pairs({x})", lambda w: w % 2 == 0, lambda w: w // 2, lambda x: x.unflatten(1, (-1, 2)).amax(2))
one("nothing beside {x}", anything, lambda w: w, lambda x: torch.cat([x[:, :, :0], x, x[:, :, 8:].flip(3)], 2))
one("glu({x})", lambda w: w % 2 == 0, lambda w: w // 2, lambda x: F.glu(x, 1))
one("view({x})", anything, lambda w: w, lambda x: x.reshape(x.shape[0], x.shape[1], -1).view(x.shape))
one("unfold, fold({x})", anything, lambda w: w, lambda x: F.fold(F.unfold(x, 2, stride=2), x.shape[2:], 2, stride=2))
one("normalize({x})", anything, lambda w: w, lambda x: F.normalize(x, dim=1))
one(
    "per pixel({x})",
    anything,
    lambda w: w,
    lambda x: x.permute(0, 2, 3, 1).flatten(0, 2).sigmoid().view(-1, 8, 8, x.shape[1]).permute(0, 3, 1, 2),
)
one("{x} to the power of 1", anything, lambda w: w, lambda x: (x * x.transpose(2, 3)).mT)


@st.composite
def architectures(draw: Any) -> tuple[Architecture, list[int], bool]:
    """Four to fourteen steps; the last value and up to three others are read by linear heads."""
    net = Architecture()
    conv(draw, net)
    for chosen in draw(st.lists(st.integers(0, len(STEPS) - 1), min_size=3, max_size=13)):
        STEPS[chosen](draw, net)
    last = len(net.widths) - 1
    reads = [last, *draw(st.lists(st.integers(1, last - 1), max_size=3, unique=True))] if last > 1 else [last]
    return net, reads, draw(st.booleans())


def check(drawn: tuple[Architecture, list[int], bool], ratio: float, scope: str) -> None:
    net, reads, flat = drawn
    note(f"{net}\nread: {reads}, flat: {flat}")
    model = randomise(Model(net, reads, flat).double())
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_exact_or_nothing(model, x, ratio, scope=scope)


hunted = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=SEED is None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@hunted
@given(architectures(), st.sampled_from([0.5, 0.25, 0.7]), st.sampled_from(["local", "global"]))
def test_random_architectures(drawn: tuple[Architecture, list[int], bool], ratio: float, scope: str) -> None:
    check(drawn, ratio, scope)


if SEED is not None:
    test_random_architectures = seed(int(SEED))(test_random_architectures)
