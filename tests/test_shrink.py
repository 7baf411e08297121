"""Shrinking: what masks and zeros made dead goes, and the function stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Snapshot, assert_bookkeeping, call, fresh, randomise, tensors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import structprune as sp

TOLERANCE = 1e-10


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def assert_shrinks(
    model: nn.Module, inputs: Any, *, to: int | None = None, grow: Sequence[int] = (0, 3), constant: bool = False
) -> sp.Result:
    """The model without its dead channels: `to` parameters, and the function of the masked model, which is the oracle."""
    model.eval()
    before = Snapshot.of(model)
    result = sp.shrink(model, inputs, details=True)
    before.assert_unchanged(model)
    small = result.model
    assert parameters(small) <= parameters(model)
    assert to is None or parameters(small) == to, f"{parameters(small)} parameters are left: {result.report.fixed}"
    assert type(small) is type(model)
    assert not list(small.named_buffers()) or not any(n.endswith("_mask") for n, _ in small.named_buffers())
    assert not any(
        isinstance(h, prune.BasePruningMethod) for m in small.modules() for h in m._forward_pre_hooks.values()
    )
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert_bookkeeping(small)
    assert_same(small, model, inputs, grow, constant)
    return result


def assert_same(
    small: nn.Module, model: nn.Module, inputs: Any, grow: Sequence[int] = (0, 3), constant: bool = False
) -> None:
    """Equal outputs on fresh inputs, at other batch sizes and image sizes."""
    for batch, more in ((None, 0), *((5, g) for g in grow)):
        changed = fresh(inputs, 17, batch, more)
        with torch.no_grad():
            pairs = list(zip(tensors(call(small, changed)), tensors(call(model, changed)), strict=True))
        for found, expected in pairs:
            scale = float(expected.abs().max())
            assert float((found - expected).abs().max()) <= TOLERANCE * scale, f"batch {batch}, grown by {more}"
        assert constant or any(float(b.max() - b.min()) > 1e-6 for _, b in pairs)


def zero(tensor: Tensor, indices: Sequence[int], dim: int = 0) -> None:
    """Zeros, as a regulariser leaves them: no mask."""
    with torch.no_grad():
        tensor.index_fill_(dim, torch.tensor(indices), 0)


def images(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rows(width: int = 6) -> Tensor:
    return torch.randn(4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(*layers: nn.Module) -> Any:
    return randomise(nn.Sequential(*layers).double()).eval()


# -- kinds of masks -------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Two convolutions without padding, batch norms, and a linear layer over what is flattened."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.relu, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=bias)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, bias=bias)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 4, 5)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        x = self.act(self.bn2(self.conv2(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


def plain(act: Callable[[Tensor], Tensor] = torch.relu, bias: bool = False) -> Any:
    return randomise(Plain(act, bias).double()).eval()


LEFT = 3 * 4 * 9 + 8 + 4 * 3 * 9 + 6 + 3 * 4 * 5 + 5  # half of both convolutions


def with_ln_structured(model: Any) -> None:
    prune.ln_structured(model.conv1, "weight", amount=4, n=1, dim=0)
    prune.ln_structured(model.conv2, "weight", amount=0.5, n=2, dim=0)


def with_random_structured(model: Any) -> None:
    torch.manual_seed(0)
    prune.random_structured(model.conv1, "weight", amount=4, dim=0)
    prune.random_structured(model.conv2, "weight", amount=3, dim=0)


def with_custom_masks(model: Any) -> None:
    for conv in (model.conv1, model.conv2):
        mask = torch.ones_like(conv.weight)
        mask[::2] = 0
        prune.custom_from_mask(conv, "weight", mask)


def with_importance_scores(model: Any) -> None:
    for conv, amount in ((model.conv1, 4), (model.conv2, 3)):
        scores = torch.arange(float(len(conv.weight)))[:, None, None, None].expand_as(conv.weight)
        prune.ln_structured(conv, "weight", amount=amount, n=1, dim=0, importance_scores=scores)


def with_l1_unstructured(model: Any) -> None:
    """The smallest half of the elements, which are whole filters."""
    for conv in (model.conv1, model.conv2):
        with torch.no_grad():
            conv.weight[1::2] *= 1e-6
        prune.l1_unstructured(conv, "weight", amount=0.5)


def with_global_unstructured(model: Any) -> None:
    with torch.no_grad():
        model.conv1.weight[1::2] *= 1e-6
        model.conv2.weight[1::2] *= 1e-6
    pairs = [(model.conv1, "weight"), (model.conv2, "weight")]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.5)


def with_repeated_prunings(model: Any) -> None:
    for amount in (2, 2):
        prune.ln_structured(model.conv1, "weight", amount=amount, n=1, dim=0)
    prune.l1_unstructured(model.conv1, "weight", amount=0)
    prune.ln_structured(model.conv2, "weight", amount=1, n=1, dim=0)
    prune.ln_structured(model.conv2, "weight", amount=2, n=1, dim=0)


def with_removed_masks(model: Any) -> None:
    with_ln_structured(model)
    prune.remove(model.conv1, "weight")
    prune.remove(model.conv2, "weight")


def with_plain_zeros(model: Any) -> None:
    zero(model.conv1.weight, [0, 3, 4, 7])
    zero(model.conv2.weight, [1, 2, 5])


MASKINGS = [f for name, f in list(globals().items()) if name.startswith("with_")]


@pytest.mark.parametrize("masked", MASKINGS, ids=[f.__name__ for f in MASKINGS])
def test_every_kind_of_mask(masked: Callable[[Any], None]) -> None:
    model = plain()
    masked(model)
    result = assert_shrinks(model, images(), to=LEFT)
    assert result.report.fixed == {}


def test_groups_and_then_channels_inside_of_the_others() -> None:
    """Two of four groups are masked, and of the others an input at the same place."""
    model = made(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(12, 4, 1),
    )
    zero(model[0].weight, [0, 2, 4, 5, 6, 7])
    zero(model[0].bias, [0, 2, 4, 5, 6, 7])
    zero(model[2].weight, range(6, 12))
    zero(model[2].bias, range(6, 12))
    result = assert_shrinks(model, images(), to=144)
    assert result.report.verification is not None
    small = sp.apply(result.plan, model)
    assert parameters(small) == 144


@pytest.mark.parametrize("function", [torch.max, torch.min, lambda a, b: torch.max(a, other=b), torch.maximum])
def test_the_larger_of_two(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Of two constants it is a constant; nothing is reduced."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(function(self.a(x), self.b(x)))

    model = randomise(Net().double()).eval()
    zero(model.a.weight, [0, 1, 2])
    zero(model.b.weight, [1, 2, 3])
    assert_shrinks(model, rows(), to=2 * 6 * 7 + 3 * 7, grow=(0,))


def test_masked_biases() -> None:
    """A filter and its bias: nothing is left to fold."""
    model = made(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for name in ("weight", "bias"):
        mask = torch.ones_like(getattr(model[0], name))
        mask[:4] = 0
        prune.custom_from_mask(model[0], name, mask)
    result = assert_shrinks(model, rows(), to=4 * 7 + 3 * 5)
    assert torch.equal(result.model[2].bias, model[2].bias)


def test_a_model_without_dead_channels_stays() -> None:
    model = plain()
    result = assert_shrinks(model, images(), to=parameters(model))
    assert not result.plan


def test_scattered_masks_remove_nothing() -> None:
    model = plain()
    prune.random_unstructured(model.conv1, "weight", amount=0.3)
    assert_shrinks(model, images(), to=parameters(model))


def test_a_global_mask_of_98_per_cent() -> None:
    model = plain()
    pairs = [(model.conv1, "weight"), (model.conv2, "weight"), (model.fc, "weight")]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.98)
    assert_shrinks(model, images(), constant=True)
    assert parameters(sp.shrink(model, images())) < parameters(model) / 2


def test_plain_attributes_of_a_masked_module_are_gone() -> None:
    model = plain()
    with_ln_structured(model)
    small: Any = sp.shrink(model, images())
    assert isinstance(small.conv1.weight, nn.Parameter)
    assert set(small.state_dict()) == set(plain().state_dict())


# -- constants ------------------------------------------------------------------------------------------------

ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    torch.sigmoid, F.hardswish, F.silu, F.gelu, torch.tanh, F.elu, nn.Hardsigmoid(), nn.Softplus(), nn.ReLU6(True), nn.PReLU(),
    lambda x: x * torch.sigmoid(x) + 1, lambda x: torch.where(x > 0, x, x / 2),
]  # fmt: skip


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_constants_fold_into_an_unpadded_convolution(act: Callable[[Tensor], Tensor], bias: bool) -> None:
    model = plain(act, bias)
    with_ln_structured(model)
    result = assert_shrinks(model, images())
    if "<lambda>" not in str(act) or "where" not in act.__code__.co_names:  # type: ignore[attr-defined]
        assert result.model.conv1.weight.shape == (4, 3, 3, 3)  # type: ignore[union-attr]
        assert result.model.conv2.weight.shape == (3, 4, 3, 3)  # type: ignore[union-attr]


def test_a_constant_goes_into_the_batch_norm_that_follows() -> None:
    """A convolution without a bias gets none where a running mean can take it."""
    model = plain(torch.sigmoid)
    with_ln_structured(model)
    small: Any = assert_shrinks(model, images()).model
    assert small.conv2.bias is None


def test_a_constant_becomes_a_new_bias(tmp_path: Path) -> None:
    def make() -> Any:
        return made(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3))

    model = make()
    zero(model[0].weight, [1, 2, 3])
    result = assert_shrinks(model, images(), to=5 * 28 + 4 * 5 + 4 + 2 * 37)
    assert result.plan.swaps == {"2": ("bias", 4)}
    assert isinstance(result.model[2].bias, nn.Parameter)  # type: ignore[index]
    assert sp.PruningPlan.from_json(result.plan.to_json()) == result.plan
    sp.save(result, tmp_path / "out")
    again = sp.load(tmp_path / "out", make)
    assert_same(again, model, images())
    again.load_state_dict(result.model.state_dict())


def test_a_padded_convolution_merges_constant_planes() -> None:
    """At the border a constant is not one number; one plane stands for all of them."""
    model = made(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3))
    zero(model[0].weight, [1, 2, 5, 7])
    result = assert_shrinks(model, images(), to=5 * 28 + 4 * 46 + 2 * 37)
    assert "padding" in result.report.fixed["0"]
    assert "3 others" in result.report.fixed["0"]


def test_a_centre_tap_alone_folds_under_padding() -> None:
    model = made(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3))
    zero(model[0].weight, [1, 2])
    with torch.no_grad():
        centre = model[2].weight[:, [1, 2], 1, 1].clone()
        model[2].weight[:, [1, 2]] = 0
        model[2].weight[:, [1, 2], 1, 1] = centre
    assert_shrinks(model, images(), to=6 * 28 + 4 * 55 + 2 * 37)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_other_paddings_leave_a_constant_constant(mode: str) -> None:
    model = made(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3, padding=1, padding_mode=mode))
    zero(model[0].weight, [1, 2, 5, 7])
    assert_shrinks(model, images(), to=4 * 28 + 4 * 37)


@pytest.mark.parametrize("padding", ["same", "valid", 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_paddings_in_words(padding: Any, dilation: int) -> None:
    layer = nn.Conv2d(8, 4, 3, padding=padding, dilation=dilation)
    model = made(nn.Conv2d(3, 8, 3), nn.Sigmoid(), layer)
    zero(model[0].weight, [1, 2, 5, 7])
    width = 4 if padding == "valid" else 5
    assert_shrinks(model, images(), to=width * 28 + 4 * (9 * width + 1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(8, 4, 1),
        nn.ConvTranspose2d(8, 4, 3, padding=2),
        nn.ConvTranspose2d(8, 4, 3, padding=1),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
    ],
)
def test_transposed_convolutions(layer: nn.Module) -> None:
    model = made(nn.Conv2d(3, 8, 3), nn.Sigmoid(), layer)
    zero(model[0].weight, [1, 2, 5, 7])
    small: Any = assert_shrinks(model, images()).model
    folds = layer.kernel_size == (1, 1) or layer.padding == (2, 2)
    assert small[0].out_channels == (4 if folds else 5)


def test_a_pool_with_padding_averages_zeros_in() -> None:
    for pool, left in ((nn.AvgPool2d(3, 1, 1), 8), (nn.MaxPool2d(3, 1, 1), 4), (nn.AvgPool2d(2), 4)):
        model = made(nn.Conv2d(3, 8, 3), nn.Sigmoid(), pool, nn.Conv2d(8, 4, 1))
        zero(model[0].weight, [1, 2, 5, 7])
        small: Any = assert_shrinks(model, images()).model
        assert small[0].out_channels == left


def test_a_padded_depthwise_convolution_keeps_what_is_not_zero() -> None:
    """Its border differs, and the activation behind it bends the difference."""

    def make(padding: int) -> Any:
        depthwise = nn.Conv2d(8, 8, 3, padding=padding, groups=8, bias=False)
        return made(
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.Sigmoid(),
            depthwise,
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
        )

    for padding, left in ((0, 5), (1, 8)):
        model = make(padding)
        zero(model[0].weight, [1, 2, 5])
        result = assert_shrinks(model, images())
        assert result.model[0].out_channels == left  # type: ignore[index]
        assert bool(result.report.fixed) == bool(padding)
    model = make(1)
    zero(model[0].weight, [1, 2, 5])
    zero(model[3].weight, [1, 2])  # constant after all, whatever comes in
    assert assert_shrinks(model, images()).model[0].out_channels == 6  # type: ignore[index]


def test_a_batch_norm_without_scale_is_constant_whatever_comes_in() -> None:
    model = plain(torch.sigmoid)
    zero(model.bn1.weight, [0, 1, 2])
    small: Any = assert_shrinks(model, images()).model
    assert small.conv1.out_channels == 5


def test_instance_norm_leaves_its_shift() -> None:
    model = made(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.Sigmoid(), nn.Conv2d(8, 4, 1))
    zero(model[0].weight, [1, 2, 5, 7])
    assert_shrinks(model, images(), to=4 * 28 + 8 + 4 * 5)


# -- liveness -------------------------------------------------------------------------------------------------


def test_outputs_that_nobody_reads() -> None:
    """The columns of the next layer are zero: the filters are not, and go."""
    model = plain()
    zero(model.conv2.weight, [0, 2, 5], dim=1)
    small: Any = assert_shrinks(model, images()).model
    assert small.conv1.out_channels == 5


def test_chains_need_the_fixed_point() -> None:
    """Only the last layer has zeros: what feeds the rows that nobody reads goes, and what feeds that."""
    model = made(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():  # the first halves of all layers talk to one another alone
        for layer in (model[2], model[4]):
            layer.weight[4:, :4] = 0
    zero(model[6].weight, [0, 1, 2, 3], dim=1)
    assert_shrinks(model, rows(), to=4 * 7 + 4 * 5 + 4 * 5 + 3 * 5)


def test_a_chain_of_constants_forward() -> None:
    """A row that reads constants alone is constant, and so on."""
    model = made(
        nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    zero(model[0].weight, [0, 1, 2, 3])
    with torch.no_grad():
        for layer in (model[2], model[4]):
            layer.weight[:4, 4:] = 0
    assert_shrinks(model, rows(), to=4 * 7 + 4 * 5 + 4 * 5 + 3 * 5)


def test_a_layer_that_is_dead_as_a_whole() -> None:
    """One channel stays, since a layer without any is none."""
    model = made(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    zero(model[0].weight, range(8))
    result = assert_shrinks(model, rows(), constant=True)
    assert [m.out_features for m in result.model if isinstance(m, nn.Linear)] == [1, 1, 3]  # type: ignore[union-attr, attr-defined]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(torch.sigmoid(x + self.bn(self.outer(self.inner(x).relu()))))


def residual() -> Any:
    return randomise(Residual().double()).eval()


def test_a_residual_sum_with_both_sides_dead() -> None:
    """Two constants make one, which folds behind the sum; inside the branch one plane of the stem stays."""
    model = residual()
    zero(model.stem.weight, [0, 1, 2])
    zero(model.outer.weight, [0, 1, 2, 3])
    small: Any = assert_shrinks(model, images()).model
    assert small.stem.out_channels == 6
    zero(model.stem.bias, [0, 1, 2])
    small = assert_shrinks(model, images()).model
    assert small.stem.out_channels == small.last.in_channels == 5


def test_a_residual_sum_with_one_side_dead() -> None:
    model = residual()
    zero(model.outer.weight, [0, 1, 2, 3])
    result = assert_shrinks(model, images(), to=parameters(model))
    assert "varies" in result.report.fixed["outer"]


class Cat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(10)
        self.last = nn.Conv2d(10, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.hardswish(self.bn(torch.cat([self.a(x), self.b(x)], 1))))


def test_concatenation() -> None:
    model = randomise(Cat().double()).eval()
    zero(model.a.weight, [0, 5])
    zero(model.b.weight, [3])
    assert_shrinks(model, images(), to=4 * 4 + 3 * 28 + 2 * 7 + 4 * (7 * 9 + 1))


def test_grouped_convolutions() -> None:
    """Groups keep the same number of channels: index j goes if it is dead in every group."""
    model = made(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1))
    zero(model[0].weight, [1, 5, 2])
    assert_shrinks(model, images(), to=6 * 28 + 6 * 28 + 4 * 7)


def test_grouped_convolutions_merge_inside_each_group() -> None:
    model = made(
        nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 6, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)
    )
    zero(model[0].weight, [1, 5, 2, 6])
    assert_shrinks(model, images(), to=6 * 28 + 6 * 28 + 4 * 7)


class Normed(nn.Module):
    """A residual stream with layer norms."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), norm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.last(x)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_norms_over_channels_take_zeros_alone(norm: Callable[[int], nn.Module]) -> None:
    model = randomise(Normed(norm).double()).eval()
    zero(model.up.weight, [0, 1, 2])
    for layer in (model.embed, model.down):
        zero(layer.weight, [1, 6])
    result = assert_shrinks(model, rows(), grow=(0,))
    assert result.model.up.out_features == 9  # type: ignore[union-attr]
    assert result.model.embed.out_features == 8  # type: ignore[union-attr]
    assert "norm" in result.report.fixed["embed"]
    zero(model.embed.bias, [1, 6])
    zero(model.norm.weight, [1, 6])
    small: Any = assert_shrinks(model, rows(), grow=(0,)).model
    assert small.embed.out_features == 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(b, n, -1))


