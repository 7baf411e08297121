"""Verification: the pruned model against the masked original, on fresh inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .copying import deep_copy
from .errors import ArgumentError, VerificationError
from .mask import zeroed
from .ops import operation
from .plan import PruningPlan
from .prepare import calls_of, check_model, check_placement, check_values, explained, unwrap
from .program import Call, map_tensors, named_tensors, tensors_in
from .stock import over_kept
from .surgery import apply

# max|a - b| / max|b| that each dtype deserves.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Comparison:
    """One run of both models."""

    mode: str
    dtype: str
    device: str
    batch: int | None
    max_abs_error: float
    max_rel_error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.max_rel_error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """The outcome: `ok`, the largest errors in float64, and where the models first differ if they do.

    With `norm="stock"`, what the pruned model must equal is the masked original whose stock norms see the kept
    channels only; `deviation` is its largest relative difference from the masked original itself, and is not judged.
    """

    ok: bool
    max_abs_error: float
    max_rel_error: float
    first_difference: str | None
    comparisons: tuple[Comparison, ...]
    message: str
    deviation: float | None = None

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return self.message


_WIDER = {torch.float16: torch.float64, torch.float32: torch.float64, torch.complex64: torch.complex128}


class _Comparable(TorchFunctionMode):
    """Dropout draws one number per channel, so the two models would draw different ones: it is switched off.

    In float64, conversions to float32 inside a model (Hugging Face norms have them) are left out: their rounding
    would hide what is looked for.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.exact = dtype == torch.float64

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = operation(function).name
        if "dropout" in name and args and isinstance(args[0], Tensor):
            return args[0]
        position = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}.get(name)
        if position is not None:  # they draw inside
            args = (*args[:position], 0.0, *args[position + 1 :]) if len(args) > position else args
            kwargs = {k: 0.0 if k == "dropout_p" else v for k, v in kwargs.items()}
        if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            args = tuple(0.0 if type(a) is float else a for a in args)
        if self.exact:
            if name == "float" and args and isinstance(args[0], Tensor):
                return args[0].double()
            args = tuple(_WIDER.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
            kwargs = {k: _WIDER.get(v, v) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()}
        return function(*args, **kwargs)


def verify(
    model: nn.Module, plan: PruningPlan, example_inputs: Any, *, small: nn.Module | None = None, device: Any = None
) -> Verification:
    """Compares the pruned model with the masked original.

    Both run in float64 (on CUDA when there is one) on fresh random inputs shaped like the examples, in eval
    and in train mode (dropout off), at another batch size where the model allows one, then in the working
    dtype. The error is max|a - b| / max|b| over all outputs.

    Args:
        small: the pruned model, if it is at hand; else `apply(plan, model)`. Trained further, it differs.
        device: where to compare, `"cpu"` for example.

    Raises PlanError if the plan was made for another model, ExampleInputsError if the model does not run on the
    examples, UnsupportedModelError, ArgumentError for a device that is not there, and VerificationError if the two
    cannot be compared: the model does not run in float64, the masked model is not deterministic, or its outputs are
    constant.

    >>> check = structprune.verify(model, plan, images, device="cpu")
    >>> check.ok, check.max_rel_error
    (True, 8.9e-16)
    """
    model, calls = unwrap(model), calls_of(example_inputs)
    small = apply(plan, model) if small is None else unwrap(small)
    for one in (model, small):
        check_model(one)
        check_values(one)
    check_placement(model, calls)
    if not plan.kept:
        return Verification(True, 0.0, 0.0, None, (), "nothing removed: the model is unchanged")
    device = find_device(device)
    masked = zeroed(plan, model)
    original = double(model, device)
    exact = double(masked, device), apply(plan, original) if plan.scales else double(small, device)
    deviates = deviation(exact[1], exact[0], calls) if plan.stock else None
    exact = over_kept(plan, exact[0]), exact[1]
    with _deterministic(), torch.random.fork_rng():
        torch.manual_seed(0)
        for call in calls:
            fresh = _fresh(call, device, torch.float64)
            _check_runs(original, fresh, model, call)
            _check_comparable(original, exact[0], fresh)
    return agreement(exact, (over_kept(plan, masked), small), calls, device, deviates=deviates)


def agreement(
    exact: Sequence[nn.Module],
    working: Sequence[nn.Module],
    calls: Sequence[Call],
    device: torch.device,
    modes: Sequence[str] = ("eval", "train"),
    deviates: float | None = None,
) -> Verification:
    """Compares two models, given in float64 and in their own dtype, on fresh inputs like those of `calls`.

    `deviates` is what stock norms make of the difference from the masked original, if there are any.
    """
    dtype = next((p.dtype for p in working[0].parameters() if p.is_floating_point()), torch.float32)
    rows: list[Comparison] = []
    failed: Call | None = None
    with _deterministic(), torch.random.fork_rng():
        torch.manual_seed(0)
        for call in [_fresh(c, device, torch.float64) for c in calls]:
            for one, mode, batch in _variants(call):
                row = _compare(exact, one, mode, torch.float64, device, batch) if mode in modes else None
                if row is not None:
                    rows.append(row)
                    failed = failed or (None if row.ok else one)
        first = _first_difference(exact, failed) if failed else None
        if dtype != torch.float64 and not failed and _runs_in(dtype, device):
            pair = [deep_copy(m).to(device=device) for m in working]
            for call in calls:
                row = _compare(pair, _fresh(call, device, dtype), "eval", dtype, device, None)
                rows += [row] if row is not None else []
    return _outcome(rows, first, deviates)


def deviation(model: nn.Module, reference: nn.Module, calls: Sequence[Call]) -> float:
    """max|a - b| / max|b| over the outputs of two models of equal size, in float64 and eval mode."""
    device = find_device(None)
    pair = double(model, device), double(reference, device)
    with _deterministic(), torch.random.fork_rng():
        torch.manual_seed(0)
        runs = [[_run(m, call, "eval") for m in pair] for call in (_fresh(c, device, torch.float64) for c in calls)]
    return max(_errors(found, expected)[1] for found, expected in runs)


def find_device(device: Any) -> torch.device:
    """The device by its name; by default CUDA where there is one. Raises ArgumentError if nothing can be put there."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found).item()
    except (RuntimeError, TypeError, AssertionError) as error:  # the last from a PyTorch without CUDA
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"device must name a device that is there, such as 'cpu' or 'cuda', not {device!r}: {reason}"
        ) from error
    return found


@torch.no_grad()
def double(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy in float64 and complex128."""
    copied = deep_copy(model).to(device=device).double()
    for tensor in named_tensors(copied).values():
        wide = _WIDER.get(tensor.dtype)
        if wide is not None:  # complex parameters, and plain attributes, which Module.double leaves alone
            tensor.data = tensor.data.to(device, wide)
    return copied


def _outcome(rows: Sequence[Comparison], first: str | None, deviation: float | None) -> Verification:
    exact = [r for r in rows if r.dtype == "float64"]
    ok = all(r.ok for r in rows)
    absolute = max((r.max_abs_error for r in exact), default=0.0)
    relative = max((r.max_rel_error for r in exact), default=0.0)
    modes = " and ".join(dict.fromkeys(r.mode for r in exact))
    oracle = "the masked original" + ("" if deviation is None else " with stock norms over the kept channels")
    message = f"equal to {oracle}: {relative:.1e} relative in float64 ({modes} mode)"
    if deviation is not None:
        message += f"; for its stock norms it deviates from the masked original by {deviation:.1e}"
    if not ok:
        worst = max((r for r in rows if not r.ok), key=lambda r: r.max_rel_error)
        where = f"; first difference in {first}" if first else ""
        message = f"DIFFERS from {oracle} by {worst.max_rel_error:.1e} ({worst.dtype}, {worst.mode} mode){where}"
    return Verification(ok, absolute, relative, first, tuple(rows), message, deviation)


def _runs_in(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype in TOLERANCES and (device.type == "cuda" or dtype == torch.float32)


@contextmanager
def _deterministic() -> Iterator[None]:
    """TF32 would hide what is looked for."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers for every run, from PyTorch, NumPy and Python (masking and layer drop use them)."""
    states = random.getstate(), np.random.get_state()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _fresh(call: Call, device: torch.device, dtype: torch.dtype) -> Call:
    """Random numbers with the mean and spread of each example; integers and masks as they are."""

    def renew(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device)
        if tensor.is_complex() and dtype == torch.float64:
            return tensor.to(torch.complex128)
        if not tensor.is_floating_point():
            return tensor
        values = tensor.double()
        spread = values.std(correction=0).clamp(min=0.1) if values.numel() > 1 else 1.0
        return (torch.randn_like(values) * spread + values.mean()).to(dtype)

    return Call(map_tensors(renew, call.args), map_tensors(renew, dict(call.kwargs)))


def _variants(call: Call) -> Iterator[tuple[Call, str, int | None]]:
    """As it is, one larger in the batch, and in train mode with a batch of at least two."""
    first = next(tensors_in((call.args, dict(call.kwargs))), None)
    size = first.shape[0] if first is not None and first.ndim else None

    def enlarge(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[:1].flip(-1)]) if tensor.ndim > 1 and tensor.shape[0] == size else tensor

    larger = Call(map_tensors(enlarge, call.args), map_tensors(enlarge, dict(call.kwargs)))
    yield call, "eval", size
    if size is not None:
        yield larger, "eval", size + 1
    yield larger, "train", size


def _run(model: nn.Module, call: Call, mode: str) -> list[Tensor]:
    model.train(mode == "train")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float64)
    with _seeded(), _Comparable(dtype):
        outputs = list(tensors_in(model(*call.args, **call.kwargs)))
    return [(torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).double() for t in outputs]


