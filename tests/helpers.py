"""The oracle: a masked original written from `plan.kept` alone, and what "equal to it" means.

Nothing here is shared with structprune. A test that calls `assert_exact` demands that a pruned model computes what
the masked original computes (values, gradients, statistics), in every mode and size that the model takes, that its
bookkeeping agrees with its weights, and that the user's model was left as it was.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import batchnorm, conv, instancenorm
from torch.nn.modules.dropout import _DropoutNd

import structprune as sp

TOLERANCE = 1e-12  # max|a - b| / max|b| in float64


# -- models and inputs ----------------------------------------------------------------------------------------


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, dataclasses and plain objects, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        yield from tensors([getattr(value, field.name) for field in fields(value)])
    elif hasattr(value, "__dict__"):
        yield from tensors(vars(value))


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes, by qualified name."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                found[f"{path}.{key}" if path else key] = value
    return found


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases, affine parameters and statistics: zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(named_state(model).items()):
            if not tensor.is_floating_point():
                continue
            positive = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
            normal = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            fan_in = max(tensor.numel() // max(tensor.shape[0], 1), 1) if tensor.ndim > 1 else 1
            filters = tensor.ndim > 1 and isinstance(tensor, nn.Parameter)
            tensor.copy_(normal * (1.5 / fan_in**0.5) if filters else positive)
            if name.endswith(("bias", "running_mean")):
                tensor.copy_(normal * 0.5)
    return model


def resized(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same arguments with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: resized(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(resized(item, change) for item in value)
    return value


def fresh(inputs: Any, seed: int, batch: int | None = None, grow: int = 0) -> Any:
    """Other random inputs like these, at another batch size, with `grow` more pixels along each side."""
    generator = torch.Generator().manual_seed(seed)

    def change(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if batch is not None and tensor.ndim > 1:
            shape[0] = batch
        if tensor.ndim > 2:
            shape[2:] = [n + grow for n in shape[2:]]
        if not tensor.is_floating_point():
            index = torch.randint(0, max(tensor.numel(), 1), shape, generator=generator)
            return tensor.flatten()[index]
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    return resized(inputs, change)


def call(model: nn.Module, inputs: Any) -> Any:
    """The model on example inputs, which are a tensor, a tuple of arguments, or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def no_dropout(*models: nn.Module) -> Iterator[None]:
    """Dropout draws one number per channel: two models of different width cannot draw the same."""
    for model in models:
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
    with mock.patch.object(F, "dropout", lambda x, *args, **kwargs: x):
        yield


# -- the oracle -----------------------------------------------------------------------------------------------


def masked_original(model: nn.Module, plan: sp.PruningPlan) -> nn.Module:
    """A deep copy of the model in which everything that `plan.kept` does not keep is zero."""
    masked = copy.deepcopy(model)
    state = named_state(masked)
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, kept in dims.items():
                for index in range(state[name].shape[dim]):
                    if index not in kept:
                        state[name].select(dim, index).zero_()
    return masked


