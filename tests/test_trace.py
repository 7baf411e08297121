"""What the tracer must see, and what it must know that it did not see."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Snapshot, assert_exact, assert_exact_or_nothing, assert_kept, randomise
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune import blanks
from structprune.blanks import large_stand_in, stand_in

ROWS = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Between(nn.Module):
    """A linear layer, an operation, another linear layer."""

    def __init__(self, operation: Callable[[Any, Tensor], Tensor], wide: int = 12) -> None:
        super().__init__()
        self.a, self.b, self.square = nn.Linear(16, 12), nn.Linear(wide, 6), nn.Parameter(torch.randn(12, 12))
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.operation(self, self.a(x)))


def between(operation: Callable[[Any, Tensor], Tensor], wide: int = 12) -> nn.Module:
    return randomise(Between(operation, wide).double())


BY_KEYWORD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "reshape": lambda m, h: torch.reshape(input=h, shape=(-1, 7, h.shape[-1])),
    "flatten": lambda m, h: torch.flatten(input=h, start_dim=0, end_dim=1),
    "unflatten": lambda m, h: torch.unflatten(input=h, dim=-1, sizes=(2, -1)).flatten(start_dim=-2),
    "chunk": lambda m, h: torch.cat(tensors=torch.chunk(input=h, chunks=2, dim=-1)[::-1], dim=-1),
    "roll": lambda m, h: torch.roll(input=h, shifts=1, dims=1),
    "squeeze": lambda m, h: torch.squeeze(input=torch.unsqueeze(input=h, dim=1), dim=1),
    "broadcast_to": lambda m, h: torch.broadcast_to(input=h[:1], size=h.shape),
    "matmul": lambda m, h: torch.matmul(input=h, other=m.square),
    "matmul, half": lambda m, h: torch.matmul(h, other=m.square),
    "bmm": lambda m, h: torch.bmm(input=h, mat2=m.square.expand(h.shape[0], -1, -1)),
    "where": lambda m, h: torch.where(condition=h > 0, input=h, other=h * 2),
}


@pytest.mark.parametrize("name", BY_KEYWORD)
def test_operands_by_keyword(name: str) -> None:
    assert_exact(between(BY_KEYWORD[name]), ROWS)


def squares(h: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        return torch.autograd.grad((leaf**3).sum(), leaf)[0]


UNSEEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "autograd.grad": lambda m, h: squares(h),
    "autograd.grad beside": lambda m, h: squares(h).mean(1, keepdim=True) + h,
    "func.grad": lambda m, h: torch.func.grad(lambda z: (z**3).sum())(h),
    "vmap": lambda m, h: torch.func.vmap(lambda row: row.relu() * 2)(h),
    "vmap that writes": lambda m, h: torch.func.vmap(lambda row: row.relu().mul_(2))(h),
    "vmap of a layer": lambda m, h: torch.func.vmap(lambda row: F.linear(row, m.square))(h),
}


@pytest.fixture(params=["usual", "every value counts as large"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """From which size on stand-ins lie in untouched pages, and meta kernels tell their shapes."""
    if request.param != "usual":
        monkeypatch.setattr(blanks, "_LARGE", 1)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", UNSEEN)
def test_what_goes_past_the_tracer_is_kept(name: str) -> None:
    assert_kept(between(UNSEEN[name]), ROWS, "a.weight[0]", "an untraceable call")


def test_weights_written_in_vmap_are_as_they_were() -> None:
    model = between(lambda m, h: torch.func.vmap(lambda row: row.mul_(2) + 1)(m.square).sum() + h)
    before = Snapshot.of(model)
    sp.analyze(model, ROWS)
    before.assert_unchanged(model)


CONSTANTS = [torch.full((), 0.5, dtype=torch.float64)]


@pytest.mark.parametrize(
    "table", [lambda: CONSTANTS[0], lambda: torch.from_numpy(np.full((), 0.5))], ids=["old", "new"]
)
def test_constants_of_nobody_keep_nothing(table: Callable[[], Tensor]) -> None:
    """A tensor that was there before the call, and a NumPy array that becomes one in it."""
    assert_exact(between(lambda m, h: h.relu() * table()), ROWS)


INVERSES: list[Callable[[Any, Tensor], Tensor]] = [
    lambda m, h: 1 / h,
    lambda m, h: h.square().log(),
    lambda m, h: h * h.rsqrt(),
    lambda m, h: 2 % h,
    lambda m, h: torch.fmod(h + 1, h),
    lambda m, h: (h + 1) // h,
    lambda m, h: torch.addcdiv(h, h + 1, h),
    lambda m, h: torch.float_power(h, -1),
    lambda m, h: h**-2.0,
    lambda m, h: torch.special.xlogy(h + 1, h),
    lambda m, h: torch.lgamma(h) + torch.digamma(h),
    lambda m, h: h.clone().add_(1).div_(h),
    lambda m, h: h / (h.sigmoid() - 0.5),
]


@pytest.mark.parametrize("inverse", INVERSES)
def test_zeros_that_something_divides_by_are_kept(inverse: Callable[[Any, Tensor], Tensor]) -> None:
    model = between(lambda m, h: inverse(m, h.abs()))
    with pytest.raises(sp.NothingToPruneError, match="is not finite where it would become zero"):
        sp.prune(model, ROWS)


@pytest.mark.parametrize("power", [2.0, 1.5])
def test_powers_of_zero_that_are_finite(power: float) -> None:
    assert_exact(between(lambda m, h: h.abs() ** power + torch.remainder(h, 2)), ROWS)


def test_zeros_that_nobody_knew_of_are_refused() -> None:
    """The sigmoid of zero is a half, as is this tensor."""
    model = between(lambda m, h: h / (h.sigmoid() - torch.tensor(0.5, dtype=h.dtype)))
    with pytest.raises(sp.VerificationError, match="outputs of the masked model are not finite; something divides by"):
        sp.prune(model, ROWS)


# -- modes ----------------------------------------------------------------------------------------------------


class Modal(nn.Module):
    """The same operations in both modes, with other numbers in train mode."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(16, 12), nn.Linear(12, 6), how
        self.one = self.other = 12

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.how == "roll":
            h = h.roll(5 if self.training else 12, -1)
        elif self.how == "view":
            h = h.view(-1, self.other if self.training else self.one)
        elif self.training and h.shape[-1] != 12:
            raise ValueError("twelve, when it trains")
        return self.b(h)


