"""Every claim, measured again.

    python -m benchmarks                      # all questions, one after the other
    python -m benchmarks latency coverage     # some of them
    python -m benchmarks --list               # which there are

What has a row in `results/` already is not measured again, unless `--redo` is given.
Each script takes options of its own: `python -m benchmarks.latency --help`.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from .harness import RESULTS

QUESTIONS = {
    "compat": "which models can be pruned, and is each equal to its masked original?",
    "coverage": "which models can each tool prune, and is the result equal to the masked original?",
    "analysis_speed": "how long does pruning take, and how much memory, next to Torch-Pruning?",
    "growth": "how does the time of pruning grow with depth and width?",
    "budgets": "are targets met, how closely, and how long does it take to plan?",
    "latency": "does it get faster?",
    "accuracy": "which importance keeps the most accuracy at equal MACs?",
    "accuracy_curves": "how accurate are pruned networks at 2 to 8 times fewer MACs?",
    "shrink": "how small do masked networks get?",
    "resnet18_cifar10": "how small does a trained and masked ResNet-18 get, and how accurate is it?",
}
# They train anew each time: they have nothing to skip.
WITHOUT_ROWS = ("resnet18_cifar10",)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "questions", nargs="*", metavar="question", help=f"all of them, or some of {', '.join(QUESTIONS)}"
    )
    parser.add_argument("--list", action="store_true", help="say which there are, and measure nothing")
    parser.add_argument("--redo", action="store_true", help="measure again what has rows")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.questions if name not in QUESTIONS]
    if unknown:
        parser.error(f"no question {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
    for name in options.questions or QUESTIONS:
        print(f"{name}: {QUESTIONS[name]}", flush=True)
        if not options.list:
            answer(name, options.redo)


def answer(name: str, redo: bool) -> None:
    """Measures what is missing, writes the table, and says where it is."""
    script = importlib.import_module(f"benchmarks.{name}")
    script.main(["--redo"] if redo and name not in WITHOUT_ROWS else [])
    for path in sorted(RESULTS.glob(f"{name}.*")):
        print(f"  {path}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
