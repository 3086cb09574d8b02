"""What is measured on a finished network beside its accuracy and MACs. Each measurement's values are plain JSON."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from headgate.convert import gate_
from headgate.counting import LayerRecord
from headgate.errors import ConfigError, ModelError
from headgate.nn import GateConfig, GatedConv2d, gated_layers, set_channel_bound_
from headgate.studies.trial import Point
from headgate.train import evaluate
from headgate.train.data import Batch

__all__ = ["MEASURES", "correlation", "traffic", "usage"]

Batches: TypeAlias = Callable[[], Iterator[Batch]]


@torch.no_grad()
def correlation(model: nn.Module, batches: Batches, point: Point) -> dict[str, Any]:
    """Pearson's correlation of partial and final sums, layer by layer, over all output activations of all images.

    Args:
        model: gated; or dense, and then gated for this with `point["groups"]` groups.
    Returns: layers: name → correlation; mean: over the layers.
    Source: the author response, Reviewer 7, Q1.
    """
    model = copy.deepcopy(model).eval()
    images = next(batches())[0]
    if not gated_layers(model):
        gate_(model, GateConfig(groups=int(point["groups"]), shuffle=True), example_input=images[:1])
        for layer in gated_layers(model).values():
            layer.gate.forced = "open"  # the dense network's own sums, whatever the gates would do
    sums = {name: _Moments() for name in gated_layers(model)}
    handles = [layer.register_forward_pre_hook(_take_sums(sums[name])) for name, layer in gated_layers(model).items()]
    try:
        for batch in batches():
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


def traffic(model: nn.Module, batches: Batches, point: Point) -> dict[str, Any]:
    """Off-chip bytes, and accuracy, where output channels with at most `point["tau"]` open decisions are skipped.

    The bound is laid on the trained network, which is not trained again, as in the source.

    Returns: accuracy; mac_reduction; dense_bytes and gated_bytes per image; saved: fraction of the dense bytes, and
        saved_by_gates: of it what goes without a bound.
    Source: the author response, Reviewer 5, Q1.
    """
    model = copy.deepcopy(model)
    without = evaluate(model, batches()).counts.traffic()
    set_channel_bound_(model, float(point["tau"]))
    evaluation = evaluate(model, batches())
    bytes_moved = evaluation.counts.traffic()
    return {
        "accuracy": evaluation.accuracy,
        "mac_reduction": evaluation.counts.mac_reduction,
        "dense_bytes": bytes_moved.dense_bytes,
        "gated_bytes": bytes_moved.gated_bytes,
        "saved": bytes_moved.saved,
        "saved_by_gates": without.saved,
    }


def usage(model: nn.Module, batches: Batches, point: Point) -> dict[str, Any]:
    """Share of input channels used by each layer, and how cost spreads over images.

    Returns: layers: name → share, kernel, map; reductions: MAC reduction of the gated layers for each image, rounded,
        in the split's order; extremes: for each class the images of the largest and smallest reduction.
    Source: the author response, Figure A; appendix A.6, Figure 9.
    """
    evaluation = evaluate(model, batches())
    counts = evaluation.counts
    if not counts.gated_layers:
        raise ModelError("usage is of a gated network, got one without gates")
    reductions = counts.reduction_by_image()
    labels = evaluation.labels.numpy()
    extremes = {}
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        order = images[np.argsort(reductions[images], kind="stable")]
        extremes[str(label)] = {"most": int(order[-1]), "least": int(order[0])}
    return {
        "layers": {record.name: _layer(record) for record in counts.by_layer() if record.shape.gated},
        "reductions": [round(float(value), 4) for value in reductions],
        "extremes": extremes,
    }


def _layer(record: LayerRecord) -> dict[str, Any]:
    return {
        "channels_used": record.channels_used,
        "density": record.density,
        "kernel": list(record.shape.kernel),
        "map": list(record.shape.out_size),
    }


MEASURES: Final[Mapping[str, Callable[[nn.Module, Batches, Point], dict[str, Any]]]] = MappingProxyType(
    {"correlation": correlation, "traffic": traffic, "usage": usage}
)
"""By the name that a trial gives."""


def get_measure(name: str) -> Callable[[nn.Module, Batches, Point], dict[str, Any]]:
    """The measurement of that name.

    Raises: ConfigError: there is none.
    """
    if name not in MEASURES:
        raise ConfigError(f"measure must be one of {', '.join(MEASURES)}, got {name!r}")
    return MEASURES[name]
