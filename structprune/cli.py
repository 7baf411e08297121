"""The command line. A command is a function that adds its arguments to a parser and says what to run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from .commands.common import natural, quiet, seed
from .commands.files import diff, export, report
from .commands.looking import explain, inspect
from .commands.pruning import prune, shrink, verify
from .commands.zoo import zoo
from .errors import StructPruneError, VerificationError
from .version import __version__

EXIT_CODES = (
    "exit codes: 0 fine; 1 a verification failed; 2 wrong arguments, or what an error explains; 130 interrupted"
)


def demo(parser: argparse.ArgumentParser) -> None:
    """Train a small network on handwritten digits, remove half of its channels, and show what that changes."""
    parser.add_argument("--seed", type=seed, default=0, help="for the weights and the order of the data (default 0)")
    parser.add_argument("--epochs", type=natural, default=10, help="of training; fine-tuning takes half (default 10)")

    def run(arguments: argparse.Namespace) -> None:
        from .demo import run_demo

        run_demo(arguments.seed, arguments.epochs)

    parser.set_defaults(run=run)


COMMANDS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "demo": demo,
    "inspect": inspect,
    "explain": explain,
    "prune": prune,
    "shrink": shrink,
    "verify": verify,
    "report": report,
    "diff": diff,
    "export": export,
    "zoo": zoo,
}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, made from the table of commands."""
    about = "Real, exact structured pruning for PyTorch."
    top = argparse.ArgumentParser("structprune", description=about, epilog=EXIT_CODES)
    top.add_argument("--version", action="version", version=f"structprune {__version__}")
    commands = top.add_subparsers(title="commands", metavar="command", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        own.set_defaults(command=name)
        command(own)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0 if it worked, 1 if a verification failed, 2 for wrong arguments,
    unusable files and whatever else structprune explains, 130 if it was interrupted."""
    arguments = parser().parse_args(argv)
    try:
        quiet()
        return int(arguments.run(arguments) or 0)
    except VerificationError as error:
        print(f"structprune: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (StructPruneError, OSError) as error:
        print(f"structprune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
