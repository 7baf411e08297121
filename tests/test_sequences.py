"""Attention, norms and recurrent layers: units that make sense, equal to the masked original."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import assert_exact, assert_exact_or_nothing, assert_kept, masked_original, randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint

import structprune as sp

WORDS = torch.randn(2, 6, 16, dtype=torch.float64)


def exact(model: nn.Module, inputs: Any = WORDS, **settings: Any) -> Any:
    """The pruned model, proved equal; its widths are easier to read than its plan."""
    return assert_exact(randomise(model.double(), 0), inputs, **settings).model


def sizes(model: nn.Module, inputs: Any = WORDS) -> dict[str, int]:
    """The groups of a model and their numbers of units."""
    return {group.name: len(group) for group in sp.analyze(model.double(), inputs).groups}


class Attention(nn.Module):
    """A residual block of attention, in several spellings."""

    def __init__(self, spelling: str = "matmul", key_heads: int = 4) -> None:
        super().__init__()
        self.spelling, self.heads, self.width, self.repeat = spelling, 4, 8, 4 // key_heads
        self.inp, self.out, self.head = nn.Linear(16, 24), nn.Linear(32, 24), nn.Linear(24, 5)
        self.q, self.k, self.v = (nn.Linear(24, 8 * n) for n in (4, key_heads, key_heads))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.spelling == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=self.repeat > 1)
        if self.spelling == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        k, v = k.repeat_interleave(self.repeat, 1), v.repeat_interleave(self.repeat, 1)
        if self.spelling == "einsum":
            weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
            return torch.einsum("bhqk,bhkd->bhqd", weights, v)
        return (q @ k.mT * self.width**-0.5).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        q, k, v = (layer(x).view(*x.shape[:2], -1, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.head(x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(
    ("spelling", "key_heads"), [("matmul", 4), ("sdpa", 4), ("causal", 4), ("einsum", 4), ("matmul", 2), ("sdpa", 2)]
)
def test_a_head_is_a_unit(spelling: str, key_heads: int) -> None:
    assert sizes(Attention(spelling, key_heads)) == {"inp": 24, "q": key_heads}
    small = exact(Attention(spelling, key_heads))
    assert small.q.out_features == 16
    assert small.out.in_features == 16


class Fused(nn.Module):
    """One projection for q, k and v, and sizes read from attributes and from the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 8
        self.inp, self.qkv, self.proj, self.head = (
            nn.Linear(16, 32),
            nn.Linear(32, 96),
            nn.Linear(32, 32),
            nn.Linear(32, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head(x + self.proj(y.reshape(b, n, c)))


def test_heads_and_residual_width_of_one_size_go_together() -> None:
    assert sizes(Fused()) == {"inp": 4}
    small = exact(Fused())
    assert (small.num_heads, small.head_dim, small.qkv.out_features) == (2, 8, 48)


class Mha(nn.Module):
    """nn.MultiheadAttention in a residual stream."""

    def __init__(self, need_weights: bool = False, cross: bool = False, **options: Any) -> None:
        super().__init__()
        self.inp, self.other, self.head = nn.Linear(16, 24), nn.Linear(16, options.get("kdim", 24)), nn.Linear(24, 5)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True, **options)
        self.need_weights, self.cross = need_weights, cross

    def forward(self, x: Tensor) -> Tensor:
        y = self.inp(x)
        memory = self.other(x) if self.cross else y
        return self.head(y + self.attention(y, memory, memory, need_weights=self.need_weights)[0])


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"cross": True},
        {"cross": True, "kdim": 12, "vdim": 12},
        {"add_zero_attn": True},
        {"add_bias_kv": True},
    ],
    ids=str,
)
def test_multihead_attention(options: dict[str, Any], need_weights: bool) -> None:
    small = exact(Mha(need_weights, **options))
    assert (small.attention.num_heads, small.attention.embed_dim) == (2, 12)
    assert isinstance(small.attention, nn.MultiheadAttention)


class Masked(Mha):
    def forward(self, x: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor:  # type: ignore[override]
        y = self.inp(x)
        return self.head(y + self.attention(y, y, y, key_padding_mask=padding, attn_mask=mask)[0])


LATER = torch.ones(6, 6).triu(1).bool()
PADDED = torch.arange(6).expand(2, 6) >= torch.tensor([[4], [6]])
MASKS: dict[str, tuple[Tensor | None, Tensor | None, int]] = {
    "causal": (LATER, None, 2),
    "added": (torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double(), None, 2),
    "padding": (None, PADDED, 2),
    "padding that is added": (None, PADDED.double() * -1e9, 2),
    "both": (LATER, PADDED, 2),
    "another for each head": (torch.randn(8, 6, 6, generator=torch.Generator().manual_seed(1)).double(), PADDED, 4),
}


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("options", [{}, {"add_zero_attn": True, "add_bias_kv": True}], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_masks_of_multihead_attention(name: str, options: dict[str, Any]) -> None:
    """As many masks as heads are an input, and keep the heads."""
    *masks, heads = MASKS[name]
    model = randomise(Masked(**options).double()).eval()
    result = sp.prune(model, (WORDS, *masks))
    small: Any = result.model
    assert (small.attention.num_heads, small.attention.embed_dim) == (heads, 12)
    expected = masked_original(model, result.plan)(WORDS, *masks)
    torch.testing.assert_close(small(WORDS, *masks), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers(norm_first: bool) -> None:
    options = {
        "d_model": 24,
        "nhead": 4,
        "dim_feedforward": 40,
        "batch_first": True,
        "norm_first": norm_first,
        "dropout": 0.0,
    }

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source, self.target, self.head = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 5)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options), 2, enable_nested_tensor=False)  # type: ignore[arg-type]
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), 1)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.decoder(self.target(x), self.encoder(self.source(x))))

    small = exact(Both())
    assert small.encoder.layers[0].linear1.out_features == 20
    assert small.encoder.layers[0].self_attn.num_heads == 2
    assert small.source.out_features == 12


def test_dropout_inside_attention_does_not_disturb_the_verification() -> None:
    layer = nn.TransformerEncoderLayer(24, 4, 40, dropout=0.5, batch_first=True)
    result = sp.prune(nn.Sequential(nn.Linear(16, 24), layer, nn.Linear(24, 5)).double(), WORDS)
    assert {c.mode for c in result.report.verification.comparisons} == {"eval", "train"}
    assert result.report.verification.max_rel_error < 1e-12


