"""What is measured on a finished network beside its accuracy and MACs. Each measurement's values are plain JSON."""

from __future__ import annotations

import copy
import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headgate.baselines import theoretical_macs
from headgate.benchmarking.timing import interleaved
from headgate.convert import gate_
from headgate.counting import LayerRecord
from headgate.engine import Engine
from headgate.errors import ConfigError, ModelError
from headgate.exporting import export
from headgate.nn import GateConfig, GatedConv2d, gated_layers, set_channel_bound_, shift_thresholds_
from headgate.studies.extremes import extremes
from headgate.studies.trial import Point
from headgate.train import evaluate
from headgate.train.data import Batch

__all__ = [
    "MEASURES",
    "Subject",
    "correlation",
    "dial",
    "engine_time",
    "get_measure",
    "theoretical",
    "traffic",
    "usage",
]

DIAL: Final = (-1.0, -0.5, 0.0, 0.5, 1.0)
TIMED_BATCHES: Final = (1, 32)
TIMED_REPEATS: Final = 15


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a measurement is taken on.

    Attributes:
        model: the trained network, in evaluation mode. It is left as it is.
        batches: the test split, prepared for it; begins anew with each call.
        point: of the trial.
        reference: the dense network that the study compares with; its weights do not matter.
    """

    model: nn.Module
    batches: Callable[[], Iterator[Batch]]
    point: Point
    reference: nn.Module


@torch.no_grad()
def correlation(subject: Subject) -> dict[str, Any]:
    """Pearson's correlation of partial and final sums, layer by layer, over all output activations of all images.

    A dense network is gated for this, with `point["groups"]` groups.

    Returns: layers: name → correlation; mean: over the layers.
    Source: the author response, Reviewer 7, Q1.
    """
    model = copy.deepcopy(subject.model)
    images = next(subject.batches())[0]
    if not gated_layers(model):
        gate_(model, GateConfig(groups=int(subject.point["groups"]), shuffle=True), example_input=images[:1])
        for layer in gated_layers(model).values():
            layer.gate.forced = "open"  # the dense network's own sums, whatever the gates would do
    sums = {name: _Moments() for name in gated_layers(model)}
    handles = [layer.register_forward_pre_hook(_take_sums(sums[name])) for name, layer in gated_layers(model).items()]
    try:
        for batch in subject.batches():
            model(batch[0])
    finally:
        for handle in handles:
            handle.remove()
    layers = {name: moments.correlation() for name, moments in sums.items()}
    return {"layers": layers, "mean": float(np.mean(list(layers.values())))}


def _take_sums(moments: _Moments) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, GatedConv2d)
        moments.add(layer.partial_sum(args[0]), layer.final_sum(args[0]))

    return hook


class _Moments:
    """Sums of x, y, x², y², xy in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = np.zeros(5)

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        self.count += x.numel()
        self.sums += [float(part.sum()) for part in (x, y, x * x, y * y, x * y)]

    def correlation(self) -> float:
        x, y, xx, yy, xy = self.sums / self.count
        return float((xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y)))


def traffic(subject: Subject) -> dict[str, Any]:
    """Off-chip bytes, and accuracy, where output channels with at most `point["tau"]` open decisions are skipped.

    The bound is laid on the trained network, which is not trained again, as in the source.

    Returns: accuracy; mac_reduction; dense_bytes and gated_bytes per image; saved: fraction of the dense bytes, and
        saved_by_gates: of it what goes without a bound.
    Source: the author response, Reviewer 5, Q1.
    """
    model = copy.deepcopy(subject.model)
    without = evaluate(model, subject.batches()).counts.traffic()
    set_channel_bound_(model, float(subject.point["tau"]))
    evaluation = evaluate(model, subject.batches())
    bytes_moved = evaluation.counts.traffic()
    return {
        "accuracy": evaluation.accuracy,
        "mac_reduction": evaluation.counts.mac_reduction,
        "dense_bytes": bytes_moved.dense_bytes,
        "gated_bytes": bytes_moved.gated_bytes,
        "saved": bytes_moved.saved,
        "saved_by_gates": without.saved,
    }


