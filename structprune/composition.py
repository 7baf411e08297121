"""Two plans together: one after the other, or one against the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import ArgumentTypeError, PlanError

if TYPE_CHECKING:
    from .plan import Kept, PruningPlan

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class PlanDifference:
    """What two plans do differently: false if nothing, a line for each thing when it is printed.

    `kept` maps each parameter to `{dim: (indices that only the first keeps, those that only the second keeps)}`;
    `attributes`, `swaps`, `scales` and `shifts` map a path to what the first and the second plan say, None for nothing.
    `fingerprints` holds both if the plans are for different models.
    """

    kept: dict[str, dict[int, tuple[tuple[int, ...], tuple[int, ...]]]] = field(default_factory=dict)
    attributes: dict[str, Pair] = field(default_factory=dict)
    swaps: dict[str, Pair] = field(default_factory=dict)
    scales: dict[str, Pair] = field(default_factory=dict)
    shifts: dict[str, Pair] = field(default_factory=dict)
    fingerprints: Pair | None = None

    def __bool__(self) -> bool:
        return bool(self.kept or self.attributes or self.swaps or self.scales or self.shifts or self.fingerprints)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "kept": {
                name: {str(dim): {"first": list(a), "second": list(b)} for dim, (a, b) in dims.items()}
                for name, dims in self.kept.items()
            },
            **{
                key: {k: list(v) for k, v in getattr(self, key).items()}
                for key in ("attributes", "swaps", "scales", "shifts")
            },
            "fingerprints": None if self.fingerprints is None else list(self.fingerprints),
        }

    def __str__(self) -> str:
        if not self:
            return "the plans are equal"
        lines = []
        if self.fingerprints:
            lines.append(f"they are for different models: fingerprints {' and '.join(self.fingerprints)}")
        for name, dims in self.kept.items():
            for dim, sides in dims.items():
                said = [
                    f"only the {w} keeps {_listed(s)}" for w, s in zip(("first", "second"), sides, strict=True) if s
                ]
                lines.append(f"{name}[{dim}]: {'; '.join(said)}")
        for what in ("attributes", "swaps", "scales", "shifts"):
            lines += [f"{path}: {a} in the first, {b} in the second" for path, (a, b) in getattr(self, what).items()]
        return "\n".join(lines)


def _listed(indices: tuple[int, ...]) -> str:
    """The first few, and how many there are."""
    few = ", ".join(map(str, indices[:8]))
    return few if len(indices) <= 8 else f"{few}, ... ({len(indices)} in all)"


def difference(first: PruningPlan, second: PruningPlan) -> PlanDifference:
    """What two plans keep, set, swap and scale differently."""
    _check_plan(first, second)
    kept = {}
    for name in _union(first.cut, second.cut):
        dims = {
            dim: _only(first, second, name, dim) for dim in _union(first.cut.get(name, {}), second.cut.get(name, {}))
        }
        dims = {dim: sides for dim, sides in dims.items() if any(sides)}
        if dims:
            kept[name] = dims
    numbers = [
        {f"{path}.{key}": value for path, values in plan.attributes.items() for key, value in values.items()}
        for plan in (first, second)
    ]
    same = first.fingerprint == second.fingerprint
    return PlanDifference(
        kept, _unequal(*numbers), _unequal(first.swaps, second.swaps), _unequal(first.scales, second.scales),
        _unequal(first.shifts, second.shifts),
        None if same else (first.fingerprint, second.fingerprint),
    )  # fmt: skip


def _union(a: Iterable[Any], b: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys([*a, *b]))


def _only(first: PruningPlan, second: PruningPlan, name: str, dim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The indices that only one of two plans keeps; a plan that does not cut a dimension keeps all of it."""
    sides = []
    for plan in (first, second):
        size = (plan.sizes if dim in plan.sizes.get(name, {}) else (first if plan is second else second).sizes)[name][
            dim
        ]
        sides.append(plan.cut.get(name, {}).get(dim, range(size)))
    a, b = (set(side) for side in sides)
    return tuple(sorted(a - b)), tuple(sorted(b - a))


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    return {key: (a.get(key), b.get(key)) for key in _union(a, b) if a.get(key) != b.get(key)}


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """The plan that does at once what `first` and then `second` do; see `PruningPlan.then`."""
    _check_plan(first, second)
    _check_follows(first, second)
    kept, tensors, stock = (_compose_kept(getattr(first, k), getattr(second, k)) for k in ("kept", "tensors", "stock"))
    paths = _union(first.attributes, second.attributes)
    return replace(
        first,
        kept=kept,
        tensors=tensors,
        attributes={p: {**first.attributes.get(p, {}), **second.attributes.get(p, {})} for p in paths},
        swaps={**second.swaps, **first.swaps},  # the first saw the module whole: its count is the original one
        scales={
            name: first.scales.get(name, 1.0) * second.scales.get(name, 1.0)
            for name in _union(first.scales, second.scales)
        },
        shifts={
            name: first.shifts.get(name, 0.0) * second.scales.get(name, 1.0) + second.shifts.get(name, 0.0)
            for name in _union(first.shifts, second.shifts)
        },
        stock=stock,
        sizes={
            name: {**second.sizes.get(name, {}), **first.sizes.get(name, {})}
            for name in _union(first.sizes, second.sizes)
        },
        becomes=second.becomes,
        notes=tuple(_union(first.notes, second.notes)),
    )


def _check_plan(first: PruningPlan, second: Any) -> None:
    if type(second) is not type(first):
        raise ArgumentTypeError(f"the other plan must be a PruningPlan, not {type(second).__name__}")


def _check_follows(first: PruningPlan, second: PruningPlan) -> None:
    """Raises PlanError unless `second` was made for the model that `first` leaves."""
    for name, dims in second.sizes.items():
        for dim, size in dims.items():
            left = first.cut.get(name, {}).get(dim)
            if left is not None and len(left) != size:
                again = "; it was made for the unpruned model" if size == first.sizes[name][dim] else ""
                raise PlanError(
                    f"the second plan does not follow the first: it expects {size} indices of {name} in dimension "
                    f"{dim}, and the first leaves {len(left)}{again}"
                )
    if first.becomes and first.becomes != second.fingerprint:
        raise PlanError(
            "the second plan does not follow the first: it was made for another model than apply(first, model) returns"
        )


def _compose_kept(first: Kept, second: Kept) -> Kept:
    made: Kept = {}
    for name in _union(first, second):
        before, after = first.get(name, {}), second.get(name, {})
        made[name] = {
            dim: tuple(before[dim][i] for i in after[dim])
            if dim in before and dim in after
            else {**before, **after}[dim]
            for dim in sorted({*before, *after})
        }
    return made