class Anchors(nn.Module):
    """A list of tensors, which `.to` returns as they are: the trace must leave no mark on them."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(16, 8), nn.Linear(8, 5)
        self.anchors = [torch.ones(1, 8, dtype=torch.float64)]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inp(x) + self.anchors[0].to(torch.float64))


def test_tensors_in_lists_are_left_as_they_are() -> None:
    model = Anchors().double()
    sp.analyze(model, WORDS)
    assert not vars(model.anchors[0])


class WrittenRms(nn.Module):
    """An RMS norm written out by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Spelled(WrittenRms):
    """Other ways of writing it."""

    def __init__(self, width: int, spelling: str) -> None:
        super().__init__(width)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        dim = 1 if self.spelling == "channels first" else -1
        mean = x.pow(2).mean(dim, keepdim=True)
        if self.spelling == "one added to the weight":  # Gemma
            return (x * torch.rsqrt(mean + self.eps)).to(x) * (1.0 + self.weight.double())
        if self.spelling == "a square root":
            return x / torch.sqrt(self.eps + mean) * self.weight
        if self.spelling == "a power":
            return x * (mean + self.eps) ** -0.5 * self.weight
        if self.spelling == "a positive power":
            return x / (mean + self.eps) ** 0.5 * self.weight
        return x * (mean + self.eps).rsqrt() * self.weight.view(1, -1, 1, 1)


class ChannelsFirst(nn.LayerNorm):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class Super(nn.LayerNorm):
    """A subclass that calls the original."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1) * 2


norm_over = F.layer_norm


class Called(nn.LayerNorm):
    """A subclass that finds the function where it likes."""

    def __init__(self, width: int, where: str) -> None:
        super().__init__(width)
        self.where, self.kept = where, F.layer_norm

    def forward(self, x: Tensor) -> Tensor:
        how = self.normalized_shape, self.weight, self.bias, self.eps
        if self.where == "nn":
            return nn.functional.layer_norm(x, *how)
        if self.where == "torch.nn":
            return torch.nn.functional.layer_norm(x, *how)
        if self.where == "torch":
            return torch.layer_norm(x, *how)
        if self.where == "torch, without cuDNN":
            return torch.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps, False)
        if self.where == "another name":
            return norm_over(x, *how)
        return self.kept(x, *how)


class Sized(nn.Module):
    """A norm over as much as there is."""

    def __init__(self, width: int, spelling: str) -> None:
        super().__init__()
        self.weight, self.bias, self.spelling = (
            nn.Parameter(torch.ones(width)),
            nn.Parameter(torch.zeros(width)),
            spelling,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "rms":
            return F.rms_norm(x, x.shape[-1:], self.weight, 1e-5) + self.bias
        shape: Any = {"a shape": x.shape[-1:], "a list": [x.size(-1)], "the weight's": self.weight.shape}[self.spelling]
        return F.layer_norm(x, shape, self.weight, self.bias)


class Grouped(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, cudnn_enabled=False)


class KeptNorm(nn.Module):
    """A function of PyTorch that is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = F.layer_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, (x.shape[-1],))


class Written(nn.Module):
    """Layer norms written out by hand."""

    def __init__(self, width: int, spelling: str, dim: int = -1) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.spelling, self.dim, self.eps = spelling, dim, 1e-3

    def shaped(self, vector: Tensor) -> Tensor:
        return vector[:, None, None] if self.dim == 1 else vector


