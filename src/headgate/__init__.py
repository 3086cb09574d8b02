"""Channel gating for convolutional networks: gate any CNN, train it to a budget, count what it saves, run it faster.

The public API is what this module re-exports. Names are imported when they are first used, so that `import headgate`
is quick, and the native engine runs without torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headgate.checkpoint import list_pretrained, load, pretrained, save
    from headgate.convert import GateReport, gate_
    from headgate.counting import BufferModel, Counts, count
    from headgate.engine import Engine, LayerStats, PathChoice
    from headgate.errors import HeadgateError
    from headgate.exporting import ExportReport, export
    from headgate.fusion import fuse
    from headgate.nn import GateConfig, GatedConv2d, force_gates, shift_thresholds_, threshold_loss

__version__ = "0.1.0"

__all__ = [
    "BufferModel",
    "Counts",
    "Engine",
    "ExportReport",
    "GateConfig",
    "GateReport",
    "GatedConv2d",
    "HeadgateError",
    "LayerStats",
    "PathChoice",
    "count",
    "export",
    "force_gates",
    "fuse",
    "gate_",
    "list_pretrained",
    "load",
    "pretrained",
    "save",
    "shift_thresholds_",
    "threshold_loss",
]

_HOMES = {
    "checkpoint": ("list_pretrained", "load", "pretrained", "save"),
    "convert": ("GateReport", "gate_"),
    "counting": ("BufferModel", "Counts", "count"),
    "engine": ("Engine", "LayerStats", "PathChoice"),
    "errors": ("HeadgateError",),
    "exporting": ("ExportReport", "export"),
    "fusion": ("fuse",),
    "nn": ("GateConfig", "GatedConv2d", "force_gates", "shift_thresholds_", "threshold_loss"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
