"""Files: a pruned model as a folder or as one file, with the plan inside. Nothing is ever unpickled.

A folder holds `plan.json`, to read and compare, and `model.safetensors`, whose metadata holds the plan once more
and a record of how the model was made. The weights are renamed into place first: a process that is killed before
the plan follows leaves an old plan beside new weights, which is told from a mix of two saves by the hash of the plan
that the weights replaced.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from .checkpoint import HEADER_LIMIT, fill, read_header
from .errors import ArgumentError, ArgumentTypeError, FileFormatError, PlanError, UnsupportedModelError
from .inventory import Inventory
from .plan import PruningPlan
from .prepare import check_flag, check_model, check_values, unwrap
from .specs import parse
from .surgery import apply

if TYPE_CHECKING:
    from .api import Result
    from .iterate import Step

PLAN, WEIGHTS, SUFFIX = "plan.json", "model.safetensors", ".safetensors"
PARTIAL = ".partial"  # of files that are being written
_KEY = "structprune."
_UNWRITABLE = frozenset({torch.complex32, torch.complex128})


@dataclass(frozen=True)
class Saved:
    """What a folder or file says of itself: the plan, the record, and where the weights lie."""

    plan: PruningPlan
    record: dict[str, Any]
    weights: Path


def save(
    result: Result | Step,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder of `plan.json` and `model.safetensors`, or one file if the path ends in `.safetensors`.

    What `prune` returns is written, or a step of `iterate` once it is trained, whose plan is the whole one.

    Either is written beside what is there and renamed: a crash leaves what was there, or what is new, and never
    something between. The report goes along, and `record` (plain data, for JSON) with it.

    Raises ArgumentError if the file exists or the folder holds anything, unless `overwrite=True`, and if the model
    was given other shapes after it was pruned; ArgumentTypeError for a record that is no JSON; UnsupportedModelError
    for a model without values, of a kind that cannot be loaded again, or with an extra state; OSError if the system
    does not let it write.

    >>> structprune.save(result, "small.safetensors")
    >>> again = structprune.load("small.safetensors", "torchvision:resnet18")
    """
    if not isinstance(getattr(result, "plan", None), PruningPlan) or not isinstance(
        getattr(result, "model", None), nn.Module
    ):
        raise ArgumentTypeError(f"result must be what prune returns, or iterate yields, not {type(result).__name__}")
    target = path_of(path)
    check_flag(overwrite, "overwrite")
    check_target(target, overwrite)
    parts = Inventory(result.model)
    check_model(parts)
    check_values(result.model)
    check_state(result.model)
    for name, tensor in parts.registered.items():
        if tensor.dtype in _UNWRITABLE:
            raise UnsupportedModelError(f"{name} is {tensor.dtype}, which safetensors does not hold; make it complex64")
    if result.plan.becomes not in ("", parts.fingerprint):
        raise ArgumentError(
            "the model is not what its plan makes: names, shapes or ties of parameters have changed since"
        )
    metadata = _metadata(result, record)
    folder = not _is_one_file(target)
    (target if folder else target.parent).mkdir(parents=True, exist_ok=True)
    metadata["replaces"] = _hash(target / PLAN) if folder else ""
    named = {_KEY + key: value for key, value in metadata.items()}
    weights = target / WEIGHTS if folder else target
    write(weights, lambda at: safetensors.torch.save_model(result.model, str(at), metadata=named))
    if folder:
        write(target / PLAN, lambda at: at.write_text(metadata["plan"] + "\n"))


def _metadata(result: Result | Step, record: Mapping[str, Any] | None) -> dict[str, str]:
    """The plan and the record, with the report if there is one, as texts for the header of a file."""
    if record is not None and not isinstance(record, Mapping):
        raise ArgumentTypeError(f"record must be a dict of plain data, for JSON, not {type(record).__name__}")
    report = getattr(result, "report", None)
    try:
        text = json.dumps({**({} if report is None else {"report": report.to_dict()}), **(record or {})})
    except (TypeError, ValueError, RecursionError) as error:  # the last two for what holds itself
        raise ArgumentTypeError(f"record must be a dict of plain data, for JSON: {error}") from error
    metadata = {"schema": "1", "plan": result.plan.to_json(), "record": text}
    if sum(map(len, metadata.values())) > 0.9 * HEADER_LIMIT:
        raise ArgumentError("the plan is larger than the header of a safetensors file may be")
    return metadata


