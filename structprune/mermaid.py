"""Mermaid: a diagram as text that GitHub draws."""

from __future__ import annotations

import colorsys

from .diagram import Diagram, Layer

FIRST, STEP = 210, 137.508  # degrees: successive groups get hues far apart


def hue(group: int) -> int:
    """The hue of a group's colour."""
    return round(FIRST + group * STEP) % 360


def flowchart(diagram: Diagram) -> str:
    """A flowchart from top to bottom: boxes with filters, circles where layers meet, a colour for each group."""
    lines = ["flowchart TD"]
    for i, layer in enumerate(diagram.layers):
        lines.append(f"    n{i}{_box(layer)}")
        lines += [f"    n{source} --> n{i}" for source in layer.inputs]
    for group, kind in enumerate(diagram.groups):
        members = [f"n{i}" for i, layer in enumerate(diagram.layers) if layer.group == group]
        if members:
            lines.append(f"    classDef g{group} fill:{_hex(hue(group))},stroke:#444,color:#111")
            lines.append(f"    class {','.join(members)} g{group}")
            lines.append(f"    %% g{group}: {kind.name}, {kind.units[0]} units")
    return "\n".join(lines)


def _box(layer: Layer) -> str:
    name = layer.name.replace('"', "'")
    before, after = layer.width
    if not before:
        return f'(["{name}"])' if layer.op in ("input", "output") else f'(("{layer.op}"))'
    return f'["{name}<br/>{layer.op}, {before if before == after else f"{before} to {after}"}"]'


def _hex(degrees: int) -> str:
    """A light colour of this hue; Mermaid's style lists are split at commas, so that hsl() cannot be written."""
    return "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hls_to_rgb(degrees / 360, 0.8, 0.6))