class Textbook(Written):
    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(self.dim, keepdim=True)
        s = (x - u).pow(2).mean(self.dim, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.shaped(self.gain) * x + self.shaped(self.bias)


class Squares(Written):
    def forward(self, x: Tensor) -> Tensor:
        d = x - torch.mean(x, dim=self.dim, keepdim=True)
        return d * torch.rsqrt(torch.mean(d * d, self.dim, True) + self.eps) * self.shaped(self.gain)


class Inline(Written):
    def forward(self, x: Tensor) -> Tensor:
        s = torch.square(x - x.mean(dim=self.dim, keepdim=True)).mean(dim=self.dim, keepdim=True)
        return (x - x.mean(self.dim, keepdim=True)) / (s + self.eps) ** 0.5 * self.shaped(self.gain)


class Variance(Written):
    def norm(self, x: Tensor) -> Tensor:
        return (x - x.mean(self.dim, keepdim=True)) / (x.var(self.dim, unbiased=False, keepdim=True) + self.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.shaped(self.gain) + self.shaped(self.bias)


class Unkept(Written):
    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = x.mean(self.dim), x.std(self.dim, correction=0)
        y = (x - mean.unsqueeze(self.dim)) / (deviation.unsqueeze(self.dim) + self.eps)
        return y * self.shaped(self.gain)


class Deviation(Written):  # the annotated transformer's
    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean(self.dim, keepdim=True), x.std(self.dim, keepdim=True)
        return self.shaped(self.gain) * (x - mean) / (std + self.eps) + self.shaped(self.bias)


class Both(Written):
    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, self.dim, keepdim=True, correction=0)
        return (x - mean) * torch.rsqrt(var + self.eps) * self.shaped(self.gain)


class Response(Written):  # ConvNeXt V2's global response normalisation
    def forward(self, x: Tensor) -> Tensor:
        g = torch.linalg.vector_norm(x, ord=2, dim=(2, 3) if self.dim == 1 else 1, keepdim=True)
        n = g / (g.mean(self.dim, keepdim=True) + self.eps)
        return self.shaped(self.gain) * (x * n) + self.shaped(self.bias) + x


def centre(x: Tensor, dim: int = -1) -> Tensor:
    return x - x.mean(dim, keepdim=True)


def standardise(x: Tensor, dim: int, *, eps: float = 1e-5) -> Tensor:
    centred = centre(x, dim)
    return centred * torch.rsqrt(torch.square(x).mean(dim, keepdim=True) + eps)


class Function(Written):  # what is called first is written last
    def forward(self, x: Tensor) -> Tensor:
        return standardise(x, self.dim) * self.shaped(self.gain) + x.std(self.dim, keepdim=True)


class Handed(Written):  # the function is an argument, and goes by another name
    def forward(self, x: Tensor) -> Tensor:
        norm = standardise
        return checkpoint(norm, x, self.dim, use_reentrant=False) * self.shaped(self.gain)  # type: ignore[no-any-return]


class Listed(Written):  # the function is called inside of another
    def forward(self, x: Tensor) -> Tensor:
        normed = [standardise(part, self.dim) for part in (x, x)]
        return (normed[0] + normed[1]) * self.shaped(self.gain)


class Twice(Written):
    def forward(self, x: Tensor) -> Tensor:
        gain = self.shaped(self.gain)
        return centre(standardise(x, self.dim) * gain, self.dim) * gain


IMAGES = torch.randn(2, 3, 6, 6, dtype=torch.float64)
WRITTEN = (Textbook, Squares, Inline, Variance, Unkept, Deviation, Both, Response, Function, Handed, Listed, Twice)


class ByMode(nn.Module):
    """One statistic over channels, another over height, which only training reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def centred(self, h: Tensor) -> Tensor:
        if self.training:
            return h - h.mean(2, keepdim=True)
        return h - h.mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(self.centred(h) + self.centred(h * h))  # type: ignore[no-any-return]


@pytest.mark.parametrize("height", [8, 10])
def test_statistics_that_were_not_reached_are_not_made_to_count(height: int) -> None:
    """Where as many channels as rows came in, none were missing."""
    x = torch.randn(2, 3, height, height, dtype=torch.float64)
    assert_kept(randomise(ByMode().double()), x, "a.weight[0]", "mean runs over it")


class NormByMode(nn.Module):
    """Layer norm over channels, and over columns in training."""

    def forward(self, h: Tensor) -> Tensor:
        if self.training:
            return F.layer_norm(h, (h.shape[-1],))
        return F.layer_norm(h.permute(0, 2, 3, 1), (h.shape[1],)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("width", [8, 10])
def test_norms_that_another_call_reaches_are_not_made_to_count(width: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), NormByMode(), nn.Conv2d(8, 4, 3, padding=1))
    x = torch.randn(2, 3, width, width, dtype=torch.float64)
    assert_kept(randomise(model.double()), x, "0.weight[0]", "norms that only some of the traced calls reach")


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.gains = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.b(self.a(x) * self.gains[:, None, None]), self.gains.mean()


class Spread(Gated):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.b(self.a(x) * self.gains[:, None, None]), self.gains.var(unbiased=False)


class Penalty(Gated):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.b(self.a(x) * self.gains[:, None, None]), self.gains.pow(2).mean()


class Unsaid(Gated):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.b(self.a(x) * self.gains[:, None, None]), self.gains.std(False)


@pytest.mark.parametrize("kind", [Gated, Spread, Penalty])
def test_statistics_of_what_has_one_dimension(kind: type[Gated]) -> None:
    result = assert_exact(randomise(nn.Sequential(kind()).double()), torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert result.plan.swaps == {"0": ("counted", 8)}


def test_statistics_that_are_told_something_else_in_the_place_of_a_dimension() -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert_kept(randomise(Unsaid().double()), x, "gains[0]", "std runs over it")


@pytest.mark.parametrize("kind", WRITTEN)
def test_layer_norms_by_hand(kind: type[Written], tmp_path: Any) -> None:
    model = randomise(nn.Sequential(nn.Linear(16, 24), kind(24, ""), nn.Linear(24, 5)).double())
    result = assert_exact(model, WORDS)
    small: Any = result.model
    assert small[0].out_features == 12
    assert result.plan.swaps == {"1": ("counted", 24)}
    assert isinstance(small[1], kind)
    torch.save(small, tmp_path / "small.pt")
    assert torch.equal(torch.load(tmp_path / "small.pt", weights_only=False)(WORDS), small(WORDS))
    sp.save(result, tmp_path / "out")
    torch.testing.assert_close(sp.load(tmp_path / "out", model)(WORDS), small(WORDS))
    torch.testing.assert_close(torch.compile(small, backend="eager", fullgraph=True)(WORDS), small(WORDS))
    torch.compiler.reset()  # it counts how often the code of one class was compiled
    torch.testing.assert_close(torch.export.export(small, (WORDS,)).module()(WORDS), small(WORDS))


class Reassigned(Written):
    """What was subtracted is no longer what it was."""

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(self.dim, keepdim=True)
        y = x - u
        u = u * 2
        return y / (y.pow(2).mean(self.dim, keepdim=True) + self.eps).sqrt() * self.shaped(self.gain) + u


class Accumulated(Written):
    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(self.dim, keepdim=True)
        y = x - u
        u.add_(1)
        return y / (y.pow(2).mean(self.dim, keepdim=True) + self.eps).sqrt() * self.shaped(self.gain) + u


class Renamed(Written):
    def forward(self, x: Tensor) -> Tensor:
        t = torch
        return (x - t.mean(x, self.dim, keepdim=True)) * self.shaped(self.gain)


class Unbound(Written):
    def forward(self, x: Tensor) -> Tensor:
        return (x - torch.Tensor.mean(x, self.dim, keepdim=True)) * self.shaped(self.gain)


@pytest.mark.parametrize("kind", [Reassigned, Accumulated, Renamed, Unbound])
def test_what_only_looks_like_a_layer_norm_is_kept(kind: type[Written]) -> None:
    model = nn.Sequential(nn.Linear(16, 24), kind(24, ""), nn.Linear(24, 5)).double()
    assert_kept(randomise(model), WORDS, "0.weight[0]", "mean runs over it")


@pytest.mark.parametrize("kind", WRITTEN)
def test_layer_norms_by_hand_over_channels(kind: type[Written]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 3), kind(24, "", 1), nn.ReLU(), nn.Conv2d(24, 4, 3))
    assert exact(model, IMAGES)[0].out_channels == 12


class Standardised(nn.Conv2d):
    """Filters with weight standardisation, as in ResNets without batch norms."""

    def __init__(self, *sizes: int, gain: bool = True) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        gain = None if self.gain is None else (self.gain * 0.7).view(-1)
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(weight, None, None, weight=gain, training=True, momentum=0.0, eps=1e-2)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_standardised_filters(kernel: int, gain: bool) -> None:
    layers = [Standardised(*sizes, gain=gain) for sizes in ((3, 8, kernel), (8, 12, kernel), (12, 4, 1))]
    small = exact(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Hardtanh(), layers[2]), IMAGES)
    assert [small[i].weight.shape[:2] for i in (0, 2, 4)] == [(4, 3), (6, 4), (4, 6)]


def test_standardised_filters_of_what_is_not_zero() -> None:
    """Zero weights become -mean, which the masked inputs would have to cancel."""
    layers = Standardised(3, 8, 3), nn.Sigmoid(), Standardised(8, 4, 3)
    assert_kept(randomise(nn.Sequential(*layers).double()), IMAGES, "0.weight[0]", "may not be zero")


class Shadowed(Written):
    """A function of its own, by the name of another."""

    def forward(self, x: Tensor) -> Tensor:
        def centre(x: Tensor, dim: int) -> Tensor:
            return x * x.mean(dim, keepdim=True)

        return centre(x, self.dim)


@contextmanager
def quiet() -> Iterator[None]:
    yield


@quiet()
def decorated(x: Tensor, dim: int) -> Tensor:
    return x - x.mean(dim, keepdim=True)


class Decorated(Written):
    def forward(self, x: Tensor) -> Tensor:
        return decorated(x, self.dim)


@pytest.mark.parametrize("kind", [Shadowed, Decorated])
def test_functions_that_cannot_become_methods(kind: type[Written]) -> None:
    model = randomise(nn.Sequential(nn.Linear(16, 24), kind(24, ""), nn.Linear(24, 5)).double())
    assert_kept(model, WORDS, "0.weight[0]", "mean runs over it")


class Other(Written):
    """Means over channels that are no norm's, or that source and trace see differently."""

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "space, too":
            return x * (x.mean(2, keepdim=True) + x.mean(1, keepdim=True))
        if self.spelling == "not zero":
            return x * torch.sigmoid(x).mean(1, keepdim=True)
        square = torch.square
        d = x - x.mean(1, keepdim=True)
        return x * square(d).mean(1, keepdim=True) if self.spelling == "hidden" else d.abs().mean(1, keepdim=True) * x


@pytest.mark.parametrize("spelling", ["space, too", "not zero", "hidden", "distances"])
def test_other_means_keep_their_channels(spelling: str) -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 24, 3), Other(24, spelling, 1), nn.Conv2d(24, 4, 3)).double())
    assert_kept(model, IMAGES, "0.weight[0]", "mean runs over it")


