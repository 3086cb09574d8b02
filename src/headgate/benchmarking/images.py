"""The images that everything is timed on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from headgate.errors import DataError
from headgate.train.finished import test_batches
from headgate.train.recipe import DataConfig

Shape = tuple[int, int, int]
"""(channels, height, width)."""

TRAINED_IMAGES: Final = 256
"""Real images that batches are taken from in turn."""
NOISE_IMAGES: Final = 8
"""Of noise at least so many, that neither thresholds nor densities are those of one image."""

CALIBRATION_IMAGES: Final = 64
"""Of those that are timed, at most so many, for the ranges of 8-bit integers: nothing but time is measured."""


def white_noise(count: int, shape: Shape, seed: int) -> Float[Tensor, "n c h w"]:
    """Independent standard normal values: neighbouring decisions of the layers behind are nearly independent."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def pink_noise(count: int, shape: Shape, seed: int) -> Float[Tensor, "n c h w"]:
    """Noise whose amplitude falls as 1 / frequency, as natural images' does; each map of mean 0 and variance 1.

    It has structure of every size, so that decisions cluster on large maps and on small ones.
    """
    white = white_noise(count, shape, seed)
    _, height, width = shape
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
    frequency = (down.square() + across.square()).sqrt()
    gain = torch.where(frequency > 0, 1 / frequency.clamp(min=1e-12), 0.0)
    pink: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=(height, width))
    return pink / pink.std((2, 3), correction=0, keepdim=True).clamp(min=1e-12)


def real_images(model: nn.Module, source: str | None, known: DataConfig | None, count: int) -> Float[Tensor, "n c h w"]:
    """Test images, prepared as the model was trained; or what an .npy file holds.

    Args:
        source: see `Request.data`.
        known: what the model was trained on, where that is known.
    Raises: ConfigError: neither is given. DataError: see `evaluation_batches`; or too few images, or a bad file.
    """
    if source is not None and source.endswith(".npy"):
        return torch.from_numpy(stored_images(source, count))
    batches = test_batches(model, known, name="the model", data=source, limit=count)
    images = torch.cat([batch for batch, *_ in batches])[:count].contiguous()
    _require_count(len(images), count, source or (known.source if known else ""))
    return images


def stored_images(path: str, count: int, *, least: int | None = None) -> NDArray[np.float32]:
    """The first `count` images of an .npy file, or all where it holds fewer, but at least `least`.

    Args:
        least: None: `count`.
    Raises: DataError: it is missing or foreign, of another dtype or shape, or holds fewer.
    """
    try:
        images: NDArray[np.float32] = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error}); write it with numpy.save") from error
    if images.ndim != 4 or images.dtype != np.float32:
        raise DataError(f"{path}: expected float32 (n, c, h, w), got {images.dtype} {images.shape}; convert it")
    _require_count(len(images), count if least is None else least, path)
    return np.ascontiguousarray(images[:count])


def calibration_images(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ranges of 8-bit integers are taken from."""
    return images[:CALIBRATION_IMAGES]


def _require_count(found: int, needed: int, where: str) -> None:
    if found < needed:
        raise DataError(f"{where}: expected at least {needed} images, got {found}; lower batches or give more")
