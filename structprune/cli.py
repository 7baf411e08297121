"""The command line. A command is a function that adds its arguments to a parser and says what to run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from .errors import StructPruneError
from .version import __version__


def natural(text: str) -> int:
    """A whole number from 1, as an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def demo(parser: argparse.ArgumentParser) -> None:
    """Train a small network on handwritten digits, remove half of its channels, and show what that changes."""
    parser.add_argument("--seed", type=int, default=0, help="for the weights and the order of the data (default 0)")
    parser.add_argument("--epochs", type=natural, default=10, help="of training; fine-tuning takes half (default 10)")

    def run(arguments: argparse.Namespace) -> None:
        from .demo import run_demo

        run_demo(arguments.seed, arguments.epochs)

    parser.set_defaults(run=run)


COMMANDS: dict[str, Callable[[argparse.ArgumentParser], None]] = {"demo": demo}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, made from the table of commands."""
    top = argparse.ArgumentParser("structprune", description="Real, exact structured pruning for PyTorch.")
    top.add_argument("--version", action="version", version=f"structprune {__version__}")
    commands = top.add_subparsers(title="commands", metavar="command", required=True)
    for name, command in COMMANDS.items():
        command(commands.add_parser(name, help=command.__doc__, description=command.__doc__))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 if it worked, 2 for wrong arguments and errors that structprune explains."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except StructPruneError as error:
        print(f"structprune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