def usage(subject: Subject) -> dict[str, Any]:
    """Share of input channels used by each layer, and how cost spreads over images.

    Returns: layers: name → share, kernel, map; reductions: MAC reduction of the gated layers for each image, rounded,
        in the split's order; extremes: see `extremes`.
    Source: the author response, Figure A; appendix A.6, Figure 9.
    """
    evaluation = evaluate(subject.model, subject.batches())
    counts = evaluation.counts
    if not counts.gated_layers:
        raise ModelError("usage is of a gated network, got one without gates")
    reductions = counts.reduction_by_image()
    images = torch.cat([batch[0] for batch in subject.batches()])
    return {
        "layers": {record.name: _layer(record) for record in counts.by_layer() if record.shape.gated},
        "reductions": [round(float(value), 4) for value in reductions],
        "extremes": extremes(subject.model, images, evaluation.labels.numpy(), reductions),
    }


def theoretical(subject: Subject) -> dict[str, Any]:
    """What a network with zeros among its weights would save if zeros cost nothing; see `TheoreticalMacs`.

    Returns: theoretical_mac_reduction: of the whole network.
    """
    macs = theoretical_macs(subject.model, next(subject.batches())[0][:1])
    return {"theoretical_mac_reduction": macs.theoretical_mac_reduction}


def engine_time(subject: Subject) -> dict[str, Any]:
    """Time of the native engine on test images, and that of the dense reference in turn with it, on one thread.

    Returns: for each batch size b: ms_b and dense_ms_b, medians; speedup_b, their quotient.
    """
    images = next(subject.batches())[0][: max(TIMED_BATCHES)].numpy()
    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for name, network in (("", subject.model), ("dense_", subject.reference)):
            plan = Path(folder) / f"{name}plan.hgplan"
            export(network, plan, example_input=torch.from_numpy(images[:1]))
            engines[name] = Engine(plan, threads=1)
        times: dict[str, float] = {}
        for size in TIMED_BATCHES:
            batch = np.ascontiguousarray(images[:size])
            calls = {name: functools.partial(_run, engine, batch) for name, engine in engines.items()}
            seconds = interleaved(calls, TIMED_REPEATS)
            for name, taken in seconds.items():
                times[f"{name}ms_{size}"] = 1000 * statistics.median(taken)
            times[f"speedup_{size}"] = times[f"dense_ms_{size}"] / times[f"ms_{size}"]
    return times


def _run(engine: Engine, batch: NDArray[np.float32], _repeat: int) -> object:
    return engine(batch)


def dial(subject: Subject) -> dict[str, Any]:
    """What one checkpoint gives when its thresholds are shifted together at run time.

    Returns: offsets: of each setting `offset` (in standard deviations), accuracy, mac_reduction, network_mac_reduction.
    """
    settings = []
    for offset in DIAL:
        model = copy.deepcopy(subject.model)
        shift_thresholds_(model, offset)
        evaluation = evaluate(model, subject.batches())
        settings.append(
            {
                "offset": offset,
                "accuracy": evaluation.accuracy,
                "mac_reduction": evaluation.counts.mac_reduction,
                "network_mac_reduction": evaluation.counts.network_mac_reduction,
            }
        )
    return {"offsets": settings}


def _layer(record: LayerRecord) -> dict[str, Any]:
    return {
        "channels_used": record.channels_used,
        "density": record.density,
        "kernel": list(record.shape.kernel),
        "map": list(record.shape.out_size),
    }


MEASURES: Final[Mapping[str, Callable[[Subject], dict[str, Any]]]] = MappingProxyType(
    {
        "correlation": correlation,
        "traffic": traffic,
        "usage": usage,
        "theoretical": theoretical,
        "time": engine_time,
        "dial": dial,
    }
)
"""By the name that a trial gives."""


def get_measure(name: str) -> Callable[[Subject], dict[str, Any]]:
    """The measurement of that name.

    Raises: ConfigError: there is none.
    """
    if name not in MEASURES:
        raise ConfigError(f"measure must be one of {', '.join(MEASURES)}, got {name!r}")
    return MEASURES[name]