def tokens(width: int = 8) -> Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_head_that_nobody_reads() -> None:
    model = randomise(Attention().double()).eval()
    zero(model.out.weight, [2, 3], dim=1)
    small: Any = assert_shrinks(model, tokens(), grow=(0,)).model
    assert small.qkv.out_features == 18
    assert small.heads == 3


def test_multihead_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 4, batch_first=True)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.attn(x, x, x, need_weights=False)[0])

    model = randomise(Net().double()).eval()
    zero(model.attn.out_proj.weight, [2, 3], dim=1)
    small: Any = assert_shrinks(model, tokens(), grow=(0,)).model
    assert small.attn.num_heads == 3


class Twice(nn.Module):
    """One layer, called on two values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.twice(self.twice(self.first(x).sigmoid()).sigmoid()))


def test_a_layer_called_twice() -> None:
    """Its bias is one: a constant must be the same at each call."""
    model = randomise(Twice().double()).eval()
    for layer in (model.first, model.twice):
        zero(layer.weight, [0, 1, 2])
    assert assert_shrinks(model, rows(), grow=(0,)).model.twice.in_features == 8  # type: ignore[union-attr]
    with torch.no_grad():
        model.first.bias[:3] = model.twice.bias[:3]
    assert assert_shrinks(model, rows(), grow=(0,)).model.twice.in_features == 5  # type: ignore[union-attr]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def test_tied_weights_stay_tied() -> None:
    model = randomise(Tied().double()).eval()
    mask = torch.ones_like(model.a.weight)
    mask[:, :3] = 0
    mask[:3] = 0
    for layer in (model.a, model.b):
        prune.custom_from_mask(layer, "weight", mask)
    zero(model.a.bias, [0, 1, 2])
    zero(model.b.bias, [0, 1, 2])
    small: Any = assert_shrinks(model, rows(8), grow=(0,)).model
    assert small.a.weight is small.b.weight


def test_masks_on_one_of_two_tied_weights() -> None:
    model = randomise(Tied().double()).eval()
    prune.ln_structured(model.b, "weight", amount=3, n=1, dim=0)
    small: Any = sp.shrink(model, rows(8))  # the two weights are not equal any more, so there are two
    assert_same(small, model, rows(8), grow=(0,))
    assert small.c.in_features == 5
    assert small.a.weight.shape == (8, 8)


def test_what_is_read_elsewhere_is_not_merged() -> None:
    """The weight that would be edited serves another layer, too."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).sigmoid()) * self.last.weight.square().mean()

    model = randomise(Net().double()).eval()
    zero(model.first.weight, [0, 1])
    assert_shrinks(model, images(), to=parameters(model))


