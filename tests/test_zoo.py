"""A zoo: every model in a process of its own, failures recorded, killed and resumed, here and on Ray."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from zoo_models import Good

import structprune as sp
from structprune.cli import main
from structprune.job import Job, Row, do
from structprune.specs import parse
from structprune.tables import as_csv, html, markdown
from structprune.zoo import Limits, file_name, finished, plan_jobs, run_here, run_job

GOOD = [f"zoo_models:Good?width={width}" for width in (8, 12, 16, 20)]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find what this one does."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))


def jobs(folder: Path, *specs: str, **settings: Any) -> list[Job]:
    return plan_jobs([parse(spec) for spec in specs], settings, folder, Limits(memory=settings.pop("memory", None)))


def test_a_zoo(tmp_path: Path, capsys: Captured) -> None:
    """Two models, of which one fails: the other is done, and the code says that something failed."""
    names = [GOOD[0], "zoo_models:broken"]
    arguments = ["zoo", *names, "--ratio", "0.5", "--jobs", "2", "--out", str(tmp_path / "zoo")]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert (
        "zoo_models:broken: FAILED, ArgumentError: zoo_models:broken cannot be made: RuntimeError: out of order" in out
    )
    assert "1 of 2 models pruned and verified" in out
    elsewhere = ["zoo", *names, "--ratio", "0.5", "--jobs", "2", "--out", str(tmp_path / "again"), "--json"]
    assert main(elsewhere) == 1
    assert {row["model"] for row in json.loads(capsys.readouterr().out)} == set(names)
    model: Any = sp.load(next((tmp_path / "zoo" / "models").iterdir()), lambda: Good(8))
    assert model[0].out_channels == 4
    table = (tmp_path / "zoo" / "zoo.md").read_text()
    assert "| zoo_models:Good?width=8 | pruned |" in table
    start = time.monotonic()
    assert main([*arguments, "--json"]) == 1  # all of it is known
    assert time.monotonic() - start < 1
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[GOOD[0]]["error"] < 1e-12
    assert rows[GOOD[0]]["params"][1] < rows[GOOD[0]]["params"][0]
    assert [finished(job, retry=True) is None for job in jobs(tmp_path / "zoo", *names, ratio=0.5)] == [False, True]
    assert all(finished(job) is None for job in jobs(tmp_path / "zoo", *names, ratio=0.25))


def test_a_model_that_cannot_be_pruned_is_recorded(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "zoo_models:Stubborn")
    assert do(job)["reason"].startswith("NothingToPruneError: nothing to prune")
    assert not Path(job.model).exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_a_model_that_takes_too_much_memory(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "zoo_models:hungry", memory=3.0)
    row = run_job(job, 60)
    assert row is not None
    assert row["status"] == "failed"
    assert "memory" in row["reason"]
    assert finished(job) == row == json.loads(Path(job.row).read_text())
    assert finished(job, retry=True) is None


def test_a_timeout(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "zoo_models:sleeps")
    row = run_job(job, 0.5)
    assert row is not None
    assert row["reason"] == "timeout after 0.5 s"


def test_stopping_stops_the_processes(tmp_path: Path) -> None:
    """What was interrupted is neither done nor failed."""
    (job,) = jobs(tmp_path, "zoo_models:sleeps")
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    assert run_job(job, 60, stop) is None
    assert finished(job) is None
    assert list(run_here([], Limits())) == []


def test_a_job_ends_with_whoever_started_it(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "zoo_models:sleeps")
    process = subprocess.Popen([sys.executable, "-m", "structprune.job"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(job.to_json().encode() + b"\n")
    process.stdin.close()
    assert process.wait(60) == 1


def test_rows_that_are_none(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, GOOD[0])
    Path(job.row).parent.mkdir(parents=True)
    for content in ("[]", "{}", '{"model": 3}'):
        Path(job.row).write_text(content)
        assert finished(job) is None
    Path(job.row).write_text("{")
    with pytest.raises(sp.FileFormatError, match="remove it to do that model again"):
        finished(job)


def test_file_names() -> None:
    assert file_name("torchvision:resnet18") == "torchvision.resnet18"
    names = {
        file_name(spec) for spec in ("timm:a?b=1", "timm:a?b=2", "timm:a_b_1", "transformers:../../etc", "timm:a:b")
    }
    assert len(names) == 5
    assert all("/" not in name and ":" not in name for name in names)


ROWS: list[Row] = [
    {"model": "b", "status": "failed", "reason": "a | b\n<c>"},
    {
        "model": "a",
        "status": "pruned",
        "params": [4, 1],
        "macs": [0, 0],
        "error": 2e-16,
        "seconds": 1.0,
        "blocker": "it",
    },
]


def test_tables() -> None:
    assert "| b | failed |  |  |  |  |  |  | a \\| b <c> |" in markdown(ROWS)
    rows = list(csv.DictReader(as_csv(ROWS).splitlines(keepends=True)))
    assert rows[0]["reason"] == "a | b\n<c>"
    assert (rows[1]["params"], rows[1]["params_left"]) == ("4", "1")
    assert "&lt;c&gt;" in html(ROWS)
    assert "<c>" not in html(ROWS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked, to be quick")
def test_a_zoo_killed_at_random_moments(tmp_path: Path) -> None:
    kill_zoo(tmp_path, 1, GOOD[:1], 4)


def kill_zoo(folder: Path, count: int, names: list[str], latest: float) -> None:
    """After every kill each row is whole, each model loads, and what was done stays done; then all of it is done."""
    arguments = ["zoo", *names, "--jobs", "2", "--out", str(folder), "--json"]
    done: dict[str, float] = {}
    for _ in range(count):
        process = multiprocessing.get_context("fork").Process(target=main, args=(arguments,))
        process.start()
        time.sleep(random.uniform(0, latest))
        process.kill()
        process.join()
        done = check_zoo(folder, done)
    assert main(arguments) == 0
    assert len(check_zoo(folder, done)) == len(names)
    assert f"{len(names)} of {len(names)}" in (folder / "zoo.md").read_text()


def check_zoo(folder: Path, before: dict[str, float]) -> dict[str, float]:
    rows = {path.name: path.stat().st_mtime for path in (folder / "rows").glob("*.json")}
    assert before.items() <= rows.items(), "a row was lost or made again"
    for name in rows:
        row = json.loads((folder / "rows" / name).read_text())
        assert row["status"] == "pruned"
        width = int(row["model"].rpartition("=")[2])
        sp.load((folder / "models" / name).with_suffix(".safetensors"), lambda width=width: Good(width))  # type: ignore[misc]
    return rows


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["zoo", GOOD[0], "--out", str(tmp_path), "--ray", "local"]) == 2
    assert 'pip install "structprune[ray]"' in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_on_ray(tmp_path: Path) -> None:
    """The same rows and the same bytes as processes here make."""
    pytest.importorskip("ray", reason="Ray is not installed")
    names = [GOOD[0], "zoo_models:broken"]
    assert main(["zoo", *names, "--out", str(tmp_path / "ray"), "--ray", "local", "--jobs", "2"]) == 1
    assert main(["zoo", *names, "--out", str(tmp_path / "here"), "--jobs", "2"]) == 1
    for name in (file_name(names[0]), file_name(names[1])):
        rows = [json.loads((tmp_path / where / "rows" / f"{name}.json").read_text()) for where in ("ray", "here")]
        for row in rows:
            row.pop("seconds", None)
        assert rows[0] == rows[1]
    plans = [sp.storage.read(next((tmp_path / where / "models").iterdir())).plan for where in ("ray", "here")]  # type: ignore[attr-defined]
    assert plans[0] == plans[1]