NORMS = {
    "layer norm": lambda: nn.LayerNorm(24),
    "layer norm without affine": lambda: nn.LayerNorm(24, elementwise_affine=False),
    "layer norm without bias": lambda: nn.LayerNorm(24, bias=False),
    "rms norm": lambda: nn.RMSNorm(24, eps=1e-5),
    "rms norm with the default eps": lambda: nn.RMSNorm(24),
    **{
        f"layer norm found in {place}": lambda place=place: Called(24, place)
        for place in ("nn", "torch.nn", "torch", "torch, without cuDNN", "another name")
    },
    **{
        f"norm over a size: {spelling}": lambda spelling=spelling: Sized(24, spelling)
        for spelling in ("a shape", "a list", "the weight's", "rms")
    },
    "rms norm by hand": lambda: WrittenRms(24),
    "rms norm with one added to the weight": lambda: Spelled(24, "one added to the weight"),
    "rms norm with a square root": lambda: Spelled(24, "a square root"),
    "rms norm with a power": lambda: Spelled(24, "a power"),
    "rms norm with a positive power": lambda: Spelled(24, "a positive power"),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_over_the_last_dimension(name: str) -> None:
    small = exact(nn.Sequential(nn.Linear(16, 24), NORMS[name](), nn.Linear(24, 5)))
    assert small[0].out_features == 12
    torch.compiler.reset()  # it counts how often the code of one class was compiled
    torch.testing.assert_close(torch.compile(small, backend="eager", fullgraph=True)(WORDS), small(WORDS))


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_pruned_twice(name: str) -> None:
    model = randomise(nn.Sequential(nn.Linear(16, 24), NORMS[name](), nn.Linear(24, 5)).double())
    first = sp.prune(model, WORDS, ratio=0.25)
    second = assert_exact(first.model, WORDS, ratio=0.5)
    whole = first.plan.then(second.plan)
    assert sp.verify(model, whole, WORDS).max_rel_error < 1e-12
    torch.testing.assert_close(sp.apply(whole, model)(WORDS), second.model(WORDS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "left"),
    [
        (nn.GroupNorm(2, 24), 12),
        (nn.GroupNorm(8, 24), 12),
        (nn.GroupNorm(1, 24), 12),
        (nn.GroupNorm(24, 24), 12),
        (Grouped(4, 24), 12),
        (ChannelsFirst(24), 12),
        (Spelled(24, "channels first"), 12),
        (Super(24), 12),
    ],
    ids=str,
)
def test_norms_over_channels(norm: nn.Module, left: int) -> None:
    small = exact(nn.Sequential(nn.Conv2d(3, 24, 3), norm, nn.Conv2d(24, 4, 3)), IMAGES)
    assert small[0].out_channels == left


def test_a_norm_that_is_an_attribute_keeps_its_channels() -> None:
    model = nn.Sequential(nn.Linear(16, 24), KeptNorm(), nn.Linear(24, 5)).double()
    assert_kept(randomise(model), WORDS, "0.weight[0]", "could be swapped")


def test_a_norm_over_values_that_are_not_zero_keeps_its_channels() -> None:
    graph = sp.analyze(
        nn.Sequential(nn.Linear(16, 24), nn.Sigmoid(), nn.LayerNorm(24), nn.Linear(24, 5)), WORDS.float()
    )
    assert not graph.groups
    assert "what is removed may not be zero after sigmoid in 1" in graph.fixed["0.weight[0]"]


class Placed(nn.Module):
    """Positions that are added are no buffer, as in the simple ViT of Beyer, Zhai, Kolesnikov (2022) by many hands."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.a, self.norm, self.out = nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 5)
        if registered:
            self.register_buffer("places", torch.randn(6, 24))
        else:
            self.places = torch.randn(6, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.a(x) + self.places.to(x.dtype)))  # type: ignore[no-any-return]


def test_values_that_no_mask_reaches_are_named() -> None:
    assert exact(Placed(True)).a.out_features == 12
    reason = sp.analyze(Placed(False), WORDS.float()).fixed["a.weight[0]"]
    assert "what is removed may not be zero: places is no buffer, which could be masked" in reason


def test_a_swapped_norm_can_be_saved_and_copied(tmp_path: Any) -> None:
    small = exact(nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 5)))
    torch.save(small, tmp_path / "small.pt")
    again = torch.load(tmp_path / "small.pt", weights_only=False)
    assert torch.equal(again(WORDS), small(WORDS))
    assert "statistics over 24 channels" in repr(again)


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        width = (options.get("proj_size") or 12) * (2 if options.get("bidirectional") else 1)
        self.inp, self.out = nn.Linear(16, 10), nn.Linear(width, 5)
        self.layer = getattr(nn, kind)(10, 12, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.inp(x))[0])


@pytest.mark.parametrize(("kind", "options"), [
    ("LSTM", {}), ("LSTM", {"num_layers": 2, "proj_size": 4}), ("LSTM", {"num_layers": 2, "bidirectional": True, "bias": False}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "batch_first": True}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"}),
], ids=str)  # fmt: skip
def test_recurrent_layers(kind: str, options: dict[str, Any]) -> None:
    small = exact(Recurrent(kind, **options))
    assert (small.layer.input_size, small.layer.hidden_size) == (5, 6)


class Linear(nn.Module):
    """Linear attention whose values get one more column, of ones, that sums up the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.qkv, self.out, self.head = (
            nn.Linear(16, 24),
            nn.Linear(24, 96),
            nn.Linear(32, 24),
            nn.Linear(24, 5),
        )
        self.width = 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        rows = self.qkv(x).view(*x.shape[:2], -1, 3 * self.width).transpose(1, 2)
        q, k, v = rows[..., : self.width].relu(), rows[..., self.width : -self.width].relu(), rows[..., -self.width :]
        found = q @ (k.mT @ F.pad(v, (0, 1), value=1.0))
        found = found[..., :-1] / (found[..., -1:] + 1e-6)
        return self.head(x + self.out(found.transpose(1, 2).flatten(2)))


def test_values_padded_inside_of_each_head() -> None:
    small = exact(Linear())
    assert (small.qkv.out_features, small.out.in_features, small.width) == (48, 16, 8)


class Turned(nn.Module):
    """Attention that is divided into heads one way and joined the other way round, by a width read from the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.qkv, self.out, self.head = (
            nn.Linear(16, 24),
            nn.Linear(24, 72),
            nn.Linear(24, 24),
            nn.Linear(24, 5),
        )
        self.heads, self.scale = 4, 6**-0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        batch, words, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, words, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        found = (q * self.scale @ k.mT).softmax(-1) @ v
        return self.head(x + self.out(found.permute(0, 2, 3, 1).reshape(batch, words, width)))


def test_heads_joined_the_other_way_round() -> None:
    small = exact(Turned())
    assert (small.heads, small.out.in_features, small.inp.out_features) == (2, 12, 12)


CHANNELS = "chunks", "interleaved"


class Merged(nn.Module):
    """Attention whose heads lie in the batch, spelled as older code does, for words first or for channels first."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, self.heads, self.width = spelling, 4, 8
        self.inp, self.out, self.head = nn.Linear(16, 24), nn.Linear(32, 24), nn.Linear(24, 5)
        self.q, self.k, self.v, self.qkv = nn.Linear(24, 32), nn.Linear(24, 32), nn.Linear(24, 32), nn.Linear(24, 96)

    def words(self, x: Tensor) -> Tensor:
        length, batch, _ = x.shape
        width = self.width if self.spelling == "words" else self.q(x).shape[2] // self.heads
        sizes = (length, self.heads * batch, width) if self.spelling == "turned" else (-1, batch * self.heads, width)
        q, k, v = (layer(x).reshape(sizes).transpose(0, 1) for layer in (self.q, self.k, self.v))
        weights = torch.bmm(q * width**-0.5, k.transpose(1, 2)).softmax(-1)
        return torch.bmm(weights, v).transpose(0, 1).reshape(length, batch, -1)

    def channels(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).mT
        batch, channels, length = qkv.shape
        width = channels // (3 * self.heads)
        if self.spelling == "interleaved":
            q, k, v = qkv.reshape(batch * self.heads, width * 3, length).split(width, dim=1)
        else:
            q, k, v = (part.reshape(batch * self.heads, width, length) for part in qkv.chunk(3, dim=1))
        scale = 1 / math.sqrt(math.sqrt(width))
        weights = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(-1)
        return torch.einsum("bts,bcs->bct", weights, v).reshape(batch, -1, length).mT

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.head(x + self.out((self.channels if self.spelling in CHANNELS else self.words)(x)))


@pytest.mark.parametrize("spelling", ["words", "divided", "turned", *CHANNELS])
def test_heads_in_the_batch(spelling: str) -> None:
    model = Merged(spelling)
    assert {4, 24} <= set(sizes(model).values())
    small = exact(model)
    assert (small.heads, small.width, small.out.in_features, small.inp.out_features) == (2, 8, 16, 12)


class Packed(Recurrent):
    """The same for sequences of several lengths, packed by what `pack` does and padded again with a number."""

    pack: Any
    padding = 0.0

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.layer(self.pack(self.inp(x)))
        padded, _ = rnn.pad_packed_sequence(found, padding_value=self.padding)
        return self.out(torch.cat([padded.amax(0), found.data]))


PACKINGS: dict[str, Any] = {
    "padded": lambda h: rnn.pack_padded_sequence(h, torch.tensor([4, 6]), batch_first=True, enforce_sorted=False),
    "sorted": lambda h: rnn.pack_padded_sequence(h.transpose(0, 1), [6, 3]),
    "one by one": lambda h: rnn.pack_sequence([h[0, :2], h[1]], enforce_sorted=False),
}


@pytest.mark.parametrize("padding", [0.0, -3.0])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("kind", "options"), [
    ("LSTM", {"num_layers": 2, "proj_size": 4}), ("GRU", {"bidirectional": True}), ("RNN", {"bias": False}),
], ids=str)  # fmt: skip
def test_packed_sequences(kind: str, options: dict[str, Any], packing: str, padding: float) -> None:
    model = Packed(kind, **options)
    model.pack, model.padding = PACKINGS[packing], padding
    small = exact(model)
    assert (small.layer.input_size, small.layer.hidden_size) == (5, 6)