def test_auxiliary_heads_stay() -> None:
    """What runs in train mode alone is read there."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.aux, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.bn(self.conv(x)).relu()
            return (self.last(x), self.aux(x)) if self.training else self.last(x)

    model = randomise(Net().double()).eval()
    zero(model.last.weight, [0, 1, 2], dim=1)
    zero(model.aux.weight, [2, 3], dim=1)
    zero(model.conv.weight, [7])
    result = assert_shrinks(model, images())
    assert result.model.conv.out_channels == 6  # type: ignore[union-attr]
    assert result.model.aux.weight.shape == (4, 6, 1, 1)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "write",
    [
        lambda y, x: y.view(-1, 8).add_(x.mean(1, keepdim=True)),
        lambda y, x: F.hardsigmoid(y.view(-1, 2, 4), inplace=True),
        lambda y, x: y.view_as(y).add_(x.mean(1, keepdim=True)),
        lambda y, x: F.hardsigmoid(y.view_as(y), inplace=True),
        lambda y, x: y.detach().mul_(x.mean(1, keepdim=True)),
    ],
)
def test_in_place_writes_into_shared_memory_hide_a_constant(write: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Activations write as `add_` does. The written sizes of the first two views keep the channels by themselves."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            write(y, x)
            return self.last(y)

    model = randomise(Net().double()).eval()
    zero(model.first.weight, [0, 1, 2])
    assert_shrinks(model, rows(), to=parameters(model), grow=(0,))


def test_a_weight_that_is_overwritten_during_the_forward() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.first.weight.view(-1).fill_(0.1)
            return self.last(self.first(x).relu())

    model = randomise(Net().double()).eval()
    zero(model.first.weight, [0, 1, 2])
    small: Any = sp.shrink(model, rows())
    assert small.first.out_features == 8


def test_dropout_that_is_always_on_leaves_zeros_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.dropout(self.first(x), 0.5))

    model = randomise(Net().double()).eval()
    zero(model.first.weight, [0, 1, 2])
    zero(model.first.bias, [2])
    small: Any = sp.shrink(model, rows())
    assert small.first.out_features == 7


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind: Any) -> None:
    """A hidden unit goes when all of its rows and columns are zero."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = kind(6, 8, batch_first=True), kind(8, 4, 2, batch_first=True)
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x)[0])[0])

    model = randomise(Net().double()).eval()
    plan = sp.plan(sp.analyze(model, tokens(6)), ratio=0.5)
    masked = sp.mask(plan, model)
    small: Any = sp.shrink(masked, tokens(6))  # no snapshot: PyTorch renews weak references when it copies an RNN
    assert_same(small, masked, tokens(6), grow=(0,))
    assert parameters(small) == parameters(sp.apply(plan, model))
    assert small.first.hidden_size == 4


