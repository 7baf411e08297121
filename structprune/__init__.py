"""structprune: PyTorch models made genuinely smaller, exactly."""

from . import importance
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
from .shrink import plan_from_masks, shrink
from .sparsity import Sparsity, sparsity
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
    "Sparsity",
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
    "plan_from_masks",
    "prune",
    "save",
    "shrink",
    "sparsity",
    "verify",
]