def test_what_is_padded_with_a_number_is_not_zero() -> None:
    class Normed(Packed):
        def forward(self, x: Tensor) -> Tensor:
            padded, _ = rnn.pad_packed_sequence(self.layer(self.pack(self.inp(x)))[0], padding_value=self.padding)
            return self.out(self.norm(padded))

    model = Normed("LSTM")
    model.pack, model.norm = PACKINGS["padded"], nn.LayerNorm(12)
    assert exact(model).layer.hidden_size == 6
    model.padding = 1.0
    assert "may not be zero" in sp.analyze(model, WORDS).fixed["layer.weight_ih_l0[0]"]


def test_the_macs_of_packed_sequences_are_those_of_their_steps() -> None:
    model = Packed("GRU")
    model.pack = PACKINGS["padded"]
    steps, examples = 4 + 6, 2
    expected = 2 * 6 * 16 * 10 + steps * 3 * 12 * (10 + 12) + (steps + examples) * 12 * 5
    assert sp.analyze(model.double(), WORDS).costs.original()["macs"] == expected


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_in_a_loop(kind: str) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.cell, self.out = nn.Linear(16, 10), getattr(nn, kind)(10, 12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for t in range(3):
                state = self.cell(self.inp(x[:, t]), state)
            return self.out(state[0] if isinstance(state, tuple) else state)

    small = exact(Loop())
    assert (small.cell.input_size, small.cell.hidden_size) == (5, 6)


def test_a_recurrent_layer_in_place() -> None:
    model = Recurrent("LSTM").double()
    small = sp.prune(model, WORDS, inplace=True, verify=False).model
    assert small is model
    assert small(WORDS).shape == (2, 6, 5)


class Gpt(nn.Module):
    """Embeddings, positions and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(11, 16), nn.Embedding(8, 16), nn.Linear(16, 11, bias=False)
        self.up, self.down, self.norm = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))


def test_tied_embeddings_shrink_in_their_width() -> None:
    small = exact(Gpt(), torch.randint(0, 11, (2, 6)))
    assert small.head.weight is small.words.weight
    assert small.words.embedding_dim == 8
    assert small.head.in_features == 8
    assert small.words.num_embeddings == 11


class Checked(Gpt):
    """Looks at its positions, as the masks of language models do."""

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=self.words.weight.device)
        if not (places == 0).any().item():
            raise ValueError("the first position is missing")
        x = self.words(ids) + self.places(places)
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))


def test_a_model_on_meta_is_analysed_on_real_inputs() -> None:
    ids = torch.randint(0, 11, (2, 6))
    graph = sp.analyze(Checked().to("meta"), ids)
    assert {g.name: len(g) for g in graph.groups} == {"words": 16, "up": 32}
    assert sp.plan(graph, importance=lambda group: torch.arange(len(group))).kept["up.weight"][0] == tuple(
        range(16, 32)
    )
    with pytest.raises(sp.UnsupportedModelError, match=r"words\.weight is on the meta device"):
        sp.plan(graph)


class Deep(nn.Module):
    """Two thousand operations between a filter and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for _ in range(2000):
            x = x.relu()
        out: Tensor = self.head(self.norm(x))
        return out


def test_depth_is_no_matter() -> None:
    graph = sp.analyze(Deep(), torch.randn(2, 6))
    assert [len(group) for group in graph.groups] == [8]


class Rotary(nn.Module):
    """One head whose width may shrink: index j and index j + half turn together."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (
            nn.Linear(12, width),
            nn.Linear(12, width),
            nn.Linear(12, width),
            nn.Linear(width, 12),
        )
        self.scale = width**-0.5
        angles = torch.arange(9)[:, None] * 1e4 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def turned(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        count = x.shape[-2]
        return x * self.cos[:count] + torch.cat([-other, one], -1) * self.sin[:count]

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.turned(self.q(x)), self.turned(self.k(x))
        out: Tensor = self.out((q @ k.mT * self.scale).softmax(-1) @ self.v(x))
        return out


def test_a_rotary_pair_is_a_unit() -> None:
    model = randomise(Rotary().double())
    rows = torch.randn(2, 5, 12, dtype=torch.float64)
    result = sp.prune(model, rows, ratio=0.5)
    pairs = next(group for group in sp.analyze(model, rows).groups if group.name == "q")
    assert len(pairs) == 8
    kept = result.plan.kept["q.weight"][0]
    assert kept == result.plan.kept["k.weight"][0] == result.plan.kept["cos"][1]
    assert [i + 8 for i in kept[:4]] == list(kept[4:])
    assert result.report.verification is not None
    assert result.report.verification.max_rel_error < 1e-12


class Mixed(nn.Module):
    """Attention whose value is one of its other operands, or is passed first, before a norm that needs zeros."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.norm, self.out, self.attend = nn.LayerNorm(8), nn.Linear(8, 3), attend

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.out(self.norm(self.attend(q, k, v)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k, v: F.scaled_dot_product_attention(v.sigmoid(), k, v.sigmoid()),
        lambda q, k, v: F.scaled_dot_product_attention(key=k, value=v.sigmoid(), query=q),
        lambda q, k, v: F.scaled_dot_product_attention(v.sigmoid(), k, v.sigmoid()) + 0 * q,
    ],
)
def test_the_value_of_an_attention_decides_what_is_zero(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_exact_or_nothing(randomise(Mixed(attend)).double(), x)


class Between(nn.Module):
    """A linear layer, something, a norm that needs zeros, a linear layer."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.between = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.between(self.a(x))))  # type: ignore[no-any-return]


class _Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


def test_zeros_pass_a_prelu_and_not_a_padding_of_ones() -> None:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for slopes in (1, 8):
        last = nn.Sequential(nn.Linear(6, 8), _Turned(), nn.PReLU(slopes), _Turned(), nn.LayerNorm(8), nn.Linear(8, 3))
        assert len(assert_exact(randomise(last).double(), x).plan.kept["0.weight"][0]) == 4
    padded = randomise(Between(lambda h: torch.constant_pad_nd(h, (0, 0, 1, 0), 1.0))).double()
    assert_exact_or_nothing(padded, x)


class HalfNorm(nn.Module):
    """A norm over channels written by hand, whose sums are too large for half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1024))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * (x - mean) / torch.sqrt(variance + 1e-6)


