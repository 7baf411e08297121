"""Importance: how much each unit of a group matters. Any function of a group will do.

An importance takes a `Group` and returns one score for each of its units, in their order; a higher score stays.
Beside being called it may have

- `normalize`, how `scope="global"` makes groups comparable (see `normalized`; `"mean"` if there is none), and
- `prepare(graph)`, which the planner calls once before it asks for scores: the place to run the model on data.

>>> def width(group):                                    # your own: the units of later groups go first
...     return numpy.full(len(group), float(len(group)))
>>> plan = structprune.plan(graph, importance=width)
"""

from __future__ import annotations

from collections.abc import Callable

from .activations import FLAP, ActivationCriterion, ActivationNorm, Wanda
from .base import Criterion, Importance, Scores, slice_norms
from .gradients import OBD, Fisher, LossCriterion, Taylor
from .normalization import NORMALIZATIONS, normalization_of, normalized
from .weights import FPGM, L1, L2, LAMP, BNScale, Random

NAMED: dict[str, Callable[[], Importance]] = {
    "l1": L1,
    "l2": L2,
    "fpgm": FPGM,
    "bn_scale": BNScale,
    "lamp": LAMP,
    "random": Random,
}

__all__ = [
    "FLAP",
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "NAMED",
    "NORMALIZATIONS",
    "OBD",
    "ActivationCriterion",
    "ActivationNorm",
    "BNScale",
    "Criterion",
    "Fisher",
    "Importance",
    "LossCriterion",
    "Random",
    "Scores",
    "Taylor",
    "Wanda",
    "normalization_of",
    "normalized",
    "slice_norms",
]
