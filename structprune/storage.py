"""Files: a plan as JSON beside weights as safetensors. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import ArgumentError, ArgumentTypeError, FileFormatError
from .plan import PruningPlan
from .surgery import apply

if TYPE_CHECKING:
    from .api import Result

PLAN, WEIGHTS = "plan.json", "model.safetensors"


def save(result: Result, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes `plan.json` and `model.safetensors`; each file appears whole or not at all.

    Raises ArgumentError if the folder holds anything, unless `overwrite=True`.
    """
    if not isinstance(getattr(result, "plan", None), PruningPlan) or not isinstance(
        getattr(result, "model", None), nn.Module
    ):
        raise ArgumentTypeError(f"result must be what prune returns, not {type(result).__name__}")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ArgumentError(f"{target} is a file; save needs a folder")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ArgumentError(f"{target} is not empty; pass overwrite=True to write there all the same")
    target.mkdir(parents=True, exist_ok=True)
    _write(target / WEIGHTS, lambda path: safetensors.torch.save_model(result.model, str(path)))
    _write(target / PLAN, lambda path: path.write_text(result.plan.to_json() + "\n"))


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes beside the file, then renames: a crash leaves the old file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def load(folder: str | os.PathLike[str], make_model: Callable[[], nn.Module] | nn.Module) -> nn.Module:
    """The pruned model: `make_model` (a callable, or an unpruned module, which is left as it is), cut to the
    saved plan and filled with the saved weights, bit for bit.

    Raises FileFormatError (with the tensor and what is wrong with it), PlanError, ArgumentTypeError.
    """
    source = Path(folder)
    for name in (PLAN, WEIGHTS):
        if not (source / name).is_file():
            raise FileFormatError(f"{source} holds no {name}")
    try:
        plan = PruningPlan.from_json((source / PLAN).read_text())
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{source / PLAN} is not text: {error}") from error
    if not callable(make_model):
        raise ArgumentTypeError(f"make_model must be or return a torch.nn.Module, not {type(make_model).__name__}")
    model = make_model if isinstance(make_model, nn.Module) else make_model()
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"make_model must be or return a torch.nn.Module, not {type(model).__name__}")
    small = apply(plan, model)
    fill(small, source / WEIGHTS)
    return small


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: names, dtypes and shapes, before any memory is spent on values."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(os.path.getsize(path) - 8, 100_000_000):
            raise FileFormatError(f"{path} is not a safetensors file, or it is truncated")
        try:
            header = json.loads(file.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise FileFormatError(f"{path} is not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise FileFormatError(f"{path} is not a safetensors file")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def fill(model: nn.Module, path: Path) -> None:
    """Loads every tensor of the file into the model; names and shapes must agree exactly."""
    header = read_header(path)
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
    try:
        values: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    for name, value in values.items():
        if value.dtype != state[name].dtype:
            raise FileFormatError(f"{path}: {name} is {value.dtype}, the model's is {state[name].dtype}")
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