@pytest.mark.parametrize("how", ["roll", "view", "guard"])
def test_what_only_the_numbers_of_train_mode_forbid(how: str) -> None:
    assert_exact_or_nothing(randomise(Modal(how).double()), ROWS)


def test_a_parametrization_in_train_mode_keeps_its_state() -> None:
    """Asking for a spectral norm's weight moves its state."""
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.utils.parametrizations.spectral_norm(nn.Linear(12, 6)))
    randomise(model.double()).train()
    before = Snapshot.of(model)
    sp.analyze(model, ROWS)
    before.assert_unchanged(model)


def test_a_program_is_a_torch_fx_graph_too() -> None:
    """Same nodes, names, arguments and users; what it computes is what the model does."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    images = torch.randn(2, 3, 8, 8)
    program = sp.analyze(model, images).space.programs[0]
    graph = program.graph.to_fx()
    graph.lint()
    assert [node.name for node in graph.nodes] == [node.name for node in program.graph.nodes]
    for made, node in zip(graph.nodes, program.graph.nodes, strict=True):
        assert (made.op, made.target, made.meta) == (node.op, node.target, node.meta)
        assert [n.name for n in made.all_input_nodes] == [n.name for n in node.all_input_nodes]
        assert {n.name for n in made.users} == {n.name for n in node.users}
    assert "conv2d" in {node.name for node in graph.nodes}


# -- what stands in for costly operations -----------------------------------------------------------------------

IMAGE = torch.randn(2, 6, 9, 7)
TOKENS = torch.randn(2, 5, 8)
CALLS: dict[str, list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]]] = {
    "linear": [(F.linear, (TOKENS, torch.randn(3, 8)), {}), (F.linear, (TOKENS[0, 0], torch.randn(3, 8)), {})],
    "conv1d": [(F.conv1d, (TOKENS, torch.randn(4, 5, 3)), {"padding": 1, "stride": 2})],
    "conv2d": [
        (F.conv2d, (IMAGE, torch.randn(4, 3, 3, 2), None, (2, 1), (1, 0), (1, 2), 2), {}),
        (F.conv2d, (IMAGE, torch.randn(4, 6, 3, 3)), {"padding": "same"}),
        (F.conv2d, (IMAGE[0], torch.randn(4, 6, 3, 3)), {}),
    ],
    "avg_pool2d": [(F.avg_pool2d, (IMAGE, 2), {}), (F.avg_pool2d, (IMAGE[0], (3, 2), (2, 1), (1, 0), True), {})],
    "max_pool2d": [(F.max_pool2d, (IMAGE, 3), {"stride": 2, "padding": 1, "ceil_mode": True}), (F.max_pool2d, (IMAGE, 2, 1, 0, 2), {})],
    "adaptive_avg_pool2d": [(F.adaptive_avg_pool2d, (IMAGE, (None, 3)), {}), (F.adaptive_avg_pool2d, (IMAGE, 2), {})],
    "scaled_dot_product_attention": [(F.scaled_dot_product_attention, (TOKENS, TOKENS[:, :3], TOKENS[:, :3, :4]), {})],
    "add": [(torch.add, (IMAGE, IMAGE[:, :, :1, :1]), {"alpha": 2}), (torch.add, (IMAGE[:1, :1], IMAGE), {}), (torch.add, (IMAGE, 1), {})],
    "mul": [(torch.mul, (IMAGE, IMAGE), {}), (torch.mul, (IMAGE, 1j), {}), (torch.mul, (IMAGE, torch.randn(7).double()), {}), (torch.mul, (IMAGE, torch.arange(7)), {})],
    "softmax": [
        (F.softmax, (TOKENS, -1), {}), (F.softmax, (TOKENS,), {"dim": -1, "dtype": torch.float64}),
        (F.softmax, (TOKENS,), {"dim": -1, "_stacklevel": 3, "dtype": None}),
    ],
    "layer_norm": [(F.layer_norm, (TOKENS, (8,), torch.ones(8)), {"eps": 1e-3})],
    "gelu": [(F.gelu, (TOKENS,), {"approximate": "tanh"})],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_stand_ins_have_the_shapes_and_dtypes_of_results(name: str) -> None:
    found = [
        (stand_in(name, args, kwargs, False, True), function(*args, **kwargs)) for function, args, kwargs in CALLS[name]
    ]
    assert any(zeros is not None for zeros, _ in found)
    for zeros, real in found:
        assert zeros is None or (zeros.shape, zeros.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_stand_ins_are_zeros_in_memory_of_their_own(dtype: torch.dtype, layout: torch.memory_format) -> None:
    image = torch.ones(2, 3, 300, 300, dtype=dtype).to(memory_format=layout)
    made = [stand_in("mul", (image, image), {}, False, True) for _ in range(2)]
    made += [stand_in("conv2d", (image, torch.ones(2, 3, 1, 1, dtype=dtype)), {}, False, True)]
    one, other, third = (zeros for zeros in made if zeros is not None)
    assert all(zeros.dtype is dtype and not zeros.any() for zeros in (one, other, third))
    assert len({zeros.data_ptr() for zeros in (one, other, third)}) == 3
    assert one.stride() == (image * image).stride()
    one.add_(1)
    assert not other.any()


LARGE = torch.ones(4, 32, 40, 40)
HEAVY: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "matmul": (torch.matmul, (LARGE, LARGE)),
    "cumsum": (torch.cumsum, (LARGE, -1)),
    "einsum": (torch.einsum, ("abcd,abed->abce", LARGE, LARGE)),
    "pad": (F.pad, (LARGE, (1, 2, 3, 0))),
    "roll": (torch.roll, (LARGE, 3, 1)),
    "mean": (torch.mean, (LARGE, 1)),
    "clone": (torch.clone, (LARGE.to(memory_format=torch.channels_last),)),
    "contiguous": (Tensor.contiguous, (LARGE.transpose(1, 2),)),
    "flatten": (torch.flatten, (LARGE.transpose(1, 2), 1)),
    "reshape": (torch.reshape, (LARGE.permute(0, 2, 3, 1), (4, -1))),
}
VIEWED: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "permute": (torch.permute, (LARGE, (0, 2, 3, 1))),
    "reshape": (torch.reshape, (LARGE.permute(0, 2, 3, 1), (4, 1600, 32))),
    "flatten": (torch.flatten, (LARGE, 1)),
    "contiguous": (Tensor.contiguous, (LARGE,)),
}


@pytest.mark.parametrize("name", HEAVY)
def test_large_results_are_zeros_that_lie_in_memory_as_the_results_would(name: str) -> None:
    function, args = HEAVY[name]
    zeros, real = large_stand_in(name, function, args, {}), function(*args)
    assert zeros is not None
    assert (zeros.shape, zeros.dtype, zeros.stride()) == (real.shape, real.dtype, real.stride())
    assert real.any()
    assert not zeros.any()


@pytest.mark.parametrize("name", VIEWED)
def test_views_of_large_values_are_real(name: str) -> None:
    function, args = VIEWED[name]
    assert function(*args).untyped_storage().data_ptr() == LARGE.untyped_storage().data_ptr()
    assert large_stand_in(name, function, args, {}) is None


def test_what_pytorch_refuses_of_large_values_is_left_to_it() -> None:
    assert large_stand_in("matmul", torch.matmul, (LARGE, LARGE[:, :, :3]), {}) is None
    assert large_stand_in("argmax", torch.argmax, (LARGE, 1), {}) is None  # positions, which the model may look at
    assert stand_in("cat", ([LARGE, LARGE[:, :, :3]], 1), {}, False, True) is None
    assert stand_in("add", (LARGE, LARGE[..., :3]), {}, False, True) is None


class Windows(nn.Module):
    """Attention in shifted windows, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Conv2d(3, 16, 1), nn.Linear(16, 48), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).permute(0, 2, 3, 1).roll((-2, -2), (1, 2))
        n, height, width, _ = h.shape
        h = F.pad(h, (0, 0, 0, -width % 4, 0, -height % 4))
        rows, columns = h.shape[1] // 4, h.shape[2] // 4
        h = h.view(n, rows, 4, columns, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(n * rows * columns, 16, -1)
        q, k, v = self.qkv(h).chunk(3, -1)
        h = torch.cat([((q @ k.mT) / 4).softmax(-1) @ v, h.flip(1)], 1)[:, :16]
        h = h.view(n, rows, columns, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, rows * 4, columns * 4, -1)
        return self.out(h[:, :height, :width].mean((1, 2)))


def test_an_analysis_takes_as_many_steps_for_large_images_as_for_small_ones() -> None:
    """Labels are found, and checks are run, without an array of the size of a value."""
    model = randomise(Windows())
    made = []
    for images in (torch.randn(1, 3, 6, 10), torch.randn(16, 3, 150, 250)):
        tracemalloc.start()
        graph = sp.analyze(model, images)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**21, "bytes; one value of 16 channels has 16 * 16 * 150 * 250 * 4"
        made.append(sp.plan(graph, ratio=0.5))
    assert made[0].kept
    assert made[0] == made[1]
    assert_exact(model.double(), torch.randn(1, 3, 6, 10, dtype=torch.float64))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads from /proc how much memory is in use")
def test_a_trace_of_many_large_images_takes_no_memory_for_what_it_does_not_compute() -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(12))).eval()
    images = torch.zeros(1, 8, 64, 64).expand(64, -1, -1, -1)  # 8 MiB
    sp.analyze(model, images[:1])
    held: list[Tensor] = []
    for layer in model:
        layer.register_forward_hook(lambda module, given, out: held.append(out))
    before = resident()
    sp.analyze(model, images)
    assert sum(out.nbytes for out in held) == 12 * 2**23
    assert resident() - before < 2**24


