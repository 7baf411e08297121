"""What commands share: the arguments that name a model, and how results are shown."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ..checkpoint import load_weights
from ..errors import ArgumentError
from ..specs import FORMS, Spec, parse
from ..storage import Saved, read, recorded_spec
from .inputs import HELP, make_inputs

MODEL = f"{FORMS}, with ?key=value&... for options"


@dataclass(frozen=True)
class Loaded:
    """A model from the command line, with what it was made of."""

    spec: Spec
    model: nn.Module
    inputs: Any


def natural(text: str) -> int:
    """A whole number from 1, as an argument."""
    return _number(text, int, lambda n: n >= 1, "a whole number from 1")


def seed(text: str) -> int:
    """A seed, as an argument."""
    return _number(text, int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 4294967295")


def fraction(text: str) -> float:
    """A number in [0, 1), as an argument."""
    return _number(text, float, lambda n: 0 <= n < 1, "a number from 0 up to, but not including, 1")


def share(text: str) -> float:
    """A number in [0, 1], as an argument."""
    return _number(text, float, lambda n: 0 <= n <= 1, "a number from 0 to 1")


def positive(text: str) -> float:
    """A number above 0, as an argument."""
    return _number(text, float, lambda n: 0 < n < float("inf"), "a number above 0")


def number_or_word(text: str) -> int | str:
    """A whole number, or a word for one."""
    return int(text) if text.lstrip("-").isdecimal() else text


def _number(text: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], what: str) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = float("nan")
    if not fits(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def place(text: str) -> str:
    """A file or folder, as an argument."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text names no file or folder")
    return text


def target(text: str) -> tuple[str, float]:
    """COST=NUMBER, as an argument: `macs=0.5`."""
    return _assignment(text, positive, "COST=NUMBER, such as macs=0.5")


def layer_ratio(text: str) -> tuple[str, float]:
    """PATTERN=RATIO, as an argument: `layer1.*=0.2`."""
    return _assignment(text, fraction, "PATTERN=RATIO, such as layer1.*=0.2")


def _assignment(text: str, number: Callable[[str], float], what: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return name, number(value)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model, with which weights and inputs."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_making(parser)


def add_making(parser: argparse.ArgumentParser) -> None:
    """The arguments that say with which weights and inputs."""
    parser.add_argument(
        "--weights", metavar="FILE", help="of the model: .safetensors, or .pt read with weights_only=True"
    )
    parser.add_argument("--input", action="append", default=[], metavar="SHAPE", help=HELP)
    parser.add_argument("--seed", type=seed, default=0, help="for random weights and inputs (default 0)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The argument that asks for JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")


def load_model(arguments: argparse.Namespace) -> Loaded:
    """The model that the arguments name, and example inputs for it."""
    return make_model(parse(arguments.model), arguments)


def make_model(spec: Spec, arguments: argparse.Namespace) -> Loaded:
    """The model of a spec with the weights and inputs of the arguments."""
    torch.manual_seed(arguments.seed)
    model = spec.build()
    if arguments.weights:
        load_weights(model, arguments.weights)
    return Loaded(spec, model, make_inputs(arguments.input, spec, model))


def spec_of(saved: Saved, given: str | None) -> Spec:
    """The spec of a saved model: the given one, or the recorded one. Raises ArgumentError if there is none."""
    text = given or recorded_spec(saved)
    if text is None:
        recorded = saved.record.get("model")
        hint = f"; it was {recorded}, and a file does not choose what code runs" if recorded else ""
        raise ArgumentError(f"{saved.weights} needs the model it was cut from: pass --model{hint}")
    return parse(text)


def read_saved(path: str) -> Saved:
    """What lies at a path that the command line names."""
    if not Path(path).exists():
        raise ArgumentError(f"there is no folder or file {path}")
    return read(path)


def show(arguments: argparse.Namespace, data: Callable[[], Any], picture: Callable[[], Any]) -> None:
    """Prints JSON if it was asked for, or else something to look at."""
    if arguments.json:
        print(json.dumps(data(), indent=2))
    else:
        say(picture())


def say(what: Any) -> None:
    """Prints to the terminal, or plainly into a pipe."""
    Console(soft_wrap=isinstance(what, str), highlight=False, markup=False).print(what)


def quiet() -> None:
    """Libraries warn about what the user of a command cannot change; their warnings go nowhere."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