def test_shrinking_again_changes_nothing() -> None:
    model = made(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 2, 3))
    zero(model[0].weight, [1, 2, 5, 7])
    zero(model[2].weight, [1, 2])
    small = assert_shrinks(model, images()).model
    assert_shrinks(small, images(), to=parameters(small))


def test_several_example_inputs() -> None:
    """What one call reads stays for all."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor, flag: bool = False) -> Tensor:
            return (self.a if flag else self.b)(self.first(x).relu())

    model = randomise(Net().double()).eval()
    zero(model.a.weight, [0, 1, 2, 3], dim=1)
    zero(model.b.weight, [0, 1, 6, 7], dim=1)
    small: Any = sp.shrink(model, [(rows(),), (rows(), True)])
    assert small.first.out_features == small.a.in_features == 6
    for flag in (False, True):
        assert_same(small, model, {"x": rows(), "flag": flag}, grow=())


def test_a_model_without_values() -> None:
    with pytest.raises(sp.UnsupportedModelError, match="weight is on the meta device"):
        sp.shrink(nn.Sequential(nn.Linear(3, 3, device="meta")), torch.randn(1, 3))


def test_float32_and_train_mode() -> None:
    """A verification in float64 does not depend on the model's dtype; modes are kept."""
    model = plain(torch.sigmoid).float().train()
    with_ln_structured(model)
    result = sp.shrink(model, images().float(), details=True)
    check = result.report.verification
    assert check is not None
    assert check.ok
    assert check.max_rel_error < 1e-12
    assert result.model.training
    assert not any(p.dtype == torch.float64 for p in result.model.parameters())
    assert {c.mode for c in check.comparisons} == {"eval"}
    with torch.no_grad():
        found, expected = result.model.eval()(images().float()), model.eval()(images().float())
    assert float((found - expected).abs().max()) < 1e-5


