"""Verification: the pruned model against the masked original, on fresh inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .copying import copies_alone, deep_copy
from .differences import first_difference, observe, said
from .errors import ArgumentError, VerificationError
from .fresh import awakened, hides
from .inventory import Inventory
from .mask import zeroed
from .plan import Kept, PruningPlan
from .prepare import calls_of, check_model, check_placement, check_takes, check_values, unwrap
from .program import Call
from .rounding import grains
from .running import deterministic, double, errors, in_float64, outcome, run
from .samples import Sample, sampled, variants
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

    Both run in float64 (on CUDA when there is one) on fresh random inputs shaped like the examples, or on the
    examples where the model does not take such (see `samples`), in eval and in train mode (dropout off), at another
    batch size where the model allows one, then in the working dtype (half precision on CUDA alone). The error is
    max|a - b| / max|b| over all outputs, and over the running statistics that train mode leaves. Where that is too
    large, random numbers are held constant (see `steady`), and what is zero but for rounding is compared with the
    rounding of float32 (see `rounding`). Weights that hold zeros alone, as at the ends of fresh residual branches,
    would hide what leads to them: the plan is tried with random numbers there, too.

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
        samples = samples_for(original, calls, device, model)
        with deterministic():
            for sample in samples:
                _check_comparable(original, exact[0], sample.wide)
        deviates = deviation(exact[1], double(masked, device), calls) if plan.stock else None
        check = agreement(exact, (over_kept(plan, masked), small), samples, device, kept=plan.kept, deviates=deviates)
        if not hides(original):
            return check
        awake = awakened(original)
        pair = over_kept(plan, zeroed(plan, awake)), apply(plan, awake)
        return _both(check, agreement(pair, pair, samples, device, kept=plan.kept))


def _both(check: Verification, awake: Verification) -> Verification:
    """What is shown by comparisons as it is, and with random numbers in place of weights of zeros."""
    if not check.ok:
        return check
    if not awake.ok:
        return replace(awake, message=f"{awake.message}, with random numbers where weights are zero")
    absolute, relative = (max(getattr(c, name) for c in (check, awake)) for name in ("max_abs_error", "max_rel_error"))
    message = f"{check.message}; {awake.max_rel_error:.1e} with random numbers where weights are zero"
    rows = *check.comparisons, *awake.comparisons
    return replace(check, max_abs_error=absolute, max_rel_error=relative, comparisons=rows, message=message)


def agreement(
    exact: Sequence[nn.Module],
    working: Sequence[nn.Module],
    samples: Sequence[Sample],
    device: torch.device,
    modes: Sequence[str] = ("eval", "train"),
    kept: Kept | None = None,
    deviates: float | None = None,
) -> Verification:
    """Compares two models, given in float64 and in their own dtype.

    `kept` says which entries of the first model's running statistics the second has, if they are to be compared;
    `deviates` is what stock norms make of the difference from the masked original, if there are any. In their own
    dtype the two may differ by a few times what the first differs from itself in float64.
    """
    dtype = next((p.dtype for p in working[0].parameters() if p.is_floating_point()), torch.float32)
    rows: list[Comparison] = []
    skipped: dict[str, str] = {}
    failed: tuple[Call, str] | None = None
    with deterministic():
        for sample in samples:
            for one, mode, batch in variants(sample.wide):
                if mode not in modes:
                    continue
                row = _compare(exact, one, mode, torch.float64, device, batch, kept)
                if isinstance(row, str):
                    skipped[mode if mode == "train" or one is sample.wide else f"a batch of {batch}"] = row
                    continue
                rows.append(row)
                failed = failed or (None if row.ok else (one, mode))
        if not rows:
            raise VerificationError(f"cannot verify: the model does not run in float64: {'; '.join(skipped.values())}")
        first = first_difference(exact, *failed) if failed else None
        if dtype != torch.float64 and not failed and _runs_in(dtype, device):
            pair = [deep_copy(m).to(device=device) for m in working]
            for call in [sample.plain for sample in samples]:
                row = _compare(pair, call, "eval", dtype, device, None)
                if isinstance(row, Comparison) and not row.ok:
                    row = replace(row, tolerance=max(row.tolerance, NOISE * _noise(exact[0], pair[0], call)))
                if isinstance(row, Comparison):
                    rows.append(row)
                    first = first or (None if row.ok else observe(pair[1], call, "eval")[1] or None)
    return _outcome(rows, first, deviates, skipped)


def samples_for(
    exact: nn.Module, calls: Sequence[Call], device: torch.device, model: nn.Module | None = None
) -> list[Sample]:
    """What to compare on: inputs that a model in float64 takes, as the `model` that it was made from takes the calls.

    Raises VerificationError if it takes none, and ExampleInputsError if the `model` itself does not take the calls.
    """
    try:
        return sampled(exact, calls, device)
    except Exception as error:  # whatever the user's code raises
        if model is not None:
            for call in calls:
                check_takes(model, call)
        raise VerificationError(f"cannot verify: the model does not run in float64: {said(error)}") from error


def deviation(model: nn.Module, reference: nn.Module, calls: Sequence[Call]) -> float:
    """max|a - b| / max|b| over the outputs of two models of equal size, in float64 and eval mode."""
    device = find_device(None)
    pair = double(model, device), double(reference, device)
    samples = samples_for(pair[1], calls, device)
    with deterministic():
        runs = [[run(m, sample.wide, "eval") for m in pair] for sample in samples]
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
        return said(error)
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
        other = call.mapped(_otherwise)
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

    return errors(run(working, call, "eval"), run(exact, call.mapped(in_float64), "eval"))[1]


def _check_comparable(original: nn.Module, masked: nn.Module, call: Call) -> None:
    try:
        expected, again = run(masked, call, "eval"), run(masked, call, "eval")
    except Exception as error:  # whatever the user's code raises
        raise VerificationError(f"cannot verify: the masked model does not run: {said(error)}") from error
    if not expected:
        raise VerificationError("cannot verify: the model returns no tensors that could be compared")
    if errors(again, expected)[1] > 1e-9:
        raise VerificationError("cannot verify: the masked model differs from itself when it runs twice in eval mode")
    varied = any(_varies(tensor) for tensor in expected)
    if varied and all(bool(tensor.isfinite().all()) for tensor in expected):
        return
    before = run(original, call, "eval")
    if not any(tensor.numel() for tensor in before):
        raise VerificationError(
            "cannot verify: the model returns nothing but empty tensors; give it what it finds more in"
        )
    if not any(bool(tensor.isfinite().any()) for tensor in before):
        raise VerificationError(
            "cannot verify: no output of the model is finite, before anything is pruned; look for NaN or infinity in "
            "the example inputs, and for running statistics that are NaN or negative"
        )
    if any(_loses_numbers(b, e) for b, e in zip(before, expected, strict=True)):
        raise VerificationError(
            "cannot verify: outputs of the masked model are not finite; something divides by what became zero, or "
            "takes its logarithm: exclude the layers that it reads"
        )
    known = varied or (hides(original) and not any(map(_varies, before)))  # zeros: it is compared without them, too
    if not known and not _depends(masked, call, expected):
        raise VerificationError(
            "cannot verify: every output of the masked model is constant, so that any two models would look equal; "
            "prune less, or give inputs and weights that reach the outputs"
        )


def _depends(model: nn.Module, call: Call, found: Sequence[Tensor]) -> bool:
    """Whether other inputs give other outputs, as far as the model takes others."""
    try:
        other = run(model, call.mapped(_otherwise), "eval")
    except Exception:  # whatever the user's code raises
        return True
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(found, other, strict=False))


def _loses_numbers(before: Tensor, masked: Tensor) -> bool:
    """Whether masks made something that is not finite of what was; shapes may differ, as of detected objects."""
    if before.shape == masked.shape:
        return bool((before.isfinite() & ~masked.isfinite()).any())
    return bool(before.isfinite().all() and not masked.isfinite().all())


def _varies(tensor: Tensor) -> bool:
    numbers = tensor[tensor.isfinite()]
    return numbers.numel() > 1 and float(numbers.max() - numbers.min()) != 0
