"""The floors of the house: a file imports only from floors below it, so there are no circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import structprune

ROOT = Path(structprune.__file__).parent
CORE = {"torch", "networkx", "numpy", "scipy", "safetensors", "rich"}

# From the ground up. A new file goes on the lowest floor that is above everything it imports.
FLOORS = """
    errors
    bookkeeping collector commands frames inventory labels nn nodes ops page remembering restoring shapes sizes source unseen version
    einsum
    answers checkpoint compensation copying counting importance.processes memory program readers renewal rewriting \
    rules.asked rules.only rules.overwritten rules.widths scalars rows schedules specs steady trials
    numbers rules.checks rules.zeros
    blanks commands.inputs cost importance.statistics importance.streaming importance.watcher prepare rules.site running \
    swaps unmask
    composition costing diagram differences fresh samples rules.attention rules.contraction rules.following rules.joining rules.matrices \
    rules.normalization rules.pointwise rules.reduction recorder rounding
    constant_rules mermaid plan rules.folds rules.movement rules.spatial trace rules.recurrent rules.written
    constants fitting html rules.indexing rules.shaping siblings stock
    rules
    analysis mask modes roles surgery
    explanation groups inflate kinds optimizers storage verify
    commands.common export graph progress report
    commands.files constraints importance.normalization latency promote settlement weights
    importance.base liveness
    folding importance.activations importance.gradients importance.weights
    importance regularize
    balance selection
    budget
    decision
    planning
    api sensitivity
    commands.looking demo iterate job shrink
    callbacks commands.pruning sparsity tables zoo
    commands.zoo structprune
    cli
    __main__
"""
FLOOR = {name: floor for floor, names in enumerate(FLOORS.split("\n")) for name in names.split()}


def module_name(path: Path) -> str:
    """`rules.site`, `rules`, and `structprune` for the package itself"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "structprune"


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements, less those that only a type checker reads."""
    for node in body:
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            for field in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)


def own_imports(name: str) -> Iterator[str]:
    """The files of structprune that a file imports, at the top or inside a function."""
    is_package = FILES[name].name == "__init__.py"
    package = [] if name == "structprune" else name.split(".")[: None if is_package else -1]
    for node in statements(ast.parse(FILES[name].read_text()).body):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                inner = f"{target}.{alias.name}".strip(".")
                yield inner if inner in FILES else target or "structprune"
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any((n or "").startswith("structprune") for n in names), (
                "imports inside the package are relative"
            )


def test_every_file_has_a_floor() -> None:
    assert set(FLOOR) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down(name: str) -> None:
    for target in own_imports(name):
        assert FLOOR[target] < FLOOR[name], f"{name} imports {target}, which is not on a lower floor"


def test_the_walk_sees_imports() -> None:
    """If it saw none, the test above would prove nothing."""
    assert {"rules.site", "labels"} <= set(own_imports("rules.movement"))
    assert {"rules.movement", "rules.site", "ops"} <= set(own_imports("rules"))
    assert {"importance", "api", "errors"} <= set(own_imports("structprune"))
    assert "demo" in set(own_imports("cli"))


@pytest.mark.parametrize("name", FILES)
def test_only_core_packages_are_imported_at_the_top(name: str) -> None:
    for node in ast.parse(FILES[name].read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for root in {n.partition(".")[0] for n in names}:
            assert root in CORE | sys.stdlib_module_names, f"{name} imports {root} at the top"


def test_importing_does_nothing() -> None:
    """No optional package, no output, and neither the demo nor what PyTorch times with, which is slow to import."""
    code = "import structprune, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not loaded & {"torchvision", "timm", "transformers", "sklearn", "matplotlib", "onnx", "structprune.demo"}
    assert not loaded & {"torch.utils.benchmark", "setuptools"}


def test_no_file_is_long() -> None:
    for name, path in FILES.items():
        assert len(path.read_text().splitlines()) <= 400, f"{name} has more than 400 lines"


def test_the_public_surface_is_what_it_says() -> None:
    assert sorted(structprune.__all__) == structprune.__all__
    for name in structprune.__all__:
        assert getattr(structprune, name, None) is not None
