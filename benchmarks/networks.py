"""Small networks of the usual kinds, for small images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from structprune.demo import Block


class ResNet(nn.Module):
    """He et al., CVPR 2016, section 4.2: three stages of `blocks` residual blocks."""

    def __init__(self, blocks: int, width: int = 16, channels: int = 1, classes: int = 10, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        shapes = [(width, width, 1)] * blocks
        for inputs in (width, 2 * width):
            shapes += [(inputs, 2 * inputs, 2), *[(2 * inputs, 2 * inputs, 1)] * (blocks - 1)]
        self.blocks = nn.Sequential(*(Block(*shape) for shape in shapes))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class VGG(nn.Module):
    """Three pairs of convolutions, and two linear layers."""

    def __init__(self, width: int = 24, channels: int = 1, classes: int = 10, stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for outputs in (width, 2 * width, 4 * width):
            for _ in range(2):
                step = 1 if layers else stride
                layers += [nn.Conv2d(inputs, outputs, 3, step, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(inputs, 4 * width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.features(x).mean((2, 3))).relu())


class Inverted(nn.Module):
    """Sandler et al., CVPR 2018: widened, filtered channel by channel, narrowed; with a way around if sizes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int = 4) -> None:
        super().__init__()
        inner = factor * inputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNet(nn.Module):
    """Seven inverted residuals in three stages."""

    def __init__(self, width: int = 16, channels: int = 1, classes: int = 10, stride: int = 1) -> None:
        super().__init__()
        sizes = [width, width, 2 * width, 2 * width, 2 * width, 3 * width, 3 * width, 3 * width]
        strides = (1, 2, 1, 1, 2, 1, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()
        )
        self.blocks = nn.Sequential(*map(Inverted, sizes, sizes[1:], strides))
        self.last = nn.Sequential(nn.Conv2d(3 * width, 8 * width, 1, bias=False), nn.BatchNorm2d(8 * width), nn.ReLU6())
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    """Queries, keys and values from one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Attention, then two linear layers, each behind a layer norm and with a way around."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al., ICLR 2021, with two convolutions before it and the mean of the tokens for a class token."""

    def __init__(self, size: int, width: int = 48, channels: int = 1, classes: int = 10, stride: int = 1) -> None:
        super().__init__()
        inner, side = width // 2, size // stride // 2
        self.stem = nn.Sequential(
            nn.Conv2d(channels, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, width, 3, 2, 1),
        )  # fmt: skip
        self.places = nn.Parameter(0.02 * torch.randn(1, side * side, width))
        self.blocks = nn.Sequential(*(Encoder(width, 4) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


Make = Callable[[int, int, int, int], nn.Module]  # from the images' size and channels, the classes, and the stride

NETWORKS: dict[str, Make] = {
    "resnet20": lambda size, channels, classes, stride: ResNet(3, 16, channels, classes, stride),
    "resnet56": lambda size, channels, classes, stride: ResNet(9, 12, channels, classes, stride),
    "vgg": lambda size, channels, classes, stride: VGG(24, channels, classes, stride),
    "mobilenet": lambda size, channels, classes, stride: MobileNet(16, channels, classes, stride),
    "vit": lambda size, channels, classes, stride: ViT(size, 48, channels, classes, stride),
}


def network(name: str, example: Tensor, classes: int) -> nn.Module:
    """A fresh network for images like `example`; those of 16 pixels or more are halved at once."""
    _, channels, size, _ = example.shape
    return NETWORKS[name](size, channels, classes, 1 if size < 16 else 2)
