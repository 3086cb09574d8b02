"""MobileNetV1 for 32×32 images: the stem and the first depthwise layer keep the resolution."""

from __future__ import annotations

from typing import Final

from jaxtyping import Float
from torch import Tensor, flatten, nn

from headgate.models.initialise import initialise_

# (output channels in units of width, stride of the depthwise convolution); Howard et al., Table 1
CIFAR_BLOCKS: Final = (
    (2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1), (16, 1), (16, 1), (16, 1), (16, 1), (32, 2), (32, 1),
)  # fmt: skip


class SeparableConv(nn.Module):
    """3×3 depthwise conv–bn–relu, then 1×1 pointwise conv–bn–relu.

    Source: Howard et al., "MobileNets", arXiv 1704.04861, Fig. 3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        x = self.relu1(self.bn1(self.depthwise(x)))
        return self.relu2(self.bn2(self.pointwise(x)))  # type: ignore[no-any-return]


class MobileNetV1(nn.Module):
    """Stem, separable convolutions, global average, linear classifier."""

    def __init__(
        self, blocks: tuple[tuple[int, int], ...], *, width: int, num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        layers: list[nn.Module] = []
        channels = width
        for multiple, stride in blocks:
            layers.append(SeparableConv(channels, width * multiple, stride))
            channels = width * multiple
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.features(self.relu(self.bn1(self.conv1(x))))
        return self.fc(flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def mobilenetv1_cifar(*, width: int = 32, num_classes: int = 10, in_channels: int = 3) -> MobileNetV1:
    """MobileNetV1 for 32×32 images (3.2 M parameters at width 32)."""
    return MobileNetV1(CIFAR_BLOCKS, width=width, num_classes=num_classes, in_channels=in_channels)
