"""structprune: PyTorch models made genuinely smaller, exactly."""

from . import callbacks, importance, regularize
from .api import Result, analyze, apply, explain, mask, prune
from .errors import (
    ArgumentError,
    ArgumentTypeError,
    ExampleInputsError,
    FileFormatError,
    MissingPackageError,
    NonFiniteError,
    NothingToPruneError,
    PlanError,
    StructPruneError,
    TargetError,
    UnknownNameError,
    UnsupportedModelError,
    VerificationError,
)
from .graph import ChannelGraph, Group, Slice
from .inflate import inflate
from .iterate import Step, iterate
from .latency import Latency
from .plan import PruningPlan
from .planning import plan
from .report import Report
from .sensitivity import Sensitivity, sensitivity
from .shrink import plan_from_masks, shrink
from .sparsity import Sparsity, sparsity
from .storage import load, save
from .swaps import register_swap
from .verify import Verification, verify
from .version import __version__

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "ChannelGraph",
    "ExampleInputsError",
    "FileFormatError",
    "Group",
    "Latency",
    "MissingPackageError",
    "NonFiniteError",
    "NothingToPruneError",
    "PlanError",
    "PruningPlan",
    "Report",
    "Result",
    "Sensitivity",
    "Slice",
    "Sparsity",
    "Step",
    "StructPruneError",
    "TargetError",
    "UnknownNameError",
    "UnsupportedModelError",
    "Verification",
    "VerificationError",
    "__version__",
    "analyze",
    "apply",
    "callbacks",
    "explain",
    "importance",
    "inflate",
    "iterate",
    "load",
    "mask",
    "plan",
    "plan_from_masks",
    "prune",
    "register_swap",
    "regularize",
    "save",
    "sensitivity",
    "shrink",
    "sparsity",
    "verify",
]
