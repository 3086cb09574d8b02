"""What `count` returns: exact work by layer, by path and by image."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from headgate.counting.layers import Images, LayerCounts, Uncounted
from headgate.counting.traffic import BufferModel, Traffic, traffic
from headgate.errors import CheckpointError, DataError, HeadgateError
from headgate.files import write_atomic
from headgate.workload import LayerShape

FORMAT, VERSION = "headgate.counts", 1


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One layer's figures, MACs as mean per image.

    Attributes:
        dense_macs: without gates.
        base_macs, conditional_macs, overhead_macs: of each path; a dense layer has them 0.
        executed_macs: their sum; of a dense layer, `dense_macs`.
        overhead_additions, overhead_multiplications: what `overhead_macs` is made of.
        density: fraction of the conditional MACs executed, in [0, 1]; 1 where there are none.
        channels_used: mean share of its input channels that an output activation is computed from, in [0, 1]:
            η + density · (1 − η).
        mac_reduction: dense ÷ executed.
    """

    name: str
    shape: LayerShape
    granularity: str
    dense_macs: int
    base_macs: int
    conditional_macs: float
    overhead_macs: int
    overhead_additions: int
    overhead_multiplications: int
    executed_macs: float
    density: float
    channels_used: float
    mac_reduction: float

    @classmethod
    def of(cls, layer: LayerCounts) -> Self:
        """The figures of a layer's exact counts."""
        gated = layer.gated
        executed = _mean(layer.executed_macs())
        skippable = layer.dense_macs - layer.base_macs
        conditional = _mean(layer.conditional_macs)
        return cls(
            name=layer.name,
            shape=layer.shape,
            granularity=layer.shape.granularity,
            dense_macs=layer.dense_macs,
            base_macs=layer.base_macs if gated else 0,
            conditional_macs=conditional,
            overhead_macs=layer.overhead_macs,
            overhead_additions=layer.additions,
            overhead_multiplications=layer.multiplications,
            executed_macs=executed,
            density=conditional / skippable if skippable else 1.0,
            channels_used=(layer.base_macs + conditional) / layer.dense_macs,
            mac_reduction=_ratio(layer.dense_macs, executed),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Multiply-accumulates of a network over a set of images. Made by `count`.

    "Gated layers" are the gated convolutions; "network" means those and every other convolution and linear layer.
    Totals are means per image unless a method says otherwise; what is executed includes the gates' overhead, in which
    an addition counts as one MAC.

    Attributes:
        layers: exact counts in the order of execution, per image: for figures, see `by_layer`.
        images: how many were counted.
        uncounted: arithmetic outside those layers, which is in no total.
        uncalled: layers that no image ran through.
    """

    layers: tuple[LayerCounts, ...]
    images: int
    uncounted: tuple[Uncounted, ...] = field(default=())
    uncalled: tuple[str, ...] = field(default=())

    @property
    def gated_layers(self) -> tuple[LayerCounts, ...]:
        """Those of `layers` that have gates."""
        return tuple(layer for layer in self.layers if layer.gated)

    # --------------------------------------------------------------- totals

    @property
    def dense_macs(self) -> int:
        """MACs per image of the gated layers, without gates."""
        return sum(layer.dense_macs for layer in self.gated_layers)

    @property
    def executed_macs(self) -> float:
        """MACs per image that the gated layers execute."""
        return _mean(self.by_image())

    @property
    def mac_reduction(self) -> float:
        """Dense ÷ executed MACs of the gated layers; 1 where nothing is gated."""
        return _ratio(self.dense_macs, self.executed_macs)

    @property
    def network_dense_macs(self) -> int:
        """MACs per image of the network, without gates."""
        return sum(layer.dense_macs for layer in self.layers)

    @property
    def network_executed_macs(self) -> float:
        """MACs per image that the network executes."""
        return _mean(self.by_image(network=True))

    @property
    def network_mac_reduction(self) -> float:
        """Dense ÷ executed MACs of the network."""
        return _ratio(self.network_dense_macs, self.network_executed_macs)

    @property
    def density(self) -> float:
        """Fraction of the gated layers' conditional MACs executed, in [0, 1]; 1 where there are none."""
        gated = self.gated_layers
        skippable = sum(layer.dense_macs - layer.base_macs for layer in gated) * self.images
        executed = sum(int(layer.conditional_macs.sum()) for layer in gated)
        return executed / skippable if skippable else 1.0

    # ----------------------------------------------------------- breakdowns

    def by_layer(self) -> list[LayerRecord]:
        """Figures of every layer, in the order of execution."""
        return [LayerRecord.of(layer) for layer in self.layers]

    def by_path(self) -> dict[str, float]:
        """MACs per image of the network on each path: base, conditional, overhead, and dense (layers without gates)."""
        gated = self.gated_layers
        return {
            "base": float(sum(layer.base_macs for layer in gated)),
            "conditional": sum(int(layer.conditional_macs.sum()) for layer in gated) / self.images,
            "overhead": float(sum(layer.overhead_macs for layer in gated)),
            "dense": float(sum(layer.dense_macs for layer in self.layers if not layer.gated)),
        }

    def by_image(self, *, network: bool = False) -> Images:
        """(images,) int64 MACs that the gated layers execute for each image, exact.

        In the loader's order, or that of the index; see `count`.

        Args: network: of all layers.
        """
        total = np.zeros(self.images, np.int64)
        for layer in self.layers if network else self.gated_layers:
            total += layer.executed_macs()
        return total

    def traffic(self, buffer: BufferModel | None = None) -> Traffic:
        """Bytes that the network moves on and off chip, dense and gated, under a stated model of the buffer."""
        return traffic(self.layers, buffer or BufferModel())

    # ------------------------------------------------------------------ text

    def __str__(self) -> str:
        head = ("layer", "granularity", "channels", "kernel", "map", "dense MACs", "executed", "density", "used", "÷")
        rows = [head, *(_row(record) for record in self.by_layer())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        rule = "─" * max(map(len, lines))
        lines = [lines[0], rule, *lines[1:], rule]
        for label, dense, executed in (
            ("gated layers", self.dense_macs, self.executed_macs),
            ("network", self.network_dense_macs, self.network_executed_macs),
        ):
            reduction = _ratio(dense, executed)
            lines.append(f"{label}: {_short(dense)} → {_short(executed)} MACs per image, {reduction:.2f}× fewer")
        paths = ", ".join(f"{path} {_short(macs)}" for path, macs in self.by_path().items())
        lines.append(f"by path: {paths}; density {self.density:.4f}; {self.images} images")
        for operation in self.uncounted:
            macs = "?" if operation.macs is None else _short(operation.macs)
            lines.append(
                f"not counted: {operation.operation} in {operation.name or 'the model'}, {macs} MACs per image"
            )
        if self.uncalled:
            lines.append(f"never ran: {', '.join(self.uncalled)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"Counts({len(self.layers)} layers, {self.images} images, mac_reduction={self.mac_reduction:.3f}, "
            f"density={self.density:.4f})"
        )

    # ------------------------------------------------------------------ JSON

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: the exact counts under "layers", and for readers without headgate the figures beside.

        "summary", "by_layer", "by_path" and "by_image" are what the properties and methods of those names return.
        """
        summary = {
            name: getattr(self, name)
            for name in (
                "dense_macs",
                "executed_macs",
                "mac_reduction",
                "network_dense_macs",
                "network_executed_macs",
                "network_mac_reduction",
                "density",
            )
        }
        return {
            "format": FORMAT,
            "version": VERSION,
            "images": self.images,
            "summary": summary,
            "by_layer": [asdict(record) | {"shape": record.shape.to_dict()} for record in self.by_layer()],
            "by_path": self.by_path(),
            "by_image": self.by_image().tolist(),
            "uncounted": [operation._asdict() for operation in self.uncounted],
            "uncalled": list(self.uncalled),
            "layers": [layer.to_dict() for layer in self.layers],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises: DataError: not what `to_dict` gives, or of a newer version.
        """
        if values.get("format") != FORMAT:
            raise DataError(f"expected counts written by headgate, got format {values.get('format')!r}")
        if values.get("version") != VERSION:
            raise DataError(f"expected counts of version {VERSION}, got {values.get('version')!r}; update headgate")
        try:
            images = int(values["images"])
            return cls(
                layers=tuple(LayerCounts.from_dict(layer, images) for layer in values["layers"]),
                images=images,
                uncounted=tuple(Uncounted(**operation) for operation in values["uncounted"]),
                uncalled=tuple(values["uncalled"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"expected counts written by headgate, got incomplete ones: {error!r}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON, whole or not at all.

        Raises: CheckpointError: it cannot be written.
        """
        write_atomic(path, json.dumps(self.to_dict(), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises: CheckpointError: missing, truncated, foreign or newer.
        """
        try:
            values = json.loads(Path(path).read_text("utf-8"))
            if not isinstance(values, dict):
                raise DataError(f"expected a JSON object, got {type(values).__name__}")
            return cls.from_dict(values)
        except FileNotFoundError as error:
            raise CheckpointError(f"no such file: {path}") from error
        except (OSError, ValueError, HeadgateError) as error:
            raise CheckpointError(f"{path} does not hold counts: {error}") from error


def _mean(values: Images) -> float:
    return int(values.sum()) / len(values)


def _ratio(dense: float, executed: float) -> float:
    """Dense ÷ executed: 1 where there is nothing to do, infinite where nothing of it is done."""
    if not dense:
        return 1.0
    return dense / executed if executed else float("inf")


def _short(macs: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if macs >= size:
            return f"{macs / size:.2f} {unit}"
    return f"{macs:.0f}"


def _row(record: LayerRecord) -> Sequence[str]:
    shape = record.shape
    return (
        record.name,
        f"{record.granularity} G={shape.groups}" if record.base_macs else record.granularity,
        f"{shape.c_in}→{shape.c_out}" + (f"/{shape.conv_groups}" if shape.conv_groups > 1 else ""),
        f"{shape.kernel[0]}×{shape.kernel[1]}",
        f"{shape.out_size[0]}×{shape.out_size[1]}",
        _short(record.dense_macs),
        _short(record.executed_macs),
        f"{record.density:.4f}" if shape.gated else "",
        f"{record.channels_used:.3f}",
        f"{record.mac_reduction:.2f}",
    )
