"""An accelerator that is not there: tensors that say they are on "away:0", and hold their values on the CPU.

What mixes them with tensors of the CPU fails as it does on CUDA, so that a machine without an accelerator can tell
whether everything is put in its place. PyTorch has no public way to do this: `_setup_privateuseone_for_python_backend`
and the dispatch of wrapper tensors are used here and nowhere else. A process cannot be rid of it again; run as a
script, this prunes a model there in every way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import structprune as sp
from structprune import importance, regularize

NAME = "away"

# What takes positions, masks or values from the CPU, on CUDA too.
_MIXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::copy_", "aten::_to_copy"})
_CONVOLUTIONS = {
    "aten::convolution_overrideable": torch.ops.aten.convolution.default,
    "aten::convolution_backward_overrideable": torch.ops.aten.convolution_backward.default,
}


class Away(Tensor):
    """A tensor over there."""

    __slots__ = ("inner",)
    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        out = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert a tensor on {NAME} to numpy")


class Dispatch(TorchDispatchMode):
    """Sees what makes tensors, too."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def is_away(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Computes on the CPU, and refuses what lies in two places."""
    name = function._schema.name
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    away = [tensor for tensor in tensors if isinstance(tensor, Away)]
    here = [tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.ndim]
    if away and here and name not in _MIXING:
        raise RuntimeError(f"expected all tensors to be on the same device: {name} was given some on cpu")
    if name == "aten::index" and not isinstance(args[0], Away) and away:
        raise RuntimeError("indices should be on cpu")
    if name == "aten::_fused_sdp_choice":
        return 0
    if name == "aten::convolution_backward_overrideable":
        args = (*args[:3], None, *args[3:])
    inner_args, inner_kwargs = tree_map(lambda v: v.inner if isinstance(v, Away) else v, (args, kwargs))
    if is_away(kwargs.get("device")):
        inner_kwargs["device"] = torch.device("cpu")
    out = _CONVOLUTIONS.get(name, function)(*inner_args, **inner_kwargs)
    there = is_away(kwargs["device"]) if kwargs.get("device") is not None else bool(away)
    same = {id(tensor.inner if isinstance(tensor, Away) else tensor): tensor for tensor in tensors}
    written = function._schema.is_mutable

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if written and id(value) in same:
            return same[id(value)]
        return Away(value) if there and not isinstance(value, Away) else value

    return tree_map(placed, out)


class Module(backend_registration._DummyBackendModule):
    """What PyTorch asks an accelerator's module for."""

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None: ...
    def manual_seed_all(self, seed: int) -> None: ...
    def device_count(self) -> int:
        return 1

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False


def pretend() -> None:
    """From now on there is a device "away"."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **options: Any) -> Tensor:
        made = make(data, **options)
        return (made.to(device) if is_away(device) else made).requires_grad_(requires_grad)

    torch.tensor = tensor  # the only maker of tensors that does not go through the dispatcher
    Dispatch().__enter__()


# -- what is done there -----------------------------------------------------------------------------------------


class Net(nn.Module):
    """Every kind of layer that keeps something of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.each, self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 24, 1, groups=4)
        self.group, self.wide, self.layer = nn.GroupNorm(4, 24), nn.Linear(24, 16), nn.LayerNorm(16)
        self.attention, self.out = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.grouped(self.each(self.norm(self.stem(x)).relu()))).relu()
        t = self.layer(self.wide(x.flatten(2).mT))
        return self.out((t + self.attention(t, t, t, need_weights=False)[0]).mean(1))  # type: ignore[no-any-return]


def model_there() -> nn.Module:
    torch.manual_seed(0)
    return Net().to(NAME).eval()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def check_importances(images: Tensor, batches: list[tuple[Tensor, Tensor]]) -> None:
    named = {name: make() for name, make in importance.NAMED.items()}
    kinds: list[Callable[..., Any]] = [importance.Taylor, importance.Fisher, importance.OBD]
    named |= {kind.__name__: kind(loss, batches) for kind in kinds}
    kinds = [importance.ActivationNorm, importance.Wanda, importance.FLAP]
    named |= {kind.__name__: kind(batches) for kind in kinds}
    model = model_there()
    for name, measure in named.items():
        plan = sp.plan(sp.analyze(model, images), measure, ratio=0.5)
        small = sp.apply(plan, model)
        check = sp.verify(model, plan, images, small=small, device=NAME)
        assert check.ok, f"{name}: {check}"
        assert {tensor.device.type for tensor in small.state_dict().values()} == {NAME}


def check_plans(images: Tensor) -> None:
    graph = sp.analyze(model_there(), images)
    for settings in (
        {"target": {"macs": 0.5, "params": 0.6}},
        {"target": {"memory": 0.7}, "allocation": "knapsack", "scope": "global"},
        {"ratio": 0.5, "round_to": "auto"},
    ):
        assert any(sp.plan(graph, **settings).kept.values())  # type: ignore[arg-type]


def check_masks(images: Tensor, labels: Tensor) -> None:
    model = model_there()
    graph = sp.analyze(model, images)
    plan = sp.plan(graph, ratio=0.5)
    masked = sp.mask(plan, model)
    assert sp.plan_from_masks(masked, images) == plan
    assert sp.sparsity(masked, images).weights.dead > 0
    sp.shrink(masked, images)
    sp.inflate(plan, sp.apply(plan, model), model)
    sp.sensitivity(graph, lambda m: float(-F.cross_entropy(m(images), labels)), [0.5])
    for penalty in (regularize.GroupLasso(graph), regularize.BNScale(graph), regularize.Growing(graph, plan)):
        penalty().backward()
    assert sp.prune(model, images, ratio=0.5, norm="stock").report.verification is not None


def check_iterate(images: Tensor, batch: tuple[Tensor, Tensor]) -> None:
    for inplace in (False, True):
        model = model_there()
        optimizer, average = torch.optim.Adam(model.parameters()), copy.deepcopy(model)
        loss(model, batch).backward()
        optimizer.step()
        for step in sp.iterate(
            model, images, ratio=0.5, steps=2, optimizer=optimizer, ema=average, inplace=inplace, verify=False
        ):
            loss(step.model, batch).backward()
            optimizer.step()


def main() -> None:
    pretend()
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(4, 3, 8, 8, generator=generator).to(NAME), torch.arange(4).to(NAME)
    try:
        images + torch.ones(8)
        raise SystemExit("what mixes devices was not refused")
    except RuntimeError:
        pass
    check_importances(images, [(images, labels), (images.cpu(), labels.cpu())])
    check_plans(images)
    check_masks(images, labels)
    check_iterate(images, (images, labels))
    print("everything is in its place")


if __name__ == "__main__":
    main()
