"""Example inputs as words: `1x3x224x224`, `input_ids=1x16:int64:30000`, `net:make_inputs`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, closest
from ..specs import Spec, call_own, find_object

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
HELP = (
    "shape of an example input, such as 1x3x224x224, or 1x16:int64:1000 for whole numbers below 1000 (2 if left out); "
    "NAME=1x16:int64 for a keyword argument; several for several arguments; module:function for one that makes them. "
    "Left out, the library of the model says what it takes"
)
_SHAPE = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]+\d*)(?::(?P<below>\d+))?)?"
)


def make_inputs(texts: Sequence[str], spec: Spec, model: Any) -> Any:
    """The example inputs that words describe: a tensor, a tuple or a dict; those of the spec if there are none.

    Raises ArgumentError if a word is none of these.
    """
    if not texts:
        return spec.inputs(model)
    if len(texts) == 1 and not _SHAPE.fullmatch(texts[0]) and re.fullmatch(r"[\w.]+:[\w.]+", texts[0]):
        module, _, name = texts[0].partition(":")
        return call_own(find_object(module, name, texts[0]), texts[0])
    made = [_one(text) for text in texts]
    names = [name for name, _ in made]
    if all(names):
        return once("--input", made)
    if any(names):
        raise ArgumentError("--input: name all of the arguments (NAME=SHAPE), or none of them")
    return made[0][1] if len(made) == 1 else tuple(tensor for _, tensor in made)


def once(flag: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What a flag that was given several times assigns; raises ArgumentError if it names something twice."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ArgumentError(f"{flag} names {twice[0]!r} twice")
    return dict(pairs)


def _one(text: str) -> tuple[str, Tensor]:
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise ArgumentError(f"--input {text!r} is no shape: write 1x3x224x224, 1x16:int64:1000 or NAME=1x16:int64")
    word = found["dtype"] or "float32"
    if word not in DTYPES:
        raise ArgumentError(f"--input {text!r}: there is no dtype {word!r}; {closest(word, DTYPES)}")
    shape, dtype = [int(size) for size in found["shape"].split("x")], DTYPES[word]
    below = int(found["below"] or 2)
    if not below:
        raise ArgumentError(f"--input {text!r}: there is no whole number from 0 that is below 0")
    real = dtype.is_floating_point or dtype.is_complex
    try:
        made = torch.randn(shape, dtype=dtype) if real else torch.randint(0, below, shape).to(dtype)
    except (RuntimeError, ValueError, TypeError) as error:  # too large
        raise ArgumentError(f"--input {text!r} cannot be made: {error}") from error
    return found["name"] or "", made