def resident() -> int:
    """Bytes of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3), kernel=st.integers(1, 4), stride=st.integers(1, 5),
    padding=st.integers(0, 2), up=st.booleans(), kind=st.sampled_from(["avg", "max"]),
)  # fmt: skip
def test_windows_are_counted_as_pytorch_counts_them(
    lengths: list[int], kernel: int, stride: int, padding: int, up: bool, kind: str
) -> None:
    name, image = f"{kind}_pool{len(lengths)}d", torch.zeros(2, 3, *lengths)
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": up}
    zeros = stand_in(name, (image,), options, False, True)
    try:
        real = getattr(F, name)(image, **options)
    except RuntimeError:  # more padding than half of the kernel, or no window at all
        return
    assert zeros is not None
    assert zeros.shape == real.shape


class Overwritten(nn.Module):
    """What was kept before an activation in place is what came out of it."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.a, self.act, self.b, self.c = nn.Linear(16, 12), act, nn.Linear(12, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.a(x)
        h = self.b(self.act(kept))
        h += kept
        return self.c(h)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "act", [nn.ReLU(True), nn.SiLU(True), nn.Hardswish(True), nn.LeakyReLU(0.1, True), nn.Softmax(1)]
)
def test_stand_ins_are_written_in_place(act: nn.Module) -> None:
    model = randomise(Overwritten(act).double())
    nodes = sp.analyze(model, ROWS).space.programs[0].graph.nodes
    (added,) = [n for n in nodes if n.meta["op"] == "add"]
    (activated,) = {n.meta["op"] for n in nodes if n.op == "call_function"} - {"linear", "add"}
    inplace = getattr(act, "inplace", False)
    assert [n.meta["op"] for n in added.inputs] == ["linear", activated if inplace else "linear"]
    if inplace:
        assert_exact(model, ROWS)


