"""The table of a zoo, as Markdown, CSV and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .job import Row
from .page import page, table
from .storage import write

COLUMNS = ("model", "status", "parameters", "left", "MACs", "left", "error", "seconds", "what keeps the rest")


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Writes `zoo.md`, `zoo.csv` and `zoo.html`, sorted by model."""
    rows = sorted(rows, key=lambda row: str(row["model"]))
    for name, text in (("zoo.md", markdown(rows)), ("zoo.csv", as_csv(rows)), ("zoo.html", html(rows))):
        write(folder / name, lambda at, text=text: at.write_text(text, encoding="utf-8"))  # type: ignore[misc]


def cells(row: Row) -> list[str]:
    """A row as it is shown."""
    if row["status"] != "pruned":
        return [row["model"], row["status"], "", "", "", "", "", "", row["reason"]]
    figures = [
        text for before, after in (row["params"], row["macs"]) for text in (f"{before:,}", _share(after, before))
    ]
    error = "" if row["error"] is None else f"{row['error']:.0e}"
    return [row["model"], row["status"], *figures, error, f"{row['seconds']:.1f}", row["blocker"]]


def _share(after: int, before: int) -> str:
    return f"{after / before:.1%}" if before else ""


def summary(rows: Sequence[Row]) -> str:
    """`3 of 4 models pruned and verified`"""
    done = sum(row["status"] == "pruned" for row in rows)
    return f"{done} of {len(rows)} models pruned and verified"


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [COLUMNS, *[["---", "---", *["--:"] * 6, "---"]], *[[_plain(c) for c in cells(row)] for row in rows]]
    return f"# {summary(rows)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _plain(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def as_csv(rows: Sequence[Row]) -> str:
    """A table for other programs: plain numbers, a column for each."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "status", "params", "params_left", "macs", "macs_left", "error", "seconds", "reason"])
    for row in rows:
        figures = [
            *row.get("params", ["", ""]),
            *row.get("macs", ["", ""]),
            row.get("error", ""),
            row.get("seconds", ""),
        ]
        writer.writerow([row["model"], row["status"], *figures, row.get("reason", row.get("blocker", ""))])
    return out.getvalue()


def html(rows: Sequence[Row]) -> str:
    """A page."""
    marked = [f">{name}" if 2 <= i <= 7 else name for i, name in enumerate(COLUMNS)]
    body = [f"<h1>{escape(summary(rows))}</h1>", table(marked, [[escape(c) for c in cells(row)] for row in rows])]
    return page("A zoo of pruned models", "\n".join(body), "body { max-width: 90rem; }")
