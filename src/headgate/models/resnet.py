"""Residual networks for small images, with torchvision's parameter names.

`(2, 2, 2, 2)` blocks of width 64 make the ResNet-18 that is usual on CIFAR (3×3 stem, no max-pool: same names and, but
for `conv1` and `fc`, same shapes as `torchvision.models.resnet18`); `(n, n, n)` of width 16 make ResNet-(6n+2).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, flatten, nn

from headgate.models.initialise import initialise_


class BasicBlock(nn.Module):
    """conv–bn–relu–conv–bn, plus the shortcut, then relu.

    Where the shape changes, the shortcut is a 1×1 convolution and a batch norm (option B).
    Source: He et al., "Deep residual learning", CVPR 2016, Fig. 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu2(x + shortcut)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Stem, one stage per entry of `blocks`, global average, linear classifier.

    Args:
        blocks: number of residual blocks in each stage; stage i has `width · 2^i` channels, each but the first halves
            the resolution.
    """

    def __init__(self, blocks: tuple[int, ...], *, width: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stages = len(blocks)
        channels = width
        for stage, count in enumerate(blocks):
            out_channels = width * 2**stage
            layers = [BasicBlock(channels, out_channels, 1 if stage == 0 else 2)]
            layers += [BasicBlock(out_channels, out_channels, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            channels = out_channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def resnet18_cifar(*, width: int = 64, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-18 with a 3×3 stem, the one used on CIFAR (11.2 M parameters at width 64)."""
    return ResNet((2, 2, 2, 2), width=width, num_classes=num_classes, in_channels=in_channels)


def resnet20(*, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20 for CIFAR (0.27 M parameters at width 16)."""
    return ResNet((3, 3, 3), width=width, num_classes=num_classes, in_channels=in_channels)


def resnet32(*, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-32 for CIFAR (0.47 M parameters at width 16)."""
    return ResNet((5, 5, 5), width=width, num_classes=num_classes, in_channels=in_channels)


def resnet56(*, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-56 for CIFAR (0.86 M parameters at width 16)."""
    return ResNet((9, 9, 9), width=width, num_classes=num_classes, in_channels=in_channels)


def digits_resnet(*, width: int = 16, num_classes: int = 10, in_channels: int = 1) -> ResNet:
    """ResNet-8 for scikit-learn's 8×8 digits (78 k parameters at width 16)."""
    return ResNet((1, 1, 1), width=width, num_classes=num_classes, in_channels=in_channels)