def test_means_of_half_precision_do_not_overflow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 1024, 1), HalfNorm(), nn.Conv2d(1024, 3, 1)).eval()
    with torch.no_grad():
        model[0].bias.uniform_(60, 100)  # type: ignore[union-attr]
    x = torch.randn(2, 3, 4, 4)
    result = sp.prune(model, x, ratio=0.5)
    small = result.model.half()
    with torch.no_grad():
        found = small(x.half())
        expected = result.model.float()(x)
    assert found.isfinite().all()
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


class Crossed(nn.Module):
    """Two operands that lose channels along different dimensions: where one is zero, the other is not."""

    def __init__(self, cross: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.out, self.cross = nn.Linear(6, 8), nn.Linear(6, 10), nn.Linear(10, 4), cross

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cross(self.a(x)[:, :, None], self.b(x)[:, None]).sum(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "cross",
    [torch.add, torch.maximum, lambda a, b: torch.where(a > b, a, b), lambda a, b: torch.complex(a, b).real + b],
    ids=["add", "maximum", "where", "complex"],
)
def test_zeros_of_one_operand_are_not_those_of_the_other(cross: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_exact_or_nothing(randomise(Crossed(cross)).double(), x)


@pytest.mark.parametrize(("hidden", "projected"), [(16, 8), (12, 6)])
def test_projected_states_stay_smaller_than_the_cells(hidden: int, projected: int) -> None:
    """PyTorch would take cells that are as many as what they are projected to for an LSTM without projections."""

    class Projecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(6, hidden, proj_size=projected), nn.Linear(projected, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x)[0])  # type: ignore[no-any-return]

    model: Any = randomise(Projecting().double()).eval()
    x = torch.randn(5, 2, 6, dtype=torch.float64)
    plan = sp.plan(sp.analyze(model, x), ratio=0.5, exclude="lstm.weight_hr_l0")
    assert "cells" in plan.notes[0]
    assert sp.verify(model, plan, x).ok
    assert assert_exact(model, x).model.lstm.proj_size == projected // 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences_whose_lengths_are_a_list(kind: Any) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.layer, self.b = nn.Linear(6, 8), kind(8, 8, batch_first=True), nn.Linear(8, 3)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h = h + self.down(self.up(h).relu())
            packed = nn.utils.rnn.pack_padded_sequence(h, [5, 4], batch_first=True)
            return self.b(nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0])  # type: ignore

    x = torch.randn(2, 5, 6, dtype=torch.float64)
    result = sp.prune(randomise(Packed().double()).eval(), x, ratio=0.5)
    assert len(result.plan.kept["up.weight"][0]) == 8


