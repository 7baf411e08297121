"""What surgery keeps: ties, hooks, gradients, dtypes, memory formats, and all that can be done with a module."""

from __future__ import annotations

import copy
import functools
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Snapshot, assert_exact, assert_exact_or_nothing, masked_original, randomise
from torch import Tensor, nn

import structprune as sp
from structprune import surgery


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = (x + self.bn2(self.conv2(x))).relu()
        return self.fc(x.mean((2, 3)))


def images(dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def net() -> Any:
    return randomise(Net().double())


def kept(plan: sp.PruningPlan, name: str, tensor: Tensor) -> Tensor:
    """What a plan keeps of a tensor, written with plain indexing."""
    for dim, indices in plan.kept.get(name, {}).items():
        tensor = tensor.movedim(dim, 0)[list(indices)].movedim(0, dim)
    return tensor


# -- sharing --------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One weight under two names, one layer called twice, one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.twice = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.twice.weight
        self.alias = self.twice
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(self.other(self.alias(self.twice(x).relu()).relu()))


@pytest.mark.parametrize("inplace", [False, True])
def test_ties(inplace: bool) -> None:
    model: Any = randomise(Shared().double())
    rows = torch.randn(2, 4, dtype=torch.float64)
    result = sp.prune(model, rows, inplace=True) if inplace else assert_exact(model, rows)
    small: Any = result.model
    assert small.other.weight is small.twice.weight
    assert small.alias is small.twice
    assert small.other.bias is not small.twice.bias
    assert small.twice.weight.shape == (4, 4)
    assert [name for name, _ in small.named_parameters()] == [name for name, _ in Shared().named_parameters()]


class Embedded(nn.Module):
    """The output layer shares the weight of the embedding, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.inner = nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self.embed(x)))


def test_tied_embeddings() -> None:
    result = assert_exact_or_nothing(randomise(Embedded().double()), torch.arange(6).reshape(2, 3))
    assert result is not None
    assert result.model.out.weight is result.model.embed.weight  # type: ignore[union-attr]
    assert result.model.embed.embedding_dim == 4


class References(Net):
    """Plain containers that refer to the model's own parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [self.conv1, self.conv2]
        self.by_name = {"weight": self.conv1.weight}
        self.config = {"widths": [8, 8]}


def test_references_follow() -> None:
    model: Any = randomise(References().double())
    small: Any = assert_exact(model, images()).model
    assert small.layers[0] is small.conv1
    assert small.layers[1] is small.conv2
    assert small.by_name["weight"] is small.conv1.weight
    assert small.config == model.config
    assert small.config["widths"] is not model.config["widths"]


# -- tensors --------------------------------------------------------------------------------------------------


def test_gradients_and_requires_grad() -> None:
    model = net()
    model.conv2.weight.requires_grad_(False)
    model(images()).square().sum().backward()
    model.fc.bias.grad = None
    before = Snapshot.of(model)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    result = sp.prune(model, images())
    before.assert_unchanged(model)
    for name, parameter in result.model.named_parameters():
        gradient = gradients[name]
        assert model.get_parameter(name).grad is gradient
        assert parameter.requires_grad == (name != "conv2.weight")
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None and parameter.grad is not None:
            assert torch.equal(parameter.grad, kept(result.plan, name, gradient))
            assert parameter.grad.data_ptr() != gradient.data_ptr()


def test_nothing_is_shared_with_the_original() -> None:
    model = net()
    small = sp.prune(model, images()).model
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
        assert tensor.untyped_storage().data_ptr() not in own, name
        assert tensor.is_leaf, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    result = sp.prune(model, images(dtype))
    for name, tensor in result.model.state_dict().items():
        assert tensor.dtype == model.state_dict()[name].dtype
        assert torch.equal(tensor, kept(result.plan, name, model.state_dict()[name]))
    assert result.model(images(dtype)).dtype == dtype


class Mixed(Net):
    """The convolutions in half precision, the rest in single, as mixed-precision models are."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x.bfloat16()).float()).relu()
        x = (x + self.bn2(self.conv2(x.bfloat16()).float())).relu()
        return self.fc(x.mean((2, 3)))


def test_mixed_dtypes() -> None:
    model = Mixed()
    model.conv1.bfloat16()
    model.conv2.bfloat16()
    result = sp.prune(model, images(torch.float32), verify=False)
    assert result.model.conv1.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert result.model(images(torch.float32)).shape == (2, 5)


def test_complex_parameters() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 8, dtype=torch.complex64)
            self.b = nn.Linear(8, 3, dtype=torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(self.b(self.a(x.to(torch.complex64))))

    model, rows = Complex(), torch.randn(2, 4)
    result = sp.prune(model, rows)
    small: Any = result.model
    assert small.a.weight.dtype == torch.complex64
    assert small.a.out_features == 4
    expected = masked_original(model, result.plan)(rows)
    torch.testing.assert_close(small(rows), expected, rtol=1e-4, atol=1e-5)


def test_memory_format() -> None:
    model = net().to(memory_format=torch.channels_last)
    small: Any = sp.prune(model, images()).model
    for conv in (small.conv1, small.conv2):
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.is_contiguous() for p in sp.prune(net(), images()).model.parameters())
    video: Any = nn.Sequential(nn.Conv3d(3, 8, 3), nn.Conv3d(8, 4, 3)).to(memory_format=torch.channels_last_3d)
    cut: Any = sp.prune(video, torch.randn(1, 3, 6, 6, 6)).model
    assert cut[1].weight.is_contiguous(memory_format=torch.channels_last_3d)


class Marked(nn.Parameter):
    """A parameter with a class and an attribute of its own."""


def test_what_is_attached_to_a_parameter() -> None:
    model = net()
    model.conv1.weight = Marked(model.conv1.weight.detach())
    model.conv1.weight.tag = ["decay"]
    small: Any = sp.prune(model, images()).model
    assert type(small.conv1.weight) is Marked
    assert small.conv1.weight.tag == ["decay"]
    assert small.conv1.weight.shape[0] == 4


def test_bookkeeping_and_modes() -> None:
    model = net().train()
    model.bn2.eval()
    small: Any = assert_exact(model, images()).model
    assert (small.conv1.out_channels, small.conv2.in_channels, small.conv2.out_channels) == (4, 4, 4)
    assert (small.bn1.num_features, small.fc.in_features, small.fc.out_features) == (4, 4, 5)
    assert "Conv2d(3, 4" in repr(small)
    assert small.bn1.num_batches_tracked.shape == ()


# -- hooks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_are_kept_and_run(inplace: bool) -> None:
    model = net()
    seen: list[str] = []
    model.register_forward_pre_hook(lambda m, args: seen.append("root before"))
    model.register_forward_hook(lambda m, args, out: out * 2)
    model.register_forward_hook(lambda m, args, kwargs, out: seen.append("root after"), with_kwargs=True)
    model.conv1.register_forward_hook(lambda m, args, out: seen.append(f"conv1 {tuple(out.shape)}"))
    model.conv2.register_forward_pre_hook(lambda m, args: (args[0] * 0.5,))
    model.fc.register_full_backward_hook(lambda m, before, after: seen.append("fc backward"))
    model.register_state_dict_post_hook(lambda m, state, prefix, meta: seen.append("state dict"))
    expected = masked_original(model, sp.prune(model, images()).plan).eval()(images())
    small = sp.prune(model, images(), inplace=inplace).model.eval()
    seen.clear()
    out = small(images())
    assert seen == ["root before", "conv1 (2, 4, 8, 8)", "root after"]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    out.sum().backward()
    small.state_dict()
    assert seen[3:] == ["fc backward", "state dict"]


def test_no_hook_is_left_behind() -> None:
    model = net()
    before = Snapshot.of(model)
    small = sp.prune(model, images()).model
    before.assert_unchanged(model)
    for module in (*model.modules(), *small.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


# -- copies ---------------------------------------------------------------------------------------------------


class Locked(Net):
    """A lock cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1.guard = threading.Lock()  # type: ignore[assignment]


def test_a_model_that_cannot_be_copied() -> None:
    model = randomise(Locked().double())
    before = Snapshot.of(model)
    for run in (lambda: sp.prune(model, images()), lambda: sp.prune(model, images(), verify=False)):
        with pytest.raises(sp.UnsupportedModelError, match=r"bn1\.guard .*inplace=True"):
            run()
        before.assert_unchanged(model)


def test_it_is_pruned_in_place() -> None:
    model: Any = randomise(Locked().double())
    expected = sp.prune(net(), images())
    assert sp.prune(model, images(), verify=False, inplace=True).model is model
    assert model.conv1.out_channels == 4
    torch.testing.assert_close(model.eval()(images()), expected.model.eval()(images()), rtol=0, atol=0)


def test_in_place_and_verified() -> None:
    """Verification needs copies: it works without, or says how to go on."""
    model: Any = randomise(Locked().double())
    before = Snapshot.of(model)
    try:
        assert sp.prune(model, images(), inplace=True).model is model
    except sp.UnsupportedModelError as error:
        assert "verify=False" in str(error)  # noqa: PT017
        before.assert_unchanged(model)


def test_masks_of_a_model_that_cannot_be_copied() -> None:
    plan = sp.prune(net(), images()).plan
    with pytest.raises(sp.UnsupportedModelError, match="guard"):
        sp.mask(plan, randomise(Locked().double()))


def test_modules_of_older_files_are_cut_in_place() -> None:
    """They keep their parameters in ordered dicts."""
    model = randomise(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double())
    for module in model:
        module._parameters, module._buffers = OrderedDict(module._parameters), OrderedDict(module._buffers)
    rows = torch.randn(5, 4, dtype=torch.float64)
    small = sp.prune(copy.deepcopy(model), rows, inplace=True).model
    assert [tuple(p.shape) for p in small.parameters()] == [(4, 4), (4,), (4,), (4,), (3, 4), (3,)]
    assert torch.equal(small(rows), sp.prune(model, rows).model(rows))


def test_in_place_gives_the_same() -> None:
    model = net()
    model(images()).sum().backward()
    copied = sp.prune(model, images())
    result = sp.prune(model, images(), inplace=True)
    assert result.model is model
    assert result.plan == copied.plan
    assert str(result.model) == str(copied.model)
    for name, parameter in copied.model.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
        assert torch.equal(parameter.grad, model.get_parameter(name).grad)
    for name, buffer in copied.model.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name))


