"""Deep copies of models, with an error that names what cannot be copied."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .errors import UnsupportedModelError

BOUND = (
    "a function that holds modules, such as a lambda that names self, is not copied with the model, and goes on "
    "calling the original; make it a method, or pass inplace=True and verify=False"
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


def check_free(function: FunctionType, name: str, paths: Mapping[int, str]) -> None:
    """Raises UnsupportedModelError if a function has taken modules with these ids along from where it was made."""
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    if any(id(value) in paths for value in defaults):
        raise UnsupportedModelError(f"the model cannot be copied: {name}: {BOUND}")
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # empty so far
            if id(cell.cell_contents) in paths:
                raise UnsupportedModelError(f"the model cannot be copied: {name}: {BOUND}")


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
