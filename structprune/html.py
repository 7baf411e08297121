"""The report as a page: costs, the layers with their widths beside a drawing of what feeds what, verification, and
what blocks further savings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .diagram import Blocker, Diagram, Layer
from .mermaid import hue
from .page import page, table

ROW = 30  # pixels
LANES = 9  # of edges that pass by other layers; what needs more shares the last one
LANE = 9  # pixels

STYLE = f"""
.map {{ display: flex; border-top: 1px solid var(--line); }}
.map svg {{ flex: none; display: block; }}
.map ol {{ flex: 1; min-width: 0; list-style: none; margin: 0; padding: 0; }}
.row {{ display: grid; width: 100%; height: {ROW}px; align-items: center; gap: .6rem; padding: 0 .3rem; border: 0;
  grid-template-columns: minmax(6rem, 15rem) 6.2rem minmax(3rem, 1fr) 6rem; border-radius: .3rem; font: inherit;
  background: none; color: inherit; text-align: left; cursor: pointer; }}
.row:hover, .row:focus-visible, .row.picked {{ background: var(--card); outline: none; }}
.row.kin {{ box-shadow: inset 3px 0 hsl(var(--hue) 70% var(--light)); }}
.name {{ overflow: hidden; white-space: nowrap; text-overflow: ellipsis; direction: rtl; text-align: left; }}
.meet .name {{ grid-column: 1 / -1; color: var(--faint); }}
.widths, .macs {{ white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; font-size: .9em; }}
.macs {{ color: var(--faint); }}
.bar {{ display: block; height: 12px; border-radius: 3px; min-width: 2px;
  background: hsl(var(--hue) 45% var(--pale)); }}
.bar i {{ display: block; height: 100%; border-radius: 3px; background: hsl(var(--hue) 60% var(--light)); }}
.bar.held, .bar.held i {{ background: var(--line); }} .bar.held i {{ background: var(--faint); }}
.map path {{ fill: none; stroke-width: 2; }}
.group {{ stroke: hsl(var(--hue) 60% var(--light)); fill: hsl(var(--hue) 60% var(--light)); }}
.plain {{ stroke: var(--faint); fill: var(--faint); }}
circle.hollow {{ fill: var(--bg); stroke-width: 2; }}
#panel {{ position: fixed; left: 0; right: 0; bottom: 0; max-height: 45vh; overflow: auto; background: var(--card);
  border-top: 1px solid var(--line); padding: .8rem max(1rem, calc(50vw - 30rem)) 1rem; }}
#panel[hidden] {{ display: none; }}
#panel button {{ float: right; font: inherit; border: 1px solid var(--line); background: var(--bg); color: inherit;
  border-radius: .3rem; }}
