"""Verification: the pruned model against the masked original, on fresh inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .copying import copies_alone, deep_copy
from .errors import ArgumentError, VerificationError
from .inventory import Inventory
from .mask import zeroed
from .plan import Kept, PruningPlan
from .prepare import calls_of, check_model, check_placement, check_values, explained, unwrap
from .program import Call, map_tensors, tensors_in
from .rounding import grains
from .running import deterministic, double, errors, fresh, outcome, run, variants
from .steady import LEVELS
from .stock import over_kept
from .surgery import apply

# max|a - b| / max|b| that each dtype deserves.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
Outcome = tuple[list[Tensor], Mapping[str, Tensor]]  # outputs, and buffers by name
NOISE = 4  # times the rounding error of the masked model itself, where it magnifies rounding beyond these


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


def verify(
    model: nn.Module, plan: PruningPlan, example_inputs: Any, *, small: nn.Module | None = None, device: Any = None
) -> Verification:
    """Compares the pruned model with the masked original.

    Both run in float64 (on CUDA when there is one) on fresh random inputs shaped like the examples, in eval
    and in train mode (dropout off), at another batch size where the model allows one, then in the working
    dtype (half precision on CUDA alone). The error is max|a - b| / max|b| over all outputs, and over the running
    statistics that train mode leaves. Where that is too large, random numbers are held constant (see `steady`), and
    what is zero but for rounding is compared with the rounding of float32 (see `rounding`).

    Args:
        small: the pruned model, if it is at hand; else `apply(plan, model)`. Trained further, it differs.
        device: where to compare, `"cpu"` for example.

    Raises PlanError if the plan was made for another model, ExampleInputsError if the model does not run on the
    examples, UnsupportedModelError, ArgumentError for a device that is not there, and VerificationError if the two
    cannot be compared: the model does not run in float64, the masked model is not deterministic, or its outputs are
    constant or not finite.

    >>> check = structprune.verify(model, plan, images, device="cpu")
    >>> check.ok, check.max_rel_error
    (True, 8.9e-16)
    """
    model, calls = unwrap(model), calls_of(example_inputs)
    small = apply(plan, model) if small is None else unwrap(small)
    for one in (model, small):
        check_model(Inventory(one))
        check_values(one)
    check_placement(Inventory(model), calls)
    if not plan.kept:
        return Verification(True, 0.0, 0.0, None, (), "nothing removed: the model is unchanged")
    device = find_device(device)
    masked = zeroed(plan, model)
    original = double(model, device)
    exact = over_kept(plan, double(masked, device)), apply(plan, original) if plan.scales else double(small, device)
    with copies_alone(model, small):
        with deterministic():
            for call in calls:
                renewed = fresh(call, device, torch.float64)
                _check_runs(original, renewed, model, call)
                _check_comparable(original, exact[0], renewed)
        deviates = deviation(exact[1], double(masked, device), calls) if plan.stock else None
        return agreement(exact, (over_kept(plan, masked), small), calls, device, kept=plan.kept, deviates=deviates)


def agreement(
    exact: Sequence[nn.Module],
    working: Sequence[nn.Module],
    calls: Sequence[Call],
    device: torch.device,
    modes: Sequence[str] = ("eval", "train"),
    kept: Kept | None = None,
    deviates: float | None = None,
) -> Verification:
    """Compares two models, given in float64 and in their own dtype, on fresh inputs like those of `calls`.

    `kept` says which entries of the first model's running statistics the second has, if they are to be compared;
    `deviates` is what stock norms make of the difference from the masked original, if there are any. In their own
    dtype the two may differ by a few times what the first differs from itself in float64.
    """
    dtype = next((p.dtype for p in working[0].parameters() if p.is_floating_point()), torch.float32)
    rows: list[Comparison] = []
    skipped: dict[str, str] = {}
    failed: tuple[Call, str] | None = None
    with deterministic():
        for call in [fresh(c, device, torch.float64) for c in calls]:
            for one, mode, batch in variants(call):
                if mode not in modes:
                    continue
                row = _compare(exact, one, mode, torch.float64, device, batch, kept)
                if isinstance(row, str):
                    skipped[mode if mode == "train" or one is call else f"a batch of {batch}"] = row
                    continue
                rows.append(row)
                failed = failed or (None if row.ok else (one, mode))
        if not rows:
            raise VerificationError(f"cannot verify: the model does not run in float64: {'; '.join(skipped.values())}")
        first = _first_difference(exact, *failed) if failed else None
        if dtype != torch.float64 and not failed and _runs_in(dtype, device):
            pair = [deep_copy(m).to(device=device) for m in working]
            for call in calls:
                renewed = fresh(call, device, dtype)
                row = _compare(pair, renewed, "eval", dtype, device, None)
                if isinstance(row, Comparison) and not row.ok:
                    row = replace(row, tolerance=max(row.tolerance, NOISE * _noise(exact[0], pair[0], renewed)))
                if isinstance(row, Comparison):
                    rows.append(row)
                    first = first or (None if row.ok else _observe(pair[1], renewed, "eval")[1] or None)
    return _outcome(rows, first, deviates, skipped)


def deviation(model: nn.Module, reference: nn.Module, calls: Sequence[Call]) -> float:
    """max|a - b| / max|b| over the outputs of two models of equal size, in float64 and eval mode."""
    device = find_device(None)
    pair = double(model, device), double(reference, device)
    with deterministic():
        try:
            runs = [[run(m, call, "eval") for m in pair] for call in (fresh(c, device, torch.float64) for c in calls)]
        except Exception as error:  # whatever the user's code raises
            raise VerificationError(f"cannot verify: the model does not run in float64: {_said(error)}") from error
    return max(errors(found, expected)[1] for found, expected in runs)


def find_device(device: Any) -> torch.device:
    """The device by its name; by default CUDA where there is one. Raises ArgumentError if nothing can be put there."""
    try:
        found = torch.device(device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found).item()
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # the last from a PyTorch without CUDA
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"device must name a device that is there, such as 'cpu' or 'cuda', not {device!r}: {reason}"
        ) from error
    return found


def _outcome(
    rows: Sequence[Comparison], first: str | None, deviation: float | None, skipped: Mapping[str, str]
) -> Verification:
    exact = [r for r in rows if r.dtype == "float64"]
    ok = all(r.ok for r in rows)
    absolute = max((r.max_abs_error for r in exact), default=0.0)
    relative = max((r.max_rel_error for r in exact), default=0.0)
    modes = " and ".join(dict.fromkeys(r.mode for r in exact))
    oracle = "the masked original" + ("" if deviation is None else " with stock norms over the kept channels")
    message = f"equal to {oracle}: {relative:.1e} relative in float64 ({modes} mode)"
    if deviation is not None:
        message += f"; for its stock norms it deviates from the masked original by {deviation:.1e}"
    for what, why in skipped.items():
        message += f"; {'train mode' if what == 'train' else what} was not compared: the model itself raises {why}"
    if not ok:
        worst = max((r for r in rows if not r.ok), key=lambda r: r.max_rel_error)
        where = f"; first difference in {first}" if first else ""
        message = f"DIFFERS from {oracle} by {worst.max_rel_error:.1e} ({worst.dtype}, {worst.mode} mode){where}"
    return Verification(ok, absolute, relative, first, tuple(rows), message, deviation)


def _runs_in(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype in TOLERANCES and (device.type == "cuda" or dtype == torch.float32)


def _compare(
    pair: Sequence[nn.Module],
    call: Call,
    mode: str,
    dtype: torch.dtype,
    device: torch.device,
    batch: int | None,
    kept: Kept | None = None,
) -> Comparison | str:
    """One run of both; or what the masked model raises if it does not take the call, as train mode without targets."""
    try:
        expected = outcome(pair[0], call, mode)
    except Exception as error:  # whatever the user's code raises
        return _said(error)
    found = _apart(pair[1], call, mode, expected, kept)
    row = Comparison(mode, str(dtype).removeprefix("torch."), str(device), batch, *found, TOLERANCES[dtype])
    return row if row.ok else _reconsidered(row, pair, call, expected, kept)


def _apart(
    small: nn.Module,
    call: Call,
    mode: str,
    expected: Outcome,
    kept: Kept | None,
    level: float | None = None,
    least: Sequence[float] = (),
) -> tuple[float, float]:
    """How far a model is from what the other gave: its outputs, and in train mode what the call left in the buffers
    that both have, if they are to be compared; what was made anew, in another shape, is not."""
    try:
        outputs, buffers = outcome(small, call, mode, level)
    except Exception:  # it fails where the original runs
        return float("inf"), float("inf")
    names = _statistics(small, expected) if mode == "train" and kept is not None else []
    wanted = [_left(expected[1][name], (kept or {}).get(name, {})) for name in names]
    left = [
        b if (b := buffers[n]).shape == small.get_buffer(n).shape else w for n, w in zip(names, wanted, strict=True)
    ]
    return errors([*outputs, *left], [*expected[0], *wanted], least)


def _reconsidered(
    row: Comparison, pair: Sequence[nn.Module], call: Call, expected: Outcome, kept: Kept | None
) -> Comparison:
    """The comparison again: rounding is not compared with itself, then random numbers are held constant. That proves
    nothing where the inputs do not matter any more, for they are multiplied with what became zero."""
    names = _statistics(pair[1], expected) if row.mode == "train" and kept is not None else []
    least = grains(pair[0], call, row.mode, names) if row.dtype == "float64" else []
    found = [_apart(pair[1], call, row.mode, expected, kept, None, least)]
    if found[0][1] > row.tolerance:
        other = Call(map_tensors(_otherwise, call.args), map_tensors(_otherwise, dict(call.kwargs)))
        try:
            steady = [outcome(pair[0], call, row.mode, level) for level in LEVELS]
            moved = [_moved(one, outcome(pair[0], other, row.mode, at)) for one, at in zip(steady, LEVELS, strict=True)]
            if not _moved(expected, outcome(pair[0], other, row.mode)) <= set().union(*moved):
                return row
        except Exception:  # whatever the user's code raises
            return row
        found = [
            _apart(pair[1], call, row.mode, one, kept, level, least) for one, level in zip(steady, LEVELS, strict=True)
        ]
    absolute, relative = (max(column) for column in zip(*found, strict=True))
    return replace(row, max_abs_error=absolute, max_rel_error=relative)


def _otherwise(tensor: Tensor) -> Tensor:
    """Other inputs of the same shape."""
    return 0.7 * tensor - 0.2 if tensor.is_floating_point() else tensor.flip(-1) if tensor.ndim else tensor


def _moved(found: Outcome, other: Outcome) -> set[int]:
    """The places of outputs that two calls do not have in common."""
    return {i for i, pair in enumerate(zip(found[0], other[0], strict=True)) if errors(pair[:1], pair[1:])[1] > 1e-9}


def _statistics(small: nn.Module, expected: Outcome) -> list[str]:
    """The buffers that both models have."""
    return [name for name, buffer in small.named_buffers() if buffer.is_floating_point() and name in expected[1]]


def _left(buffer: Tensor, kept: Mapping[int, Sequence[int]]) -> Tensor:
    for dim, indices in kept.items():
        buffer = buffer.index_select(dim, torch.tensor(indices, device=buffer.device))
    return buffer


def _noise(exact: nn.Module, working: nn.Module, call: Call) -> float:
    """How far the masked model in its own dtype is from itself in float64, by rounding alone."""

    def widen(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    wide = Call(map_tensors(widen, call.args), map_tensors(widen, dict(call.kwargs)))
    return errors(run(working, call, "eval"), run(exact, wide, "eval"))[1]


def _said(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _check_runs(original: nn.Module, renewed: Call, model: nn.Module, call: Call) -> None:
    """Tells inputs that the model does not take from a model that does not run in float64."""
    try:
        run(original, renewed, "eval")
    except Exception as error:  # whatever the user's code raises
        try:
            deep_copy(model).eval()(*call.args, **call.kwargs)
        except Exception as again:
            raise explained(again, call) from again
        raise VerificationError(f"cannot verify: the model does not run in float64: {_said(error)}") from error


def _check_comparable(original: nn.Module, masked: nn.Module, call: Call) -> None:
    try:
        expected, again = run(masked, call, "eval"), run(masked, call, "eval")
    except Exception as error:  # whatever the user's code raises
        raise VerificationError(f"cannot verify: the masked model does not run: {_said(error)}") from error
    if not expected:
        raise VerificationError("cannot verify: the model returns no tensors that could be compared")
    if errors(again, expected)[1] > 1e-9:
        raise VerificationError("cannot verify: the masked model differs from itself when it runs twice in eval mode")
    finite = [t for t in expected if t.numel() > 1 and t.isfinite().all()]
    if any(float(t.max() - t.min()) != 0 for t in finite):
        return
    before = [t for t in run(original, call, "eval") if t.numel() > 1]
    if before and not any(bool(t.isfinite().all()) for t in before):
        raise VerificationError(
            "cannot verify: no output of the model is finite, before anything is pruned; look for NaN or infinity in "
            "the example inputs, and for running statistics that are NaN or negative"
        )
    if not finite and before:
        raise VerificationError(
            "cannot verify: no output of the masked model is finite; something divides by what became zero, or takes "
            "its logarithm: exclude the layers that it reads"
        )
    if any(float(t.max() - t.min()) != 0 for t in before):
        raise VerificationError(
            "cannot verify: every output of the masked model is constant, so that any two models would look equal; "
            "prune less, or give inputs and weights that reach the outputs"
        )


Outputs = list[tuple[str, list[Tensor]]]


def _first_difference(pair: Sequence[nn.Module], call: Call, mode: str) -> str | None:
    """The first module, in the order of execution, whose output differs in every way of aligning its channels."""
    (expected, _), (found, failure) = (_observe(model, call, mode) for model in pair)
    if failure:
        return failure
    for (path, large), (_, small) in zip(expected, found, strict=False):
        if any(not _contained(a, b) for a, b in zip(small, large, strict=False)):
            return path or "the model"
    return None


def _observe(model: nn.Module, call: Call, mode: str) -> tuple[Outputs, str]:
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
        outcome(model, call, mode, LEVELS[0])
    except Exception as error:  # whatever the user's code raises
        return outputs, f"{(entered and entered[-1]) or 'the model'}, which fails: {_said(error)}"
    finally:
        for handle in handles:
            handle.remove()
    return outputs, ""


def _contained(small: Tensor, large: Tensor) -> bool:
    """Whether the values of `small` occur in `large`: channels that went leave the others' values behind."""
    if small.shape == large.shape:
        return bool(errors([small], [large])[1] <= 1e-9)
    values = torch.sort(large.flatten().double()).values
    wanted = small.flatten().double()
    at = torch.searchsorted(values, wanted).clamp(max=len(values) - 1)
    near = torch.minimum((values[at] - wanted).abs(), (values[(at - 1).clamp(min=0)] - wanted).abs())
    return bool((near <= 1e-9 * values.abs().max()).all())
