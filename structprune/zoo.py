"""A zoo: many models pruned, verified and saved, each in a process of its own, so that none can harm the others.

`models/` holds what was saved and `rows/` what came out, a file for each model. A row is written last and whole: a zoo
that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from .errors import FileFormatError, MissingPackageError
from .job import Job, Row, blank, write_row
from .specs import Spec
from .storage import write

POLL = 0.1  # seconds


@dataclass(frozen=True)
class Limits:
    """How many models at once, and how long (seconds) and how large (gigabytes) each of them may become."""

    jobs: int = 1
    timeout: float = 600.0
    memory: float | None = None


def file_name(spec: str) -> str:
    """A name for the files of a spec; the options of one, which no file name can hold, go by their hash."""
    plain = re.sub(r"[^\w.-]+", "_", spec.replace(":", "."))
    exact = re.fullmatch(r"[\w.-]+:[\w.-]+", spec)
    return plain if exact else f"{plain[:80]}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"


def plan_jobs(
    specs: Sequence[Spec], settings: dict[str, Any], folder: Path, limits: Limits, seed: int = 0
) -> list[Job]:
    """A job for each spec."""
    threads = max(1, (os.cpu_count() or 1) // limits.jobs)
    names = {spec.text: file_name(spec.text) for spec in specs}
    return [
        Job(text, settings, str(folder / "models" / f"{name}.safetensors"), str(folder / "rows" / f"{name}.json"),
            seed, threads, limits.memory)
        for text, name in names.items()
    ]  # fmt: skip


def finished(job: Job, retry: bool = False) -> Row | None:
    """The row of a job that was done before with the same settings; None if it is to be done (again)."""
    try:
        row = json.loads(Path(job.row).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{job.row} is no row of a zoo ({error}); remove it to do that model again") from error
    same = isinstance(row, dict) and all(
        row.get(key) == value for key, value in json.loads(json.dumps(blank(job))).items()
    )
    if not same or (row.get("status") != "pruned" and retry):
        return None
    return row if row.get("status") != "pruned" or Path(job.model).is_file() else None


def run_job(job: Job, timeout: float, stop: threading.Event | None = None) -> Row | None:
    """Does a job in a process of its own; the row says why if the process failed. None if `stop` was set."""
    Path(job.row).unlink(missing_ok=True)
    Path(job.model).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", "structprune.job"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            reason = _supervise(process, job, timeout, stop)
        finally:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()
        if stop is not None and stop.is_set():
            return None
        if reason is None and Path(job.row).is_file():
            found: Row = json.loads(Path(job.row).read_text(encoding="utf-8"))
            return found
        reason = reason or f"the process ended with code {process.returncode}: {_last_line(errors)}"
    row = {**blank(job), "status": "failed", "reason": reason}
    write_row(job.row, row)
    return row


def _supervise(process: subprocess.Popen[bytes], job: Job, timeout: float, stop: threading.Event | None) -> str | None:
    """Waits for a process; why it must be killed, if it must."""
    if process.stdin:
        try:
            process.stdin.write(job.to_json().encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:  # it is dead already, and its last words tell why
            pass
    deadline = time.monotonic() + timeout
    while process.poll() is None and not (stop is not None and stop.is_set()):
        if time.monotonic() > deadline:
            return f"timeout after {timeout:g} s"
        try:
            process.wait(POLL)
        except subprocess.TimeoutExpired:
            continue
    return None


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def run_here(jobs: Sequence[Job], limits: Limits) -> Iterator[Row]:
    """Rows as they come, from processes on this machine. Stopping the iteration stops the processes."""
    stop = threading.Event()
    with ThreadPoolExecutor(limits.jobs) as pool:
        futures = [pool.submit(run_job, job, limits.timeout, stop) for job in jobs]
        try:
            for future in as_completed(futures):
                row = future.result()
                if row is not None:
                    yield row
        finally:
            stop.set()
            for future in futures:
                future.cancel()


# -- on several machines ------------------------------------------------------------------------------------------


def run_on_ray(jobs: Sequence[Job], limits: Limits, address: str) -> Iterator[Row]:
    """Rows as they come, from tasks of a Ray cluster, which send the models back. `limits.jobs` run at once.

    Raises MissingPackageError without the extra `ray`.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError('--ray needs Ray: pip install "structprune[ray]"') from error
    ray.init(address=address, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=1, max_retries=1)(run_elsewhere)
        waiting = list(jobs)[::-1]
        running: dict[Any, Job] = {}
        while waiting or running:
            while waiting and len(running) < limits.jobs:
                job = waiting.pop()
                running[task.remote(job, limits.timeout)] = job
            done, _ = ray.wait(list(running))
            for reference in done:
                yield _collect(ray, reference, running.pop(reference))
    finally:
        ray.shutdown()


def run_elsewhere(job: Job, timeout: float) -> tuple[Row, bytes]:
    """Does a job in a temporary folder of whatever machine this is; its row, and the saved model."""
    with tempfile.TemporaryDirectory() as folder:
        model, row = (str(Path(folder) / Path(path).name) for path in (job.model, job.row))
        found = run_job(replace(job, model=model, row=row), timeout) or {}
        return found, Path(model).read_bytes() if found.get("status") == "pruned" else b""


def _collect(ray: Any, reference: Any, job: Job) -> Row:
    """Fetches what a task made, and writes it as a process here would have."""
    try:
        row, content = ray.get(reference)
    except ray.exceptions.RayError as error:
        row, content = {**blank(job), "status": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}, b""
    if content:
        Path(job.model).parent.mkdir(parents=True, exist_ok=True)
        write(Path(job.model), lambda at: at.write_bytes(content))
    write_row(job.row, row)
    return dict(row)
