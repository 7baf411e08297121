"""The command for many models: zoo."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import ArgumentError
from ..job import Job, Row
from ..specs import expand
from ..tables import cells, summary, write_tables
from ..zoo import Limits, finished, plan_jobs, run_here, run_on_ray
from .common import add_json, natural, place, positive, say, seed
from .pruning import add_settings, settings_of


def zoo(parser: argparse.ArgumentParser) -> None:
    """Prune, verify and save many models, a process for each; go on where it stopped if it is killed."""
    parser.add_argument("models", nargs="+", metavar="MODELS",
                        help="torchvision, timm, 'timm:vit*', or models as in prune")  # fmt: skip
    parser.add_argument(
        "--out", type=place, required=True, metavar="FOLDER", help="models/, rows/ and the tables go there"
    )
    add_settings(parser)
    group = parser.add_argument_group("how")
    group.add_argument("--jobs", type=natural, default=1, help="models at once (default 1)")
    group.add_argument("--timeout", type=positive, default=600.0, metavar="SECONDS", help="for a model (default 600)")
    group.add_argument("--memory", type=positive, metavar="GB", help="for a model (default: no limit)")
    group.add_argument("--seed", type=seed, default=0, help="for random weights and inputs (default 0)")
    group.add_argument("--retry", action="store_true", help="try the failed ones again")
    group.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster; 'local' starts one here")
    add_json(group)  # type: ignore[arg-type]
    parser.epilog = "example: structprune zoo 'torchvision:resnet*' timm:vit_tiny_patch16_224 --jobs 2 --out zoo"

    def run(arguments: argparse.Namespace) -> int:
        folder = Path(arguments.out)
        if folder.exists() and not folder.is_dir():
            raise ArgumentError(f"--out {folder} is a file; name a folder")
        limits = Limits(arguments.jobs, arguments.timeout, arguments.memory)
        jobs = plan_jobs(expand(arguments.models), settings_of(arguments), folder, limits, arguments.seed)
        rows = _run(arguments, jobs, limits)
        write_tables(rows, folder)
        if arguments.json:
            print(json.dumps(rows))
        else:
            say(f"{summary(rows)}; tables: {folder / 'zoo.md'}, zoo.csv, zoo.html")
        return 0 if all(row["status"] == "pruned" for row in rows) else 1

    parser.set_defaults(run=run)


def _run(arguments: argparse.Namespace, jobs: Sequence[Job], limits: Limits) -> list[Row]:
    """The rows of all jobs: those of earlier runs, and the new ones with a line for each."""
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    known = {job.spec: finished(job, arguments.retry) for job in jobs}
    rows = [row for row in known.values() if row is not None]
    todo = [job for job in jobs if known[job.spec] is None]
    found: Iterator[Row] = run_on_ray(todo, limits, arguments.ray) if arguments.ray else run_here(todo, limits)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=arguments.json, transient=True) as bar:
        task = bar.add_task("pruning", total=len(jobs), completed=len(rows))
        for row in found:
            rows.append(row)
            bar.advance(task)
            if not arguments.json:
                bar.console.print(_line(row), markup=False, highlight=False, soft_wrap=True)
    return rows


def _line(row: Row) -> str:
    name, status, *figures, _ = cells(row)
    if status != "pruned":
        return f"{name}: FAILED, {row['reason']}"
    return f"{name}: {figures[1]} of the parameters and {figures[3]} of the MACs are left, {figures[5]} s"
