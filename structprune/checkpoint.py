"""Weights in files: checked against the model by name, shape and dtype before memory is spent on them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import FileFormatError, closest

HEADER_LIMIT = 100_000_000  # of safetensors itself


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The header of a safetensors file, before any memory is spent on values: the entry of every tensor, and the
    metadata. Raises FileFormatError."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(os.path.getsize(path) - 8, HEADER_LIMIT):
            raise FileFormatError(f"{path} is not a safetensors file, or it is truncated")
        try:
            header = json.loads(file.read(length), object_pairs_hook=lambda pairs: _unique(pairs, path))
        except (ValueError, RecursionError) as error:  # no text, no JSON, or a number of thousands of digits
            raise FileFormatError(f"{path} is not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise FileFormatError(f"{path} is not a safetensors file")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileFormatError(f"{path}: its metadata is not a table of texts")
    for name, entry in header.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
            raise FileFormatError(f"{path}: the entry of {name!r} has no shape")
    return header, metadata


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise FileFormatError(f"{path} holds {next(n for n in names if names.count(n) > 1)!r} twice")
    return made


def fill(model: nn.Module, path: Path) -> None:
    """Loads every tensor of the file into the model, bit for bit; names, shapes and dtypes must agree exactly."""
    header, _ = read_header(path)
    state = model.state_dict(keep_vars=True)
    homes: dict[int, list[str]] = {}
    for name, tensor in state.items():
        homes.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), []).append(name)
    for names in homes.values():
        if not any(name in header for name in names):
            raise FileFormatError(f"{path} lacks the tensor {names[0]!r}")
    for name, entry in header.items():
        if name not in state:
            raise FileFormatError(f"{path} holds {name!r}, which the model does not have")
        if tuple(entry["shape"]) != tuple(state[name].shape):
            raise FileFormatError(
                f"{path}: {name} has the shape {tuple(entry['shape'])}, the model {tuple(state[name].shape)}"
            )
    values = _read_safetensors(path)
    for name, value in values.items():
        if value.dtype != state[name].dtype:
            raise FileFormatError(
                f"{path}: {name} is {value.dtype}, the model's is {state[name].dtype}; make the model in that dtype"
            )
    for names in homes.values():
        first, *others = [name for name in names if name in values] or names[:1]
        for name in others:
            if values[name].shape == values[first].shape and not torch.equal(values[name], values[first]):
                raise FileFormatError(f"{path}: {name} is {first} by another name, and holds other values")
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads a checkpoint into an unpruned model: `.safetensors`, or anything that `torch.load(weights_only=True)`
    reads, in which a state dict may lie under `state_dict` or `model`, and names may begin with `module.`. Masks of
    `torch.nn.utils.prune` are applied.

    Raises FileFormatError that names what is missing, too many, or of another shape; then the model is as it was.
    """
    source = Path(path)
    if not source.is_file():
        raise FileFormatError(f"there is no file {source}")
    if source.suffix == ".safetensors":
        read_header(source)
        values: Any = _read_safetensors(source)
    else:
        values = _state_dict(_read_torch(source), source)
    values, state = masked(values), model.state_dict(keep_vars=True)
    _check_names(values, state, source)
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


def masked(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which the pairs that `torch.nn.utils.prune` leaves, `_orig` and `_mask`, are multiplied."""
    stems = {name.removesuffix("_mask") for name in values if name.endswith("_mask")}
    stems = {stem for stem in stems if f"{stem}_orig" in values}
    plain = {name: v for name, v in values.items() if name.removesuffix("_mask").removesuffix("_orig") not in stems}
    return plain | {stem: values[f"{stem}_orig"] * values[f"{stem}_mask"] for stem in sorted(stems)}


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file makes it raise anything, of its reader and of what is read
        raise FileFormatError(
            f"{path} holds more than weights, or none, or is damaged: torch.load(weights_only=True) refuses it; "
            "save model.state_dict()"
        ) from error


def _state_dict(value: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()):
        raise FileFormatError(f"{path} holds no state dict: names with tensors, alone or under 'state_dict' or 'model'")
    wrapped = bool(value) and all(str(name).startswith("module.") for name in value)
    return {str(name).removeprefix("module.") if wrapped else str(name): v for name, v in value.items()}


def _check_names(values: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    present = {tensor.data_ptr() for name, tensor in state.items() if name in values}
    missing = [n for n, tensor in state.items() if n not in values and tensor.data_ptr() not in present]
    if missing:
        raise FileFormatError(f"{path} lacks {len(missing)} tensors of the model, {missing[0]!r} first")
    for name, value in values.items():
        if name not in state:
            raise FileFormatError(f"{path} holds {name!r}, which the model does not have; {closest(name, state)}")
        if value.shape != state[name].shape:
            raise FileFormatError(
                f"{path}: {name} has the shape {tuple(value.shape)}, the model {tuple(state[name].shape)}"
            )
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            raise FileFormatError(f"{path}: {name} holds no plain values; save it dense, and not quantised")
        if value.is_complex() > state[name].is_complex():
            raise FileFormatError(f"{path}: {name} is {value.dtype}, the model's is {state[name].dtype}")
