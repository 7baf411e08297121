"""One model of a zoo, in a process of its own: `python -m structprune.job` reads what to do from its standard input.

It ends when that input ends, so that it does not outlive whoever started it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .api import Result, prune
from .errors import StructPruneError
from .specs import parse
from .storage import save, write
from .version import __version__

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A model to prune: its spec, the settings of `prune`, and the files to write; memory in gigabytes."""

    spec: str
    settings: dict[str, Any]
    model: str
    row: str
    seed: int = 0
    threads: int = 1
    memory: float | None = None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def blank(job: Job) -> Row:
    """A row that says what was to be done."""
    return {"model": job.spec, "settings": job.settings, "seed": job.seed, "version": __version__}


def write_row(path: str, row: Row) -> None:
    """Writes a row, whole or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write(Path(path), lambda at: at.write_text(json.dumps(row, indent=1)))


def do(job: Job) -> Row:
    """Prunes, verifies and saves the model of a job; the row says how that went."""
    start = time.perf_counter()
    torch.manual_seed(job.seed)
    try:
        spec = parse(job.spec)
        model = spec.build()
        result = prune(model, spec.inputs(model), **job.settings)
        save(result, job.model, overwrite=True, record={"model": job.spec, "settings": job.settings, "seed": job.seed})
    except StructPruneError as error:
        return {**blank(job), "status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {**blank(job), "status": "pruned", **_figures(result), "seconds": time.perf_counter() - start}


def _figures(result: Result) -> Row:
    report = result.report
    blockers = report.diagram.blockers
    return {
        "params": list(report.params),
        "macs": list(report.macs),
        "error": report.verification.max_rel_error if report.verification else None,
        "blocker": blockers[0].reason if blockers else "",
    }


def limit_memory(gigabytes: float) -> None:
    """Allocations beyond the limit fail, where the system has such limits."""
    if sys.platform != "win32":
        import resource

        size = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):  # the file itself: Python could not shut down while its reader is in use
        pass
    os._exit(1)


def main() -> None:
    """Reads a job, does it, and writes its row."""
    warnings.simplefilter("ignore")
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_input, daemon=True).start()
    torch.set_num_threads(job.threads)
    if job.memory is not None:
        limit_memory(job.memory)
    write_row(job.row, do(job))


if __name__ == "__main__":
    main()