def sliced(tensor: Tensor, dims: Mapping[int, Sequence[int]]) -> Tensor:
    """What is kept of a tensor."""
    for dim, kept in dims.items():
        tensor = torch.stack([tensor.select(dim, index) for index in kept], dim)
    return tensor


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    """Equal to the last bits: the error is measured against the largest value."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
    assert bool(expected.isfinite().all()), f"{what}: the masked original is not finite"
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    error = float((found - expected).abs().max()) if expected.numel() else 0.0
    assert error <= TOLERANCE * scale, f"{what}: differs by {error:.3g}, where the largest value is {scale:.3g}"


def assert_same_outputs(small: nn.Module, masked: nn.Module, inputs: Any, what: str) -> list[Tensor]:
    """Both models return the same tensors in the same structure."""
    expected, found = call(masked, inputs), call(small, inputs)
    assert type(found) is type(expected), what
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    for i, (a, b) in enumerate(pairs):
        assert_close(a.detach().double(), b.detach().double(), f"{what}, output {i}")
    return [a for a, _ in pairs]


def assert_varied(outputs: Sequence[Tensor], what: str) -> None:
    """Two models that return constants would look equal."""
    assert any(t.numel() > 1 and float(t.max() - t.min()) > 1e-6 for t in outputs), f"{what}: constant outputs"


def takes(model: nn.Module, inputs: Any) -> bool:
    """Whether the model runs on these inputs; tried on a copy, since train mode moves statistics."""
    try:
        call(copy.deepcopy(model), inputs)
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return False
    return True


def assert_equal_models(small: nn.Module, masked: nn.Module, inputs: Any) -> None:
    """Equal in eval and train mode, at other batch sizes and at another image size where the model allows."""
    with no_dropout(small, masked), torch.no_grad():
        for training in (False, True):
            for batch, grow in ((None, 0), (5, 0), (3, 4)):
                changed = fresh(inputs, 17 + grow, batch, grow)
                for model in (small, masked):
                    model.train(training)
                what = f"{'train' if training else 'eval'} mode, batch {batch}, grown by {grow}"
                if (batch, grow, training) == (None, 0, False) or takes(masked, changed):
                    torch.manual_seed(5)
                    expected_state = torch.get_rng_state()
                    assert_varied(assert_same_outputs(small, masked, changed, what), what)
                    torch.set_rng_state(expected_state)


def assert_equal_state(small: nn.Module, masked: nn.Module, plan: sp.PruningPlan, what: str) -> None:
    """What the small model holds is what the masked original holds where it is kept."""
    found, expected = named_state(small), named_state(masked)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            cut = plan.kept.get(name) or plan.tensors.get(name, {})
            expected_part = sliced(tensor.detach(), cut) * plan.scales.get(name, 1.0) + plan.shifts.get(name, 0.0)
            assert_close(found[name].detach(), expected_part, f"{what}: {name}")


def assert_equal_gradients(small: nn.Module, masked: nn.Module, plan: sp.PruningPlan, inputs: Any) -> None:
    """The small model trains as the masked original would: its gradients are the kept part of the latter's."""
    changed = fresh(inputs, 23, 3)
    if not takes(masked, changed):
        changed = fresh(inputs, 23)
    for model in (small, masked):
        model.eval()
        outputs = [t for t in tensors(call(model, changed)) if t.requires_grad]
        if outputs:
            sum(torch.tanh(t.double() * (i + 1)).sum() for i, t in enumerate(outputs)).backward()
    found = dict(small.named_parameters())
    gradients = [p.grad for p in masked.parameters() if p.grad is not None and p.numel()]
    scale = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
    for name, parameter in masked.named_parameters():
        assert parameter.requires_grad == found[name].requires_grad, name
        assert (parameter.grad is None) == (found[name].grad is None), name
        if parameter.grad is not None and parameter.numel():
            expected = sliced(parameter.grad, plan.kept.get(name, {})) / plan.scales.get(name, 1.0)
            assert float((found[name].grad - expected).abs().max()) <= 1e-9 * scale, f"the gradient of {name}"


# -- bookkeeping ----------------------------------------------------------------------------------------------


