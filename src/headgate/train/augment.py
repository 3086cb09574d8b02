"""Augmentation of whole batches of uint8 images on their own device, and normalisation.

Every augmentation is drawn and applied in two steps, so that the draws for a global batch can be made once and sliced
by process: the augmentation of an image then does not depend on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from headgate.errors import ConfigError


@runtime_checkable
class Augment(Protocol):
    """What a loader needs of an augmentation."""

    def draw(self, count: int, generator: torch.Generator) -> Int64[Tensor, "n k"]:
        """Random parameters for `count` images, on the CPU."""
        ...

    def apply(self, images: UInt8[Tensor, "n c h w"], draws: Int64[Tensor, "n k"]) -> UInt8[Tensor, "n c h w"]:
        """The augmented images; a pure function of its arguments."""
        ...


@dataclass(frozen=True, kw_only=True)
class RandomCropFlip:
    """Pad with black by `padding` pixels, crop back to the original size at random, mirror every other image.

    Black is the *raw* zero, as in the usual recipe (pad, then normalise).
    Source: method.md, "Training recipes", CIFAR-10.
    Raises: ConfigError: `padding` is negative.
    """

    padding: int = 4
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ConfigError(f"expected padding >= 0, got padding={self.padding}; use 0 for no random crop")

    def draw(self, count: int, generator: torch.Generator) -> Int64[Tensor, "n 3"]:
        """Columns: top and left of the crop in the padded image, and 1 where the image is mirrored."""
        offsets = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator)
        mirror = torch.randint(0, 2, (count, 1), generator=generator)
        return torch.cat([offsets, mirror if self.mirror else torch.zeros_like(mirror)], 1)

    def apply(self, images: UInt8[Tensor, "n c h w"], draws: Int64[Tensor, "n 3"]) -> UInt8[Tensor, "n c h w"]:
        """Crop and mirror image i as row i of `draws` says."""
        n, _, h, w = images.shape
        draws = draws.to(images.device)
        padded = torch.nn.functional.pad(images, [self.padding] * 4)
        windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # a view: (n, c, 2p+1, 2p+1, h, w)
        cropped = windows[torch.arange(n, device=images.device), :, draws[:, 0], draws[:, 1]]
        return torch.where(draws[:, 2].bool().view(n, 1, 1, 1), cropped.flip(3), cropped)

    def __call__(self, images: UInt8[Tensor, "n c h w"], generator: torch.Generator) -> UInt8[Tensor, "n c h w"]:
        """Draw and apply."""
        return self.apply(images, self.draw(len(images), generator))


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """uint8 → float32 in channels_last: (x / 255 − mean) / std, with one mean and std per channel, in units of 0…1.

    Raises: ConfigError: `mean` and `std` differ in length, or a `std` is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ConfigError(
                f"expected one mean and one positive std per channel, got mean={self.mean}, std={self.std}; "
                "give both in units of 0…1"
            )

    def __call__(
        self, images: UInt8[Tensor, "n c h w"], shift: Float[Tensor, "n c"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Normalise.

        Args:   shift: added to each image's channels first (colour augmentation), in units of 0…1.
        Raises: ConfigError: the images have another number of channels than `mean`.
        """
        if images.shape[1] != len(self.mean):
            raise ConfigError(
                f"expected images of {len(self.mean)} channels as mean has, got {images.shape[1]}; "
                "choose the Normalise of this dataset or load with channels=1 or 3"
            )
        scale = 1 / (255 * torch.tensor(self.std, device=images.device))
        bias = -torch.tensor(self.mean, device=images.device) * 255 * scale
        x = images.to(torch.float32, memory_format=torch.channels_last)
        x = x.mul_(scale.view(1, -1, 1, 1)).add_(bias.view(1, -1, 1, 1))
        if shift is not None:
            x.add_((shift.to(x) * (255 * scale)).view(*shift.shape, 1, 1))
        return x


@dataclass(frozen=True, kw_only=True)
class FancyPCA:
    """AlexNet's colour augmentation: add to all pixels Σ_i α_i λ_i p_i, with α ~ N(0, std²) drawn once per image.

    λ and p are the eigenvalues and eigenvectors (columns of `eigenvectors`, rows R, G, B) of the covariance of
    ImageNet's RGB pixels in units of 0…1.
    Source: Krizhevsky et al., NeurIPS 2012, section 4.1; the values are those of facebook/fb.resnet.torch.
    """

    std: float = 0.1
    eigenvalues: tuple[float, ...] = (0.2175, 0.0188, 0.0045)
    eigenvectors: tuple[tuple[float, ...], ...] = (
        (-0.5675, 0.7192, 0.4009),
        (-0.5808, -0.0045, -0.8140),
        (-0.5836, -0.6948, 0.4203),
    )

    def draw(self, generator: torch.Generator) -> Float[Tensor, " 3"]:
        """The shift of one image's R, G and B, in units of 0…1."""
        alpha = self.std * torch.randn(3, generator=generator)
        return torch.tensor(self.eigenvectors) @ (alpha * torch.tensor(self.eigenvalues))


FANCY_PCA: Final = FancyPCA()
CIFAR10_NORMALISE: Final = Normalise(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
IMAGENET_NORMALISE: Final = Normalise(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
DIGITS_NORMALISE: Final = Normalise(mean=(0.3054,), std=(0.3760,))  # of the training split
