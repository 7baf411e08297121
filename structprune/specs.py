"""Model specs: a model as a word, `torchvision:resnet18`, `timm:vit_tiny_patch16_224?num_classes=10`, `net:make`."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from .errors import (
    ArgumentError,
    ArgumentTypeError,
    MissingPackageError,
    StructPruneError,
    UnknownNameError,
    closest,
)

FORMS = "torchvision:NAME, timm:NAME, transformers:CLASS or package.module:callable"


@dataclass(frozen=True)
class Spec:
    """A model that can be made by its name: where it comes from, its name there, and keyword arguments for it.

    >>> spec = parse("torchvision:resnet18?num_classes=10")
    >>> model = spec.build()  # random weights, nothing is downloaded
    >>> model(spec.inputs(model)).shape
    torch.Size([1, 10])
    """

    source: str
    name: str
    options: Mapping[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def known(self) -> bool:
        """Whether it names a model of a library, and no code of the user's."""
        return self.source in BUILD

    @property
    def fetches(self) -> bool:
        """Whether it names weights or settings that lie elsewhere, in files or on a server."""
        named = [key for key, value in self.options.items() if value not in (None, False)]
        return ":" in self.name or any(word in key for key in named for word in ("weights", "pretrained", "checkpoint"))

    def build(self) -> nn.Module:
        """A new model with random weights, in eval mode.

        Raises MissingPackageError (the library is not installed), UnknownNameError (it has no such model),
        ArgumentError (it does not take the options, or fails) and ArgumentTypeError (it made no module).
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about their own defaults
            model = call_own(partial(BUILD.get(self.source, _build_own), self), self.text)
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"{self.text} must make a torch.nn.Module, not {type(model).__name__}")
        return model.eval()

    def inputs(self, model: nn.Module) -> Any:
        """Example inputs as the library says they are: a random picture, clip, text or wave, in a batch of one. A model
        of your own may have an attribute `example_inputs`, or a method of that name that makes them.

        Raises ArgumentError if there is no telling.
        """
        made = INPUTS.get(self.source, _own_inputs)(self, model)
        if made is None:
            raise ArgumentError(
                f"nothing says what inputs {self.text} takes: give the model an attribute example_inputs, or pass "
                "--input, 1x3x224x224 for example, to a command that takes one model"
            )
        return made


def parse(text: str) -> Spec:
    """Reads `SOURCE:NAME` or `SOURCE:NAME?key=value&key=value`; values are Python literals, or words.

    Raises ArgumentError if it is none of these.
    """
    place, _, query = text.partition("?")
    source, colon, name = place.partition(":")
    if not colon or not source or not name:
        raise ArgumentError(f"{text!r} is no model: write {FORMS}")
    options = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not key.isidentifier() or not equals:
            raise ArgumentError(f"{text!r}: options are written ?key=value&key=value; {part!r} is none")
        options[key] = _literal(value)
    return Spec(source, name, options, text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # it is no literal
        return text


def expand(patterns: Iterable[str]) -> list[Spec]:
    """The models that patterns name: a library (`torchvision`), names in it (`timm:vit*`), or single specs."""
    found: dict[str, Spec] = {}
    for pattern in patterns:
        spec = parse(pattern if ":" in pattern else f"{pattern}:*")
        if any(sign in spec.name for sign in "*?[") and spec.source in NAMES:
            names = fnmatch.filter(NAMES[spec.source](), spec.name)
            if not names:
                raise UnknownNameError(f"{pattern!r} matches no model; {closest(spec.name, NAMES[spec.source]())}")
            found |= {f"{spec.source}:{name}": Spec(spec.source, name, {}, f"{spec.source}:{name}") for name in names}
        elif ":" in pattern:
            found[spec.text] = spec
        else:
            raise ArgumentError(f"{pattern!r} is no library whose models can be listed: {', '.join(NAMES)}")
    return list(found.values())


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f'{name} models need {name}: pip install "structprune[zoo]" ({error})') from error


def _find(name: str, known: Iterable[str], library: str) -> None:
    known = list(known)
    if name not in known:
        raise UnknownNameError(f"{library} has no model {name!r}; {closest(name, known)}")


# -- torchvision ------------------------------------------------------------------------------------------------


def _torchvision_names() -> list[str]:
    return [n for n in _library("torchvision").models.list_models() if not n.startswith("quantized_")]


def _build_torchvision(spec: Spec) -> Any:
    _find(spec.name, _torchvision_names(), "torchvision")
    models = _library("torchvision").models
    takes = inspect.signature(models.get_model_builder(spec.name)).parameters
    options = {"weights_backbone": None} if "weights_backbone" in takes else {}
    return models.get_model(spec.name, **{"weights": None, **options, **spec.options})


def _torchvision_inputs(spec: Spec, model: nn.Module) -> Any:
    """The size that the weights of this architecture were made for."""
    models = _library("torchvision").models
    if spec.name in models.list_models(module=models.detection):
        return ([torch.rand(3, 320, 320)],)
    if spec.name in models.list_models(module=models.optical_flow):
        return torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)
    default = models.get_model_weights(spec.name).DEFAULT
    crop = getattr(default.transforms(), "crop_size", None) or [224]
    sides = (crop[0], crop[-1])
    if spec.name in models.list_models(module=models.video):
        return torch.randn(1, 3, 16, *sides)
    size = spec.options.get("image_size")
    return torch.randn(1, 3, *((size, size) if isinstance(size, int) else sides))


# -- timm -------------------------------------------------------------------------------------------------------


def _build_timm(spec: Spec) -> Any:
    timm = _library("timm")
    _find(spec.name.partition(".")[0], timm.list_models(), "timm")
    return timm.create_model(spec.name, **{"pretrained": False, **spec.options})


def _timm_inputs(spec: Spec, model: nn.Module) -> Any:
    channels, *sides = _library("timm").data.resolve_model_data_config(model)["input_size"]
    size = spec.options.get("img_size", tuple(sides))
    return torch.randn(1, spec.options.get("in_chans", channels), *((size, size) if isinstance(size, int) else size))


# -- transformers -------------------------------------------------------------------------------------------------


def _build_transformers(spec: Spec) -> Any:
    """A class with its default configuration, or a folder that `save_pretrained` wrote."""
    library = _library("transformers")
    kind: Any
    if os.path.isdir(spec.name):
        config = library.AutoConfig.from_pretrained(spec.name, local_files_only=True, **spec.options)
        kind = getattr(library, (config.architectures or ["AutoModel"])[0])
        return _uncached(kind.from_pretrained(spec.name, config=config, local_files_only=True))
    kind = getattr(library, spec.name, None)
    if getattr(kind, "config_class", None) is None:
        raise UnknownNameError(f"transformers has no model {spec.name!r}; {closest(spec.name, dir(library))}")
    return _uncached(kind(kind.config_class(**spec.options)))


def _uncached(model: Any) -> Any:
    """A cache of keys and values is an output like any other: it would keep its width."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model


