"""Schedules: how much of the final cut has been made after each of several steps."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any

from .errors import ArgumentError, ArgumentTypeError

Schedule = Callable[[float, float], float]


def linear(progress: float, final: float) -> float:
    """As much at every step."""
    return final * progress


def cubic(progress: float, final: float) -> float:
    """Much at first, little at the end: Zhu & Gupta, "To Prune, or Not to Prune", ICLR Workshop 2018 (AGP)."""
    return final * (1 - (1 - progress) ** 3)


def exponential(progress: float, final: float) -> float:
    """The same fraction of what is left at every step: 1 - (1 - r)^n in all."""
    return 1.0 - (1.0 - final) ** progress


SCHEDULES: dict[str, Schedule] = {"linear": linear, "cubic": cubic, "exponential": exponential}


def find_schedule(schedule: Any) -> Schedule:
    """A schedule by its name, or the function itself: (progress in (0, 1], final cut) -> cut."""
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ArgumentError(
                f"schedule must be one of {', '.join(map(repr, SCHEDULES))} or a function, not {schedule!r}"
            )
        return SCHEDULES[schedule]
    if not callable(schedule):
        raise ArgumentTypeError(f"schedule must be a name or a function of progress and final cut, not {schedule!r}")
    return schedule


MOST = 10**6  # steps of which a schedule is asked


def check_steps(steps: Any) -> None:
    """Raises ArgumentTypeError or ArgumentError for what is no number of steps."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise ArgumentTypeError(f"steps must be a whole number from 1, not {steps!r}")
    if not 1 <= steps <= MOST:
        raise ArgumentError(f"steps must be a whole number from 1 to {MOST}; {reprlib.repr(steps)} was given")


def cuts(schedule: Any, steps: Any, final: float) -> list[float]:
    """The fraction removed after each step; the last is `final`. Raises ArgumentError if they do not grow to it."""
    check_steps(steps)
    function = find_schedule(schedule)
    found = [_number(function((i + 1) / steps, final)) for i in range(steps)]
    rising = all(a <= b + 1e-12 for a, b in zip([0.0, *found], found, strict=False))
    if not rising or abs(found[-1] - final) > 1e-9:
        raise ArgumentError(f"schedule must rise from 0 to {final}; it gave {found}")
    return found


def _number(cut: Any) -> float:
    try:
        return float(cut)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentTypeError(f"schedule must return the fraction to cut, not {cut!r}") from error
