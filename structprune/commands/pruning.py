"""Commands that make a model smaller, and the one that checks what they saved: prune, shrink, verify."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import api
from ..api import Result
from ..errors import ArgumentError
from ..importance import NAMED
from ..inflate import inflate
from ..plan import PruningPlan
from ..planning import ALLOCATIONS, SCOPES
from ..prepare import calls_of
from ..rewriting import RIGID
from ..running import double
from ..shrink import shrink as shrink_model
from ..stock import NORMS
from ..storage import check_target, load, save
from ..verify import Verification, agreement, find_device, samples_for
from ..verify import verify as verify_model
from ..version import __version__
from .common import (
    Loaded,
    add_json,
    add_making,
    add_model,
    fraction,
    layer_ratio,
    load_model,
    make_model,
    number_or_word,
    place,
    read_saved,
    say,
    share,
    spec_of,
    target,
)
from .inputs import once

# The settings of `structprune.prune` that the command line passes on as they are.
SETTINGS = (
    "ratio", "target", "scope", "importance", "exclude", "include", "ratios", "min_ratio", "max_ratio", "round_to",
    "allocation", "norm", "rigid",
)  # fmt: skip


def prune(parser: argparse.ArgumentParser) -> None:
    """Remove channels from a model, verify the smaller one against the masked original, and save it."""
    add_model(parser)
    add_settings(parser)
    _add_output(parser)
    parser.epilog = "example: structprune prune torchvision:resnet18 --weights mine.pt --ratio 0.5 --out small"

    def run(arguments: argparse.Namespace) -> None:
        _check_output(arguments)
        loaded = load_model(arguments)
        result = api.prune(loaded.model, loaded.inputs, **settings_of(arguments))
        finish(arguments, loaded, result)

    parser.set_defaults(run=run)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how much to remove, and what; none has a default here, so that `prune` has its own."""
    add = parser.add_argument_group("how much, and what").add_argument
    add("--ratio", type=fraction, help="the fraction of channels to remove (0.5, unless there is a target)")
    add("--target", type=target, action="append", metavar="COST=NUMBER",
        help="what to keep of macs, params, memory (bytes) or latency (microseconds): macs=0.5 is a fraction of the "
             "original, params=4000000 a number; one or several")  # fmt: skip
    add(
        "--scope",
        choices=SCOPES,
        help="rank inside each group (local, the default), or all groups together",
    )
    add("--importance", choices=sorted(NAMED), help="how channels are ranked (default l1)")
    add("--allocation", choices=ALLOCATIONS, help="how a target is met: by what scores least, or what loses least")
    add("--exclude", action="append", metavar="PATTERN", help="layers whose filters all stay: 'layer4.*'")
    add("--include", action="append", metavar="PATTERN", help="the only layers whose filters may go")
    add("--ratios", type=layer_ratio, action="append", metavar="PATTERN=RATIO",
        help="another ratio for some layers: 'layer1.*=0.2'")  # fmt: skip
    add("--min-ratio", type=share, help="remove at least this fraction of every group")
    add("--max-ratio", type=share, help="never remove more than this fraction of a group")
    add("--round-to", type=number_or_word, metavar="N", help="leave widths that are multiples of N, or 'auto'")
    add("--norm", choices=NORMS, help="norms go on counting the original channels (exact, the default), or stay stock")
    add("--rigid", choices=RIGID, help="keep channels whose number is written in the code (the default), or rewrite it")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, as keyword arguments of `structprune.prune`."""
    given = {key: getattr(arguments, key) for key in SETTINGS if getattr(arguments, key) is not None}
    return {key: once(f"--{key}", value) if key in ("target", "ratios") else value for key, value in given.items()}


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what comes out")
    group.add_argument("--out", type=place, metavar="PATH", help="a folder, or a file that ends in .safetensors")
    group.add_argument("--overwrite", action="store_true", help="replace what is there")
    group.add_argument("--html", type=place, metavar="FILE", help="write the report as a page to look at")
    add_json(group)  # type: ignore[arg-type]


def _check_output(arguments: argparse.Namespace) -> None:
    """Complains before any work is done."""
    if arguments.out:
        check_target(Path(arguments.out), arguments.overwrite)
    if arguments.html and Path(arguments.html).is_dir():
        raise ArgumentError(f"--html {arguments.html} is a folder; name a file")
    if arguments.html:
        Path(arguments.html).parent.mkdir(parents=True, exist_ok=True)


def finish(arguments: argparse.Namespace, loaded: Loaded, result: Result) -> None:
    """Saves and shows what a command made."""
    if arguments.out:
        save(result, arguments.out, overwrite=arguments.overwrite, record=record_of(arguments, loaded))
    if arguments.html:
        result.report.to_html(arguments.html, title=loaded.spec.text)
    if arguments.json:
        print(json.dumps({"out": arguments.out, **result.report.to_dict()}))
        return
    say(result.report)
    say(f"saved to {arguments.out}" if arguments.out else "nothing was saved: pass --out to keep the smaller model")


def record_of(arguments: argparse.Namespace, loaded: Loaded) -> dict[str, Any]:
    """How a model was made, for those who find the file."""
    return {
        "command": arguments.command,
        "model": loaded.spec.text,
        "inputs": arguments.input,
        "weights": arguments.weights,
        "seed": arguments.seed,
        "settings": settings_of(arguments) if hasattr(arguments, "ratio") else {},
        "versions": {"structprune": __version__, "torch": torch.__version__},
    }


def shrink(parser: argparse.ArgumentParser) -> None:
    """Remove from a model what a checkpoint has masked or set to zero, without changing what it computes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="weights with zeros or masks: .safetensors or .pt")
    parser.add_argument("--model", required=True, metavar="MODEL", help="the model that they are for, as in prune")
    add_making(parser)
    _add_output(parser)
    parser.epilog = "example: structprune shrink sparse.pt --model torchvision:resnet18 --out small"

    def run(arguments: argparse.Namespace) -> None:
        _check_output(arguments)
        if arguments.weights:
            raise ArgumentError("shrink takes its weights from CHECKPOINT; leave --weights out")
        arguments.weights = arguments.checkpoint
        loaded = load_model(arguments)
        finish(arguments, loaded, shrink_model(loaded.model, loaded.inputs, details=True))

    parser.set_defaults(run=run)