class Experts(nn.Module):
    """A residual block of experts, each for the tokens that are sent to it."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.inp, self.norm, self.gate, self.head = (
            nn.Linear(16, 12),
            nn.LayerNorm(12),
            nn.Linear(12, count),
            nn.Linear(12, 5),
        )
        self.up = nn.ModuleList(nn.Linear(12, 8) for _ in range(count))
        self.down = nn.ModuleList(nn.Linear(8, 12) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x).relu()
        width = x.shape[-1]
        tokens = self.norm(x).view(-1, width)
        weights, chosen = torch.topk(self.gate(tokens).softmax(1), 2, dim=-1)
        sums = torch.zeros((len(tokens), width), dtype=x.dtype)
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            token, place = torch.where(chosen == i)
            found = down(up(tokens[None, token].reshape(-1, width)).relu())
            sums.index_add_(0, token, found * weights[token, place, None])
        return self.head(x + sums.reshape(x.shape))  # type: ignore[no-any-return]


def test_a_mixture_of_experts() -> None:
    """Which tokens an expert gets is seen in values; all that is added by position is added along the tokens."""
    words = torch.randn(2, 30, 16, dtype=torch.float64)
    small = exact(Experts(), words)
    assert small.inp.out_features == 6
    assert [up.out_features for up in small.up] == [4] * 4


def test_experts_that_get_no_token() -> None:
    """Nothing is known of what they do: a check that can never hold says so, and does not go round in circles."""
    model = randomise(Experts(6).double(), 0)
    result = assert_exact_or_nothing(model, torch.randn(1, 1, 16, dtype=torch.float64))
    assert result is not None
    assert any(why.startswith("the traced call had no elements there") for why in result.report.fixed.values())


class Skipping(nn.Module):
    """Experts that are passed over where no token is sent to them."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.inp, self.gate, self.head = nn.Linear(16, 12), nn.Linear(12, count), nn.Linear(12, 5)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 12)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x).flatten(0, 1)
        chosen, sums = self.gate(x).argmax(1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token = torch.where(chosen == i)[0]
            if len(token):
                sums = sums.index_add(0, token, expert(x[token]))
        return self.head(x + sums)  # type: ignore[no-any-return]


def test_experts_that_no_call_reached_may_be_reached_later() -> None:
    """They stay whole, and so does the stream; those that were reached get narrower inside."""
    model = randomise(Skipping().double(), 0)
    result = sp.prune(model, torch.randn(1, 1, 16, dtype=torch.float64))
    small: Any = result.model
    assert small.inp.out_features == 12
    assert sorted(expert[0].out_features for expert in small.experts) == [4, 8, 8, 8, 8, 8]
    assert "experts.0 was not reached" in str(result.report.fixed) or "experts.1 was not reached" in str(
        result.report.fixed
    )
    words = torch.randn(2, 40, 16, dtype=torch.float64)
    torch.testing.assert_close(small(words), masked_original(model, result.plan)(words), rtol=1e-12, atol=1e-12)
    everywhere = sp.prune(model, words).model
    assert everywhere.inp.out_features == 6  # type: ignore[union-attr]


class StandardisedAndNormed(nn.Module):
    """Weights that are standardised by `F.batch_norm`, and a value [N, C] that has one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 1))

    def forward(self, h: Tensor) -> Tensor:
        flat = self.weight.reshape(1, 8, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        h = F.conv1d(h, weight)
        return h * F.batch_norm(h.mean(2), None, None, training=True)[..., None]


def test_batch_norms_of_two_ranks_in_one_module() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 1, bias=False), StandardisedAndNormed(), nn.Conv1d(8, 3, 1))
    assert_exact_or_nothing(randomise(model.double(), 0), torch.randn(4, 3, 6, dtype=torch.float64))


class GroupedExperts(nn.Module):
    """Experts whose weights are one tensor, for tokens that were sorted by expert."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.inp, self.gate, self.head = nn.Linear(16, 32), nn.Linear(32, count), nn.Linear(32, 5)
        self.up, self.down = nn.Parameter(torch.randn(count, 48, 32)), nn.Parameter(torch.randn(count, 32, 48))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        tokens = h.reshape(-1, h.shape[-1])
        chosen = self.gate(tokens).argmax(-1)
        order = chosen.argsort(stable=True)
        ends = torch.bincount(chosen, minlength=len(self.up)).cumsum(0).to(torch.int32)
        inner = F.grouped_mm(tokens[order], self.up.transpose(1, 2), offs=ends).relu()
        found = F.grouped_mm(inner, self.down.mT, offs=ends)
        return self.head(h + found[order.argsort()].view(h.shape))  # type: ignore[no-any-return]


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped_mm on CPUs")
def test_grouped_experts() -> None:
    """PyTorch multiplies by group in float32 and less alone, and it is compared in float64 all the same."""
    words = torch.randn(2, 30, 16)
    model = randomise(GroupedExperts(), 0)
    result = sp.prune(model, words, ratio=0.5)
    check, small = result.report.verification, result.model
    assert check is not None
    assert check.ok
    assert check.max_rel_error < 1e-12
    assert small.inp.out_features == 16
    assert (small.up.shape, small.down.shape) == ((4, 24, 16), (4, 16, 24))
    masked = sp.mask(result.plan, model)
    torch.testing.assert_close(small(words), masked(words), rtol=1e-4, atol=1e-4)
    before, after = sp.cost.macs(sp.analyze(model, words)), sp.cost.macs(sp.analyze(small, words))
    assert before == 60 * (16 * 32 + 32 * 4 + 2 * 32 * 48 + 32 * 5)
    assert after == 60 * (16 * 16 + 16 * 4 + 2 * 16 * 24 + 16 * 5)
    data = [torch.randn(2, 30, 16) for _ in range(2)]
    for criterion in (sp.importance.Wanda(data), sp.importance.FLAP(data)):
        assert len(sp.plan(sp.analyze(model, words), criterion, ratio=0.5).kept["up"][1]) == 24


class DeltaRule(nn.Module):
    """Linear attention with the gated delta rule (Yang et al., "Gated Delta Networks", ICLR 2025), a few steps at a time:
    the state is made of the sizes of keys and of values, and what a step adds is found by solving triangular systems."""

    def __init__(self, heads: int = 4, keys: int = 3, values: int = 5) -> None:
        super().__init__()
        self.heads, self.keys, self.values = heads, keys, values
        self.inner = nn.Linear(6, heads * (2 * keys + values), bias=False)
        self.rates = nn.Linear(6, heads)
        self.out = nn.Linear(heads * values, 6)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        widths = [self.heads * self.keys, self.heads * self.keys, self.heads * self.values]
        query, key, value = (
            part.reshape(batch, steps, self.heads, -1).transpose(1, 2) for part in self.inner(x).split(widths, -1)
        )
        rates = self.rates(x).sigmoid().transpose(1, 2)[..., None]
        heads, wide = value.shape[1], value.shape[-1]
        state = torch.zeros(batch, heads, key.shape[-1], wide, dtype=x.dtype)
        found = []
        for q, k, v, b in zip(*(part.split(2, 2) for part in (query, key, value, rates)), strict=True):
            system = (b * k @ k.mT).tril(-1)
            new = torch.linalg.solve_triangular(system, b * v, upper=False, unitriangular=True)
            old = torch.linalg.solve_triangular(system, b * k, upper=False, unitriangular=True)
            new = new - old @ state
            found.append(q @ state + (q @ k.mT).tril() @ new)
            state = state + k.mT @ new
        return self.out(torch.cat(found, 2).transpose(1, 2).reshape(batch, steps, -1))


def test_heads_of_the_delta_rule_leave() -> None:
    model = randomise(DeltaRule().double())
    inputs = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert [(len(group), group.kind) for group in sp.analyze(model, inputs).groups] == [(4, "head")]
    assert_exact(model, inputs)


class LastState(nn.Module):
    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.layer = kind(6, 8, **settings)
        self.out = nn.Linear(settings.get("proj_size", 8), 3)
        self.cells = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        _, state = self.layer(x)
        return (self.out(state[0][-1]), self.cells(state[1][-1])) if isinstance(state, tuple) else self.out(state[-1])


@pytest.mark.parametrize(("kind", "settings"), [(nn.LSTM, {}), (nn.LSTM, {"proj_size": 4}), (nn.GRU, {}), (nn.RNN, {})])
def test_the_last_states_are_read(kind: Any, settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    small = assert_exact(
        randomise(LastState(kind, **settings).double()), torch.randn(4, 2, 6, dtype=torch.float64)
    ).model
    assert small.layer.hidden_size == 4


class TwoMeans(nn.Module):
    """The mean of the channels goes with a mean over something else."""

    def __init__(self, second: Any) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), _Centred(second), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x).relu()))


