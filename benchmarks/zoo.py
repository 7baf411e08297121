"""The models that the benchmarks run over, each with inputs as small as it takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .harness import matches


@dataclass(frozen=True)
class Case:
    """A model: how it is made, example inputs for a batch size, and what `analyze` is told besides."""

    group: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    examples: int = 1  # the batch size to trace with
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}"


def image(batch: int, size: int | tuple[int, ...] = 64, channels: int = 3) -> Tensor:
    """Random pictures, or clips for a size of three numbers: noise, each in a colour of its own."""
    sizes = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, channels, *sizes) + torch.randn(batch, channels, *(1 for _ in sizes))


# -- torchvision -----------------------------------------------------------------------------------------

CNN_FAMILIES = ("alexnet", "densenet*", "efficientnet*", "googlenet", "inception_v3", "mnasnet*", "mobilenet*", "regnet*",
                "resnet*", "resnext*", "shufflenet*", "squeezenet*", "vgg*", "wide_resnet*", "deeplabv3*", "fcn*", "lraspp*",
                "mc3_18", "r2plus1d_18", "r3d_18")  # fmt: skip
SEGMENTATION = ("deeplabv3*", "fcn*", "lraspp*")
DETECTION = ("*rcnn*", "retinanet*", "fcos*", "ssd*")
CLIPS = {"mc3_18": (8, 32, 32), "r2plus1d_18": (8, 32, 32), "r3d_18": (8, 32, 32), "s3d": (16, 224, 224),
         "mvit_v1_b": (8, 64, 64), "mvit_v2_s": (8, 64, 64), "swin3d_*": (8, 64, 64)}  # fmt: skip
PICTURES = {
    "inception_v3": 299,
    "alexnet": 64,
    "vit_*": 224,
    "maxvit_t": 224,
    "ssd300*": 300,
    "ssdlite320*": 320,
    "raft*": 128,
}


def torchvision_cnns() -> list[Case]:
    """Every classification CNN, segmentation network and video ResNet."""
    return [_torchvision("torchvision-cnn", name) for name in _torchvision_names() if matches(name, CNN_FAMILIES)]


def torchvision_others() -> list[Case]:
    """Everything else: transformers, ConvNeXt, detection, video, optical flow."""
    return [_torchvision("torchvision", name) for name in _torchvision_names() if not matches(name, CNN_FAMILIES)]


def _torchvision_names() -> list[str]:
    models = importlib.import_module("torchvision").models
    return [name for name in models.list_models() if not name.startswith("quantized")]


def _torchvision(group: str, name: str) -> Case:
    options: dict[str, Any] = {}
    if matches(name, DETECTION):
        return Case(
            group, name, partial(_build_torchvision, name, _detector(name)), partial(_pictures, size=_size(name, 128))
        )
    if name.startswith("raft"):
        return Case(group, name, partial(_build_torchvision, name, options), partial(_two_pictures, size=128))
    if matches(name, SEGMENTATION):
        options["weights_backbone"] = None
        options["aux_loss"] = None if name.startswith("lraspp") else True
        options = {k: v for k, v in options.items() if v is not None or k != "aux_loss"}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if name.startswith("mvit"):
        return Case(group, name, partial(_build_mvit, name), partial(image, size=_size(name, 64)))
    return Case(group, name, partial(_build_torchvision, name, options), partial(image, size=_size(name, 64)))


def _detector(name: str) -> dict[str, Any]:
    """No threshold on the scores, so that random weights find something."""
    options: dict[str, Any] = {"weights_backbone": None}
    options["box_score_thresh" if "rcnn" in name else "score_thresh"] = 0.0
    if not name.startswith("ssd"):
        options.update(min_size=128, max_size=128)
    return options


def _build_torchvision(name: str, options: Mapping[str, Any]) -> nn.Module:
    models = importlib.import_module("torchvision").models
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _build_mvit(name: str) -> nn.Module:
    """For clips of 8 x 64 x 64, which the public constructors do not offer."""
    module: Any = importlib.import_module("torchvision.models.video.mvit")
    original = module._mvit
    module._mvit = lambda **options: original(**{**options, "spatial_size": (64, 64), "temporal_size": 8})
    try:
        model: nn.Module = getattr(module, name)()
    finally:
        module._mvit = original
    return model


def _size(name: str, default: int) -> Any:
    sizes: dict[str, Any] = {**CLIPS, **PICTURES}
    return next((size for pattern, size in sizes.items() if matches(name, (pattern,))), default)


def _pictures(batch: int, size: int) -> Any:
    return ([torch.rand(3, size, size) for _ in range(batch)],)


def _two_pictures(batch: int, size: int) -> Any:
    return image(batch, size), image(batch, size)


# -- all of them -----------------------------------------------------------------------------------------


def cases(group: str) -> list[Case]:
    """The cases of one of the `SETS`."""
    made = {"torchvision-cnn": torchvision_cnns, "torchvision": torchvision_others, "rewritten": rewritten}
    if group in made:
        return made[group]()
    found: list[Case] = importlib.import_module(f"benchmarks.zoo_{group}").cases()
    return found


SETS = ("torchvision-cnn", "torchvision", "timm", "transformers", "others", "rewritten")
TITLES = {
    "torchvision-cnn": "convolutional networks of torchvision",
    "torchvision": "transformers and ConvNeXt of torchvision",
    "timm": "timm",
}
TRANSFORMERS = ("vit_*", "swin_*", "maxvit_t", "convnext*")


FULL_SIZE = "torchvision-cnn-224"


def full_size() -> list[Case]:
    """Torchvision's first set with pictures of 224 pixels (299 for Inception) and clips of 16 x 112 x 112."""
    sizes = {"inception_v3": 299, **dict.fromkeys(CLIPS, (16, 112, 112))}
    return [
        replace(case, group=FULL_SIZE, inputs=partial(image, size=sizes.get(case.name, 224)))
        for case in torchvision_cnns()
    ]


REWRITTEN = {
    "timm": ("coat_tiny", "crossvit_tiny_240", "edgenext_xx_small", "eva02_tiny_*", "nextvit_small", "pvt_v2_b0"),
    "transformers": ("PvtV2ForImageClassification", "BlipForImageTextRetrieval", "GroupViTModel"),
}


def rewritten() -> list[Case]:
    """Models whose code keeps what could go, with their code rewritten."""
    return [
        replace(case, group="rewritten", options={"rigid": "rewrite"})
        for group, names in REWRITTEN.items()
        for case in cases(group)
        if matches(case.name, names)
    ]


def classifiers(timm: Iterable[str]) -> list[Case]:
    """Everything in torchvision's first set, its transformers and ConvNeXt, and these models of timm."""
    others = [case for case in cases("torchvision") if matches(case.name, TRANSFORMERS)]
    return [*cases("torchvision-cnn"), *others, *(case for case in cases("timm") if case.name in timm)]