#panel p {{ overflow-wrap: anywhere; }}
details summary {{ cursor: pointer; }}
@media (max-width: 40rem) {{ .row {{ grid-template-columns: minmax(4rem, 1fr) 5.6rem minmax(2rem, 22%); gap: .4rem; }}
  .macs {{ display: none; }} }}
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const rows = [...document.querySelectorAll(".row")], panel = document.getElementById("panel");
function line(text, strong) {
  const p = document.createElement("p");
  p.append(strong ? Object.assign(document.createElement("strong"), {textContent: text}) : text);
  panel.append(p);
}
function close() {
  panel.hidden = true;
  rows.forEach(row => row.classList.remove("picked", "kin"));
}
function pick(i) {
  close();
  const group = data.layers[i].group;
  rows.forEach((row, j) => row.classList.toggle("kin", group >= 0 && data.layers[j].group === group));
  rows[i].classList.add("picked");
  const button = Object.assign(document.createElement("button"), {textContent: "close", onclick: close});
  panel.replaceChildren(button);
  data.layers[i].text.forEach((text, n) => line(text, n === 0));
  if (group >= 0) data.groups[group].forEach(text => line(text));
  panel.hidden = false;
}
rows.forEach((row, i) => row.addEventListener("click", () => pick(i)));
document.addEventListener("keydown", event => { if (event.key === "Escape") close(); });
"""


def report_page(title: str, data: Mapping[str, Any], diagram: Diagram) -> str:
    """The page of a report, given as `Report.to_dict` makes it."""
    parts = [
        f'<h1>{escape(title)}</h1><p class="faint">pruned by structprune</p>',
        _tiles(data),
        "<h2>Layers</h2>" + _legend(diagram) + _map(diagram),
        "<h2>What keeps the rest</h2>" + _blockers(diagram.blockers, data["macs"][1]),
        "<h2>Verification</h2>" + _verification(data["verification"]),
        "".join(f"<p>{escape(note)}</p>" for note in data["notes"]),
        '<div id="panel" role="status" hidden></div>',
        f'<script type="application/json" id="data">{_embedded(diagram)}</script>',
    ]
    return page(title, "\n".join(parts), STYLE, SCRIPT)


def _tiles(data: Mapping[str, Any]) -> str:
    tiles = []
    for name, key in (("parameters", "params"), ("MACs", "macs")):
        before, after = data[key]
        share = f"{after / max(before, 1):.0%}"
        tiles.append(f'<div class="tile">{name}<b>{share}</b><span class="faint">{before:,} → {after:,}</span></div>')
    check = data["verification"]
    word, mark = (
        ("not verified", "faint") if check is None else ("equal", "good") if check["ok"] else ("DIFFERS", "bad")
    )
    about = "" if check is None else f"within {check['max_rel_error']:.1e} of the largest output, in float64"
    tiles.append(
        f'<div class="tile">against the masked original<b class="{mark}">{word}</b>'
        f'<span class="faint">{about}</span></div>'
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _legend(diagram: Diagram) -> str:
    return (
        '<p class="faint">In the order they run, from top to bottom. Layers of one colour are a group, '
        f"{len(diagram.groups)} in all: their channels go together. Rings are where several layers meet. Grey filters "
        "stay. The bar is the width before, and in it the width after. Tap a layer for what it is coupled to.</p>"
    )


# -- the map ----------------------------------------------------------------------------------------------------


def _map(diagram: Diagram) -> str:
    widest = max((layer.width[0] for layer in diagram.layers), default=1) or 1
    rows = "".join(f"<li>{_row(layer, widest)}</li>" for layer in diagram.layers)
    return f'<div class="map">{_drawing(diagram.layers)}<ol>{rows}</ol></div>'


def _row(layer: Layer, widest: int) -> str:
    before, after = layer.width
    style = f' style="--hue:{hue(layer.group)}"' if layer.group >= 0 else ""
    if not before:
        name = layer.name if layer.name == layer.op else f"{layer.op} · {layer.name}"
        return f'<button class="row meet"{style}><span class="name"><bdi>{escape(name)}</bdi></span></button>'
    widths = f"{before} → {after}" if before != after else str(before)
    inner = f'<i style="width:{100 * after / before:.1f}%"></i>'
    held = "" if layer.group >= 0 else " held"
    return (
        f'<button class="row"{style}><span class="name"><bdi>{escape(layer.name)}</bdi></span>'
        f'<span class="widths">{widths}</span>'
        f'<span><span class="bar{held}" style="width:{100 * before / widest:.1f}%">{inner}</span></span>'
        f'<span class="macs">{_short(layer.macs[1]) if layer.macs[1] else ""}</span></button>'
    )


def _short(count: int) -> str:
    """`1.8 G MACs`"""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter} MACs"
    return f"{count} MACs"


def lanes(layers: Sequence[Layer]) -> dict[tuple[int, int], int]:
    """For each edge between layers, how far out it runs: 0 for neighbours, else the first lane that is free."""
    edges = [(source, i) for i, layer in enumerate(layers) for source in layer.inputs]
    ends: list[list[tuple[int, int]]] = [[] for _ in range(LANES)]
    found = {}
    for start, end in sorted(edges, key=lambda edge: (edge[1] - edge[0], edge)):
        free = (
            lane for lane, taken in enumerate(ends, 1) if lane == LANES or all(end <= a or start >= b for a, b in taken)
        )
        found[start, end] = lane = 0 if end - start == 1 else next(free)
        if lane:
            ends[lane - 1].append((start, end))
    return found


def _drawing(layers: Sequence[Layer]) -> str:
    """Dots for layers, and an arc for whatever passes by a layer."""
    where = lanes(layers)
    middle = LANE * max(where.values(), default=0) + 8
    lines = []
    for (start, end), lane in where.items():
        a, b = (ROW * i + ROW // 2 for i in (start, end))
        out = middle - LANE * lane
        route = (
            f"M{middle},{a}V{b}"
            if not lane
            else f"M{middle},{a}Q{out},{a} {out},{a + 14}V{b - 14}Q{out},{b} {middle},{b}"
        )
        lines.append(f'<path d="{route}" {_colour(layers[start])}/>')
    for i, layer in enumerate(layers):
        ring = ' class="hollow"' if not layer.width[0] else ""
        radius = 5 if layer.width[0] else 4
        colour = _colour(layer, "hollow" if ring else "")
        lines.append(f'<circle cx="{middle}" cy="{ROW * i + ROW // 2}" r="{radius}" {colour}/>')
    width, height = middle + 9, ROW * len(layers)
    label = "the channel graph: every layer, and what feeds it"
    return f'<svg width="{width}" height="{height}" role="img" aria-label="{label}">{"".join(lines)}</svg>'


def _colour(layer: Layer, mark: str = "") -> str:
    if layer.group < 0:
        return f'class="plain {mark}"'
    return f'class="group {mark}" style="--hue:{hue(layer.group)}"'


# -- words ------------------------------------------------------------------------------------------------------


def _embedded(diagram: Diagram) -> str:
    """What a click tells, as JSON that cannot end the script it lies in."""
    groups = []
    for kind in diagram.groups:
        told = [f"The group {kind.name}: {kind.units[0]} units, {kind.units[1]} of them are left."]
        told.append(f"Filters of: {', '.join(kind.filters)}.")
        told += [f"Coupled by: {'; '.join(kind.through)}."] if kind.through else []
        told += [f"Cut along with them: {', '.join(kind.readers)}."] if kind.readers else []
        groups.append(told)
    layers = [{"group": layer.group, "text": _told(layer)} for layer in diagram.layers]
    return json.dumps({"layers": layers, "groups": groups}).replace("<", "\\u003c")


def _told(layer: Layer) -> list[str]:
    told = [layer.name, f"{layer.op}{f' at {layer.source}' if layer.source else ''}"]
    if layer.macs[0]:
        told[1] += f", {layer.macs[0]:,} → {layer.macs[1]:,} MACs"
    if layer.width[0] and layer.group < 0:
        told.append(f"Its filters stay: {layer.fixed or 'nothing can go'}.")
    return told


def _blockers(blockers: Sequence[Blocker], macs: int) -> str:
    if not blockers:
        return "<p>Nothing: every channel may go.</p>"
    rows = []
    for blocker in blockers:
        dims = ", ".join(f"<code>{escape(dim)}</code>" for dim in blocker.dims[:4])
        more = f" and {len(blocker.dims) - 4} more" if len(blocker.dims) > 4 else ""
        share = f"{blocker.macs / max(macs, 1):.1%}"
        rows.append([f"{escape(blocker.reason)}", dims + more, f"{blocker.macs:,}", share])
    about = '<p class="faint">Each reason, with the MACs that the layers it touches still take, most first.</p>'
    return about + table(["reason", "keeps", ">MACs", ">share"], rows)


def _verification(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return "<p>The smaller model was not compared with the masked original.</p>"
    errors = ("max_abs_error", "max_rel_error", "tolerance")
    rows = [
        [c["mode"], c["dtype"], c["device"], str(c["batch"] or ""), *(f"{c[key]:.1e}" for key in errors)]
        for c in check["comparisons"]
    ]
    headings = ["mode", "dtype", "device", ">batch", ">absolute error", ">relative error", ">tolerance"]
    return f"<p>{escape(check['message'])}</p>" + (table(headings, rows) if rows else "")
