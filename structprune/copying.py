"""Deep copies of models, with an error that names what cannot be copied."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .errors import UnsupportedModelError

BOUND = (
    "a function that holds modules, such as a lambda that names self, is not copied with the model, and goes on "
    "calling the original; make it a method, or pass inplace=True and verify=False"
)

TAKEN = (
    "a function holds a parameter that is to be cut, and would go on with the old one; make it a method that takes the "
    "parameter from self"
)


def deep_value(value: Any, memo: dict[int, Any], name: str) -> Any:
    """`copy.deepcopy` of an attribute called `name`; raises UnsupportedModelError."""
    try:
        copied = copy.deepcopy(value, memo)
    except Exception as error:  # whatever the user's code raises
        raise UnsupportedModelError(
            f"the model cannot be copied: {name or 'the model'} ({type(value).__name__}) does not allow it ({error}); "
            "pass inplace=True to prune the model itself, with verify=False, since a verification needs copies too"
        ) from error
    if isinstance(value, nn.Module) and (copied is value or not isinstance(copied, nn.Module)):
        what = "itself" if copied is value else f"a {type(copied).__name__}"
        raise UnsupportedModelError(f"the model cannot be copied: the copy of {name or 'the model'} is {what}")
    return copied


def deep_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """`copy.deepcopy` of a model; raises UnsupportedModelError with the attribute that does not allow it."""
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:  # the same
        for path, module in model.named_modules():
            for key, value in vars(module).items():
                if key not in ("_modules", "_parameters", "_buffers"):
                    deep_value(value, {}, f"{path}.{key}" if path else key)
        raise UnsupportedModelError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
    if not isinstance(copied, nn.Module):
        raise UnsupportedModelError(f"the model cannot be copied: its copy is a {type(copied).__name__}")
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())} - set(memo or ())
    if any(id(tensor) in own for tensor in (*copied.parameters(), *copied.buffers())):
        raise UnsupportedModelError("the model cannot be copied: its copy shares parameters with it (see __deepcopy__)")
    return copied


def check_free(value: Any, name: str, paths: Mapping[int, str], cut: Mapping[int, Tensor], copied: bool) -> None:
    """Raises UnsupportedModelError if a function has taken modules along from where it was made (those with an id in
    `paths`), or tensors that are to be cut, with these ids. Where a model is `copied`, what partial functions hold is
    copied with them."""
    for held in _held(value, copied):
        if copied and id(held) in paths:
            raise UnsupportedModelError(f"the model cannot be copied: {name}: {BOUND}")
        if isinstance(held, Tensor) and id(held) in cut and cut[id(held)].shape != held.shape:
            raise UnsupportedModelError(f"the model cannot be cut: {name}: {TAKEN}")


def _held(value: Any, copied: bool) -> Iterator[Any]:
    """What a function, or those in a container, hold besides their arguments."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _held(item, copied)
    elif isinstance(value, FunctionType):
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # empty so far
                yield cell.cell_contents
    elif isinstance(value, functools.partial):
        yield from () if copied else (*value.args, *value.keywords.values())
        yield from _held(value.func, copied)


@contextmanager
def copies_alone(model: nn.Module, *copies: nn.Module) -> Iterator[None]:
    """While copies of a model run, the model must not: raises UnsupportedModelError before one of its modules does."""
    shared = {id(module) for one in copies for module in one.modules()}
    own = {id(module): path for path, module in model.named_modules() if id(module) not in shared}
    strayed: list[str] = []

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in own:
            strayed.append(own[id(module)] or "the model")
            raise RuntimeError(BOUND)

    handle = register_module_forward_pre_hook(enter)
    try:
        yield
    finally:
        handle.remove()
        if strayed:
            raise UnsupportedModelError(f"a copy of the model calls {strayed[0]} of the original: {BOUND}")
