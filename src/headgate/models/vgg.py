"""VGG-16 with batch norm for 32×32 images; `features.N` are numbered as in torchvision's vgg16_bn.

Two differences to torchvision: the convolutions have no bias (batch norm follows), and the classifier is one linear
layer on the 512 averaged features, as is usual on CIFAR, instead of 7×7 features and three layers.
"""

from __future__ import annotations

from typing import Final

from jaxtyping import Float
from torch import Tensor, flatten, nn

from headgate.models.initialise import initialise_

VGG16_STAGES: Final = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # (convolutions, channels in units of width)


class VGG(nn.Module):
    """Stages of 3×3 conv–bn–relu, each followed by a 2×2 max-pool; global average; linear classifier.

    Source: Simonyan & Zisserman, ICLR 2015, Table 1, column D.
    """

    def __init__(
        self, stages: tuple[tuple[int, int], ...], *, width: int, num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for count, multiple in stages:
            for _ in range(count):
                layers += [
                    nn.Conv2d(channels, width * multiple, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width * multiple),
                    nn.ReLU(),
                ]
                channels = width * multiple
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


def vgg16_cifar(*, width: int = 64, num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-16 with batch norm for 32×32 images (14.7 M parameters at width 64)."""
    return VGG(VGG16_STAGES, width=width, num_classes=num_classes, in_channels=in_channels)
