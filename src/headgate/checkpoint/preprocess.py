"""What images go through before a network sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headgate.errors import ConfigError, DtypeError, ShapeError


class Preprocess:
    """Images in [0, 1] → what the network takes: (x − mean) / std, per channel.

    Set as the attribute `preprocess` of a model it is saved and loaded with it. It is no module, so the model's
    forward, state_dict, parameters and graph do not know of it; it works on any device.

    Args:
        mean, std: one value per channel, for inputs in [0, 1].
        input_size: (height, width) that the network was trained on, where known. Not enforced.
        classes: their names in the order of the outputs, where known.

    Attributes:
        mean, std: (c, 1, 1) float32.
    Raises: ConfigError: lengths differ, or a value is not finite, or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        input_size: tuple[int, int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self._mean, self._std = tuple(float(value) for value in mean), tuple(float(value) for value in std)
        self.mean = torch.tensor(self._mean, dtype=torch.float32, device="cpu").view(-1, 1, 1)
        self.std = torch.tensor(self._std, dtype=torch.float32, device="cpu").view(-1, 1, 1)
        self.input_size = None if input_size is None else (int(input_size[0]), int(input_size[1]))
        self.classes = None if classes is None else tuple(str(name) for name in classes)
        if len(self.mean) != len(self.std) or not len(self.mean):
            raise ConfigError(f"mean and std must have one value per channel, got {len(self.mean)} and {len(self.std)}")
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):
            raise ConfigError(f"mean must be finite and std positive, got {tuple(mean)} and {tuple(std)}")

    def __call__(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
        """Normalise a batch, or one image.

        Raises:
            DtypeError: x is not floating-point.
            ShapeError: it has another number of channels.
        """
        if not x.is_floating_point():
            raise DtypeError(f"images must be floating-point in [0, 1], got {x.dtype}; divide bytes by 255")
        if x.dim() < 3 or x.shape[-3] != len(self.mean):
            raise ShapeError(f"images must be (n, {len(self.mean)}, h, w), got {tuple(x.shape)}")
        return (x - self.mean.to(x.device, x.dtype)) / self.std.to(x.device, x.dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocess) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # holds tensors

    def __repr__(self) -> str:
        return f"Preprocess({', '.join(f'{key}={value}' for key, value in self.to_dict().items() if key != 'classes')})"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "mean": list(self._mean),
            "std": list(self._std),
            "input_size": None if self.input_size is None else list(self.input_size),
            "classes": None if self.classes is None else list(self.classes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`."""
        size, classes = values.get("input_size"), values.get("classes")
        return cls(values["mean"], values["std"], input_size=size and (size[0], size[1]), classes=classes)
