"""Models of other libraries, small: segmentation, medical images, graphs, diffusion, and many kinds of vision transformer.

    pip install -e '.[others]'

Those whose library is not installed are left out.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .zoo import Case, image

# -- vit-pytorch -----------------------------------------------------------------------------------------

VIT = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 32,
    "depth": 2,
    "heads": 4,
    "dim_head": 8,
    "mlp_dim": 48,
}
CCT = {
    "img_size": 32, "embedding_dim": 32, "n_conv_layers": 2, "kernel_size": 3, "stride": 1, "padding": 1, "num_layers": 2,
    "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 7,
}  # fmt: skip
STAGES = {"depth": (1, 1, 1, 1), "num_classes": 7}
# Name: module, class, pixels, options.
VISION: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "ViT": ("vit", "ViT", 32, VIT),
    "ViT, mean": ("vit", "ViT", 32, {**VIT, "pool": "mean"}),
    "SimpleViT": ("simple_vit", "SimpleViT", 32, VIT),
    "SimpleViT, normed queries": ("simple_vit_with_qk_norm", "SimpleViT", 32, VIT),
    "DeepViT": ("deepvit", "DeepViT", 32, VIT),
    "CaiT": ("cait", "CaiT", 32, {**VIT, "cls_depth": 1}),
    "CCT": ("cct", "CCT", 32, CCT),
    "ParallelViT": ("parallel_vit", "ViT", 32, VIT),
    "PatchMerger": ("vit_with_patch_merger", "ViT", 32, VIT),
    "RvT": ("rvt", "RvT", 32, VIT),
    "nViT": ("normalized_vit", "nViT", 32, VIT),
    "XCiT": ("xcit", "XCiT", 32, {**VIT, "cls_depth": 1}),
    "PiT": ("pit", "PiT", 32, {**VIT, "depth": (1, 1)}),
    "LeViT": ("levit", "LeViT", 64, {
        "image_size": 64, "num_classes": 7, "dim": (32, 48, 64), "depth": 1, "heads": (2, 3, 4), "mlp_mult": 2,
        "dim_key": 8, "dim_value": 16,
    }),
    "MaxViT": ("max_vit", "MaxViT", 32, {
        "num_classes": 7, "dim": 32, "depth": (1, 1), "dim_head": 8, "dim_conv_stem": 16, "window_size": 4,
    }),
    "RegionViT": ("regionvit", "RegionViT", 64, {**STAGES, "dim": (16, 32, 48, 64), "window_size": 2, "use_peg": True}),
    "ScalableViT": ("scalable_vit", "ScalableViT", 64, {
        **STAGES, "dim": 16, "heads": (2, 2, 2, 4), "ssa_dim_key": (8,) * 4, "reduction_factor": (4, 2, 1, 1),
        "window_size": (4, 4, None, None),
    }),
}  # fmt: skip


def _vision(module: str, name: str, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = getattr(importlib.import_module(f"vit_pytorch.{module}"), name)(**options)
    return model


# -- segmentation-models-pytorch ---------------------------------------------------------------------------

DECODERS = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer".split()
ENCODERS = "mobilenet_v2 efficientnet-b0 mit_b0 densenet121 dpn68 timm-skresnet18".split()  # of a Unet


def _segmentation(decoder: str, encoder: str) -> nn.Module:
    library = importlib.import_module("segmentation_models_pytorch")
    model: nn.Module = getattr(library, decoder)(encoder, encoder_weights=None, classes=3)
    return model


# -- monai -------------------------------------------------------------------------------------------------

FLAT = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
DEEP = {"channels": (16, 32, 64), "strides": (2, 2)}
MEDICAL: dict[str, dict[str, Any]] = {
    "UNet": {**FLAT, **DEEP, "num_res_units": 2},
    "SegResNet": {**FLAT, "init_filters": 16},
    "DynUNet": {
        **FLAT, "kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2), "filters": (16, 32, 64),
    },
    "SwinUNETR": {
        "in_channels": 1, "out_channels": 3, "feature_size": 24, "num_heads": (3, 6, 12, 24), "depths": (2, 2, 2, 2),
        "spatial_dims": 2,
    },
    "UNETR": {
        "in_channels": 1, "out_channels": 3, "img_size": 64, "feature_size": 16, "hidden_size": 48, "mlp_dim": 96,
        "num_heads": 4, "spatial_dims": 2,
    },
    "VNet": {"spatial_dims": 2, "in_channels": 1, "out_channels": 3},
    "AttentionUnet": {**FLAT, **DEEP},
    "BasicUNetPlusPlus": {**FLAT, "features": (16, 16, 32, 64, 64, 16)},
    "DenseNet": {**FLAT, "init_features": 16, "growth_rate": 8, "block_config": (2, 4, 2)},
}  # fmt: skip


def _medical(name: str) -> nn.Module:
    model: nn.Module = getattr(importlib.import_module("monai.networks.nets"), name)(**MEDICAL[name])
    return model


# -- torch-geometric -----------------------------------------------------------------------------------------

GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "GCN": ("GCN", {}),
    "GCN, skips joined": ("GCN", {"jk": "cat", "norm": "batch_norm"}),
    "GraphSAGE": ("GraphSAGE", {"aggr": "max"}),
    "GIN": ("GIN", {"norm": "graph_norm"}),
    "GAT": ("GAT", {"heads": 4}),
    "GATv2": ("GAT", {"heads": 4, "v2": True}),
    "EdgeCNN": ("EdgeCNN", {}),
}


def _graph_network(name: str, options: dict[str, Any]) -> nn.Module:
    sizes = {"in_channels": 12, "hidden_channels": 32, "num_layers": 3, "out_channels": 5}
    model: nn.Module = getattr(importlib.import_module("torch_geometric.nn"), name)(**sizes, **options)
    return model


class Attentive(nn.Module):
    """Two graph transformers (Shi et al., 2021) with features of edges, a batch norm, and logits."""

    def __init__(self) -> None:
        super().__init__()
        made = importlib.import_module("torch_geometric.nn").TransformerConv
        self.first = made(12, 8, heads=4, edge_dim=5, beta=True)
        self.second = made(32, 8, heads=4, edge_dim=5)
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, 5)

    def forward(self, x: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        h = self.norm(self.first(x, edges, features)).relu()
        return self.head(self.second(h, edges, features).relu())  # type: ignore[no-any-return]


def _graph(batch: int, features: bool) -> Any:
    """A ring of nodes, six for every example."""
    count = 6 * batch
    nodes = torch.arange(count)
    edges = torch.stack([torch.cat([nodes, (nodes + 1) % count]), torch.cat([(nodes + 1) % count, nodes])])
    return (torch.randn(count, 12), edges, *([torch.randn(2 * count, 5)] if features else []))


# -- diffusers ---------------------------------------------------------------------------------------------

HEADS = {"num_attention_heads": 4, "attention_head_dim": 8}
AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 32), "norm_num_groups": 4, "latent_channels": 4,
}  # fmt: skip


def _latents(batch: int, name: str = "hidden_states", channels: int = 4, pixels: int = 8) -> dict[str, Any]:
    return {name: torch.randn(batch, channels, pixels, pixels), "timestep": torch.arange(3, 3 + batch)}


def _text(batch: int) -> dict[str, Any]:
    return {"encoder_hidden_states": torch.randn(batch, 5, 24)}


# Name: options, and inputs for a batch size.
DIFFUSION: dict[str, tuple[dict[str, Any], Callable[[int], dict[str, Any]]]] = {
    "UNet2DModel": (
        {
            "sample_size": 32, "layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        partial(_latents, name="sample", channels=3, pixels=32),
    ),
    "UNet2DConditionModel": (
        {
            "sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 8,
            "cross_attention_dim": 24, "attention_head_dim": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        lambda batch: _latents(batch, "sample", 4, 16) | _text(batch),
    ),
    "AutoencoderKL": (AUTOENCODER, lambda batch: {"sample": torch.randn(batch, 3, 32, 32)}),
    "DiTTransformer2DModel": (
        {"num_layers": 2, "sample_size": 8, "norm_num_groups": 8, "num_embeds_ada_norm": 10, **HEADS},
        lambda batch: _latents(batch) | {"class_labels": torch.arange(batch)},
    ),
    "SD3Transformer2DModel": (
        {
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 24,
            "caption_projection_dim": 32, "pooled_projection_dim": 16, **HEADS,
        },
        lambda batch: _latents(batch) | _text(batch) | {"pooled_projections": torch.randn(batch, 16)},
    ),
    "SanaTransformer2DModel": (
        {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 24, "sample_size": 8, **HEADS,
        },
        lambda batch: _latents(batch) | _text(batch),
    ),
}  # fmt: skip


class Sample(nn.Module):
    """A model of diffusers that returns a tensor."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = getattr(importlib.import_module("diffusers"), name)(**DIFFUSION[name][0])

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs, return_dict=False)[0]


