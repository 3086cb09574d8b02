"""What was measured: typed, JSON-able, and written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from headgate.benchmarking.request import Dtype
from headgate.files import write_atomic

__all__ = [
    "Call",
    "Findings",
    "Gated",
    "Layer",
    "LayerTable",
    "NetworkKind",
    "Record",
    "Setting",
    "Spread",
    "Timed",
    "titled",
]

NetworkKind = Literal["dense", "pruned", "gated"]
"""Of a network that is timed; "pruned" is pruned statically."""


def titled(name: str, dtype: Dtype) -> str:
    """A name and, unless it is float32, the dtype."""
    return name if dtype == "float32" else f"{name}, {dtype}"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of repeats."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one value; quartiles are interpolated linearly."""
        ordered = sorted(values)

        def at(share: float) -> float:
            position = share * (len(ordered) - 1)
            low = int(position)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (position - low) * (ordered[high] - ordered[low])

        return cls(median=at(0.5), q1=at(0.25), q3=at(0.75))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What one runner took.

    Attributes:
        name: the library, or "headgate".
        network: what it ran: "dense", a statically pruned network, or a gated one.
        kind: of the network.
        dtype: that it computed in.
        macs: multiply-accumulates of one image; of a gated network the executed ones, on average.
        ms: milliseconds of one image.
    """

    name: str
    network: str
    kind: NetworkKind
    dtype: Dtype
    macs: int
    ms: Spread

    @property
    def title(self) -> str:
        """What ran what, for people."""
        return titled(f"{self.name}: {self.network}", self.dtype)

    @property
    def ours(self) -> bool:
        """It is headgate's engine."""
        return self.name == "headgate"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a gated plan, beside the same layer of the dense plan.

    Attributes:
        name: the module's path.
        decisions: taken in all images that ran; 0 of a layer that is not gated.
        density: share of open decisions.
        dense_macs, executed_macs: of one image.
        dense_ms, gated_ms: of one image, in the engine's dense and gated plan, medians of the repeats; dense_ms is None
            where there is no dense plan.
    """

    name: str
    decisions: int
    density: float
    dense_macs: float
    executed_macs: float
    dense_ms: float | None
    gated_ms: float

    @property
    def theory(self) -> float:
        """The speed-up if time followed MACs: dense ÷ executed ones."""
        return self.dense_macs / self.executed_macs if self.executed_macs else 1.0

    @property
    def measured(self) -> float | None:
        """The speed-up: time in the dense plan ÷ time in the gated one."""
        return None if self.dense_ms is None or not self.gated_ms else self.dense_ms / self.gated_ms

    @property
    def fraction(self) -> float | None:
        """Measured ÷ theory."""
        return None if self.measured is None else self.measured / self.theory


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """The layers of one gated network, in one dtype, that compute something."""

    network: str
    dtype: Dtype
    layers: tuple[Layer, ...]

    @property
    def title(self) -> str:
        """The network, for people."""
        return titled(self.network, self.dtype)

    @property
    def gated(self) -> tuple[Layer, ...]:
        """The gated ones."""
        return tuple(layer for layer in self.layers if layer.decisions)

    @property
    def total(self) -> Layer | None:
        """All gated layers together; None where there are none."""
        layers = self.gated
        if not layers:
            return None
        dense = [layer.dense_ms for layer in layers if layer.dense_ms is not None]
        macs = sum(layer.dense_macs for layer in layers)
        return Layer(
            name="gated layers",
            decisions=sum(layer.decisions for layer in layers),
            density=sum(layer.density * layer.dense_macs for layer in layers) / macs,
            dense_macs=macs,
            executed_macs=sum(layer.executed_macs for layer in layers),
            dense_ms=sum(dense) if len(dense) == len(layers) else None,
            gated_ms=sum(layer.gated_ms for layer in layers),
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that ran with one number of threads and one batch size, in turn, in one process."""

    threads: int
    batch: int
    repeats: int
    timed: tuple[Timed, ...]
    layers: tuple[LayerTable, ...]

    def best(self, dtype: Dtype) -> Timed | None:
        """The fastest library on the dense network in this dtype."""
        return self._fastest(lambda x: not x.ours and x.kind == "dense" and x.dtype == dtype)

    @property
    def best_of_any_dtype(self) -> Timed | None:
        """The fastest library on the dense network."""
        return self._fastest(lambda x: not x.ours and x.kind == "dense")

    @property
    def best_pruned(self) -> Timed | None:
        """The fastest statically pruned network, in the engine or a library."""
        return self._fastest(lambda x: x.kind == "pruned")

    def _fastest(self, fits: Any) -> Timed | None:
        return min((x for x in self.timed if fits(x)), key=lambda x: x.ms.median, default=None)

    def whole(self, table: LayerTable) -> Layer | None:
        """A gated network as if it were one layer, its dense time the best library's in the same dtype.

        None where no library ran.
        """
        best = self.best(table.dtype)
        gated = next(
            (x for x in self.timed if (x.kind, x.network, x.dtype) == ("gated", table.network, table.dtype)), None
        )
        if best is None or gated is None or table.total is None:
            return None
        return Layer(
            name=f"network, over {best.name}",
            decisions=table.total.decisions,
            density=table.total.density,
            dense_macs=best.macs,
            executed_macs=gated.macs,
            dense_ms=best.ms.median,
            gated_ms=gated.ms.median,
        )

    def speedup(self, timed: Timed) -> float | None:
        """How many times faster than the best library in the same dtype; None where none ran."""
        return _ratio(self.best(timed.dtype), timed)

    def speedup_of_any_dtype(self, timed: Timed) -> float | None:
        """How many times faster than the best library in any dtype; None where none ran."""
        return _ratio(self.best_of_any_dtype, timed)


