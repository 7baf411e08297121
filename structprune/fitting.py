"""Whether a plan fits a model: everything it names is there, with the sizes it expects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .bookkeeping import mirrors
from .counting import is_of, places_of
from .errors import ArgumentTypeError, PlanError
from .inventory import Inventory
from .nn import width_of_bias
from .plan import Kept, PruningPlan, unregistered
from .rewriting import REWRITE, held, rewritten
from .sizes import NUMBERS
from .swaps import BIAS, NORM, is_known, takes


def check_fits(plan: PruningPlan, parts: Inventory) -> None:
    """Raises PlanError, with the first difference, unless `plan` was made for a model of these names and shapes."""
    if not isinstance(plan, PruningPlan):
        raise ArgumentTypeError(
            f"plan must be a PruningPlan, not {type(plan).__name__}; PruningPlan.from_dict reads a dict"
        )
    _check_kept(plan, plan.kept, parts.registered)
    for name in plan.tensors:
        path, _, key = name.rpartition(".")
        if path in parts.modules and vars(parts.modules[path]).get(key, parts) is None:
            raise PlanError(
                f"the plan cuts {name}, a tensor that the planned model made when it was first called, and this one "
                "has not made; make the plan for a model that was not called, or call this one"
            )
    _check_kept(plan, plan.tensors, parts.tensors)
    if parts.fingerprint != plan.fingerprint:
        raise PlanError(
            "the plan is for another model: names, shapes or ties of parameters that it does not touch differ"
        )
    for name in plan.scales:
        if name not in plan.kept:
            raise PlanError(f"the plan scales {name!r}, which it does not cut")
    for name in plan.shifts:
        if name not in plan.scales:
            raise PlanError(f"the plan shifts {name!r}, which it does not scale")
    _check_attributes(plan, parts.modules, parts.names)
    _check_norms(plan, parts.modules)
    grown = any(name == BIAS for name, _ in plan.swaps.values())  # biases that the model does not have yet
    if plan.becomes and not grown and parts.fingerprint_after({**plan.kept, **plan.tensors}) != plan.becomes:
        raise PlanError("the plan contradicts itself: what it keeps is not of the shapes that it says it makes")


def _check_kept(plan: PruningPlan, kept: Kept, tensors: Mapping[str, Tensor]) -> None:
    for name, dims in kept.items():
        if name not in tensors:
            raise PlanError(f"the plan is for another model: this one has no {name!r}")
        shape = tuple(tensors[name].shape)
        for dim, indices in dims.items():
            size = plan.sizes[name][dim]
            if dim >= len(shape) or shape[dim] != size:
                applied = dim < len(shape) and shape[dim] == len(indices)
                again = "; was the plan applied already?" if applied else ""
                raise PlanError(
                    f"the plan is for another model: {name} has the shape {shape}, not {size} in dimension {dim}{again}"
                )


def _check_attributes(plan: PruningPlan, modules: Mapping[str, nn.Module], names: Mapping[int, str]) -> None:
    for path in (*plan.attributes, *plan.swaps, *plan.stock):
        if path not in modules:
            raise PlanError(f"the plan is for another model: this one has no module {path!r}")
    for path, (name, number) in plan.swaps.items():
        if name == BIAS:
            _check_bias(plan, path, modules[path], number)
        elif not is_known(name):
            raise PlanError(f"the plan swaps {path!r}: {unregistered(name)}")
        elif not takes(name, modules[path]):
            raise PlanError(
                f"the plan swaps {path!r}, which is a {type(modules[path]).__name__} and needs no substitute"
            )
        if name == NORM:
            _check_count(path, modules[path], number)
        kind = type(modules[path])
        rewrites = name == REWRITE and rewritten(kind).checksum != number
        if rewrites or (places_of(name) and not is_of(name, kind)):
            raise PlanError(f"the plan rewrites {path!r}, but the code of {kind.__name__} is not what it was")
    for path, values in plan.attributes.items():
        for key, value in values.items():
            found = vars(modules[path]).get(key)
            if key == NUMBERS and plan.swaps.get(path, ("", 0))[0] == REWRITE:
                found = held(modules[path], NUMBERS)
            several = len(found) if isinstance(found, tuple | list) else None
            if type(found) not in (int, float, tuple, list) or several != (
                len(value) if isinstance(value, tuple) else None
            ):
                raise PlanError(f"the plan sets {path}.{key} to {value!r}, but the model has no such number there")
            if type(found) is not float:
                _check_size(path, key, value, found, modules[path])
    cut = plan.cut
    for path, module in modules.items():
        wanted = plan.attributes.get(path, {})
        for row, tensor in mirrors(module):
            known = names.get(id(tensor))
            if known is None:  # parametrized: computed anew each time
                continue
            kept = cut.get(known, {}).get(row.dim)
            size = tensor.shape[row.dim] if kept is None else len(kept)
            factor = wanted.get(row.factor, getattr(module, row.factor)) if row.factor else 1
            if wanted.get(row.attribute, getattr(module, row.attribute)) != size * factor:
                raise PlanError(f"the plan contradicts itself: {path}.{row.attribute} would not be the size of {known}")


def _check_count(path: str, norm: nn.Module, number: int) -> None:
    """A norm goes on counting what it counted; without a weight it may have been told of more than there was."""
    told = getattr(norm, "normalized_shape", None) or (getattr(norm, "num_channels", number),)
    if number not in told and (getattr(norm, "weight", None) is not None or number > max(told)):
        raise PlanError(f"the plan has {path!r} count {number} channels, of {', '.join(map(str, told))}")


def _check_size(path: str, key: str, value: Any, found: Any, module: nn.Module) -> None:
    """Sizes are whole numbers; those of PyTorch's modules become smaller."""
    if type(value) is type(found) is int and value <= found:
        return
    new, old = ((n,) if isinstance(n, int | float) else n for n in (value, found))
    grown = type(module).__module__.startswith("torch.nn.") and any(a > b for a, b in zip(new, old, strict=True))
    if grown or any(type(a) is not int for a in new):
        raise PlanError(f"the plan sets {path}.{key} to {value!r}, which cannot be what is left of {found!r}")


