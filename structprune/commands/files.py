"""Commands for what was saved: report, diff, export."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import ArgumentError, FileFormatError
from ..export import export_onnx
from ..plan import PruningPlan
from ..report import Report
from ..storage import load, read_plan
from .common import add_json, make_model, place, read_saved, say, show, spec_of


def report(parser: argparse.ArgumentParser) -> None:
    """Show what was done to a saved model; as a table, a page, or JSON."""
    parser.add_argument("path", metavar="PATH", help="what prune or structprune.save wrote")
    parser.add_argument(
        "--html", type=place, metavar="FILE", help="write it as a page that opens from disk, without a network"
    )
    add_json(parser)
    parser.epilog = "example: structprune report small --html small.html"

    def run(arguments: argparse.Namespace) -> None:
        saved = read_saved(arguments.path)
        if "report" not in saved.record:
            raise FileFormatError(
                f"{saved.weights} holds no report: a step of iterate has none, nor what older versions saved"
            )
        found = Report.from_dict(saved.record["report"])
        if arguments.html:
            found.to_html(arguments.html, title=str(saved.record.get("model") or Path(arguments.path).name))
        show(arguments, lambda: saved.record, lambda: found)

    parser.set_defaults(run=run)


def diff(parser: argparse.ArgumentParser) -> None:
    """Show what two saved models, or two plan files, keep differently."""
    for name in ("first", "second"):
        parser.add_argument(name, metavar=name.upper(), help="a saved model, or a plan as JSON")
    add_json(parser)
    parser.epilog = "example: structprune diff small smaller"

    def run(arguments: argparse.Namespace) -> None:
        found = _plan(arguments.first).diff(_plan(arguments.second))
        show(arguments, found.to_dict, lambda: str(found))

    parser.set_defaults(run=run)


def _plan(path: str) -> PruningPlan:
    if Path(path).suffix != ".json":
        return read_saved(path).plan
    if not Path(path).is_file():
        raise ArgumentError(f"there is no file {path}")
    return read_plan(Path(path))


def export(parser: argparse.ArgumentParser) -> None:
    """Export a saved model to ONNX, and compare what onnxruntime makes of it with what PyTorch does."""
    parser.add_argument("path", metavar="PATH", help="what prune or structprune.save wrote")
    parser.add_argument("--onnx", type=place, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--model", metavar="MODEL", help="the unpruned model, if the file does not say")
    parser.add_argument("--input", action="append", default=[], metavar="SHAPE", help="as in prune")
    add_json(parser)
    parser.epilog = 'needs the extra "onnx". example: structprune export small --onnx small.onnx'

    def run(arguments: argparse.Namespace) -> None:
        target = Path(arguments.onnx)
        if target.is_file() and not arguments.overwrite:
            raise ArgumentError(f"{target} exists; pass --overwrite to replace it")
        saved = read_saved(arguments.path)
        arguments.input = arguments.input or saved.record.get("inputs") or []
        arguments.weights, arguments.seed = None, 0
        loaded = make_model(spec_of(saved, arguments.model), arguments)
        error = export_onnx(load(arguments.path, loaded.model).eval(), loaded.inputs, target)
        if arguments.json:
            print(json.dumps({"onnx": str(target), "bytes": target.stat().st_size, "max_rel_error": error}))
        else:
            say(f"{target}: {target.stat().st_size:,} bytes, equal to PyTorch within {error:.1e} of the largest output")

    parser.set_defaults(run=run)
