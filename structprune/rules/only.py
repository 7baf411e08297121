"""Values as if only some of their coordinates could lose anything: filters, say, and not their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..labels import IntArray, Labels
from ..nodes import Node


def among(labels: IntArray) -> Callable[[IntArray], bool]:
    """Whether a coordinate has any of these labels."""
    movable = labels[labels > 0]
    return lambda coordinate: bool(np.isin(coordinate, movable).any())


class Only(Mapping[Node, Any]):
    """Labels of values, of which only `chosen` coordinates go."""

    def __init__(self, values: Mapping[Node, Any], chosen: Callable[[IntArray], bool]) -> None:
        self.whole, self.chosen = values, chosen

    def __getitem__(self, node: Node) -> Any:
        found = self.whole[node]
        if isinstance(found, dict):
            return {i: self._of(part) for i, part in found.items()}
        return self._of(found)

    def _of(self, part: Any) -> Any:
        if not isinstance(part, Labels):
            return part
        return Labels(part.shape, tuple(filter(self.chosen, part.coordinates)))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)
