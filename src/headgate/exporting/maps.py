"""Operators that change a map's size: pools, means, concatenations; and reshapes, which are no operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import fx

from headgate.exporting import windows
from headgate.exporting.builder import BATCH, REPLACE, Builder
from headgate.exporting.plan import AdaptiveAvgPool, AvgPool, Concat, MaxPool


def _max_pool(builder: Builder, node: fx.Node) -> None:
    settings = builder.settings(node, windows.MAX_POOL)
    if settings["return_indices"]:
        raise builder.refuse(node, "expected a pool that returns a map, got return_indices=True")
    dilation = windows.pair(settings["dilation"])
    builder.emit(node, MaxPool, builder.map(node), dilation=dilation, **windows.window(settings))


def _avg_pool(builder: Builder, node: fx.Node) -> None:
    settings = builder.settings(node, windows.AVG_POOL)
    if settings["divisor_override"] is not None:
        raise builder.refuse(node, f"expected a mean, got divisor_override={settings['divisor_override']}")
    padded = bool(settings["count_include_pad"])
    builder.emit(node, AvgPool, builder.map(node), count_include_pad=padded, **windows.window(settings))


def _adaptive_avg_pool(builder: Builder, node: fx.Node) -> None:
    builder.settings(node, windows.ADAPTIVE_AVG_POOL)
    builder.emit(node, AdaptiveAvgPool, builder.map(node))


def _adaptive_max_pool(builder: Builder, node: fx.Node) -> None:
    """A max-pool, where all windows are alike."""
    if builder.settings(node, windows.ADAPTIVE_MAX_POOL)["return_indices"]:
        raise builder.refuse(node, "expected a pool that returns a map, got return_indices=True")
    value = builder.map(node)
    (_, height, width), (_, rows, columns) = builder.values[value], builder.shape(node)
    if height % rows or width % columns:
        problem = f"expected windows of one size, got {(height, width)} → {(rows, columns)}"
        raise builder.refuse(node, problem)
    kernel = (height // rows, width // columns)
    builder.emit(node, MaxPool, value, kernel=kernel, stride=kernel, padding=(0, 0), dilation=(1, 1))


def _mean(builder: Builder, node: fx.Node) -> None:
    """The mean over height, width or both."""
    item, settings = builder.first(node), builder.settings(node, windows.MEAN)
    channels, height, width = builder.values[item.value]
    dims = settings["dim"]
    rank = len(item.shape) + 1
    over = {dim % rank for dim in ([dims] if isinstance(dims, int) else dims or ())}
    if over and over == set(range(2, rank)) and item.shape[0] == channels:
        height = width = 1
    elif over and over <= {2, 3} and item.shape == (channels, height, width):
        height, width = 1 if 2 in over else height, 1 if 3 in over else width
    else:
        problem = f"expected a mean over height, width or both, got dim={dims} of {('n', *item.shape)}"
        raise builder.refuse(node, problem, BATCH if 0 in over or not over else REPLACE)
    if settings["dtype"] is not None:
        raise builder.refuse(node, f"expected no dtype, got {settings['dtype']}")
    builder.emit(node, AdaptiveAvgPool, item.value, shape=(channels, height, width))


def _concat(builder: Builder, node: fx.Node) -> None:
    parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = builder.settings(node, windows.CONCAT)["dim"]
    if dim % len(builder.traced.shapes[node]) != 1:
        raise builder.refuse(node, f"expected a concatenation of channels (dim=1), got dim={dim}")
    builder.emit(node, Concat, *(builder.map(node, builder.item(node, part)) for part in parts))


def _index(builder: Builder, node: fx.Node) -> None:
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if not all(part in (None, Ellipsis) or part == slice(None) for part in index):
        raise builder.refuse(node, f"expected an index that keeps everything, got {index}")
    builder.alias(node)


HANDLERS: Final[Mapping[str, Callable[[Builder, fx.Node], None]]] = {
    "maxpool2d": _max_pool,
    "avgpool2d": _avg_pool,
    "adaptiveavgpool2d": _adaptive_avg_pool,
    "adaptivemaxpool2d": _adaptive_max_pool,
    "mean": _mean,
    "getitem": _index,
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"), Builder.alias),
}