def _check_norms(plan: PruningPlan, modules: Mapping[str, nn.Module]) -> None:
    """A weight is scaled where an epsilon is, and by its root; layer norms that are cut count what they counted."""
    ratios: dict[str, float] = {}
    idle = False  # an epsilon of zero stays zero
    for path, values in plan.attributes.items():
        for key, value in values.items():
            found = vars(modules[path]).get(key)
            if type(found) is float and found == value == 0:
                idle = True
            elif type(found) is float:
                ratios[f"{path}.{key}"] = value / found if found else math.nan
    for name, scale in plan.scales.items():
        if not any(math.isclose(scale * scale, ratio, rel_tol=1e-9) for ratio in ratios.values()) and not idle:
            raise PlanError(f"the plan contradicts itself: it scales {name!r} by {scale}, and no epsilon by its square")
    for name, ratio in ratios.items():
        if not any(math.isclose(scale * scale, ratio, rel_tol=1e-9) for scale in plan.scales.values()):
            raise PlanError(f"the plan sets {name}, which is no size, and scales no weight by the root of the change")
    counted = [path for path, (name, _) in plan.swaps.items() if name == NORM]
    for path, module in modules.items():
        cut = type(module) is nn.LayerNorm and f"{path}.weight" in plan.kept and path not in plan.stock
        if cut and not any(path == one or path.startswith(f"{one}." if one else "") for one in counted):
            raise PlanError(f"the plan contradicts itself: it cuts {path}.weight, and does not swap the norm")


def _check_bias(plan: PruningPlan, path: str, module: nn.Module, size: int) -> None:
    attribute = width_of_bias(module)
    if not attribute:
        kind = "has a bias already" if getattr(module, "bias", None) is not None else "does not take a bias"
        raise PlanError(f"the plan gives {path!r} a bias, but this {type(module).__name__} {kind}")
    width = plan.attributes.get(path, {}).get(attribute, getattr(module, attribute))
    if size != width:
        raise PlanError(f"the plan contradicts itself: a bias of {size} numbers for {path!r}, of width {width}")
