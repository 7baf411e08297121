"""The report of a pruning: printed as a table, or as a dict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from .verify import Verification


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

    @property
    def fixed(self) -> dict[str, str]:
        """What could not shrink, with the reason; looked up when it is asked for."""
        return self.find_fixed()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        check = self.verification
        return {
            "params": list(self.params),
            "macs": list(self.macs),
            "widths": {name: list(pair) for name, pair in self.widths.items()},
            "verification": None if check is None else {
                "ok": check.ok, "max_abs_error": check.max_abs_error, "max_rel_error": check.max_rel_error,
                "first_difference": check.first_difference, "deviation": check.deviation,
                "comparisons": [vars(c) for c in check.comparisons],
            },
            "fixed": self.fixed,
            "notes": list(self.notes),
            "seconds": self.seconds,
            "lost": {name: vars(loss) for name, loss in self.lost.items()},
            "deviation": self.deviation,
        }  # fmt: skip

    def __rich__(self) -> Table:
        table = Table(title="structprune", title_justify="left", caption=self._caption(), caption_justify="left")
        table.add_column("layer")
        for heading in ("before", "after"):
            table.add_column(heading, justify="right")
        for name, (before, after) in self.widths.items():
            table.add_row(name, str(before), str(after))
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
