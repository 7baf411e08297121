"""structprune: PyTorch models made genuinely smaller, exactly."""

from . import importance, regularize
from .api import Result, analyze, apply, explain, mask, prune, verify
from .errors import (
    ArgumentError,
    ArgumentTypeError,
    ExampleInputsError,
    FileFormatError,
    NonFiniteError,
    NothingToPruneError,
    PlanError,
    StructPruneError,
    UnknownNameError,
    UnsupportedModelError,
    VerificationError,
)
from .graph import ChannelGraph, Group, Slice
from .plan import PruningPlan
from .planning import plan
from .report import Report
from .storage import load, save
from .verify import Verification
from .version import __version__

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "ChannelGraph",
    "ExampleInputsError",
    "FileFormatError",
    "Group",
    "NonFiniteError",
    "NothingToPruneError",
    "PlanError",
    "PruningPlan",
    "Report",
    "Result",
    "Slice",
    "StructPruneError",
    "UnknownNameError",
    "UnsupportedModelError",
    "Verification",
    "VerificationError",
    "__version__",
    "analyze",
    "apply",
    "explain",
    "importance",
    "load",
    "mask",
    "plan",
    "prune",
    "regularize",
    "save",
    "verify",
]