def test_verification_catches_a_wrong_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    from structprune import folding

    monkeypatch.setattr(folding, "_fold", lambda *args: None)
    model = plain(torch.sigmoid)
    with_ln_structured(model)
    with pytest.raises(sp.VerificationError, match="DIFFERS"):
        sp.shrink(model, images())
    sp.shrink(model, images(), verify=False)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = plain(torch.sigmoid)
    with_ln_structured(model)
    result = sp.shrink(model, images(), details=True)
    sp.save(result, tmp_path / "out")
    again = sp.load(tmp_path / "out", lambda: plain(torch.sigmoid))
    assert_same(again, model, images())
    again.load_state_dict(result.model.state_dict())


def test_a_plan_that_gives_a_bias_to_what_has_one() -> None:
    model = plain(bias=True)
    plan = sp.plan(sp.analyze(model, images()))
    data = plan.to_dict()
    for path, words in (("conv1", "has a bias already"), ("bn1", "has a bias already"), ("", "does not take a bias")):
        data["swaps"] = {path: ["bias", 4]}
        with pytest.raises(sp.PlanError, match=words):
            sp.apply(sp.PruningPlan.from_dict(data), model)
    unbiased = plain()
    data = sp.plan(sp.analyze(unbiased, images())).to_dict()
    data["swaps"] = {"conv1": ["bias", 3]}
    with pytest.raises(sp.PlanError, match="of width 4"):
        sp.apply(sp.PruningPlan.from_dict(data), unbiased)


