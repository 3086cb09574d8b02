"""An AlexNet-like network for 32×32 images: AlexNet's five convolutions and three linear layers, with batch norm."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, flatten, nn

from headgate.models.initialise import initialise_


def _conv(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class AlexNet(nn.Module):
    """Channels 1·3·6·4·4 × width as in torchvision's AlexNet; strides and linear layers cut down for 32×32 images.

    Source: Krizhevsky, "One weird trick", arXiv 1404.5997; batch norm added because a gate needs it.
    """

    def __init__(self, *, width: int, num_classes: int, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv(in_channels, width, 5),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_conv(width, 3 * width, 5),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_conv(3 * width, 6 * width, 3),
            *_conv(6 * width, 4 * width, 3),
            *_conv(4 * width, 4 * width, 3),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(4 * width * 16, 16 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(16 * width, 16 * width),
            nn.ReLU(),
            nn.Linear(16 * width, num_classes),
        )
        initialise_(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


def alexnet_cifar(*, width: int = 64, num_classes: int = 10, in_channels: int = 3) -> AlexNet:
    """AlexNet-like network for 32×32 images (7.7 M parameters at width 64)."""
    return AlexNet(width=width, num_classes=num_classes, in_channels=in_channels)
