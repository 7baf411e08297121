"""Export to ONNX, checked: onnxruntime must compute what PyTorch computes."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import ArgumentError, MissingPackageError, VerificationError
from .inventory import Inventory
from .prepare import calls_of, check_placement, check_takes
from .program import Call, tensors_in
from .running import errors
from .storage import path_of, write

TOLERANCE = 1e-4  # max|a - b| / max|b|, of float32


def export_onnx(model: nn.Module, example_inputs: Any, path: str | os.PathLike[str]) -> float:
    """Writes a model as ONNX, after onnxruntime has run it on the examples, and returns the largest difference
    from PyTorch, max|a - b| / max|b| over all outputs.

    Args:
        example_inputs: as for `structprune.prune`; of several calls the first.

    The file appears whole or not at all; one that is there is replaced. Raises MissingPackageError without the extra
    `onnx`, ExampleInputsError if the model does not run on the examples, VerificationError if the two differ by more
    than 1e-4 (then nothing is written), and ArgumentError for a folder.

    >>> from structprune.export import export_onnx
    >>> export_onnx(result.model.eval(), images, "small.onnx")
    1.2e-06
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(f'export to ONNX needs {name}: pip install "structprune[onnx]"')
    call = calls_of(example_inputs)[0]
    check_placement(Inventory(model), [call])
    check_takes(model, call)
    target = path_of(path)
    if target.is_dir():
        raise ArgumentError(f"{target} is a folder; name a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        made = Path(folder) / target.name
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter is talkative
            warnings.simplefilter("ignore")
            torch.onnx.export(model, call.args, str(made), kwargs=dict(call.kwargs), dynamo=True, external_data=False)
        error = _difference(made, model, call)
        if not error <= TOLERANCE:
            raise VerificationError(f"onnxruntime differs from PyTorch by {error:.1e} (relative); nothing was written")
        write(target, lambda at: at.write_bytes(made.read_bytes()))
    return error


def _difference(path: Path, model: nn.Module, call: Call) -> float:
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = [t.detach().cpu().numpy() for t in tensors_in((call.args, dict(call.kwargs)))]
    found = session.run(None, {entry.name: v for entry, v in zip(session.get_inputs(), values, strict=True)})
    with torch.no_grad():
        expected = [t.detach().cpu() for t in tensors_in(model(*call.args, **call.kwargs))]
    return errors([torch.as_tensor(value).double() for value in found], [value.double() for value in expected])[1]