def test_the_order_of_registration_does_not_matter_to_a_fingerprint() -> None:
    from structprune.inventory import fingerprint

    model = plain(bias=True)
    before = fingerprint(model)
    with_removed_masks(model)
    assert list(model.conv1._parameters) == ["bias", "weight"]
    assert fingerprint(model) == before
    model.conv1.bias = model.conv1.bias  # still the same
    assert fingerprint(model) == before
    model.bn1.weight = model.bn1.bias
    assert fingerprint(model) != before


# -- plans from masks, and masks from plans -------------------------------------------------------------------


@pytest.mark.parametrize("make", [plain, residual, lambda: randomise(Normed().double()).eval()])
@pytest.mark.parametrize("removed", [False, True])
def test_plans_and_masks_are_inverse(make: Callable[[], Any], removed: bool) -> None:
    model = make()
    inputs = rows() if isinstance(model, Normed) else images()
    plan = sp.plan(sp.analyze(model, inputs), ratio=0.5)
    masked = sp.mask(plan, model)
    if removed:
        for module in masked.modules():
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, prune.BasePruningMethod):
                    prune.remove(module, hook._tensor_name)
    assert sp.plan_from_masks(masked, inputs).to_json() == plan.to_json()
    assert_same(sp.shrink(masked, inputs), sp.apply(plan, model), inputs, grow=(0,))


def test_a_plan_from_masks_takes_what_is_masked_as_a_whole() -> None:
    """A filter alone is not all of a channel: `shrink` removes it, the plan from masks does not."""
    model = plain()
    prune.ln_structured(model.conv1, "weight", amount=4, n=1, dim=0)
    assert not sp.plan_from_masks(model, images())
    assert sp.shrink(model, images()).conv1.out_channels == 4  # type: ignore[union-attr]


# -- promotion ------------------------------------------------------------------------------------------------


def test_promotion_removes_what_masks_left_little_of() -> None:
    model = plain(bias=True)
    mask = torch.ones_like(model.conv1.weight)
    mask[:4] = 0
    mask[:4, 0, 0, 0] = 1  # one element of 27 is left
    prune.custom_from_mask(model.conv1, "weight", mask)
    assert parameters(sp.shrink(model, images())) == parameters(model)
    kept, original = (w.detach().abs().flatten(1).sum(1) for w in (model.conv1.weight, model.conv1.weight_orig))
    share = float((kept / original)[:4].max()) + 1e-9
    result = sp.shrink(model, images(), structured="promote", threshold=share, details=True)
    small: Any = result.model
    assert (small.conv1.out_channels, small.conv2.out_channels) == (4, 6)
    loss = result.report.lost["conv1"]
    assert (loss.channels, loss.of) == (4, 8)
    assert loss.mass == pytest.approx(float(kept[:4].sum() / kept.sum()))
    assert_same(small, sp.mask(result.plan, unmasked(model)), images())  # all that belongs to them is taken to be zero
    assert result.report.deviation is not None
    assert result.report.deviation > 0
    assert "4 channels whose masks had left little" in str(result.report)
    assert result.report.to_dict()["lost"] == {"conv1": {"channels": 4, "of": 8, "mass": loss.mass}}


def unmasked(model: Any) -> Any:
    """The same model with its masks made permanent, by PyTorch."""
    copied = plain(bias=True)
    copied.conv1.weight.data.copy_(model.conv1.weight_orig * model.conv1.weight_mask)
    return copied


def test_promotion_without_masks_compares_with_the_mean() -> None:
    model = plain()
    with torch.no_grad():
        model.conv1.weight[[2, 5]] *= 1e-3
    result = sp.shrink(model, images(), structured="promote", details=True)
    assert result.model.conv1.out_channels == 6  # type: ignore[union-attr]
    assert result.report.lost["conv1"].channels == 2


def test_promotion_leaves_one_channel() -> None:
    model = plain()
    prune.l1_unstructured(model.conv1, "weight", amount=0.99)
    small: Any = sp.shrink(model, images(), structured="promote", threshold=1.0)
    assert small.conv1.out_channels == 1