def test_a_fresh_unpruned_model_will_do() -> None:
    plan = sp.PruningPlan.from_json(sp.prune(net(), images()).plan.to_json())
    fresh: Any = randomise(Net().double(), seed=7)
    fresh.forward = None  # no tracing: the model is not run
    small: Any = sp.apply(plan, fresh)
    del fresh.forward, small.forward
    torch.testing.assert_close(small(images()), masked_original(fresh, plan)(images()), rtol=1e-12, atol=1e-12)
    assert torch.equal(small.conv1.weight, kept(plan, "conv1.weight", fresh.conv1.weight))


def test_pruning_again() -> None:
    first = sp.prune(net(), images())
    second: Any = assert_exact(first.model, images())
    assert second.model.conv1.out_channels == 2
    third: Any = sp.prune(second.model, images()).model
    assert third.conv1.out_channels == 1
    with pytest.raises(sp.NothingToPruneError, match="output of the model"):
        sp.prune(third, images(), ratio=0.9)


# -- what comes after -----------------------------------------------------------------------------------------


def test_it_trains() -> None:
    small = sp.prune(net(), images()).model.train()
    optimizer = torch.optim.Adam(small.parameters(), 0.01)
    losses = []
    for _ in range(8):
        loss = small(images(batch=16)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < losses[0]


def test_it_is_saved_and_loaded_by_pytorch() -> None:
    small = sp.prune(net(), images()).model
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    small.load_state_dict(torch.load(file, weights_only=True))
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again.eval()(images()), small.eval()(images()))


