"""The demo and the command line."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from rich.console import Console

import structprune as sp
from structprune.cli import COMMANDS, main
from structprune.demo import run_demo

# FlopCounterMode and Timer import what warns about this machine's compilers.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_table() -> None:
    pytest.importorskip("sklearn")
    console = Console(record=True, width=80, file=io.StringIO())
    state = torch.get_rng_state()
    dense, masked, small, tuned = run_demo(epochs=1, width=8, console=console)
    assert torch.equal(torch.get_rng_state(), state)
    assert (masked.parameters, masked.macs, masked.bytes) == (dense.parameters, dense.macs, dense.bytes)
    assert (tuned.parameters, tuned.macs, tuned.bytes) == (small.parameters, small.macs, small.bytes)
    assert small.parameters < 0.3 * dense.parameters
    assert small.macs < 0.3 * dense.macs
    assert small.bytes < 0.5 * dense.bytes
    assert small.error is not None
    assert small.error < 1e-12
    assert tuned.accuracy > 0.2
    text = console.export_text()
    for word in ("accuracy", "parameters", "MACs", "file", "latency", "error", "torch.nn.utils.prune", "fine-tuned"):
        assert word in text
    assert "…" not in text, "the table does not fit into 80 columns"
    assert all(title in text for title in ("training", "pruning and verifying", "fine-tuning", "measuring"))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo"]) == 2
    assert 'pip install "structprune[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["dmo"], ["demo", "--epochs", "0"], ["demo", "--seed", "x"], ["demo", "x"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert "usage: structprune" in error
    assert "Traceback" not in error


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in ((["--version"], sp.__version__), (["--help"], "demo"), (["demo", "--help"], "--epochs")):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert word in capsys.readouterr().out
    assert all(command.__doc__ for command in COMMANDS.values())


def test_what_a_command_raises(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(error: BaseException) -> int:
        def run(arguments: object) -> None:
            raise error

        monkeypatch.setitem(COMMANDS, "broken", lambda parser: parser.set_defaults(run=run))
        return main(["broken"])

    assert broken(sp.ArgumentError("no such layer")) == 2
    assert capsys.readouterr().err == "structprune: no such layer\n"
    assert broken(KeyboardInterrupt()) == 130
    with pytest.raises(RuntimeError, match="a bug"):
        broken(RuntimeError("a bug"))
