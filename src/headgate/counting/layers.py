"""What one layer executed, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from headgate.counting.arithmetic import base_macs
from headgate.errors import DataError
from headgate.workload import LayerShape

Images = NDArray[np.int64]

PER_IMAGE = ("conditional_macs", "conditional_weights", "input_channels", "output_channels")


class Uncounted(NamedTuple):
    """Arithmetic outside `nn.Conv2d`, `nn.Linear` and gated convolutions: in no total, but never silent.

    Attributes:
        name: the module that ran it; "" is the model itself.
        operation: as torch calls it, e.g. "aten.bmm".
        macs: per image; None where it cannot be told.
    """

    name: str
    operation: str
    macs: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCounts:
    """What one layer executed in one place of the network. All in integers; the arrays are (images,) int64.

    A module that runs several times for an image is a layer each time: "conv", "conv#2", …

    Attributes:
        shape: the layer, named as in the model.
        calls: how often a dense layer ran on this shape for each image, e.g. on image crops folded into the batch.
        additions, multiplications: what the gate adds per image.
        conditional_macs, conditional_weights, input_channels, output_channels: see `arithmetic.Work`; of a dense layer:
            no conditional work, and all channels.
    """

    shape: LayerShape
    calls: int
    additions: int
    multiplications: int
    conditional_macs: Images
    conditional_weights: Images
    input_channels: Images
    output_channels: Images

    @property
    def name(self) -> str:
        """As in the model."""
        return self.shape.name

    @property
    def gated(self) -> bool:
        """Whether the layer has gates."""
        return self.shape.gated

    @property
    def binary(self) -> bool:
        """Whether the MACs of its paths are binary ones."""
        return self.shape.binary

    @property
    def images(self) -> int:
        """How many images ran through it."""
        return len(self.conditional_macs)

    @property
    def dense_macs(self) -> int:
        """MACs per image without gates."""
        return self.shape.macs_dense * self.calls

    @property
    def base_macs(self) -> int:
        """MACs per image of the base path; all of a dense layer's."""
        return base_macs(self.shape) * self.calls

    @property
    def overhead_macs(self) -> int:
        """What the gate adds per image: a multiplication is one MAC, and so is an addition without one."""
        return self.additions + self.multiplications

    def path_macs(self) -> Images:
        """(images,) MACs executed on the base and the conditional path: binary ones of a binary layer."""
        return self.conditional_macs + self.base_macs

    def executed_macs(self) -> Images:
        """(images,) MACs executed: base path, conditional path, gate overhead, which is never binary."""
        return self.path_macs() + self.overhead_macs

    def select(self, images: NDArray[np.intp]) -> Self:
        """The same for these images, in this order."""
        return type(self)(
            shape=self.shape,
            calls=self.calls,
            additions=self.additions,
            multiplications=self.multiplications,
            **{name: getattr(self, name)[images] for name in PER_IMAGE},
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; an array with one value for all images is that value."""
        values: dict[str, Any] = {"shape": self.shape.to_dict(), "calls": self.calls}
        values |= {"additions": self.additions, "multiplications": self.multiplications}
        for name in PER_IMAGE:
            array: Images = getattr(self, name)
            values[name] = int(array[0]) if len(array) and (array == array[0]).all() else array.tolist()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], images: int) -> Self:
        """The inverse of `to_dict`.

        Raises: DataError: an array has not one value per image. KeyError, TypeError, ConfigError, ShapeError.
        """
        own = {field.name: values[field.name] for field in fields(cls)}
        own["shape"] = LayerShape.from_dict(own["shape"])
        for name in PER_IMAGE:
            value = own[name]
            own[name] = np.full(images, value, np.int64) if isinstance(value, int) else np.asarray(value, np.int64)
            if own[name].shape != (images,):
                raise DataError(f"{name} must have {images} values, got {own[name].shape} in {own['shape'].name!r}")
        return cls(**own)


def joined(parts: list[LayerCounts]) -> LayerCounts:
    """One layer's counts of several runs, end to end.

    Raises: DataError: the layer had another shape.
    """
    first = parts[0]
    for other in parts[1:]:
        require_same(first, other.shape, other.calls)
    return LayerCounts(
        shape=first.shape,
        calls=first.calls,
        additions=first.additions,
        multiplications=first.multiplications,
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in PER_IMAGE},
    )


def require_same(first: LayerCounts, shape: LayerShape, calls: int) -> None:
    """Raises DataError: the layer runs on another size than in the batches before."""
    if (first.shape, first.calls) != (shape, calls):
        raise DataError(
            f"images of one count must have one size, got input maps of {first.shape.in_size} and {shape.in_size} "
            f"({first.calls} and {calls} times an image) in {shape.name!r}; count each size by itself"
        )