class _Centred(nn.Module):
    def __init__(self, second: Any) -> None:
        super().__init__()
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(-1, keepdim=True)
        v = x.mean(-2, keepdim=True) if self.second == "positions" else (x - u).abs().mean(-1, keepdim=True)
        return x - u - v


@pytest.mark.parametrize("second", ["positions", "distances"])
def test_a_mean_over_channels_beside_another(second: str) -> None:
    assert_exact_or_nothing(randomise(TwoMeans(second).double()), torch.randn(2, 5, 6, dtype=torch.float64))


class GainInside(nn.Module):
    """A vector that scales channels, and the channels inside of every head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.out, self.last = nn.Linear(6, 8), nn.Linear(6, 32), nn.Linear(32, 3), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.ones(8))
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * self.gain
        q = self.q(x).view(len(x), self.heads, -1) * self.gain
        return self.last(h.relu()) + self.out(q.flatten(1).relu())


def test_a_gain_that_meets_heads_stays() -> None:
    model = randomise(GainInside().double())
    small: Any = assert_exact(model, torch.randn(4, 6, dtype=torch.float64)).model
    assert (small.a.out_features, small.heads) == (8, 2)


def test_a_tracer_sees_one_operation_where_it_saw_one() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.attention = nn.Linear(6, 32), nn.MultiheadAttention(32, 4, batch_first=True)
            self.norm, self.out = nn.LayerNorm(32), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            return self.out(self.norm(self.attention(h, h, h, need_weights=False)[0]))  # type: ignore[no-any-return]

    small = exact(Net(), WORDS[..., :6]).eval()
    traced = torch.fx.symbolic_trace(small)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"].count("attention") == 1
    torch.testing.assert_close(traced(WORDS[..., :6]), small(WORDS[..., :6]))
