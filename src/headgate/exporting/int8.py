"""What the inputs of convolutions in 8-bit integers are rounded to: docs/design/0003-int8.md."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headgate.errors import ConfigError, DataError, DtypeError, ExportError, ShapeError
from headgate.exporting.trace_graph import Traced
from headgate.nn.gated_conv import GatedConv2d
from headgate.tracing import evaluation_mode, placed

Calibration = Tensor | Iterable[Any]
"""Images (n, c, h, w), or batches of them, each a tensor or a tuple that begins with one, as data loaders give them."""

_AT_A_TIME: Final = 64  # images of a calibration tensor


class Range(NamedTuple):
    """The least and the largest number of a tensor."""

    low: float
    high: float

    def quantisation(self) -> tuple[float, int]:
        """(scale, zero) such that x ≈ (q − zero) · scale with q in [0, 255]; 0 is always exact."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = np.float32((high - low) / 255)
        if scale < np.finfo(np.float32).tiny:  # nothing but zeros
            scale = np.float32(1.0)
        return float(scale), min(255, round(-low / float(scale)))


def calibrate(model: nn.Module, traced: Traced, calibration: Calibration, example: Tensor) -> dict[str, Range]:
    """The range of the input of each layer with weights, by the operator's name.

    Raises:
        ConfigError: no images at all.
        DtypeError, ShapeError, DataError: something that is not images of `example`'s size, or not finite.
        ExportError: a layer's input is not finite.
    """
    ranges: dict[str, Range] = {}
    images = 0
    with evaluation_mode(model), _recording(traced, ranges) as start_over:
        for batch in _batches(calibration, example):
            start_over()
            model(*placed(model, batch.to(_dtype(model))))
            images += len(batch)
    if images == 0:
        raise ConfigError("calibration must hold images, got none; some hundreds of the training set do")
    return ranges


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _batches(calibration: Calibration, example: Tensor) -> Iterator[Tensor]:
    if isinstance(calibration, Tensor):
        batches: Iterable[Any] = torch.split(calibration, _AT_A_TIME) if calibration.dim() else [calibration]
    elif isinstance(calibration, Iterable) and not isinstance(calibration, (str, bytes)):
        batches = calibration
    else:
        raise DtypeError(
            f"calibration must be images (n, c, h, w) or batches of them, got {type(calibration).__name__}"
        )
    for item in batches:
        batch = item[0] if isinstance(item, (tuple, list)) and item else item
        if not isinstance(batch, Tensor) or not batch.is_floating_point():
            kind = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
            raise DtypeError(f"calibration must hold floating-point tensors (n, c, h, w), got {kind}")
        if batch.dim() != 4 or batch.shape[1:] != example.shape[1:]:
            expected = ", ".join(map(str, example.shape[1:]))
            raise ShapeError(
                f"calibration must hold images (n, {expected}), as example_input, got {tuple(batch.shape)}"
            )
        if not batch.isfinite().all():
            raise DataError("calibration must be finite, got images with nan or inf")
        if len(batch):
            yield batch


@contextmanager
def _recording(traced: Traced, ranges: dict[str, Range]) -> Iterator[Any]:
    """Widen `ranges` by what layers read inside the block; yields what must be called before every run."""
    names: dict[nn.Module, list[str]] = defaultdict(list)  # in the order of its calls
    called: Counter[str] = Counter()
    for node in traced.graph.nodes:
        module = traced.module(node)
        if isinstance(module, (nn.Conv2d, nn.Linear, GatedConv2d)):
            path = traced.where(node)
            called[path] += 1
            names[module].append(path if called[path] == 1 else f"{path}#{called[path]}")
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        name = names[module][calls[module]]
        calls[module] += 1
        low, high = (float(extreme) for extreme in inputs[0].aminmax())
        if not np.isfinite([low, high]).all():
            raise ExportError(f"cannot export {name!r}: its input is not finite on the calibration images")
        known = ranges.get(name, Range(low, high))
        ranges[name] = Range(min(low, known.low), max(high, known.high))

    handles = [module.register_forward_pre_hook(note) for module in names]
    try:
        yield calls.clear
    finally:
        for handle in handles:
            handle.remove()
