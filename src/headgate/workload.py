"""What a gated layer is and what its gates decided, without torch: the narrow waist between networks and simulators.

`headgate.nn` and `headgate.counting` write these; plots and an accelerator simulator read them. A `LayerShape` is a
convolution's geometry and how it is gated; a `GateTrace` adds the decisions that a batch of images led to.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headgate.errors import CheckpointError, ConfigError, DtypeError, ShapeError
from headgate.files import atomic_write

__all__ = ["GRANULARITIES", "GateTrace", "LayerShape", "load_traces", "save_traces"]

GRANULARITIES = ("dense", "activation", "group", "channel", "l1norm", "fc")
"""What one decision is for; "dense": the layer is not gated. See `LayerShape.decisions` and docs/method.md."""

_BASE_PATH = ("activation", "group", "channel")  # granularities that decide from the partial sum

_FORMAT = "headgate.gate_traces"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Geometry of a convolution, for one image, and how it is gated.

    A linear layer is a 1×1 convolution over a 1×1 map.

    Attributes:
        name: the layer's name in its network.
        c_in, c_out: channels of the whole convolution.
        kernel, stride, dilation: (height, width).
        padding: (height, width) on each side; on the larger one where padding "same" makes them differ by one pixel.
        conv_groups: groups of the dense convolution itself (c_in for a depthwise one), not of the gate.
        in_size, out_size: (height, width) of the input and output maps, without padding.
        groups: G = 1/η of the gate; 1 for a dense layer.
        granularity: one of `GRANULARITIES`.
        grouped: output group i has input group i as its base path; False: the first 1/G of the inputs are everyone's.
        shuffle: base groups are taken across the previous layer's groups.
        binary: weights and inputs are one bit each, so a multiply-accumulate is an XNOR and its share of a popcount.
    Raises:
        ConfigError: a value outside what it accepts, by itself.
        ShapeError: values that do not fit one another.
    """

    name: str
    c_in: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    conv_groups: int = 1
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    groups: int = 1
    granularity: str = "dense"
    grouped: bool = True
    shuffle: bool = False
    binary: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"name must be a string, got {self.name!r}")
        for field in ("c_in", "c_out", "conv_groups", "groups"):
            object.__setattr__(self, field, _integer(field, getattr(self, field), least=1))
        for field in ("kernel", "stride", "padding", "dilation", "in_size", "out_size"):
            object.__setattr__(self, field, _pair(field, getattr(self, field), least=0 if field == "padding" else 1))
        for field in ("grouped", "shuffle", "binary"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(f"{field} must be True or False, got {getattr(self, field)!r}")
        if self.granularity not in GRANULARITIES:
            raise ConfigError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {self.granularity!r}")
        if not self.gated and self.groups != 1:
            raise ConfigError(f"a dense layer has groups=1, got groups={self.groups} for {self.name!r}")
        self._check_channels()
        self._check_out_size()

    def _check_channels(self) -> None:
        if self.c_in % self.conv_groups or self.c_out % self.conv_groups:
            raise ShapeError(
                f"conv_groups must divide c_in and c_out, got conv_groups={self.conv_groups}, c_in={self.c_in}, "
                f"c_out={self.c_out} for {self.name!r}"
            )
        if self.granularity not in _BASE_PATH:
            return  # these gates decide from the input: there is no base path, and G has no meaning
        inputs, outputs = self.c_in // self.conv_groups, self.c_out // self.conv_groups
        if inputs % self.groups or outputs % self.groups:
            raise ShapeError(
                f"groups must divide the channels of each convolution group, got groups={self.groups} for {inputs} "
                f"input and {outputs} output channels in {self.name!r}; lower groups, or leave this layer dense"
            )

    def _check_out_size(self) -> None:
        for axis, side in enumerate(("height", "width")):
            size, step, pad = self.in_size[axis], self.stride[axis], self.padding[axis]
            reach = self.dilation[axis] * (self.kernel[axis] - 1)
            expected = {(size + 2 * pad - reach - 1) // step + 1}
            if step == 1 and 2 * pad - 1 == reach:  # an even kernel with padding "same" has one pixel less on one side
                expected.add(size)
            if self.out_size[axis] not in expected:
                raise ShapeError(
                    f"out_size must have the {side} {' or '.join(map(str, sorted(expected)))} that "
                    f"in_size={self.in_size}, kernel={self.kernel}, stride={self.stride}, padding={self.padding}, "
                    f"dilation={self.dilation} give, got {self.out_size} for {self.name!r}"
                )

    @property
    def gated(self) -> bool:
        """Whether the layer has gates at all."""
        return self.granularity != "dense"

    @property
    def per_pixel(self) -> bool:
        """Whether a decision is for one pixel rather than for a whole map."""
        return self.granularity in ("activation", "group")

    @property
    def decisions(self) -> int:
        """Decisions per image, or per image and output pixel where `per_pixel`.

        activation, channel, fc: one for each output channel. group: one for each output group. l1norm: one for each
        input channel. dense: none.
        """
        match self.granularity:
            case "dense":
                return 0
            case "group":
                return self.groups * self.conv_groups
            case "l1norm":
                return self.c_in
            case _:
                return self.c_out

    @property
    def decision_size(self) -> tuple[int, int]:
        """(height, width) of a map of decisions: `out_size` where `per_pixel`, else (1, 1)."""
        return self.out_size if self.per_pixel else (1, 1)

    @property
    def macs_dense(self) -> int:
        """Multiply-accumulates of the dense convolution, per image; padding counts as if it were data."""
        return self.out_size[0] * self.out_size[1] * self.weights

    @property
    def weights(self) -> int:
        """Number of weights, without bias."""
        return self.c_out * (self.c_in // self.conv_groups) * self.kernel[0] * self.kernel[1]

    @property
    def in_elements(self) -> int:
        """Elements of the input, per image, without padding."""
        return self.c_in * self.in_size[0] * self.in_size[1]

    @property
    def out_elements(self) -> int:
        """Elements of the output, per image."""
        return self.c_out * self.out_size[0] * self.out_size[1]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them: pairs are lists."""
        return {
            field: list(value) if isinstance(value, tuple) else value
            for field, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerShape:
        """The inverse of `to_dict`.

        Raises: ConfigError, ShapeError: a field is missing, unknown, or does not fit.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        unknown, missing = sorted(set(values) - set(fields)), sorted(required - set(values))
        if unknown or missing:
            raise ConfigError(f"expected a LayerShape, got unknown fields {unknown}, missing {missing}")
        return cls(**values)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> LayerShape:
        """The inverse of `to_json`.

        Raises: ConfigError, ShapeError: not JSON, not an object, or not a LayerShape's.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"expected the JSON of a LayerShape, got text that is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"expected a JSON object with a LayerShape's fields, got {type(values).__name__}")
        return cls.from_dict(values)


@dataclass(frozen=True, kw_only=True, eq=False)
class GateTrace:
    """What the gates of one layer decided for a batch of images. Its arrays are read-only.

    Attributes:
        shape: the gated layer.
        open_counts: (images, decisions) int32, how many decisions are open: 0 … pixels of `shape.decision_size`.
        packed: (images, bytes) uint8, or None where only the counts were kept: every decision as one bit, an image's
            (decisions, height, width) flattened in that order, as `numpy.packbits` packs them.
    Raises:
        ConfigError: `shape` is dense; counts out of range, or other than the packed decisions'.
        ShapeError: an array does not fit `shape`.
        DtypeError: an array has another kind of element.
    """

    shape: LayerShape
    open_counts: NDArray[np.integer[Any]]
    packed: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        name, decisions = self.shape.name, self.shape.decisions
        if not self.shape.gated:
            raise ConfigError(f"a GateTrace needs a gated layer, got the dense {name!r}")
        counts = np.asarray(self.open_counts)
        if counts.dtype.kind not in "iu":
            raise DtypeError(f"open_counts must hold integers, got {counts.dtype} for {name!r}")
        if counts.ndim != 2 or counts.shape[1] != decisions:
            raise ShapeError(f"open_counts must be (images, {decisions}), got {counts.shape} for {name!r}")
        if counts.size and not (counts.min() >= 0 and counts.max() <= self.pixels):
            raise ConfigError(
                f"open_counts must be in 0 … {self.pixels}, got {counts.min()} … {counts.max()} for {name!r}"
            )
        object.__setattr__(self, "open_counts", _read_only(counts.astype(np.int32)))
        if self.packed is not None:
            packed = np.asarray(self.packed)
            if packed.dtype != np.uint8:
                raise DtypeError(f"packed must hold uint8, got {packed.dtype} for {name!r}")
            expected = (len(counts), -(-decisions * self.pixels // 8))
            if packed.shape != expected:
                raise ShapeError(f"packed must be {expected}, got {packed.shape} for {name!r}")
            object.__setattr__(self, "packed", _read_only(packed.copy()))
            if not np.array_equal(self.decisions().sum((2, 3)), counts):
                raise ConfigError(f"open_counts differ from the packed decisions of {name!r}")

    @classmethod
    def from_decisions(cls, shape: LayerShape, decisions: NDArray[Any], *, keep: bool = True) -> GateTrace:
        """The trace of a whole (images, decisions, height, width) array of booleans, or of zeros and ones.

        Args:    keep: also keep the decisions, one bit each; False: only their counts.
        Raises:  ShapeError: it is not of `shape.decisions` maps of `shape.decision_size`.
        """
        expected = (shape.decisions, *shape.decision_size)
        if decisions.ndim != 4 or decisions.shape[1:] != expected:
            raise ShapeError(f"decisions must be (images, *{expected}), got {decisions.shape} for {shape.name!r}")
        is_open = decisions != 0
        packed = np.packbits(is_open.reshape(len(is_open), expected[0] * expected[1] * expected[2]), axis=1)
        return cls(shape=shape, open_counts=is_open.sum((2, 3)), packed=packed if keep else None)

    @property
    def images(self) -> int:
        """How many images were traced."""
        return len(self.open_counts)

    @property
    def pixels(self) -> int:
        """Pixels of one map of decisions, the most that can be open in it."""
        return self.shape.decision_size[0] * self.shape.decision_size[1]

    def open_fraction(self) -> NDArray[np.float64]:
        """(images,) fraction of open decisions.

        Every decision of a layer stands for the same amount of conditional work, so this is also the fraction of
        conditional work that each image executes.
        """
        opened: NDArray[np.int64] = self.open_counts.sum(1, dtype=np.int64)
        return np.divide(opened, self.shape.decisions * self.pixels, dtype=np.float64)

    def density(self) -> float:
        """Fraction of the conditional work executed, over all images.

        Raises: ConfigError: the trace is of no image.
        """
        if self.images == 0:
            raise ConfigError(f"density needs at least one image, got an empty trace of {self.shape.name!r}")
        return float(self.open_fraction().mean())

    def decisions(self) -> NDArray[np.bool_]:
        """(images, decisions, height, width) every decision.

        Raises: ConfigError: only the counts were kept.
        """
        if self.packed is None:
            raise ConfigError(f"the trace of {self.shape.name!r} holds counts only; trace with the decisions kept")
        maps = (self.shape.decisions, *self.shape.decision_size)
        bits = np.unpackbits(self.packed, axis=1, count=maps[0] * maps[1] * maps[2])
        return bits.view(np.bool_).reshape(self.images, *maps)


def save_traces(path: str | os.PathLike[str], traces: Sequence[GateTrace]) -> None:
    """Write traces to one compressed .npz file, whole or not at all: a reader never sees half of it.

    The file holds plain arrays (no pickle): `header`, a JSON text as bytes, and for trace i `open_counts_i` and, where
    the decisions were kept, `packed_i`.

    Raises: CheckpointError: the file cannot be written; what was there before is still there.
    """
    header = {"format": _FORMAT, "version": _VERSION, "layers": [trace.shape.to_dict() for trace in traces]}
    arrays: dict[str, NDArray[Any]] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for i, trace in enumerate(traces):
        arrays[f"open_counts_{i}"] = trace.open_counts
        if trace.packed is not None:
            arrays[f"packed_{i}"] = trace.packed
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_traces(path: str | os.PathLike[str]) -> list[GateTrace]:
    """Read what `save_traces` wrote.

    Raises: CheckpointError: missing, truncated, foreign, of a later version, or with arrays that do not fit.
    """
    target = Path(path)
    try:
        with target.open("rb") as file, zipfile.ZipFile(file) as archive:
            arrays = {name.removesuffix(".npy"): _member(archive, name) for name in archive.namelist()}
        header = json.loads(arrays["header"].tobytes())
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise CheckpointError(f"{target} does not hold gate traces; write them with headgate.workload.save_traces")
        if header.get("version") != _VERSION:
            raise CheckpointError(
                f"{target} holds gate traces of version {header.get('version')!r}, expected {_VERSION}; "
                "read it with the headgate that wrote it"
            )
        traces = []
        for i, layer in enumerate(header["layers"]):
            shape = LayerShape.from_dict(layer)
            traces.append(
                GateTrace(shape=shape, open_counts=arrays[f"open_counts_{i}"], packed=arrays.get(f"packed_{i}"))
            )
        return traces
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"no such file: {target}") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{target} is truncated or does not hold gate traces: {error}") from error


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _integer(field: str, value: object, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{field} must be an integer ≥ {least}, got {value!r}")
    return int(value)


def _pair(field: str, value: object, *, least: int) -> tuple[int, int]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ConfigError(f"{field} must be a pair (height, width), got {value!r}")
    height, width = (_integer(field, side, least=least) for side in value)
    return height, width


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
