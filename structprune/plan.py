"""A pruning plan: what stays of every parameter, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .composition import PlanDifference, compose, difference
from .errors import ArgumentTypeError, PlanError
from .swaps import is_known, known_swaps

LONGEST = 10**8  # no dimension of a parameter has more channels

SCHEMA = 2
READS = (1, 2)  # plans of schema 1 do not say what the model becomes, and have neither shifts nor stock norms
Kept = dict[str, dict[int, tuple[int, ...]]]


@dataclass(frozen=True)
class PruningPlan:
    """What stays of a model.

    `kept` maps names of parameters and buffers of the original model to `{dim: kept indices}`, and is complete:
    zeroing everything else in the original is the masked original. `tensors` does so for plain tensor attributes,
    which are cut and not masked.
    `attributes` maps module paths to the numbers their code reads, with the new values; `swaps` to the
    substitutes that take a module's place (`structprune.nn`), or to "bias" and the length of a bias of zeros that the
    module is given; `scales` maps parameters to factors folded into them, and `shifts`
    to what is added after that.
    `stock` maps paths of norms that stay stock to `{0: kept channels}`: they deviate from the masked original.
    """

    kept: Kept
    tensors: Kept = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    swaps: dict[str, tuple[str, int]] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    shifts: dict[str, float] = field(default_factory=dict)
    stock: Kept = field(default_factory=dict)
    sizes: dict[str, dict[int, int]] = field(default_factory=dict)  # the original size of every kept dimension
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    becomes: str = ""  # the fingerprint of the smaller model

    def __bool__(self) -> bool:
        return bool(self.kept)

    def removed(self, name: str) -> dict[int, tuple[int, ...]]:
        """The indices of a parameter or buffer that go, by dimension; nothing if all of it stays."""
        if not isinstance(name, str):
            raise ArgumentTypeError(f"name must be the name of a parameter or buffer, not {name!r}")
        return {
            dim: tuple(np.delete(np.arange(self.sizes[name][dim]), indices).tolist())
            for dim, indices in self.kept.get(name, {}).items()
        }

    def then(self, other: PruningPlan) -> PruningPlan:
        """The plan that does at once what this plan and then `other`, made on the model it leaves, do one by one.

        `apply(first.then(second), model)` holds, bit for bit, what `apply(second, apply(first, model))` does. The
        one exception is the weight of a norm that both plans scale (RMS norms): the two factors are multiplied
        first, so that its last bit may differ. Raises PlanError unless `other` was made for the model that this
        plan leaves.

        >>> first = structprune.prune(model, images, ratio=0.25)
        >>> second = structprune.prune(first.model, images, ratio=0.25)
        >>> small = structprune.apply(first.plan.then(second.plan), model)
        """
        return compose(self, other)

    def diff(self, other: PruningPlan) -> PlanDifference:
        """What the two plans keep, set, swap and scale differently: false if nothing; printed, a line for each.

        >>> print(plan.diff(other))
        conv1.weight[0]: only the first keeps 3, 7; only the second keeps 1, 2
        """
        return difference(self, other)

    @property
    def cut(self) -> Kept:
        """Everything that surgery slices."""
        return {**self.kept, **self.tensors}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings, in a fixed order."""
        return {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "becomes": self.becomes,
            "kept": self._rows(self.kept),
            "tensors": self._rows(self.tensors),
            "attributes": {path: dict(sorted(values.items())) for path, values in sorted(self.attributes.items())},
            "swaps": {path: list(swap) for path, swap in sorted(self.swaps.items())},
            "scales": dict(sorted(self.scales.items())),
            "shifts": dict(sorted(self.shifts.items())),
            "stock": self._rows(self.stock),
            "notes": list(self.notes),
        }

    def _rows(self, kept: Kept) -> dict[str, Any]:
        return {
            name: {
                str(dim): {"of": self.sizes[name][dim], "indices": list(indices)}
                for dim, indices in sorted(dims.items())
            }
            for name, dims in sorted(kept.items())
        }

    def to_json(self) -> str:
        """One line of JSON, byte-identical for the same model and settings."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Reads a plan back; raises PlanError with the JSON path of whatever is not as it should be.

        >>> assert PruningPlan.from_json(plan.to_json()) == plan
        """
        if not isinstance(text, str | bytes | bytearray):
            raise ArgumentTypeError(f"text must be a plan as JSON, not {type(text).__name__}")
        try:
            data = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"the plan is not JSON: {error}") from error
        return PruningPlan.from_dict(data)

    @staticmethod
    def from_dict(data: Any) -> PruningPlan:
        """The inverse of `to_dict`, checked field by field."""
        fields = _typed(data, dict, "$")
        schema = fields.get("schema")
        if isinstance(schema, bool) or schema not in READS:
            readable = " and ".join(map(str, READS))
            raise PlanError(f"$.schema: this version reads plans of schema {readable}, not {schema!r}")
        keys = {"schema", "fingerprint", "kept", "tensors", "attributes", "swaps", "scales", "notes"}
        _keys(fields, keys | ({"becomes", "shifts", "stock"} if schema > 1 else set()), "$")
        sizes: dict[str, dict[int, int]] = {}
        kept, tensors, stock = (
            _read_kept(fields.get(key, {}), f"$.{key}", sizes) for key in ("kept", "tensors", "stock")
        )
        attributes: dict[str, dict[str, Any]] = {}
        for module, values in _typed(fields["attributes"], dict, "$.attributes").items():
            attributes[module] = {
                key: _number(value, f"$.attributes.{module}.{key}")
                for key, value in _typed(values, dict, f"$.attributes.{module}").items()
            }
        swaps = {}
        for module, swap in _typed(fields["swaps"], dict, "$.swaps").items():
            path = f"$.swaps.{module}"
            if len(_typed(swap, list, path)) != 2:
                raise PlanError(f"{path}: expected the name of a swap and a number, found {swap!r}")
            if not is_known(_typed(swap[0], str, f"{path}[0]")):
                raise PlanError(f"{path}: {unregistered(swap[0])}")
            swaps[module] = (swap[0], _typed(swap[1], int, path))
        scales, shifts = (
            {
                name: _typed(number, float, f"$.{key}.{name}")
                for name, number in _typed(fields.get(key, {}), dict, f"$.{key}").items()
            }
            for key in ("scales", "shifts")
        )
        for name, number in (*scales.items(), *shifts.items()):
            if not math.isfinite(number):
                raise PlanError(f"the plan scales or shifts {name} by {number}")
        if 0 in scales.values():
            raise PlanError("the plan scales by 0, which loses what it keeps")
        notes = tuple(_typed(note, str, "$.notes") for note in _typed(fields["notes"], list, "$.notes"))
        prints = [_typed(fields.get(key, ""), str, f"$.{key}") for key in ("fingerprint", "becomes")]
        return PruningPlan(kept, tensors, attributes, swaps, scales, shifts, stock, sizes, prints[0], notes, prints[1])


