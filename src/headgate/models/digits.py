"""A tiny network for scikit-learn's 8×8 digits: it trains in seconds, for tests and first steps."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, flatten, nn

from headgate.models.initialise import initialise_


class DigitsCNN(nn.Module):
    """Four 3×3 conv–bn–relu of 1·1·2·2 × width channels, a max-pool after the second; global average; linear layer."""

    def __init__(self, *, width: int, num_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for out_channels in (width, width, 2 * width, 2 * width):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            channels = out_channels
        layers.insert(6, nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


def digits_cnn(*, width: int = 32, num_classes: int = 10, in_channels: int = 1) -> DigitsCNN:
    """Four-layer network for 8×8 digits (66 k parameters at width 32; gate with up to 8 groups)."""
    return DigitsCNN(width=width, num_classes=num_classes, in_channels=in_channels)