def check_state(model: nn.Module) -> None:
    """Raises UnsupportedModelError if a model's state holds more than tensors (see `nn.Module.get_extra_state`)."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UnsupportedModelError(
                f"{name} of the model's state is a {type(value).__name__}, which a file without pickles does not hold: "
                "leave it out of the state, or make it a buffer"
            )


def path_of(path: Any, name: str = "path") -> Path:
    """A path that a caller hands in. Raises ArgumentTypeError if it is none."""
    usable = isinstance(path, str | os.PathLike) and bool(path) and "\0" not in str(path)
    if not usable or any("\ud800" <= character <= "\udfff" for character in str(path)):
        raise ArgumentTypeError(f"{name} must be the path of a file or folder, a str or os.PathLike, not {path!r}")
    return Path(path)


def _is_one_file(path: Path) -> bool:
    return path.suffix == SUFFIX and not path.is_dir()


def check_target(target: Path, overwrite: bool) -> None:
    """Raises ArgumentError if `save` would not write there."""
    one = _is_one_file(target)
    if target.exists() and not target.is_dir() and not one:
        raise ArgumentError(f"{target} is a file; save needs a folder, or a name that ends in {SUFFIX}")
    if one and target.exists() and not overwrite:
        raise ArgumentError(f"{target} exists; pass overwrite=True (--overwrite) to replace it")
    if target.is_dir() and not overwrite and any(p.suffix != PARTIAL for p in target.iterdir()):
        raise ArgumentError(f"{target} is not empty; pass overwrite=True (--overwrite) to write there all the same")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def write(path: Path, fill_in: Callable[[Path], Any]) -> None:
    """Writes in a folder beside the file, then renames: a crash leaves the old file.

    In a folder, since those who write may make temporary files of their own.
    """
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL))
    try:
        made = beside / path.name
        fill_in(made)
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        (beside / "usual").touch()
        os.chmod(made, (beside / "usual").stat().st_mode & 0o777)  # safetensors keeps others from reading
        os.replace(made, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):  # by processes that were killed
        shutil.rmtree(left, ignore_errors=True)


def load(
    path: str | os.PathLike[str], make_model: Callable[[], nn.Module] | nn.Module | str | None = None
) -> nn.Module:
    """The pruned model that `save` wrote, bit for bit: no tracing, nothing unpickled.

    Args:
        make_model: the unpruned model (left as it is), a callable that makes one, or a spec such as
            `"torchvision:resnet18"`, `"timm:..."`, `"transformers:..."` or `"package.module:callable"`. It may be left
            out where the file says which model of a library it came from, as those of the command line do.

    Raises FileFormatError (with the tensor and what is wrong with it), PlanError if the plan is for another model,
    ArgumentError and UnknownNameError for a spec, UnsupportedModelError (a model on the meta device) and
    ArgumentTypeError.

    >>> small = structprune.load("small", "torchvision:resnet18")
    >>> small = structprune.load("small", lambda: Net(width=64))
    """
    saved = read(path)
    model = make_model if isinstance(make_model, nn.Module) else _make(saved, make_model)
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"make_model must be or return a torch.nn.Module, not {type(model).__name__}")
    model, given = unwrap(model), model
    check_values(model)
    try:
        small = apply(saved.plan, model)
    except UnsupportedModelError:  # it cannot be copied, which one that was made for this need not be
        if given is make_model:
            raise
        small = apply(saved.plan, model, inplace=True)
    fill(small, saved.weights)
    return small


def _make(saved: Saved, make_model: Any) -> Any:
    if isinstance(make_model, str):
        return parse(make_model).build()
    if make_model is None:
        spec = recorded_spec(saved)
        if spec is None:
            raise ArgumentTypeError(
                f"{saved.weights} does not say what model of a library it came from: pass make_model"
            )
        return parse(spec).build()
    if not callable(make_model) or isinstance(make_model, torch.export.ExportedProgram):
        raise ArgumentTypeError(f"make_model must be or return a torch.nn.Module, not {type(make_model).__name__}")
    return make_model()


def recorded_spec(saved: Saved) -> str | None:
    """The spec of the unpruned model; None if there is none, or if it names code or what is to be fetched: a file must
    not choose what runs or is read."""
    try:
        spec = parse(str(saved.record.get("model")))
    except ArgumentError:  # a record says whatever its author wrote
        return None
    return spec.text if spec.known and not spec.fetches else None


def read(path: str | os.PathLike[str]) -> Saved:
    """The plan and the record of a folder or file. Raises FileFormatError, and PlanError for a plan that is wrong."""
    source = path_of(path)
    weights = source / WEIGHTS if source.is_dir() or source.suffix != SUFFIX else source
    if not weights.is_file():
        raise FileFormatError(f"{source} holds no {WEIGHTS}" if weights != source else f"there is no file {source}")
    metadata = {k.removeprefix(_KEY): v for k, v in read_header(weights)[1].items() if k.startswith(_KEY)}
    if metadata and metadata.get("schema") != "1":
        raise FileFormatError(f"{weights}: this version reads files of schema 1, not {metadata.get('schema')!r}")
    beside = source / PLAN if source.is_dir() else None
    return Saved(_plan(metadata, beside, weights), _record(metadata, weights), weights)


def _plan(metadata: Mapping[str, str], beside: Path | None, weights: Path) -> PruningPlan:
    inside = metadata.get("plan")
    if beside is None or not beside.is_file():
        if inside is None:
            raise FileFormatError(f"{weights} holds no plan" if beside is None else f"{beside.parent} holds no {PLAN}")
        return PruningPlan.from_json(inside)
    if inside is not None and _hash(beside) == metadata.get("replaces"):
        return PruningPlan.from_json(inside)  # a process was killed before it wrote the new plan.json
    plan = read_plan(beside)
    if inside is not None and plan != PruningPlan.from_json(inside):
        raise FileFormatError(f"{beside} is not the plan that {weights.name} was saved with: one of them was exchanged")
    return plan


def read_plan(path: Path) -> PruningPlan:
    """The plan in a JSON file. Raises PlanError, with the file and the place in it, and FileFormatError."""
    try:
        return PruningPlan.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not text: {error}") from error
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def _record(metadata: Mapping[str, str], weights: Path) -> dict[str, Any]:
    try:
        record = json.loads(metadata.get("record", "{}"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileFormatError(f"{weights}: its record is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise FileFormatError(f"{weights}: its record is not a JSON object")
    return record
