"""Everything is put where the model is, on a machine without an accelerator too: see accelerator.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch cannot pretend to have an accelerator",
)
def test_everything_is_in_its_place() -> None:
    script = Path(__file__).with_name("accelerator.py")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=script.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == "everything is in its place"
