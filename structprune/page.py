"""The frame of a page: one file without a network, light or dark as its reader likes."""

from __future__ import annotations

from html import escape

STYLE = """
:root { color-scheme: light dark; --bg: #fdfdfc; --ink: #1b1c1e; --faint: #63666b; --line: #dfe0e2; --card: #f2f2f0;
  --good: #1a7f37; --bad: #b42318; --light: 42%; --pale: 84%; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #17181a; --ink: #e9eaec; --faint: #9b9fa6; --line: #34363a; --card: #212327;
    --good: #4cc26b; --bad: #ff8a7a; --light: 62%; --pale: 27%; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem 1rem 6rem; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; max-width: 46rem; }
.faint { color: var(--faint); }
.good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.3; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92em; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--faint); font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
"""


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole document. The policy in its head forbids it to load anything."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n"
        f"{f'<script>{script}</script>' if script else ''}\n</body>\n</html>\n"
    )


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A table; the cells are HTML already, and a heading that begins with `>` is one of numbers."""
    marks = [' class="number"' if heading.startswith(">") else "" for heading in headings]
    head = "".join(f"<th{m}>{escape(h.lstrip('>'))}</th>" for m, h in zip(marks, headings, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{m}>{cell}</td>" for m, cell in zip(marks, row, strict=True)) + "</tr>" for row in rows
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
