"""What can go wrong, one class for each thing a caller may handle."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StructPruneError(Exception):
    """Base of everything structprune raises on purpose."""


class ArgumentError(StructPruneError, ValueError):
    """An argument has the right type and an impossible value."""


class ArgumentTypeError(StructPruneError, TypeError):
    """An argument has the wrong type."""


class UnknownNameError(StructPruneError, KeyError):
    """A pattern or a layer name matches nothing in the model."""

    def __str__(self) -> str:  # KeyError would show the repr of its message
        return str(self.args[0])


class UnsupportedModelError(StructPruneError, TypeError):
    """The model is of a kind that cannot be pruned as it is; the message says what to pass instead."""


class ExampleInputsError(StructPruneError, ValueError):
    """The model does not run on the example inputs."""


class NonFiniteError(StructPruneError, ValueError):
    """A parameter holds NaN or infinity, so that no ranking of it means anything."""


class NothingToPruneError(StructPruneError, ValueError):
    """Everything in the model is fixed or excluded; the message counts the reasons."""


class TargetError(StructPruneError, ValueError):
    """A target cannot be met, even if everything goes that may; the message says what is in the way."""


class PlanError(StructPruneError, ValueError):
    """A plan is malformed, or belongs to another model."""


class VerificationError(StructPruneError, RuntimeError):
    """The pruned model differs from the masked original, or the two cannot be compared."""


class FileFormatError(StructPruneError, ValueError):
    """A file on disk is not what it should be."""


class MissingPackageError(StructPruneError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def closest(name: str, known: Iterable[str]) -> str:
    """A clause that names the known names nearest to `name`."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"the closest are {', '.join(map(repr, near))}" if near else f"there are {len(known)} names, none like it"
