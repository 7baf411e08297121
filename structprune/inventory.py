"""What a model is made of: its modules, parameters, buffers and plain tensor attributes, found in one walk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn


class Inventory:
    """The parts of a model as it is when they are asked for. A thing with several names goes by the first."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """What `named_modules` yields: every module by its path, in order."""
        found: dict[str, nn.Module] = {}
        seen: set[int] = set()
        stack = [("", self.model)]
        while stack:
            path, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            found[path] = module
            if children := module._modules:
                prefix = path + "." if path else ""
                stack += [(prefix + name, child) for name, child in reversed(children.items()) if child is not None]
        return found

    @cached_property
    def paths(self) -> dict[int, str]:
        """The path of each module, by its id."""
        return {id(module): path for path, module in self.modules.items()}

    @cached_property
    def words(self) -> set[str]:
        """Every name that code may look up in a module: attributes, methods, and the keys of dicts."""
        found: set[str] = set()
        for module in self.modules.values():
            found.update(vars(module))
            found.update(*(d for d in vars(module).values() if isinstance(d, dict)))
        methods = (dir(kind) for kind in {type(module) for module in self.modules.values()})
        return {word for word in found.union(*methods).difference(dir(nn.Module)) if isinstance(word, str)}

    @cached_property
    def _stored(self) -> list[tuple[str, str, Tensor]]:
        """Every place of a parameter or buffer: its name, what it is (a cache if it is no part of the state), and what
        is there."""
        found: list[tuple[str, str, Tensor]] = []
        for path, module in self.modules.items():
            prefix = path + "." if path else ""
            if module._parameters:
                found += [(prefix + k, "parameter", t) for k, t in module._parameters.items() if t is not None]
            if module._buffers:
                caches = module._non_persistent_buffers_set  # nothing public tells, but a state dict, which is slow
                for name, tensor in module._buffers.items():
                    if tensor is not None:
                        found.append((prefix + name, "cache" if name in caches else "buffer", tensor))
        return found

    @cached_property
    def registered(self) -> dict[str, Tensor]:
        """Parameters and buffers by qualified name."""
        found: dict[int, tuple[str, Tensor]] = {}
        for name, _, tensor in self._stored:
            found.setdefault(id(tensor), (name, tensor))
        return dict(found.values())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and plain tensor attributes by qualified name."""
        plain: dict[str, tuple[str, dict[str, Any]]] = {}  # modules that hold tensors beside those
        others: set[type] = set()  # what is no tensor
        for path, module in self.modules.items():
            if not others.issuperset(map(type, vars(module).values())):
                unknown = set(map(type, vars(module).values())) - others
                others |= {kind for kind in unknown if not issubclass(kind, Tensor)}
                if unknown - others:
                    plain[path] = (path + "." if path else "", vars(module))
        if not plain:
            return self.registered
        found: dict[int, tuple[str, Tensor]] = {}
        for path, module in self.modules.items():
            prefix, own = plain.get(path, (path + "." if path else "", {}))
            for store in (module._parameters, module._buffers, own):
                for name, value in store.items():
                    if isinstance(value, Tensor):
                        found.setdefault(id(value), (prefix + name, value))
        return dict(found.values())

    @cached_property
    def names(self) -> dict[int, str]:
        """The name of each tensor, by its id."""
        return {id(tensor): name for name, tensor in self.tensors.items()}

    @cached_property
    def _rows(self) -> list[tuple[str, int, tuple[int, ...], str]]:
        """Every place in the order of its name: how what is written of it begins, the id of what is there, its shape,
        and all that is written of it."""
        places: list[tuple[str, str, int, tuple[int, ...]]]
        places = [(name, kind, id(tensor), tensor.shape) for name, kind, tensor in self._stored if kind != "cache"]
        for path, module in self.modules.items():
            prefix = path + "." if path else ""
            for name, child in module._modules.items():
                if child is not None:
                    places.append((prefix + name, "module", id(child), ()))
        places.sort()
        first: dict[int, str] = {}
        rows = []
        for name, kind, key, shape in places:
            own = repr(name)
            text = f"({own}, '{kind}', {first.setdefault(key, own)}, "
            rows.append((text, key, shape, f"{text}{_text(shape)})"))
        return rows

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names, shapes and ties of parameters and buffers that are part of the state.

        Others may be made in any run. The order in which they were registered does not count: that changes with
        `torch.nn.utils.prune.remove`.
        """
        return self.fingerprint_after({})

    def fingerprint_after(self, cut: Mapping[str, Mapping[int, Sequence[int]]]) -> str:
        """The fingerprint of what a plan that cuts the tensors so will make of the model."""
        kept = {id(self.tensors[name]): dims for name, dims in cut.items() if name in self.tensors}
        parts = [whole for _, _, _, whole in self._rows]
        for place, (text, key, shape, _) in enumerate(self._rows if kept else ()):
            if key in kept:
                sizes = list(shape)
                for dim, indices in kept[key].items():
                    sizes[dim] = len(indices)
                parts[place] = f"{text}{_text(tuple(sizes))})"
        return hashlib.sha256(f"[{', '.join(parts)}]".encode()).hexdigest()[:32]


_text = lru_cache(1 << 12)(tuple.__repr__)  # many tensors have the same shape


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its first path."""
    return Inventory(model).modules


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes by their first qualified name."""
    return Inventory(model).tensors


def fingerprint(model: nn.Module) -> str:
    """The hash of a model's names, shapes and ties; see `Inventory.fingerprint`."""
    return Inventory(model).fingerprint


def distinct(tensor: Tensor) -> Tensor:
    """The same memory with each element once, to write to: dimensions that were expanded have one index."""
    if tensor.layout != torch.strided:
        return tensor
    return tensor[tuple(slice(None) if stride else slice(1) for stride in tensor.stride())]