def _compare(
    pair: Sequence[nn.Module], call: Call, mode: str, dtype: torch.dtype, device: torch.device, batch: int | None
) -> Comparison | None:
    """None if the masked model itself does not take the call: another batch size, a batch of one in train mode."""
    try:
        expected = _run(pair[0], call, mode)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError):
        return None
    try:
        absolute, relative = _errors(_run(pair[1], call, mode), expected)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):  # it fails where the original runs
        absolute = relative = float("inf")
    name = str(dtype).removeprefix("torch.")
    return Comparison(mode, name, str(device), batch, absolute, relative, TOLERANCES[dtype])


def _errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf"), float("inf")
    absolute = relative = 0.0
    for a, b in zip(found, expected, strict=True):
        if b.numel():
            same = (a == b) | (a.isnan() & b.isnan())
            error = float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf")).max())
            scale = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
            absolute = max(absolute, error)
            relative = max(relative, error / scale if scale else (error and float("inf")))
    return absolute, relative


def _check_runs(original: nn.Module, fresh: Call, model: nn.Module, call: Call) -> None:
    """Tells inputs that the model does not take from a model that does not run in float64."""
    try:
        _run(original, fresh, "eval")
    except Exception as error:  # whatever the user's code raises
        try:
            deep_copy(model).eval()(*call.args, **call.kwargs)
        except Exception as again:
            raise explained(again, call) from again
        raise VerificationError(f"cannot verify: the model does not run in float64: {error}") from error