@pytest.mark.filterwarnings("ignore")
def test_compile() -> None:
    small = sp.prune(net(), images()).model.eval()
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images()), small(images()))


def test_export() -> None:
    small = sp.prune(net(), images()).model.eval()
    batch = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(small, (images(),), dynamic_shapes=batch).module()
    for size in (2, 5):
        torch.testing.assert_close(exported(images(batch=size)), small(images(batch=size)), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_onnx(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"ONNX export needs {package}")
    import onnxruntime

    small = sp.prune(net().float(), images(torch.float32)).model.eval()
    program = torch.onnx.export(small, (images(torch.float32),), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images(torch.float32).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), small(images(torch.float32)).detach(), rtol=1e-4, atol=1e-5)


# -- sabotage -------------------------------------------------------------------------------------------------


def shifted(plan: sp.PruningPlan, name: str) -> dict[int, tuple[int, ...]]:
    """The right number of channels, and other ones than the plan says."""
    removed = plan.removed(name)
    return {dim: removed[dim][: len(indices)] for dim, indices in plan.kept[name].items()}


@pytest.mark.parametrize("name", ["conv1.weight", "conv1.bias", "bn1.weight", "bn2.running_var", "fc.weight"])
def test_wrong_surgery_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A surgery that cuts other channels of one tensor only: verification refuses its model, and says where."""
    model = net()
    plan = sp.prune(model, images()).plan
    wrong = replace(plan, kept={**plan.kept, name: shifted(plan, name)})
    real: Callable[..., nn.Module] = surgery.apply
    small = real(wrong, model)
    assert not torch.equal(small.state_dict()[name], real(plan, model).state_dict()[name])
    from structprune.verify import verify

    check = verify(model, plan, images(), small=small)
    assert not check.ok
    assert check.first_difference is not None
    assert name.partition(".")[0] in check.first_difference
    monkeypatch.setattr("structprune.api.apply_plan", lambda p, m, **options: real(wrong, m, **options))
    before = Snapshot.of(model)
    for inplace in (False, True):
        with pytest.raises(sp.VerificationError, match="DIFFERS"):
            sp.prune(model, images(), inplace=inplace)
        before.assert_unchanged(model)


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_shape_in_an_attribute_keeps_its_kind(kind: type) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shape = kind((8, 4))
            self.a, self.b = nn.Linear(6, 32), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).unflatten(1, tuple(self.shape)).softmax(2).flatten(1))

    rows = torch.randn(4, 6, dtype=torch.float64)
    model = randomise(Heads().double())
    result = assert_exact(model, rows)
    small: Any = result.model
    assert small.shape == kind((4, 4))
    assert type(small.shape) is kind
    assert model.shape == kind((8, 4))
    assert sp.PruningPlan.from_json(result.plan.to_json()) == result.plan
    for wrong in ((4, 4, 4), 4, (4,)):
        plan = replace(result.plan, attributes={"": {"shape": wrong}})
        with pytest.raises(sp.PlanError, match="no such number there"):
            sp.apply(plan, model)


def test_running_statistics_are_verified() -> None:
    """A momentum that differs changes no output of one call, in either mode: only what the call leaves behind."""
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).double())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plan = sp.plan(sp.analyze(model, images))
    small: Any = sp.apply(plan, model)
    assert sp.verify(model, plan, images, small=small).max_rel_error < 1e-12
    small[1].momentum = 0.5
    check = sp.verify(model, plan, images, small=small)
    assert not check.ok
    assert [row.mode for row in check.comparisons if not row.ok] == ["train"]


class Relocked(nn.Module):
    """Holds a lock, which its copies make anew."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.lock = nn.Linear(4, 8), nn.Linear(8, 3), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.b(self.a(x).relu())  # type: ignore[no-any-return]


