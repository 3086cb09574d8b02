"""Bytes that cross the chip's border, dense and gated, under a stated model of the on-chip buffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headgate.counting.arithmetic import base_weights
from headgate.counting.layers import Images, LayerCounts
from headgate.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BufferModel:
    """What an accelerator keeps on chip while it runs one layer of one image; docs/counting.md has the model in full.

    Layer by layer and image by image, nothing stays on chip in between. Weights are read once. An input map that fits
    into the buffer is read once; else the buffer holds as many weights as fit, and the map is streamed once for every
    such fill. Outputs are written once. Thresholds, norms and decisions are not counted.

    Attributes:
        weight_bytes, activation_bytes: size of one value; the defaults are 8-bit. A weight of a binary layer takes one
            bit instead. The maps that it reads are real: their signs are taken on chip.
        buffer_bytes: of the on-chip buffer.
    Raises: ConfigError: a size is not a positive integer.
    """

    weight_bytes: int = 1
    activation_bytes: int = 1
    buffer_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        for name in ("weight_bytes", "activation_bytes", "buffer_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be an integer ≥ 1, got {value!r}")


class Access(NamedTuple):
    """Mean bytes per image that one layer reads and writes."""

    weights: float
    inputs: float
    outputs: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.inputs + self.outputs


@dataclass(frozen=True, kw_only=True)
class LayerTraffic:
    """Off-chip bytes of one layer, mean per image."""

    name: str
    dense: Access
    gated: Access

    @property
    def dense_bytes(self) -> float:
        """Without gates."""
        return self.dense.total

    @property
    def gated_bytes(self) -> float:
        """With them."""
        return self.gated.total

    @property
    def reduction(self) -> float:
        """Dense ÷ gated."""
        return self.dense_bytes / self.gated_bytes


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Off-chip bytes of a network, mean per image."""

    buffer: BufferModel
    layers: tuple[LayerTraffic, ...]

    @property
    def dense_bytes(self) -> float:
        """Without gates, all layers."""
        return sum(layer.dense_bytes for layer in self.layers)

    @property
    def gated_bytes(self) -> float:
        """With gates, all layers."""
        return sum(layer.gated_bytes for layer in self.layers)

    @property
    def reduction(self) -> float:
        """Dense ÷ gated."""
        return self.dense_bytes / self.gated_bytes

    @property
    def saved(self) -> float:
        """Fraction of the dense bytes that need not be moved, in [0, 1]."""
        return 1 - self.gated_bytes / self.dense_bytes

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, bytes mean per image."""
        layers = [
            {
                "name": layer.name,
                "dense_bytes": layer.dense_bytes,
                "gated_bytes": layer.gated_bytes,
                "dense": layer.dense._asdict(),
                "gated": layer.gated._asdict(),
            }
            for layer in self.layers
        ]
        totals = {"dense_bytes": self.dense_bytes, "gated_bytes": self.gated_bytes}
        return {"buffer": vars(self.buffer).copy(), **totals, "reduction": self.reduction, "layers": layers}


def traffic(layers: tuple[LayerCounts, ...], buffer: BufferModel) -> Traffic:
    """The off-chip bytes of counted layers. Source of the idea: Hua et al., author response, Reviewer 5, Q1."""
    return Traffic(buffer=buffer, layers=tuple(_layer(layer, buffer) for layer in layers))


def _layer(layer: LayerCounts, buffer: BufferModel) -> LayerTraffic:
    shape = layer.shape
    dense = _access(layer, buffer, *(np.array([value], np.int64) for value in (shape.weights, shape.c_in, shape.c_out)))
    if not layer.gated:
        return LayerTraffic(name=layer.name, dense=dense, gated=dense)
    weights = layer.conditional_weights + base_weights(shape)
    gated = _access(layer, buffer, weights, layer.input_channels, layer.output_channels)
    return LayerTraffic(name=layer.name, dense=dense, gated=gated)


def _access(
    layer: LayerCounts, buffer: BufferModel, weights: Images, input_channels: Images, output_channels: Images
) -> Access:
    shape = layer.shape
    weight_bytes = -(-weights // 8) if layer.binary else weights * buffer.weight_bytes
    input_bytes = input_channels * (shape.in_size[0] * shape.in_size[1] * buffer.activation_bytes)
    output_bytes = output_channels * (shape.out_size[0] * shape.out_size[1] * buffer.activation_bytes)
    fills = np.maximum(-(-weight_bytes // buffer.buffer_bytes), 1)
    passes: NDArray[np.int64] = np.where(input_bytes <= buffer.buffer_bytes, 1, fills)
    means = (float((part * layer.calls).mean()) for part in (weight_bytes, input_bytes * passes, output_bytes))
    return Access(*means)