# -- all of them -------------------------------------------------------------------------------------------


LIBRARIES = {
    "vit-pytorch": "vit_pytorch",
    "smp": "segmentation_models_pytorch",
    "monai": "monai",
    "torch-geometric": "torch_geometric",
    "diffusers": "diffusers",
}


def cases() -> list[Case]:
    """Those whose library is here, library by library."""
    installed = {name for name, module in LIBRARIES.items() if importlib.util.find_spec(module)}
    return [case for case in _all() if case.name.partition(" ")[0] in installed]


def _all() -> list[Case]:
    found = [
        Case("others", f"vit-pytorch {name}", partial(_vision, module, kind, options), partial(image, size=pixels))
        for name, (module, kind, pixels, options) in VISION.items()
    ]
    pairs = [*((decoder, "resnet18") for decoder in DECODERS), *(("Unet", encoder) for encoder in ENCODERS)]
    found += [
        Case(
            "others", f"smp {decoder} {encoder}", partial(_segmentation, decoder, encoder), partial(image, size=128), 2
        )
        for decoder, encoder in pairs
    ]
    found += [
        Case("others", f"monai {name}", partial(_medical, name), partial(image, size=64, channels=1))
        for name in MEDICAL
    ]
    found += [
        Case(
            "others", f"torch-geometric {name}", partial(_graph_network, kind, options), partial(_graph, features=False)
        )
        for name, (kind, options) in GRAPHS.items()
    ]
    found.append(Case("others", "torch-geometric TransformerConv", Attentive, partial(_graph, features=True)))
    found += [
        Case("others", f"diffusers {name}", partial(Sample, name), inputs, 2) for name, (_, inputs) in DIFFUSION.items()
    ]
    return found