def test_modules_that_know_how_to_be_copied() -> None:
    model = nn.Sequential(Relocked(), nn.Linear(3, 2))
    small: Any = sp.prune(model, torch.randn(2, 4), ratio=0.5).model
    assert small[0].a.out_features == 4
    assert small[0].lock is not model[0].lock  # type: ignore[union-attr]


class Bound(nn.Module):
    """A function among its attributes holds the model; in a list, nobody finds it before it is called."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.found: Any = {
            "an attribute": lambda x: self.norm(x),
            "a list": [lambda x: self.norm(x)],
            "a method": self.normed,
        }[where]

    def normed(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        found = self.found[0] if isinstance(self.found, list) else self.found
        return self.b(found(self.a(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("where", ["an attribute", "a list"])
def test_functions_that_would_go_on_calling_the_original_are_named(where: str) -> None:
    model = randomise(Bound(where).double())
    before = Snapshot.of(model)
    with pytest.raises(sp.UnsupportedModelError, match=r"found|norm.*make it a method"):
        sp.prune(model, images(), ratio=0.5)
    before.assert_unchanged(model)
    assert sp.prune(model, images(), ratio=0.5, inplace=True, verify=False).model(images()).shape[1] == 4


def test_methods_among_the_attributes_go_along() -> None:
    assert_exact(randomise(Bound("a method").double()), images())


class Uncopied:
    def __deepcopy__(self, memo: Any) -> Any:
        raise KeyError("not this one")


def test_what_raises_when_it_is_copied_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    model.held = Uncopied()  # type: ignore[assignment]
    with pytest.raises(sp.UnsupportedModelError, match="held"):
        sp.prune(model, torch.randn(2, 4), ratio=0.5)


class ReadOnly(nn.Linear):
    """Does not let its width be changed."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "out_features" and name in vars(self):
            raise AttributeError("read-only")
        super().__setattr__(name, value)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_that_does_not_let_itself_be_changed(inplace: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), ReadOnly(8, 8), nn.ReLU(), nn.Linear(8, 3))
    before = Snapshot.of(model)
    with pytest.raises(sp.UnsupportedModelError, match=r"2\.out_features cannot be set to 4: read-only"):
        sp.prune(model, torch.randn(2, 4), ratio=0.5, inplace=inplace, verify=False)
    before.assert_unchanged(model)