def _check_comparable(original: nn.Module, masked: nn.Module, call: Call) -> None:
    expected, again = _run(masked, call, "eval"), _run(masked, call, "eval")
    if _errors(again, expected)[1] > 1e-9:
        raise VerificationError("cannot verify: the masked model differs from itself when it runs twice in eval mode")
    if all(float(t.max() - t.min()) == 0 for t in expected if t.numel() > 1 and t.isfinite().all()) and any(
        float(t.max() - t.min()) != 0 for t in _run(original, call, "eval") if t.numel() > 1
    ):
        raise VerificationError(
            "cannot verify: every output of the masked model is constant, so that any two models would look equal; "
            "prune less, or give inputs and weights that reach the outputs"
        )


Outputs = list[tuple[str, list[Tensor]]]


def _first_difference(pair: Sequence[nn.Module], call: Call) -> str | None:
    """The first module, in the order of execution, whose output differs in every way of aligning its channels."""
    (expected, _), (found, failure) = (_observe(model, call) for model in pair)
    if failure:
        return failure
    for (path, large), (_, small) in zip(expected, found, strict=False):
        if any(not _contained(a, b) for a, b in zip(small, large, strict=False)):
            return path or "the model"
    return None


def _observe(model: nn.Module, call: Call) -> tuple[Outputs, str]:
    """What every module returned, in order, and the module that failed and how, if one did."""
    outputs: Outputs = []
    entered: list[str] = []
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, a, path=path: entered.append(path)))
        handles.append(
            module.register_forward_hook(lambda m, a, out, path=path: outputs.append((path, [*tensors_in(out)])))
        )
    try:
        _run(model, call, "eval")
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return outputs, f"{entered[-1] or 'the model'}, which fails: {error}"
    finally:
        for handle in handles:
            handle.remove()
    return outputs, ""


def _contained(small: Tensor, large: Tensor) -> bool:
    """Whether the values of `small` occur in `large`: channels that went leave the others' values behind."""
    if small.shape == large.shape:
        return bool(_errors([small], [large])[1] <= 1e-9)
    values = torch.sort(large.flatten().double()).values
    wanted = small.flatten().double()
    at = torch.searchsorted(values, wanted).clamp(max=len(values) - 1)
    near = torch.minimum((values[at] - wanted).abs(), (values[(at - 1).clamp(min=0)] - wanted).abs())
    return bool((near <= 1e-9 * values.abs().max()).all())
