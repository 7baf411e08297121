"""What a pruner removed, read off the weights it left: it is not asked, and nothing is shared with it.

Every entry of every parameter and running statistic is set to a number that is an enciphered form of its own
position, and looks random. Whatever is left after pruning says where it was. Zeros everywhere else make the
masked original, for any tool that removes entries and does not change the others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .harness import batch_norms, randomise

# The entries that can be told apart: more, in float32, would come too close to its precision.
BITS = {torch.float32: 23, torch.float64: 40}
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Cipher:
    """Positions as numbers between `low` and `high`, and back; one multiplier for each tensor."""

    low: float
    high: float
    bits: int
    factor: int

    def numbers(self, positions: Tensor) -> Tensor:
        """The numbers for positions, in float64."""
        x = self._mixed(positions * self.factor & self._mask)
        x = self._mixed(x * self.factor & self._mask)
        return self.low + (self.high - self.low) * (x.double() + 0.5) / 2**self.bits

    def positions(self, numbers: Tensor) -> Tensor:
        """The positions of numbers."""
        x = ((numbers.double() - self.low) / (self.high - self.low) * 2**self.bits).floor().long().clamp(0, self._mask)
        inverse = pow(self.factor, -1, 2**self.bits)
        return self._mixed(self._mixed(x) * inverse & self._mask) * inverse & self._mask

    def _mixed(self, x: Tensor) -> Tensor:
        """Its own inverse: the shift is at least half of the bits."""
        return x ^ (x >> (self.bits + 1) // 2)

    @property
    def _mask(self) -> int:
        return int(2**self.bits - 1)


def marked(model: nn.Module, seed: int = 0) -> dict[str, Cipher]:
    """Writes positions into the model's parameters and running statistics, and says how to read them.

    A model with tensors too large for float32 becomes one in float64.
    """
    randomise(model, seed)
    if max((p.numel() for p in model.parameters()), default=0) >= 2 ** BITS[torch.float32]:
        model.double()
    random = torch.Generator().manual_seed(seed)
    return {name: _mark(tensor, random) for name, tensor in _tensors(model).items() if tensor.numel() > 1}


def _mark(tensor: Tensor, random: torch.Generator) -> Cipher:
    """Uniform numbers of the same mean and variance."""
    values = tensor.detach().double()
    mean, half = float(values.mean()), 3**0.5 * float(values.std())
    bits = 20 if tensor.numel() < 2**20 else BITS[tensor.dtype]
    factor = 2 * int(torch.randint(2 ** (bits - 2), 2 ** (bits - 1), (), generator=random)) + 1
    cipher = Cipher(mean - half, mean + half, bits, factor)
    with torch.no_grad():
        tensor.copy_(cipher.numbers(torch.arange(tensor.numel())).view(tensor.shape))
    return cipher


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    return found | {n: b for n, b in model.named_buffers() if n.rpartition(".")[2] in STATISTICS}


def left(original: nn.Module, small: nn.Module, ciphers: Mapping[str, Cipher]) -> tuple[dict[str, Tensor], list[str]]:
    """The flat positions of what is left of every marked tensor, -1 where a tool wrote a zero instead of removing
    the entry, and the names of the tensors that hold other values."""
    before = _tensors(original)
    after = dict(small.named_parameters(remove_duplicate=False)) | dict(small.named_buffers(remove_duplicate=False))
    found, changed = {}, []
    for name, cipher in ciphers.items():
        if name in after:
            values = after[name].detach().flatten()
            positions = cipher.positions(values).clamp(max=before[name].numel() - 1)
            own = before[name].detach().flatten()[positions] == values
            if bool((own | (values == 0)).all()):
                found[name] = torch.where(own, positions, -1)
            else:
                changed.append(name)
    return found, changed


def masked_original(model: nn.Module, positions: Mapping[str, Tensor]) -> nn.Module:
    """The original with zeros at all other positions."""
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in _tensors(masked).items():
            if name in positions:
                places = positions[name][positions[name] >= 0]
                kept = tensor.flatten()[places]
                tensor.zero_().view(-1)[places] = kept
    return masked


def share_statistics(masked: nn.Module, small: nn.Module, positions: Mapping[str, Tensor]) -> None:
    """Gives the pruned model what the batch norms of the masked one have where it is left; by name, since in a traced
    model the norms may be functions."""
    theirs = dict(small.named_buffers(remove_duplicate=False))
    for path, norm in batch_norms(masked).items():
        for name in (f"{path}.{statistic}" for statistic in STATISTICS):
            if name in theirs:
                theirs[name].copy_(getattr(norm, name.rpartition(".")[2])[positions[name]])


class OverKept(TorchFunctionMode):
    """Norms and attention of a masked model count what is left of it, as stock modules do after pruning.

    Layer, RMS and group norms run over the channels whose scale is not zero; attention without a scale of its own
    divides by the root of the head's dimensions in which its queries are not zero.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in ("layer_norm", "rms_norm", "group_norm"):
            order = (
                ("input", "groups", "weight", "bias", "eps")
                if name != "rms_norm"
                else ("input", "groups", "weight", "eps")
            )
            named = dict(zip(order, args, strict=False)) | given
            weight = named.get("weight")
            if isinstance(weight, Tensor) and weight.ndim == 1 and bool((weight == 0).any()):
                return self._narrow(name, named, weight != 0)
        if name == "scaled_dot_product_attention" and given.get("scale") is None:
            used = int((args[0].flatten(0, -2) != 0).any(0).sum())
            given["scale"] = max(used, 1) ** -0.5
        return function(*args, **given)

    def _narrow(self, name: str, given: Mapping[str, Any], kept: Tensor) -> Tensor:
        x, weight, bias = given["input"], given["weight"][kept], given.get("bias")
        bias = None if bias is None else bias[kept]
        out = torch.zeros_like(x)
        if name == "group_norm":
            groups = given.get("groups", given.get("num_groups"))
            out[:, kept] = F.group_norm(x[:, kept], groups, weight, bias, given.get("eps", 1e-5))
        elif name == "layer_norm":
            out[..., kept] = F.layer_norm(x[..., kept], [len(weight)], weight, bias, given.get("eps", 1e-5))
        else:
            out[..., kept] = F.rms_norm(x[..., kept], [len(weight)], weight, given.get("eps"))
        return out