def test_promotion_of_nothing() -> None:
    model = plain()
    result = sp.shrink(model, images(), structured="promote", details=True)
    assert (result.report.lost, result.report.deviation) == ({}, 0.0)
    assert parameters(result.model) == parameters(model)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"structured": "channels"}, sp.ArgumentError, "None or 'promote', not 'channels'"),
        ({"structured": "promote", "threshold": float("nan")}, sp.ArgumentError, "in \\[0, 1\\]"),
        ({"structured": "promote", "threshold": 1.5}, sp.ArgumentError, "1.5 was given"),
        ({"structured": "promote", "threshold": "high"}, sp.ArgumentTypeError, "a number"),
        ({"structured": "promote", "threshold": True}, sp.ArgumentTypeError, "a number"),
    ],
)
def test_what_can_be_got_wrong(settings: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sp.shrink(plain(), images(), **settings)


# -- real networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "densenet121"]
)
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    options = {"init_weights": False} if name == "googlenet" else {}
    model = randomise(models.get_model(name, weights=None, num_classes=10, **options).double()).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            prune.ln_structured(module, "weight", amount=0.5, n=1, dim=0)
    inputs = images(3, 64)[:1]
    small = sp.shrink(model, inputs, verify=False)
    assert parameters(small) < 0.6 * parameters(model)
    assert_same(small, model, inputs, grow=(3,))


# -- sums over channels, and weights that are read in two ways ---------------------------------------------------


class Measured(nn.Module):
    """A convolution, a function of its channels, and a convolution of the result, which has one."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 3, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "norm, order, dim": lambda h: torch.linalg.norm(h, 2, 1, keepdim=True),
    "norm over two dimensions": lambda h: torch.linalg.norm(h, "fro", (1, 2), keepdim=True),
    "matrix norm": lambda h: torch.linalg.matrix_norm(h, "fro", (1, 2), keepdim=True),
    "vector norm": lambda h: torch.linalg.vector_norm(h, 2, 1, keepdim=True),
    "products": lambda h: torch.linalg.vecdot(h.movedim(1, -1), h.flip(2).movedim(1, -1))[:, None],
    "cosines": lambda h: F.cosine_similarity(h, h.flip(2), 1)[:, None],
    "squares": lambda h: F.mse_loss(h, h.flip(2), reduction="sum") + h.sum(1, keepdim=True),
    "squares of one value": lambda h: F.mse_loss(h, h, reduction="sum") + h.sum(1, keepdim=True),
}


@pytest.mark.parametrize("name", MEASURES)
def test_sums_over_channels_take_zeros_alone(name: str) -> None:
    """Some functions are told the dimension by their third argument, and by their second an order, or another value."""
    model = randomise(Measured(MEASURES[name]).double()).eval()
    zero(model.first.weight, range(4))
    assert_shrinks(model, images(), to=parameters(model))
    zero(model.first.bias, range(4))
    small: Any = assert_shrinks(model, images()).model
    assert small.first.out_channels == 4


def test_vectors_and_losses_are_read_whole() -> None:
    for function in (
        lambda h: torch.cross(h[:, :3], h[:, 3:6], 1).sum(1, keepdim=True),
        lambda h: F.l1_loss(h, h.flip(2), reduction="none").sum(1, keepdim=True),
        lambda h: F.huber_loss(h, h.flip(2), reduction="mean") + h.sum(1, keepdim=True),
    ):
        model = randomise(Measured(function).double()).eval()
        zero(model.first.weight, range(4))
        assert_shrinks(model, images())


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, divisor_override=3), nn.AvgPool2d(3, 1, divisor_override=8)])
def test_a_pool_that_divides_by_another_number(pool: nn.Module) -> None:
    """What is constant is another constant behind it, zeros apart."""
    model = made(nn.Conv2d(3, 8, 3), pool, nn.Conv2d(8, 4, 1))
    zero(model[0].weight, [1, 2, 5, 7])
    zero(model[0].bias, [1, 2])
    small: Any = assert_shrinks(model, images()).model
    assert small[0].out_channels == 6


class BothWays(nn.Module):
    """An autoencoder whose two halves share their weight."""

    def __init__(
        self, there: Callable[[Tensor, Tensor], Tensor], back: Callable[[Tensor, Tensor], Tensor], *shape: int
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))
        self.there, self.back = there, back

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.there(x, self.weight).relu(), self.weight)


def test_a_weight_that_is_read_there_and_back() -> None:
    for x, *parts in (
        (rows(), F.linear, torch.matmul, 8, 6),
        (rows(), torch.matmul, F.linear, 6, 8),
        (images(), F.conv2d, F.conv_transpose2d, 8, 3, 3, 3),
    ):
        model = randomise(BothWays(*parts).double()).eval()
        zero(model.weight, [0, 1, 2], dim=parts[2:].index(8))
        assert_shrinks(model, x, to=parameters(model) * 5 // 8, grow=(0,))


def test_a_weight_that_is_read_there_and_back_again() -> None:
    """What one way does not read, the other does."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
            self.weight = nn.Parameter(torch.zeros(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = x + F.linear(x, self.weight)
            return self.last(x + x @ self.weight)

    model = randomise(Net().double()).eval()
    zero(model.weight, [2], dim=1)
    zero(model.last.weight, [2], dim=1)
    assert_shrinks(model, rows(), to=parameters(model), grow=(0,))
    zero(model.weight, [2])
    small: Any = assert_shrinks(model, rows(), grow=(0,)).model
    assert small.first.out_features == 7


def test_dead_channels_that_python_needs_stay() -> None:
    """What is seen of a size only once nearly all is gone was not tried before."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            return self.last(h if h.shape[1] > 3 else h + 1)

    model = randomise(Net().double()).eval()
    zero(model.last.weight, range(14), dim=1)
    result = assert_shrinks(model, rows(), grow=(0,))
    assert "Python looks at its size" in result.report.fixed["first"]


def test_a_product_takes_zeros_of_one_side() -> None:
    """A constant stays, whichever side it is on."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.a(x) @ self.b(x).mT)

    for constant, left in ((True, 6), (False, 4)):
        model = randomise(Net().double()).eval()
        zero(model.a.weight, range(4))
        zero(model.a.bias, range(2 if constant else 4))
        small: Any = assert_shrinks(model, tokens(6), grow=(0,)).model
        assert small.a.out_features == small.b.out_features == left
    model = randomise(Net().double()).eval()
    zero(model.b.weight, range(4))
    zero(model.b.bias, range(2))
    small = assert_shrinks(model, tokens(6), grow=(0,)).model
    assert small.a.out_features == small.b.out_features == 6


class Empty(nn.Module):
    """Nothing but zeros comes out of one layer."""

    def __init__(self, empty: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        zero(getattr(self, empty).weight, range(8))
        if empty != "a":
            zero(getattr(self, empty).bias, range(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x).relu()).relu()).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("empty", "left"), [("a", (1, 1, 8)), ("b", (1, 1, 1))])
def test_one_channel_stays_of_a_layer_that_is_all_zeros(empty: str, left: tuple[int, ...]) -> None:
    """And one constant plane, which stands for the others, where padding keeps it from being a bias."""
    result = assert_shrinks(Empty(empty).double().eval(), images())
    small: Any = result.model
    assert (small.a.out_channels, small.b.out_channels, small.c.out_channels) == left
    assert "left empty" in result.report.fixed["a"]


class Numbered(nn.Module):
    """What is constant for one input only: half of the filters are zero, and are multiplied by some number."""

    def __init__(self, how: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.out, self.how = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), how
        self.register_buffer("before", torch.tensor(0.5))
        self.count, self.gain, self.table = 1, 0.5, nn.Parameter(torch.rand(8, 1, 24))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.how(self, self.a(x).sigmoid(), x).mean((2, 3)))  # type: ignore[no-any-return]