def test_masks_come_before_what_computes_with_weights() -> None:
    """The older `spectral_norm` computes the weight in a hook, from a parameter that the mask's hook computes."""
    norm = nn.utils.spectral_norm
    model = randomise(nn.Sequential(norm(nn.Conv1d(1, 16, 3)), nn.ReLU(), norm(nn.Conv1d(16, 4, 1)))).eval()
    result = sp.prune(model, torch.randn(2, 1, 64))
    masked = sp.mask(result.plan, model).eval()
    x = torch.randn(2, 1, 64)
    with torch.no_grad():
        masked(x)
        for one in (masked, result.model):
            for parameter in one.parameters():
                parameter.add_(0.1)
        torch.testing.assert_close(masked(x), result.model(x))
        assert masked.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("groups", [8, 16])
def test_whole_groups_of_a_weight_that_a_hook_computes(groups: int) -> None:
    normed = nn.utils.spectral_norm(nn.Conv1d(16, 32, 3, groups=groups))
    model = randomise(nn.Sequential(nn.Conv1d(1, 16, 3), nn.ReLU(), normed, nn.ReLU(), nn.Conv1d(32, 4, 1))).eval()
    small = sp.prune(model, torch.randn(2, 1, 64)).model
    assert (small[2].in_channels, small[2].out_channels) == (8, 16)
    assert small(torch.randn(2, 1, 64)).shape == (2, 4, 60)


# -- what attributes hold ---------------------------------------------------------------------------------------


class Logging(nn.Module):
    """A list that two modules share, and the handle of a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.log: list[Tensor] = []
        self.a.log = self.log  # type: ignore[assignment]
        self.handles = [self.a.register_forward_hook(self.write)]

    @staticmethod
    def write(module: Any, args: Any, out: Tensor) -> None:
        module.log.append(out.sum())

    def forward(self, x: Tensor) -> Tensor:
        self.log.clear()
        return self.b(self.a(x).relu()) * len(self.log)  # type: ignore[no-any-return]


def test_what_modules_share_is_shared_in_the_copy() -> None:
    model = randomise(Logging().double())
    result = sp.prune(model, rows(3, 4))
    small: Any = result.model
    assert small.log is small.a.log
    assert small.log is not model.log
    again = copy.deepcopy(small)
    again.handles[0].remove()
    assert len(again.a._forward_hooks) == 0
    assert len(small.a._forward_hooks) == 1


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


HOLDERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (lambda weight: (weight,), lambda held: held[0]),
    "list": (lambda weight: [weight], lambda held: held[0]),
    "dict": (lambda weight: {"w": weight}, lambda held: held["w"]),
    "nest": (lambda weight: {"w": ([weight], 3)}, lambda held: held["w"][0][0]),
}


class Holding(nn.Module):
    """Reads a weight from a container that it is in, too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        hold, self.get = HOLDERS[kind]
        self.held = hold(self.a.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.linear(x, self.get(self.held), self.a.bias))  # type: ignore[no-any-return]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", HOLDERS)