def unregistered(swap: str) -> str:
    """What to do about a swap that this process does not know."""
    return (
        f"the swap {swap!r} is not registered here (those are {', '.join(map(repr, known_swaps()))}); "
        "import the code that calls structprune.register_swap for it first"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that is there twice could be read in two ways."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise PlanError(f"the plan has the key {next(k for k in keys if keys.count(k) > 1)!r} twice in one object")
    return made


def _typed(value: Any, kind: type, path: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"{path}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def _read_kept(value: Any, path: str, sizes: dict[str, dict[int, int]]) -> Kept:
    kept: Kept = {}
    for name, dims in _typed(value, dict, path).items():
        for dim, entry in _typed(dims, dict, f"{path}.{name}").items():
            at = f"{path}.{name}.{dim}"
            _typed(dim, str, at)
            _keys(_typed(entry, dict, at), {"of", "indices"}, at)
            if not dim.isdecimal() or str(int(dim)) != dim:
                raise PlanError(f"{at}: a dimension is a number from 0, not {dim!r}")
            size = _typed(entry["of"], int, f"{at}.of")
            if size > LONGEST:
                raise PlanError(f"{at}.of: no dimension has {size} channels")
            kept.setdefault(name, {})[int(dim)] = _indices(entry["indices"], size, f"{at}.indices")
            sizes.setdefault(name, {})[int(dim)] = size
    return kept


def _number(value: Any, path: str) -> Any:
    if isinstance(value, list):
        return tuple(_typed(v, int, path) for v in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{path}: expected a number, found {type(value).__name__}")
    return value


def _keys(value: Mapping[str, Any], expected: set[str], path: str) -> None:
    for key in expected ^ set(value):
        raise PlanError(f"{path}: {'missing' if key in expected else 'unknown'} key {key!r}")


def _indices(value: Any, size: int, path: str) -> tuple[int, ...]:
    indices = _typed(value, list, path)
    if not 0 < len(indices) <= size:
        raise PlanError(f"{path}: between 1 and {size} indices must be kept, not {len(indices)}")
    last = -1
    for i, index in enumerate(indices):
        if _typed(index, int, f"{path}[{i}]") <= last or index >= size:
            raise PlanError(
                f"{path}[{i}]: indices must be strictly increasing and below {size}; found {index} after {last}"
            )
        last = index
    return tuple(indices)
