"""Binary networks for 32×32 images: all but the first and the last layer has weights and inputs of one bit.

The order of layers is convolution, batch norm, hard tanh; the sign is the first thing that the next convolution does.
The hard tanh leaves signs as they are, bounds what shortcuts carry on, and stops the gradients that the sign stops. To
a gate it is an activation that saturates on both sides: only sums near 0, whose sign may still turn, are worth
completing.

Source: Qin et al., "Forward and backward information retention for accurate binary neural networks" (IR-Net), CVPR
2020, whose public code has both networks in this order; shortcuts and pooling differ, as is said below.
"""

from __future__ import annotations

from typing import Final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, flatten, nn

from headgate.models.initialise import initialise_
from headgate.nn import BinaryConv2d

VGG_SMALL_STAGES: Final = ((2, 1), (2, 2), (2, 4))  # (convolutions, channels in units of width)


class HalvedShortcut(nn.Module):
    """Average pooling by 2, and maps of zeros for the channels that are new: nothing to compute in full precision.

    Source: He et al., "Deep residual learning", CVPR 2016 (option A); the pooling is Bi-Real Net's.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.new_channels = out_channels - in_channels

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        x = F.avg_pool2d(x, 2, ceil_mode=True)  # odd maps shrink as those of a convolution of stride 2 do
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class BinaryBlock(nn.Module):
    """hard tanh( bn(binary conv) + shortcut ).

    The shortcut is round a single convolution: it carries real numbers past every sign, of which a shortcut round two
    would leave all but a bit in the middle.
    Source: Liu et al., "Bi-Real Net", ECCV 2018, section 3.2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = BinaryConv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else HalvedShortcut(in_channels, out_channels)
        self.act = nn.Hardtanh()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        return self.act(self.bn(self.conv(x)) + self.shortcut(x))  # type: ignore[no-any-return]


class BinaryResNet(nn.Module):
    """Stem, stages of binary blocks, global average and a norm of it, linear classifier.

    The norm is there since means of what a hard tanh bounds are small, and the classifier would be long in learning.

    Args:
        blocks: number of blocks, and so of convolutions, in each stage; stage i has `width · 2^i` channels, each but
            the first halves the resolution.
    """

    def __init__(self, blocks: tuple[int, ...], *, width: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = nn.Hardtanh()
        stages: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            out_channels = width * 2**stage
            layers = [BinaryBlock(channels, out_channels, 1 if stage == 0 else 2)]
            layers += [BinaryBlock(out_channels, out_channels, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*layers))
            channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.stages(self.act(self.bn1(self.conv1(x))))
        return self.fc(flatten(self.bn2(self.avgpool(x)), 1))  # type: ignore[no-any-return]


class BinaryVGG(nn.Module):
    """Stages of 3×3 conv–bn–hard tanh, each followed by a 2×2 average pooling; linear classifier on the 4×4 maps left.

    The greatest of four numbers is mostly positive, so maximum pooling in front of a sign would make most inputs +1.
    The published networks pool between convolution and norm instead, where no gate could stand.
    Source of the widths: Zhang et al., "LQ-Nets", ECCV 2018 (VGG-Small).
    """

    def __init__(
        self, stages: tuple[tuple[int, int], ...], *, width: int, num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for count, multiple in stages:
            for _ in range(count):
                kind = BinaryConv2d if layers else nn.Conv2d
                layers += [
                    kind(channels, width * multiple, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width * multiple),
                    nn.Hardtanh(),
                ]
                channels = width * multiple
            layers.append(nn.AvgPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Linear(channels * 16, num_classes)
        initialise_(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


def binary_resnet20(*, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> BinaryResNet:
    """Binary ResNet-20 for CIFAR (0.27 M parameters at width 16, 0.27 M of them bits)."""
    return BinaryResNet((6, 6, 6), width=width, num_classes=num_classes, in_channels=in_channels)


def binary_vgg_small(*, width: int = 128, num_classes: int = 10, in_channels: int = 3) -> BinaryVGG:
    """Binary VGG-Small for CIFAR (4.7 M parameters at width 128, 4.6 M of them bits)."""
    return BinaryVGG(VGG_SMALL_STAGES, width=width, num_classes=num_classes, in_channels=in_channels)


def digits_binary_resnet(*, width: int = 16, num_classes: int = 10, in_channels: int = 1) -> BinaryResNet:
    """Binary ResNet-8 for scikit-learn's 8×8 digits (75 k parameters at width 16)."""
    return BinaryResNet((2, 2, 2), width=width, num_classes=num_classes, in_channels=in_channels)
