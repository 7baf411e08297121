"""The report of a pruning: printed as a table, or as a dict."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .diagram import Diagram
from .errors import ArgumentError, ArgumentTypeError, FileFormatError
from .html import report_page
from .storage import path_of, write
from .verify import Comparison, Verification


@dataclass(frozen=True)
class Loss:
    """What a layer lost when element masks became channel masks: channels, and L1 mass of what the masks had left."""

    channels: int
    of: int
    mass: float  # between 0 and 1


@dataclass(frozen=True)
class Report:
    """What a pruning did: sizes before and after, widths by layer, verification, and what stayed, with reasons."""

    params: tuple[int, int]
    macs: tuple[int, int]
    widths: dict[str, tuple[int, int]]
    verification: Verification | None
    find_fixed: Callable[[], dict[str, str]]
    notes: tuple[str, ...]
    seconds: float
    lost: dict[str, Loss] = field(default_factory=dict)  # by layer: what `shrink(..., structured="promote")` gave up
    deviation: float | None = None  # and by how much the outputs changed, max|a - b| / max|b|
    find_diagram: Callable[[], Diagram] = Diagram

    @property
    def fixed(self) -> dict[str, str]:
        """What could not shrink, with the reason; looked up when it is asked for."""
        return self.find_fixed()

    @property
    def diagram(self) -> Diagram:
        """The layers, what feeds what, the groups, and what blocks further savings; looked up, too."""
        return self.find_diagram()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "params": list(self.params),
            "macs": list(self.macs),
            "widths": {name: list(pair) for name, pair in self.widths.items()},
            "verification": None if self.verification is None else asdict(self.verification),
            "fixed": self.fixed,
            "notes": list(self.notes),
            "seconds": self.seconds,
            "lost": {name: vars(loss) for name, loss in self.lost.items()},
            "deviation": self.deviation,
            "diagram": self.diagram.to_dict(),
        }

    @staticmethod
    def from_dict(data: Any) -> Report:
        """The inverse of `to_dict`, before or after JSON; raises FileFormatError for anything else."""
        try:
            check, diagram = _verification(data["verification"]), Diagram.from_dict(data["diagram"])
            fixed = {str(name): str(why) for name, why in dict(data["fixed"]).items()}
            widths = {name: (int(before), int(after)) for name, (before, after) in data["widths"].items()}
            (params, left), (macs, spent) = data["params"], data["macs"]
            sizes = ((int(params), int(left)), (int(macs), int(spent)))
            rest = (tuple(map(str, data["notes"])), float(data["seconds"]))
            lost = {name: Loss(**loss) for name, loss in data["lost"].items()}
            deviation = _or_none(float, data["deviation"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"this is no report of structprune: {type(error).__name__}: {error}") from error
        return Report(*sizes, widths, check, lambda: fixed, *rest, lost, deviation, lambda: diagram)

    def to_html(self, path: str | os.PathLike[str], *, title: str = "A pruned model") -> None:
        """Writes the report as one page that opens from disk, without a network: costs, every layer with its widths
        beside a drawing of what feeds what, the verification, and what blocks further savings. A file that is there is
        replaced. Raises ArgumentError for a folder, ArgumentTypeError, and OSError if it cannot be written.

        >>> result.report.to_html("report.html", title="resnet18")
        """
        target = path_of(path)
        if not isinstance(title, str):
            raise ArgumentTypeError(f"title must be a text, not {title!r}")
        if target.is_dir():
            raise ArgumentError(f"{target} is a folder; name a file")
        text = report_page(title, self.to_dict(), self.diagram)
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, lambda at: at.write_text(text, encoding="utf-8"))

    def __rich__(self) -> Table:
        table = Table(title="structprune", title_justify="left", caption=Text(self._caption()), caption_justify="left")
        table.add_column("layer")
        for heading in ("before", "after"):
            table.add_column(heading, justify="right")
        for name, (before, after) in self.widths.items():
            table.add_row(Text(name), str(before), str(after))
        table.add_section()
        for name, (before, after) in {"parameters": self.params, "MACs": self.macs}.items():
            table.add_row(name, f"{before:,}", f"{after:,} ({after / max(before, 1):.0%})")
        return table

    def _caption(self) -> str:
        reasons: dict[str, int] = {}
        for why in (text.partition(" (")[0] for text in self.fixed.values()):
            reasons[why] = reasons.get(why, 0) + 1
        kept = [f"kept, {count} x: {why}" for why, count in sorted(reasons.items(), key=lambda item: -item[1])[:5]]
        lost = []
        if self.lost:
            channels = sum(loss.channels for loss in self.lost.values())
            lost = [
                f"{channels} channels whose masks had left little went as well: outputs changed by {self.deviation:.1%}"
            ]
        return "\n".join([str(self.verification or "not verified"), *lost, *self.notes, *kept])

    def __str__(self) -> str:
        console = Console(width=100, no_color=True)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def _or_none(kind: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else kind(value)


def _verification(data: Any) -> Verification | None:
    """What a file says of a verification, every part of its kind."""
    if data is None:
        return None
    if not isinstance(data["message"], str):
        raise TypeError("the message of a verification is a text")
    comparisons = tuple(
        Comparison(
            str(c["mode"]), str(c["dtype"]), str(c["device"]), _or_none(int, c["batch"]), float(c["max_abs_error"]),
            float(c["max_rel_error"]), float(c["tolerance"]),
        )
        for c in data["comparisons"]
    )  # fmt: skip
    return Verification(
        bool(data["ok"]), float(data["max_abs_error"]), float(data["max_rel_error"]),
        _or_none(str, data["first_difference"]), comparisons, data["message"], _or_none(float, data["deviation"]),
    )  # fmt: skip