def bookkeeping(module: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Attributes of a standard module with the sizes that its weights really have."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        if isinstance(module, batchnorm._NormBase) and module.running_mean is not None:
            yield "num_features", module.num_features, len(module.running_mean)
    elif isinstance(module, conv._ConvTransposeNd):
        yield "in_channels", module.in_channels, weight.shape[0]
        yield "out_channels", module.out_channels, weight.shape[1] * module.groups
    elif isinstance(module, conv._ConvNd):
        yield "out_channels", module.out_channels, weight.shape[0]
        yield "in_channels", module.in_channels, weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        yield "out_features", module.out_features, weight.shape[0]
        yield "in_features", module.in_features, weight.shape[1]
    elif isinstance(module, nn.Bilinear):
        yield "out_features", module.out_features, weight.shape[0]
        yield "in1_features", module.in1_features, weight.shape[1]
        yield "in2_features", module.in2_features, weight.shape[2]
    elif isinstance(module, batchnorm._NormBase | instancenorm._InstanceNorm):
        yield "num_features", module.num_features, len(weight)
    elif isinstance(module, nn.PReLU):
        yield "num_parameters", module.num_parameters, len(weight)
    elif isinstance(module, nn.Embedding):
        yield "num_embeddings", module.num_embeddings, weight.shape[0]
        yield "embedding_dim", module.embedding_dim, weight.shape[1]


def assert_bookkeeping(model: nn.Module) -> None:
    """Sizes that modules keep agree with their weights, and are plain integers again."""
    for path, module in model.named_modules():
        for name, value, real in bookkeeping(module):
            assert value == real, f"{path}.{name} is {value}, the weight says {real}"
        for key, value in vars(module).items():
            assert not isinstance(value, int) or type(value) in (int, bool), f"{path}.{key} is a {type(value).__name__}"


@dataclass
class Snapshot:
    """Everything about a model that pruning must not change."""

    state: dict[str, Tensor]
    identities: dict[str, int]
    attributes: list[tuple[str, dict[str, str]]]

    @staticmethod
    def of(model: nn.Module) -> Snapshot:
        state = named_state(model)
        return Snapshot(
            {name: tensor.detach().clone() for name, tensor in state.items()},
            {name: id(tensor) for name, tensor in state.items()},
            [(path, _plain_attributes(module)) for path, module in model.named_modules()],
        )

    def assert_unchanged(self, model: nn.Module) -> None:
        now = Snapshot.of(model)
        assert now.identities == self.identities, "a parameter of the user's model was replaced"
        assert now.attributes == self.attributes, "an attribute of the user's model was changed"
        for name, tensor in now.state.items():
            assert torch.equal(tensor, self.state[name]), f"{name} of the user's model was changed"
            assert not [k for k in vars(named_state(model)[name]) if "structprune" in k], name


def _plain_attributes(module: nn.Module) -> dict[str, str]:
    """Attributes by type and value; of containers of hooks and tensors, by their keys."""
    return {
        key: f"{type(value).__name__}: {list(value) if isinstance(value, dict | Tensor) else value!r}"
        for key, value in vars(module).items()
        if not isinstance(value, Tensor) and not isinstance(value, nn.Module)
    }


# -- the promise ----------------------------------------------------------------------------------------------


def removed_something(plan: sp.PruningPlan) -> bool:
    return any(dims for dims in plan.kept.values())


def assert_exact(
    model: nn.Module, inputs: Any, ratio: float | None = 0.5, *, removes: bool | None = True, **settings: Any
) -> sp.Result:
    """Prunes, and demands that the result equals the masked original. `removes`: None leaves open if anything goes, and if it matters.

    The model must be in float64 and randomised.
    """
    before = Snapshot.of(model)
    result = sp.prune(model, inputs, ratio=ratio, **settings)
    before.assert_unchanged(model)
    plan, small = result.plan, result.model
    assert removes is None or removed_something(plan) == removes, f"removed: {plan.kept}"
    assert type(small) is type(model)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert_bookkeeping(small)
    masked = masked_original(model, plan)
    assert_equal_state(small, masked, plan, "weights")
    assert_equal_gradients(copy.deepcopy(small), copy.deepcopy(masked), plan, inputs)
    trained_small, trained_masked = copy.deepcopy(small), copy.deepcopy(masked)
    assert_equal_models(trained_small, trained_masked, inputs)
    assert_equal_state(trained_small, trained_masked, plan, "statistics after running in train mode")
    if removed_something(plan):
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
        if removes is not None:
            assert_masking_matters(model, masked, inputs)
    before.assert_unchanged(model)
    return result


def assert_masking_matters(model: nn.Module, masked: nn.Module, inputs: Any) -> None:
    """If the masks changed nothing, equality would prove nothing."""
    copies = [copy.deepcopy(m).eval() for m in (model, masked)]
    with no_dropout(*copies), torch.no_grad():
        pair = [list(tensors(call(m, inputs))) for m in copies]
    assert any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)), "masking changed no output"


def assert_exact_or_nothing(model: nn.Module, inputs: Any, ratio: float = 0.5, **settings: Any) -> sp.Result | None:
    """Exact, or refused because there is nothing to prune."""
    before = Snapshot.of(model)
    try:
        return assert_exact(model, inputs, ratio, removes=None, **settings)
    except sp.NothingToPruneError:
        before.assert_unchanged(model)
        return None


def assert_kept(model: nn.Module, inputs: Any, pattern: str, words: str | Sequence[str]) -> None:
    """The dimensions that match `pattern` ("a.weight[0]") are kept, for a reason that holds all of `words`.

    The model can still be pruned, or there is nothing to prune.
    """
    graph = sp.analyze(model, inputs)
    names = [name for name in graph.fixed if fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))]
    assert names, f"{pattern} is not among {graph.fixed}"
    for name in names:
        reason, explained = graph.fixed[name], graph.explain(name.partition("[")[0])
        for word in [words] if isinstance(words, str) else words:
            assert word in reason, f"{name}: {reason!r} does not mention {word!r}"
            assert word in explained, f"explain({name!r}) does not mention {word!r}:\n{explained}"
    result = assert_exact_or_nothing(model, inputs)
    for name in names if result is not None else []:
        tensor, _, dim = name.removesuffix("]").partition("[")
        kept = result.plan.kept.get(tensor, {})
        partly = graph.fixed[name].partition(" of ")[0].isdigit()
        assert partly or (int(dim) not in kept if dim else not kept), f"{name} should have been kept"
