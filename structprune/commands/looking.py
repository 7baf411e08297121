"""Commands that look at a model and change nothing: inspect, explain."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .. import cost
from ..api import analyze
from ..graph import ChannelGraph
from .common import add_json, add_model, load_model, show


def inspect(parser: argparse.ArgumentParser) -> None:
    """Show what could be removed from a model: the groups of channels that go together, and what is fixed, and why."""
    add_model(parser)
    add_json(parser)
    parser.add_argument("--mermaid", action="store_true", help="print the channel graph as a Mermaid flowchart")
    parser.epilog = "example: structprune inspect torchvision:resnet18"

    def run(arguments: argparse.Namespace) -> None:
        loaded = load_model(arguments)
        graph = analyze(loaded.model, loaded.inputs)
        if arguments.mermaid:
            print(graph.to_mermaid())
        else:
            show(arguments, lambda: summary(graph), lambda: _tables(str(loaded.spec), graph))

    parser.set_defaults(run=run)


def summary(graph: ChannelGraph) -> dict[str, Any]:
    """What `inspect` tells, as plain data."""
    return {
        "params": cost.parameters(graph),
        "macs": cost.macs(graph),
        "groups": [
            {
                "name": group.name,
                "units": len(group),
                "slices": [{"name": s.name, "dim": s.dim, "produces": s.produces} for s in group.slices],
            }
            for group in graph.groups
        ],
        "fixed": graph.fixed,
    }


def _tables(title: str, graph: ChannelGraph) -> Group:
    found = summary(graph)
    head = f"{title}: {found['params']:,} parameters, {found['macs']:,} MACs"
    groups = Table(title="what can be removed", title_justify="left")
    for heading, justify in (("group", "left"), ("units", "right"), ("filters of", "left"), ("read by", "left")):
        groups.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for group in graph.groups:
        made = _layers([s.name for s in group.slices if s.produces])
        used = [name for name in _layers([s.name for s in group.slices if not s.produces]) if name not in made]
        groups.add_row(group.name, str(len(group)), _few(made), _few(used))
    fixed = Table(title="what is fixed, and why", title_justify="left")
    fixed.add_column("dimension")
    fixed.add_column("reason")
    for reason, names in _by_reason(graph.fixed).items():
        fixed.add_row(_few(names), Text(reason))
    return Group(head, *([groups] if graph.groups else ["nothing can be removed"]), fixed)


def _layers(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _few(names: list[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _by_reason(fixed: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in fixed.items():
        found.setdefault(reason, []).append(name)
    return found


def explain(parser: argparse.ArgumentParser) -> None:
    """Say what a layer is coupled to, and through which operations, or why it cannot shrink."""
    add_model(parser)
    parser.add_argument(
        "layer", metavar="LAYER", help="a layer, a parameter or a dimension: conv1, conv1.weight, conv1.weight[0]"
    )
    add_json(parser)
    parser.epilog = "example: structprune explain torchvision:resnet18 layer1.0.conv1"

    def run(arguments: argparse.Namespace) -> None:
        loaded = load_model(arguments)
        text = analyze(loaded.model, loaded.inputs).explain(arguments.layer)
        show(arguments, lambda: {"name": arguments.layer, "explanation": text.splitlines()}, lambda: text)

    parser.set_defaults(run=run)