def _check_shrunk(plan: PruningPlan, small: nn.Module, loaded: Loaded) -> Verification:
    """Constants were folded into biases, and rounded there: the model must equal itself in the original's shapes."""
    device = find_device(None)
    pairs = [(loaded.model, small), (double(loaded.model, device), double(small, device))]
    working, exact = [(inflate(plan, less, full), less) for full, less in pairs]
    samples = samples_for(exact[0], calls_of(loaded.inputs), device)
    return agreement(exact, working, samples, device, modes=("eval",))


def verify(parser: argparse.ArgumentParser) -> None:
    """Check a saved model: its files, and that it equals the masked original of its own weights, in float64."""
    parser.add_argument("path", metavar="PATH", help="what prune or structprune.save wrote")
    parser.add_argument("--model", metavar="MODEL", help="the unpruned model, if the file does not say")
    add_making(parser)
    add_json(parser)
    parser.epilog = (
        "Kept weights are taken from the saved model, so that one trained further can be checked, too; "
        "with --weights, the original's, it must be the original with zeros. example: structprune verify small"
    )

    def run(arguments: argparse.Namespace) -> int:
        saved = read_saved(arguments.path)
        shrunk = saved.record.get("command") == "shrink"
        if shrunk and arguments.weights:
            raise ArgumentError("shrink compared the model with its checkpoint; leave --weights out")
        arguments.input = arguments.input or saved.record.get("inputs") or []
        loaded = make_model(spec_of(saved, arguments.model), arguments)
        small = load(arguments.path, loaded.model)
        if shrunk:
            check = _check_shrunk(saved.plan, small, loaded)
        else:
            full = loaded.model if arguments.weights else inflate(saved.plan, small, loaded.model)
            check = verify_model(full, saved.plan, loaded.inputs, small=small)
        if arguments.json:
            found = {"ok": check.ok, "max_abs_error": check.max_abs_error, "max_rel_error": check.max_rel_error}
            print(json.dumps({"path": arguments.path, **found, "first_difference": check.first_difference}))
        else:
            say(f"{arguments.path}: {check}")
        return 0 if check.ok else 1

    parser.set_defaults(run=run)