def _ratio(best: Timed | None, timed: Timed) -> float | None:
    return None if best is None else best.ms.median / timed.ms.median


@dataclass(frozen=True, kw_only=True)
class Gated:
    """A gated network that was timed, in one dtype.

    Attributes:
        name: of the network.
        dtype: that its plan computes in.
        images: what it ran on.
        dense_macs, executed_macs: of one image.
        density: share of open decisions of each gated layer, by name, over all images.
        after_open: the same share among decisions whose left neighbour is open, averaged over the layers: as large as
            the density where masks are independent from pixel to pixel, larger where they cluster. None: unknown.
        plan_bytes: size of the plan file.
    """

    name: str
    dtype: Dtype
    images: str
    dense_macs: int
    executed_macs: int
    density: Mapping[str, float]
    after_open: float | None
    plan_bytes: int

    @property
    def title(self) -> str:
        """The network, for people."""
        return titled(self.name, self.dtype)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a call and a load cost beside the arithmetic.

    Attributes:
        overhead_us: microseconds of a call from Python of a plan with next to nothing in it.
        load_ms: milliseconds from a plan file, in the page cache, to an engine.
        load_bytes: of that file.
    """

    overhead_us: Spread
    load_ms: Spread
    load_bytes: int


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What one process found, with one number of threads.

    Attributes:
        network, shape: what was timed; (channels, height, width) of its images.
        isa: the instruction set that the engine ran on.
        gated: the gated networks.
        settings: one for each batch size.
        absent: reasons of what was asked for and did not run, by name.
        versions: of the packages that ran.
        call: see `Call`.
    """

    network: str
    shape: tuple[int, int, int]
    isa: str
    gated: tuple[Gated, ...]
    settings: tuple[Setting, ...]
    absent: Mapping[str, str]
    versions: Mapping[str, str]
    call: Call

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        gated = tuple(Gated(**item) for item in values["gated"])
        settings = tuple(_setting(item) for item in values["settings"])
        call = values["call"]
        spreads = {name: Spread(**call[name]) for name in ("overhead_us", "load_ms")}
        return cls(
            **{**values, "gated": gated, "settings": settings, "shape": tuple(values["shape"])}
            | {"call": Call(**{**call, **spreads})}
        )


def _setting(values: Mapping[str, Any]) -> Setting:
    timed = tuple(Timed(**{**item, "ms": Spread(**item["ms"])}) for item in values["timed"])
    tables = tuple(
        LayerTable(**{**item, "layers": tuple(Layer(**layer) for layer in item["layers"])}) for item in values["layers"]
    )
    return Setting(**{**values, "timed": timed, "layers": tables})


@dataclass(frozen=True, kw_only=True)
class Record:
    """A whole benchmark.

    Attributes:
        command: what to type to repeat it.
        request: what was asked for, as `Request.to_dict` gives it.
        date: day, ISO 8601.
        machine: see `machine.describe`.
        findings: one for each number of threads.
    """

    command: str
    request: Mapping[str, Any]
    date: str
    machine: Mapping[str, Any]
    findings: tuple[Findings, ...]

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Of all numbers of threads."""
        return tuple(setting for findings in self.findings for setting in findings.settings)

    @property
    def absent(self) -> dict[str, str]:
        """Reasons of what was asked for and did not run, by name."""
        return {name: reason for findings in self.findings for name, reason in findings.absent.items()}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, with the derived figures that a reader looks for."""
        values = dataclasses.asdict(self)
        for found, findings in zip(values["findings"], self.findings, strict=True):
            for stored, setting in zip(found["settings"], findings.settings, strict=True):
                stored["derived"] = _derived(setting)
        return values

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all.

        Raises: CheckpointError: it cannot be written.
        """
        write_atomic(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _derived(setting: Setting) -> dict[str, Any]:
    def title(timed: Timed | None) -> str | None:
        return None if timed is None else timed.title

    return {
        "best": {dtype: title(setting.best(dtype)) for dtype in get_args(Dtype)},
        "best_of_any_dtype": title(setting.best_of_any_dtype),
        "best_pruned": title(setting.best_pruned),
        "speedup_over_best": {timed.title: setting.speedup(timed) for timed in setting.timed},
        "speedup_over_best_of_any_dtype": {timed.title: setting.speedup_of_any_dtype(timed) for timed in setting.timed},
        "gated_layers": {table.title: _fraction(table.total) for table in setting.layers},
        "whole_network": {table.title: _fraction(setting.whole(table)) for table in setting.layers},
    }


def _fraction(layer: Layer | None) -> dict[str, Any] | None:
    if layer is None:
        return None
    return {"theory": layer.theory, "measured": layer.measured, "fraction_of_theory": layer.fraction}
