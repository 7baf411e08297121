"""Swaps: rigid classes, and the subclasses with free sizes that take their place after surgery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .compensation import compensated
from .counting import COUNTED, counted, ghosts, places_of
from .errors import ArgumentError, ArgumentTypeError
from .nn import MultiheadAttention
from .rewriting import REWRITE, rewritten

NORM = "norm"  # the number is how many channels the statistics count
BIAS = "bias"  # the number is how long the bias is
_OWN = (NORM, COUNTED, REWRITE, BIAS)


@dataclass(frozen=True)
class Swap:
    """`free` takes the place of modules that are exactly `rigid`."""

    name: str
    rigid: type[nn.Module]
    free: type[nn.Module]


_SWAPS: dict[str, Swap] = {}


def register_swap(rigid: type[nn.Module], free: type[nn.Module], *, name: str = "") -> None:
    """Registers a subclass that takes any size, for a class of your own whose `forward` has sizes written into it.

    Modules that are exactly `rigid` have the class `free` while a model is traced, and in the pruned model if they lost
    anything; their parameters and attributes stay. Both classes must compute the same.

    >>> class Free(Rigid):
    ...     def forward(self, x):                            # Rigid.forward says x.view(len(x), 8, 64)
    ...         return x.view(len(x), self.heads, -1)
    >>> structprune.register_swap(Rigid, Free)

    Args:
        name: what plans call the swap; by default the qualified name of `rigid`. A plan that names a swap can be
            loaded only where it is registered.

    Raises ArgumentTypeError unless `free` is a subclass of `rigid` with a `forward` of its own, and ArgumentError
    if another swap has the name or the class.
    """
    for kind in (rigid, free):
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ArgumentTypeError(f"register_swap takes two classes of modules, not {kind!r}")
    if not issubclass(free, rigid) or free.forward is rigid.forward:
        raise ArgumentTypeError(
            f"{free.__name__} must be a subclass of {rigid.__name__} with a forward of its own to take its place"
        )
    swap = Swap(name or f"{rigid.__module__}.{rigid.__qualname__}", rigid, free)
    for known in (_SWAPS.get(swap.name), swap_for(rigid)):
        if known not in (None, swap):
            raise ArgumentError(
                f"{swap.name!r} cannot be registered: {known.name!r} is a swap for {known.rigid.__qualname__} already"
            )
    if swap.name in _OWN:
        raise ArgumentError(f"{swap.name!r} is the name of structprune's own swap; pass another name")
    _SWAPS[swap.name] = swap


def known_swaps() -> tuple[str, ...]:
    """What a plan may call a swap; those that count some of the statistics of a class say which besides."""
    return (*_OWN, *_SWAPS)


def is_known(name: str) -> bool:
    """Whether a plan may call a swap so."""
    return name in known_swaps() or places_of(name) is not None


def swap_for(kind: type[nn.Module]) -> Swap | None:
    """The swap for modules that are exactly of this class."""
    for swap in _SWAPS.values():
        if swap.rigid is kind:
            return swap
    return None


def stand_ins() -> dict[type[nn.Module], type[nn.Module]]:
    """The class that rigid modules have while they are traced, as after surgery."""
    return {swap.rigid: swap.free for swap in _SWAPS.values()}


def takes(name: str, module: nn.Module) -> bool:
    """Whether a module is what the swap of this name is for."""
    if name == REWRITE:
        return rewritten(type(module)) is not None
    if places_of(name) is not None:
        return ghosts(type(module)) is not None
    return name == NORM or _SWAPS[name].rigid is type(module)


def swap(module: nn.Module, name: str, channels: int) -> None:
    """Turns a module into its substitute, in place: the parameters stay where they are.

    A compensated module stays as it is: it counts the original channels already. "bias" gives it one of zeros.
    """
    kind = type(module)
    if name == BIAS:
        weight: Any = module.weight
        module.bias = nn.Parameter(weight.new_zeros(channels, requires_grad=False), weight.requires_grad)
    elif name == REWRITE:
        module.__class__ = rewritten(kind)
    elif name in _SWAPS:
        module.__class__ = _SWAPS[name].free
    elif not hasattr(kind, "plain"):
        module.__class__ = compensated(kind, channels) if name == NORM else counted(kind, channels, name)


register_swap(nn.MultiheadAttention, MultiheadAttention, name="attention")
