"""Normalisation: scores of different groups made comparable, so that they can be ranked together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..graph import Group

Scores = npt.NDArray[np.float64]
TINY = float(np.finfo(np.float64).tiny)


def _none(scores: Scores) -> Scores:
    return scores


def _mean(scores: Scores) -> Scores:
    return scores / max(float(np.abs(scores).mean()), TINY)


def _max(scores: Scores) -> Scores:
    return scores / max(float(np.abs(scores).max()), TINY)


def _standardise(scores: Scores) -> Scores:
    spread = float(scores.std())
    alike = spread <= 1e-12 * float(np.abs(scores).max())  # what is left of equal scores is rounding
    return np.zeros_like(scores) if alike else (scores - scores.mean()) / spread


_EACH: dict[str, Callable[[Scores], Scores]] = {
    "none": _none,
    "mean": _mean,
    "max": _max,
    "standardise": _standardise,
}
NORMALIZATIONS = (*_EACH, "isomorphic")


def normalization_of(importance: Any) -> str:
    """How the scores of an importance are to be made comparable: its attribute `normalize`, by default `"mean"`.

    Raises ArgumentError if that is not one of the ways there are.
    """
    how = getattr(importance, "normalize", "mean")
    if how not in NORMALIZATIONS:
        raise ArgumentError(f"normalize must be one of {', '.join(map(repr, NORMALIZATIONS))}, not {how!r}")
    return how


def normalized(groups: Sequence[Group], scores: Sequence[Scores], how: str) -> list[Scores]:
    """The scores of all groups on one scale; the order within a group stays.

    Args:
        scores: one array for each group, one score for each unit.
        how: `"none"`; `"mean"` and `"max"` divide by the mean or the largest magnitude in the group;
            `"standardise"` subtracts the group's mean and divides by its standard deviation, as FLAP does (An et
            al., AAAI 2024); `"isomorphic"` ranks the units of all groups of the same structure together, each score
            over the mean of its group, and a score becomes the fraction of them that score less: the same share goes
            from every kind of structure, as in Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024. Groups
            are isomorphic if the same operations read their parameters, in the same roles.

    Raises ArgumentError for any other `how`.
    """
    if how in _EACH:
        return [_EACH[how](np.asarray(values, np.float64)) for values in scores]
    if how != "isomorphic":
        raise ArgumentError(f"normalize must be one of {', '.join(map(repr, NORMALIZATIONS))}, not {how!r}")
    alike: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        alike.setdefault(structure(group), []).append(i)
    found: dict[int, Scores] = {}
    for members in alike.values():
        pool = np.concatenate([_mean(np.asarray(scores[i], np.float64)) for i in members])  # or a weak layer goes whole
        ends = np.cumsum([len(scores[i]) for i in members])
        found.update(zip(members, np.split(_quantiles(pool), ends[:-1]), strict=True))
    return [found[i] for i in range(len(groups))]


def _quantiles(scores: Scores) -> Scores:
    """The fraction of scores below each, and half of those equal to it."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    quantiles: Scores = (np.cumsum(counts) - counts / 2)[place] / len(scores)
    return quantiles


def structure(group: Group) -> Hashable:
    """The operations that a group's parameters take part in, with their roles; equal for isomorphic groups."""
    return frozenset((part.reader, part.dim, part.produces, part.consumes) for part in group.slices)