def _transformers_inputs(spec: Spec, model: Any) -> Any:
    config, name = model.config, model.main_input_name
    if name == "input_ids":
        words = config.get_text_config().vocab_size
        ids = {"input_ids": torch.randint(words, (1, 16))}
        return {**ids, "decoder_input_ids": torch.randint(words, (1, 8))} if config.is_encoder_decoder else ids
    if name == "pixel_values":
        size = getattr(config, "image_size", 224)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.randn(1, getattr(config, "num_channels", 3), *sides)}
    return {"input_values": torch.randn(1, 16000)} if name == "input_values" else None


# -- the user's own -----------------------------------------------------------------------------------------------


def _build_own(spec: Spec) -> Any:
    made = find_object(spec.source, spec.name, spec.text)
    return made if isinstance(made, nn.Module) else made(**spec.options)


def _own_inputs(spec: Spec, model: Any) -> Any:
    made = getattr(model, "example_inputs", None)
    return call_own(made, f"{spec.text}, its example_inputs") if callable(made) else made


def call_own(function: Callable[[], Any], text: str) -> Any:
    """What a library's or the user's own function makes. Raises ArgumentError, with the line, if it fails."""
    try:
        return function()
    except StructPruneError:
        raise
    except Exception as error:  # whatever their code raises
        raise _failed(error, text) from error


def _failed(error: Exception, text: str) -> ArgumentError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(last.filename)}:{last.lineno}"
    return ArgumentError(f"{text} cannot be made: {type(error).__name__}: {error} ({where})")


def find_object(module: str, name: str, text: str) -> Any:
    """What `module:name` names, looked for in the current folder too. Raises UnknownNameError, ArgumentTypeError,
    MissingPackageError, and ArgumentError if the module cannot be imported."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise MissingPackageError(f"{text}: importing {module} fails: {error}") from error
        raise UnknownNameError(f"{text}: there is no module {module!r} here or installed; write {FORMS}") from error
    except Exception as error:  # whatever their code raises
        raise _failed(error, text) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UnknownNameError(f"{text}: {module} has no {name!r}; {closest(name, vars(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ArgumentTypeError(f"{text} must be a function or a class, not {type(found).__name__}")
    return found


NAMES: dict[str, Callable[[], list[str]]] = {
    "torchvision": _torchvision_names,
    "timm": lambda: _library("timm").list_models(),
}
BUILD: dict[str, Callable[[Spec], Any]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "transformers": _build_transformers,
}
INPUTS: dict[str, Callable[[Spec, Any], Any]] = {
    "torchvision": _torchvision_inputs,
    "timm": _timm_inputs,
    "transformers": _transformers_inputs,
}