def after(m: Any, x: Tensor) -> Tensor:
    """What a call left, which leaves something else."""
    before = m.before.clone()
    m.before.copy_(x.mean())
    return before  # type: ignore[no-any-return]


class Counting(Numbered):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).sigmoid() * self.count
        self.count += 1
        return self.out(h.mean((2, 3)))  # type: ignore[no-any-return]


NUMBERED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a size": lambda m, h, x: h * x.shape[3],
    "a share of a size": lambda m, h, x: h / (x.shape[2] * x.shape[3]),
    "the root of a size": lambda m, h, x: h / math.sqrt(x.shape[3]),
    "a float": lambda m, h, x: h + float(x.size(-1)),
    "what asks nothing of a size": lambda m, h, x: h + 0.1 * x.shape[3],
    "the size of the batch": lambda m, h, x: h / len(x),
    "a power": lambda m, h, x: h ** (1 / x.shape[3]),
    "a bound": lambda m, h, x: h.clamp(max=1 / x.shape[3]),
    "a keyword": lambda m, h, x: h.sub(x[:, :1, 1:-1, 1:-1] * 0 + 1, alpha=1 / x.shape[3]),
    "a slope": lambda m, h, x: F.leaky_relu(h - 1, 1 / x.shape[3]),
    "a value": lambda m, h, x: h * x.mean().item(),
    "a part of a table": lambda m, h, x: h * m.table[..., : h.shape[3]].relu(),
    "state": lambda m, h, x: h * after(m, x),
}


def grown(x: Tensor) -> Tensor:
    return torch.cat([x, x, x], 3)


@pytest.mark.parametrize("name", NUMBERED)
def test_constants_for_one_input_alone_are_not_folded(name: str) -> None:
    model = randomise(Numbered(NUMBERED[name]).double()).eval()
    zero(model.a.weight, range(4))
    with torch.no_grad():
        model.table[:, :, 6:].neg_()
        model.table[:4, :, :6] = 1
    small: Any = sp.shrink(copy.deepcopy(model), images())
    assert small.a.out_channels == 8
    for x in (images(), grown(images())):
        torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_attributes_that_a_call_changes_are_no_constants() -> None:
    model = randomise(Counting(NUMBERED["a size"]).double()).eval()
    zero(model.a.weight, range(4))
    small: Any = sp.shrink(copy.deepcopy(model), images())
    for _ in range(3):
        torch.testing.assert_close(small(images()), model(images()), rtol=1e-12, atol=1e-12)


class Scaled(Numbered):
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.out((self.a(x).sigmoid() * scale).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("given", [images(), {"x": images(), "scale": 3.0}])
def test_numbers_among_the_arguments_are_no_constants(given: Any) -> None:
    model = randomise(Scaled(NUMBERED["a size"]).double()).eval()
    zero(model.a.weight, range(4))
    small = sp.shrink(copy.deepcopy(model), given)
    for scale in (1.0, 2.0, 3.0):
        torch.testing.assert_close(small(images(), scale), model(images(), scale), rtol=1e-12, atol=1e-12)


def test_numbers_that_are_attributes_or_defaults_are_constants() -> None:
    """Though the size of the input is looked at."""
    how = lambda m, h, x: F.leaky_relu(h * m.gain + m.before).view(len(x), -1, *h.shape[2:])  # noqa: E731
    model = randomise(Numbered(how).double()).eval()
    zero(model.a.weight, range(4))
    small: Any = sp.shrink(copy.deepcopy(model), images())
    assert small.a.out_channels == 4