MISFITS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "layer_norm": lambda m, h: F.layer_norm(h, (11,)),
    "layer_norm's weight": lambda m, h: F.layer_norm(h, (12,), torch.ones(11, dtype=h.dtype)),
    "group_norm": lambda m, h: F.group_norm(h.transpose(1, 2), 5).transpose(1, 2),
    "batch_norm": lambda m, h: F.batch_norm(h.transpose(1, 2), *torch.ones(2, 12).double(), torch.ones(11).double()),
    "softmax": lambda m, h: F.softmax(h, 3),
    "avg_pool1d": lambda m, h: F.avg_pool1d(h, 3, padding=2),
    "bias": lambda m, h: F.linear(h, m.square, torch.ones(11, dtype=h.dtype)),
    "attention": lambda m, h: F.scaled_dot_product_attention(h, h[..., :11], h),
    "dropout": lambda m, h: F.dropout(h, 2.0),
    "gelu": lambda m, h: F.gelu(h, approximate="tan"),
    "hardtanh": lambda m, h: F.hardtanh(h, 1.0, -1.0),
    "relu by a dimension": lambda m, h: torch.relu(h, dim=1),  # type: ignore[call-arg]
    "mul with alpha": lambda m, h: torch.mul(h, h, alpha=2),  # type: ignore[call-overload]
    "conv1d's padding": lambda m, h: F.conv1d(h, torch.ones(7, 7, 3).double(), padding=-1),
    "add": lambda m, h: h + h[..., :11],
    "add in place": lambda m, h: h.add_(h[..., :11]),
}


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", MISFITS)
def test_models_that_do_not_run_are_told_so(name: str) -> None:
    with pytest.raises(sp.ExampleInputsError):
        sp.analyze(between(MISFITS[name]), ROWS)


def test_numbers_that_a_model_makes_itself_are_computed() -> None:
    """An index that is computed from constants decides which channels meet, whatever stands in for the rest."""

    def shuffled(model: Any, h: Tensor) -> Tensor:
        places = ((torch.linspace(0, 1, 12) * 11).round().mul(5).long()) % 12
        return h[:, :, places]

    model = between(shuffled)
    assert_kept(model, ROWS, "a.weight[0]", "it is indexed by a tensor of positions")


def test_a_divisor_of_whole_numbers_is_kept() -> None:
    """As the levels of a finite scalar quantisation."""
    model = between(lambda m, h: h.tanh() / (m.levels // 2))
    model.register_buffer("levels", torch.arange(5, 5 + model.a.out_features))
    with pytest.raises(sp.NothingToPruneError, match="is not finite where it would become zero"):
        sp.prune(model, ROWS)
