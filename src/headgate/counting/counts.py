"""What `count` returns: exact work by layer, by path and by image."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from headgate.counting.layers import Images, LayerCounts, Uncounted
from headgate.counting.traffic import BufferModel, Traffic, traffic
from headgate.errors import CheckpointError, DataError, HeadgateError
from headgate.files import write_atomic
from headgate.workload import LayerShape

FORMAT, VERSION = "headgate.counts", 1


class Total(NamedTuple):
    """Multiply-accumulates of one kind, binary or not, as mean per image.

    Attributes:
        dense_macs: without gates.
        executed_macs: with them.
    """

    dense_macs: int
    executed_macs: float

    @property
    def reduction(self) -> float:
        """Dense ÷ executed: 1 where there is nothing to do, infinite where nothing of it is done."""
        if self.executed_macs:
            return self.dense_macs / self.executed_macs
        return float("inf") if self.dense_macs else 1.0


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One layer's figures, MACs as mean per image.

    Attributes:
        binary: its MACs are binary ones (XNOR and popcount), but for `overhead_macs`.
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
    binary: bool
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
            binary=layer.binary,
            dense_macs=layer.dense_macs,
            base_macs=layer.base_macs if gated else 0,
            conditional_macs=conditional,
            overhead_macs=layer.overhead_macs,
            overhead_additions=layer.additions,
            overhead_multiplications=layer.multiplications,
            executed_macs=executed,
            density=conditional / skippable if skippable else 1.0,
            channels_used=(layer.base_macs + conditional) / layer.dense_macs,
            mac_reduction=Total(layer.dense_macs, executed).reduction,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Multiply-accumulates of a network over a set of images. Made by `count`.

    "Gated layers" are the gated convolutions; "network" means those and every other convolution and linear layer.
    Totals are means per image unless a method says otherwise; what is executed includes the gates' overhead, in which
    an addition counts as one MAC. Binary MACs, of layers whose weights and inputs are one bit each, are no MACs: they
    have totals of their own (`total`). Only ratios (`mac_reduction`, `density`) are over both kinds, one for one.

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

    def total(self, *, network: bool = False, binary: bool = False) -> Total:
        """Multiply-accumulates of the gated layers.

        Args:
            network: of all layers.
            binary: the binary ones instead of the others.
        """
        layers = self.layers if network else self.gated_layers
        return Total(
            dense_macs=sum(layer.dense_macs for layer in layers if layer.binary == binary),
            executed_macs=_mean(self.by_image(network=network, binary=binary)),
        )

    @property
    def dense_macs(self) -> int:
        """MACs per image of the gated layers, without gates; binary ones are not in it."""
        return self.total().dense_macs

    @property
    def executed_macs(self) -> float:
        """MACs per image that the gated layers execute; binary ones are not in it."""
        return self.total().executed_macs

    @property
    def mac_reduction(self) -> float:
        """Dense ÷ executed MACs of the gated layers, of both kinds; 1 where nothing is gated."""
        return self._both(network=False).reduction

    @property
    def network_dense_macs(self) -> int:
        """MACs per image of the network, without gates; binary ones are not in it."""
        return self.total(network=True).dense_macs

    @property
    def network_executed_macs(self) -> float:
        """MACs per image that the network executes; binary ones are not in it."""
        return self.total(network=True).executed_macs

    @property
    def network_mac_reduction(self) -> float:
        """Dense ÷ executed MACs of the network, of both kinds."""
        return self._both(network=True).reduction

    def totals(self) -> list[tuple[str, Total, bool]]:
        """What a table ends with: (gated layers or network, total, binary or not); of kinds that the network has."""
        kinds = sorted({layer.binary for layer in self.layers})
        found = [
            (label, self.total(network=network, binary=binary), binary)
            for label, network in (("gated layers", False), ("network", True))
            for binary in kinds
        ]
        return [entry for entry in found if len(kinds) == 1 or any(entry[1])]

    def _both(self, *, network: bool) -> Total:
        own, binary = self.total(network=network), self.total(network=network, binary=True)
        return Total(own.dense_macs + binary.dense_macs, own.executed_macs + binary.executed_macs)

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
        """MACs per image of the network on each path: base, conditional, overhead, and dense (layers without gates).

        Where layers are binary, their paths follow: binary base, binary conditional, binary dense.
        """
        all_images = dict.fromkeys(("base", "conditional", "overhead", "dense"), 0)
        if any(layer.binary for layer in self.layers):
            all_images |= dict.fromkeys(("binary base", "binary conditional", "binary dense"), 0)
        for layer in self.layers:
            kind = "binary " if layer.binary else ""
            all_images[f"{kind}base" if layer.gated else f"{kind}dense"] += layer.base_macs * self.images
            all_images[f"{kind}conditional"] += int(layer.conditional_macs.sum())
            all_images["overhead"] += layer.overhead_macs * self.images
        return {path: macs / self.images for path, macs in all_images.items()}

    def by_image(self, *, network: bool = False, binary: bool = False) -> Images:
        """(images,) int64 MACs that the gated layers execute for each image, exact.

        In the loader's order, or that of the index; see `count`.

        Args:
            network: of all layers.
            binary: the binary MACs instead of the others.
        """
        total = np.zeros(self.images, np.int64)
        for layer in self.layers if network else self.gated_layers:
            if layer.binary == binary:
                total += layer.path_macs()
            if not binary:
                total += layer.overhead_macs
        return total

    def reduction_by_image(self) -> NDArray[np.float64]:
        """(images,) dense ÷ executed MACs of the gated layers for each image, of both kinds as in `mac_reduction`."""
        executed = self.by_image() + self.by_image(binary=True)
        reductions: NDArray[np.float64] = self._both(network=False).dense_macs / np.maximum(executed, 1)
        return reductions

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
        for label, total, binary in self.totals():
            macs = f"{_short(total.dense_macs)} → {_short(total.executed_macs)} {'binary ' * binary}MACs per image"
            lines.append(f"{label}: {macs}, {total.reduction:.2f}× fewer")
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

        "summary", "by_layer", "by_path" and "by_image" are what the properties and methods of those names return;
        "binary" in a name: what `total` and `by_image` return for binary MACs.
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
        for part, network in (("", False), ("network_", True)):
            total = self.total(network=network, binary=True)
            summary |= {f"{part}binary_{name}": value for name, value in total._asdict().items()}
        return {
            "format": FORMAT,
            "version": VERSION,
            "images": self.images,
            "summary": summary,
            "by_layer": [asdict(record) | {"shape": record.shape.to_dict()} for record in self.by_layer()],
            "by_path": self.by_path(),
            "by_image": self.by_image().tolist(),
            "binary_by_image": self.by_image(binary=True).tolist(),
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


def _short(macs: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if macs >= size:
            return f"{macs / size:.2f} {unit}"
    return f"{macs:.0f}"


def _row(record: LayerRecord) -> Sequence[str]:
    shape = record.shape
    return (
        record.name,
        "binary " * record.binary + record.granularity + (f" G={shape.groups}" if record.base_macs else ""),
        f"{shape.c_in}→{shape.c_out}" + (f"/{shape.conv_groups}" if shape.conv_groups > 1 else ""),
        f"{shape.kernel[0]}×{shape.kernel[1]}",
        f"{shape.out_size[0]}×{shape.out_size[1]}",
        _short(record.dense_macs),
        _short(record.executed_macs),
        f"{record.density:.4f}" if shape.gated else "",
        f"{record.channels_used:.3f}",
        f"{record.mac_reduction:.2f}",
    )
