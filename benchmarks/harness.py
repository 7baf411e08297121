"""What all benchmarks share: a record of where they ran, results on disk, tables, isolation, random weights."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import gc
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import statistics
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "torch-pruning",
    "segmentation-models-pytorch",
    "monai",
    "torch-geometric",
    "diffusers",
    "vit-pytorch",
    "scikit-learn",
    "numpy",
    "scipy",
    "networkx",
)
Row = dict[str, Any]

# -- where and with what ---------------------------------------------------------------------------------


def record() -> Row:
    """The machine, the versions and the commit that a result belongs to."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
    }


def commit() -> str:
    """The commit of the working tree, with `+` if the library differs from it."""
    root = Path(__file__).parent.parent
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--short", "structprune"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- what is asked ---------------------------------------------------------------------------------------


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that most scripts have: of which models, and whether again."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--only", action="append", help="patterns of names")
    found.add_argument("--redo", action="store_true", help="measure again what has a row")
    return found


def matches(name: str, patterns: Iterable[str] | None) -> bool:
    """Whether one of the patterns fits the name, in whatever case; without any, all names do."""
    return patterns is None or any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


# -- results ---------------------------------------------------------------------------------------------


def load_rows(name: str) -> dict[str, Row]:
    """The rows of `results/<name>.json` by their key, `set/model`."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    return {row["key"]: row for row in json.loads(path.read_text())["rows"]}


def save_rows(name: str, rows: Mapping[str, Row]) -> None:
    """Writes all rows, sorted, with the record of the machine; a crash leaves the old file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    lines = ",\n".join(json.dumps(rows[key]) for key in sorted(rows))
    text = f'{{"record": {json.dumps(record())},\n"rows": [\n{lines}\n]}}\n'
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def add_row(name: str, row: Row) -> dict[str, Row]:
    """Saves a row beside the others, and returns them all."""
    rows = {**load_rows(name), row["key"]: {**row, "commit": commit()}}
    save_rows(name, rows)
    return dict(sorted(rows.items()))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers are right-aligned by their header's leading `>`."""
    align = ["--:" if h.startswith(">") else "---" for h in header]
    lines = [[h.lstrip(">") for h in header], align, *[[cell(value) for value in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if 1e-3 <= abs(value) < 1e5 or not value else f"{value:.0e}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def percent(values: Sequence[float]) -> str:
    """The mean in percent, with the standard deviation."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def write_markdown(name: str, title: str, parts: Iterable[str]) -> None:
    """`results/<name>.md`: a title, where it was measured, and the parts."""
    where = record()
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
    head = f"# {title}\n\n{where['date']}, commit {where['commit']}, {where['cpu']}, {where['threads']} thread(s); {versions}.\n"
    (RESULTS / f"{name}.md").write_text("\n".join([head, *parts]))


# -- isolation -------------------------------------------------------------------------------------------


def isolated(function: Callable[..., Iterator[Row]], *args: Any, timeout: float) -> Row:
    """Runs a generator in a process of its own and merges what it yields; failures become `error`.

    Each row that is yielded arrives at once, so that a later crash or timeout loses nothing of it.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, args), daemon=True)
    process.start()
    sender.close()
    row, done = _gather(receiver, time.monotonic() + timeout)
    if not done and process.is_alive():
        process.kill()
        row["error"] = f"timeout after {timeout:.0f} s, in {row.get('stage', 'start')}"
    process.join()
    if not done and "error" not in row:
        row["error"] = f"the process died (exit code {process.exitcode}) in {row.get('stage', 'start')}"
    stage = row.pop("stage", None)
    return {**row, "failed_in": stage} if "error" in row else row


def _gather(receiver: Connection, deadline: float) -> tuple[Row, bool]:
    row: Row = {}
    while receiver.poll(max(deadline - time.monotonic(), 0)):
        try:
            part = receiver.recv()
        except EOFError:
            return row, False
        if part is None:
            return row, True
        row.update(part)
    return row, False


def _child(sender: Connection, function: Callable[..., Iterator[Row]], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        for part in function(*args):
            sender.send(part)
    except Exception as error:  # whatever a model raises is a result
        frames = "".join(traceback.format_exception(error))
        sender.send(
            {"error": portable(f"{type(error).__name__}: {error}")[:600], "traceback": portable(frames)[-2000:]}
        )
    sender.send(None)


def portable(text: str) -> str:
    """The text without the folders that files lie in here: `timm/models/beit.py`, not where it is installed."""
    text = text.replace(str(Path(__file__).parent.parent) + os.sep, "")
    return re.sub(r"(?<![\w.])/[^\s:\"']*/(?:site-packages|python3\.\d+)/", "", text)


# -- measuring -------------------------------------------------------------------------------------------


class OutOfTimeError(Exception):
    """Something took longer than it was given."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError in the block after so many seconds."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def stopwatch(into: Row, key: str) -> Iterator[None]:
    """Adds the seconds that the block takes to `into[key]`."""
    start = time.perf_counter()
    yield
    into[key] = into.get(key, 0.0) + time.perf_counter() - start


def peak_growth(function: Callable[[], Any]) -> int:
    """Bytes by which the peak of the resident memory during `function` exceeds that before it (Linux)."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts afresh
    except OSError:
        return -1
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


# -- models that hide nothing ------------------------------------------------------------------------------


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Makes every parameter and running statistic random, of a size that lets signals survive a deep model.

    Fresh models hide mistakes: biases and running means of 0, scales of 1 or 1e-6.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.is_floating_point():
                    _randomise(module, name, tensor, random)
    return model.eval()


def _randomise(module: nn.Module, name: str, tensor: Tensor, random: torch.Generator) -> None:
    if name == "running_var":
        tensor.uniform_(0.5, 1.5, generator=random)
    elif name == "running_mean":
        tensor.normal_(0, 0.2, generator=random)
    elif name in module._buffers:
        return  # position indices, frequencies, anchors: not learned
    elif "bias" in name and tensor.ndim < 2:
        tensor.normal_(0, 0.2, generator=random)
    elif tensor.ndim < 2 or ("weight" not in name and tensor.numel() == max(tensor.shape)):
        tensor.uniform_(0.5, 1.5, generator=random)  # a scale for each channel
    elif isinstance(module, nn.Embedding) or "weight" not in name:
        tensor.normal_(0, 0.5, generator=random)
    else:
        tensor.normal_(0, math.sqrt(1.5 / max(tensor[0].numel(), 1)), generator=random)


def batch_norms(model: nn.Module) -> dict[str, Any]:
    """The batch norms that keep statistics, by path."""
    kinds = nn.modules.batchnorm._BatchNorm
    return {path: m for path, m in model.named_modules() if isinstance(m, kinds) and m.track_running_stats}


def calibrate(model: nn.Module, run: Callable[[], Any]) -> None:
    """Sets the statistics of each batch norm to those of what it is given during one call in eval mode.

    A call in train mode would not do: what deviates a little in each layer explodes over a hundred of them.
    """
    handles = [norm.register_forward_pre_hook(_take_statistics) for norm in batch_norms(model).values()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()


def _take_statistics(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    dims = [d for d in range(inputs[0].ndim) if d != 1]
    norm.running_mean.copy_(inputs[0].mean(dims))
    spread = torch.empty_like(norm.running_var).uniform_(1.0, 2.0)  # a little more than there is: it damps
    norm.running_var.copy_(inputs[0].var(dims, correction=0).clamp_(min=1e-2).mul_(spread))


def call(model: nn.Module, example: Any) -> Any:
    """Runs a model on an example in the form that `structprune.analyze` takes."""
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)