def test_weights_in_containers_follow(kind: str, inplace: bool) -> None:
    model = randomise(Holding(kind).double())
    result = sp.prune(model, rows(3, 4), inplace=inplace)
    assert result.model.get(result.model.held) is result.model.a.weight  # type: ignore[operator, union-attr]
    assert result.model(rows(3, 4)).isfinite().all()
    assert result.model.a.out_features == 4


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_parameters_are_not_lost_in_place(kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    handle = getattr(model[0].weight, kind)(lambda value: None)
    before = Snapshot.of(model)
    with pytest.raises(sp.UnsupportedModelError, match=r"0\.weight has hooks of its own"):
        sp.prune(model, torch.randn(2, 4), inplace=True)
    before.assert_unchanged(model)
    handle.remove()
    assert sp.prune(model, torch.randn(2, 4), inplace=True).model[0].out_features == 4  # type: ignore[index]


# -- masks ------------------------------------------------------------------------------------------------------


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention, self.b = nn.Linear(8, 16), nn.MultiheadAttention(16, 4), nn.Linear(16, 3)
        self.scales = nn.ParameterDict({"first": torch.ones(16)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * self.scales["first"]
        return self.b(self.attention(h, h, h)[0])  # type: ignore[no-any-return]


def test_masks_of_weights_that_other_modules_read() -> None:
    """They are trained as the small model is, and changed to other dtypes."""
    model, x = randomise(Attending().double()), rows(5, 2, 8)
    result = sp.prune(model, x)
    pair = [sp.mask(result.plan, model), result.model]
    for one in pair:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            one(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(pair[0](x), pair[1](x), rtol=1e-10, atol=1e-10)
    assert pair[0].float()(x.float()).dtype == torch.float32
    assert not any(sp.shrink(pair[0].double(), x)._forward_pre_hooks.values())


# -- what reads source code ---------------------------------------------------------------------------------------


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.cat([h[:, :4].relu(), h[:, 4:].tanh()], 1))  # type: ignore[no-any-return]


SWAPPED: dict[str, tuple[nn.Module, Tensor]] = {
    "sizes in the code": (Sliced(), torch.randn(3, 4)),
    "layer norm": (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)), torch.randn(3, 4)),
    "attention": (Attending(), torch.randn(5, 2, 8)),
}


@pytest.mark.parametrize("name", SWAPPED)
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning"
)
def test_source_that_says_something_else_is_not_scripted(name: str) -> None:
    model, x = SWAPPED[name]
    small = sp.prune(randomise(model), x, rigid="rewrite").model.eval()
    with pytest.raises(sp.UnsupportedModelError, match=r"torch\.jit\.script reads source code"):
        torch.jit.script(small)
    torch.testing.assert_close(torch.jit.trace(small, x)(x), small(x))


def test_what_stays_whole_has_no_mask() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    plan = sp.plan(sp.analyze(model, torch.randn(1, 3, 4, 4)))
    masks = {name for name, _ in sp.mask(plan, model).named_buffers() if name.endswith("_mask")}
    assert masks == {f"{name}_mask" for name in plan.kept}
    assert "1.bias_mask" not in masks


def test_what_was_cut_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        small = sp.prune(net(), images()).model
    assert not any(parameter.is_inference() for parameter in small.parameters())
    small.train()(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def scaled(gain: Tensor, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] * gain,)


class Taken(nn.Module):
    """A function beside the modules holds a parameter."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.a, self.b, self.gain = nn.Linear(4, 16), nn.Linear(16, 3), nn.Parameter(torch.rand(16))
        gain, own = self.gain, self
        if place == "partial":
            self.scale: Any = functools.partial(torch.mul, self.gain)
        elif place == "closure":
            self.scale = lambda h: h * gain
        else:
            hooks: dict[str, Any] = {
                "default of a hook": lambda module, inputs, gain=gain: (inputs[0] * gain,),
                "hook": lambda module, inputs: (inputs[0] * own.gain,),
                "partial hook": functools.partial(scaled, self.gain),
            }
            self.scale = torch.clone
            self.b.register_forward_pre_hook(hooks[place])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.scale(self.a(x)).tanh())  # type: ignore[no-any-return]


@pytest.mark.parametrize("place", ["partial", "closure", "default of a hook", "hook", "partial hook"])
@pytest.mark.parametrize("inplace", [False, True])
def test_functions_that_hold_parameters(place: str, inplace: bool) -> None:
    """What is copied holds the copy's; the others would go on with the old one."""
    model, x = Taken(place), torch.randn(2, 4)
    if "partial" in place and not inplace:
        assert sp.prune(model, x).model.a.out_features == 8
    else:
        with pytest.raises(sp.UnsupportedModelError, match="a function"):
            sp.prune(model, x, inplace=inplace)
        assert model.a.out_features == 16
        model(x)
