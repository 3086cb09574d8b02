"""The figures of a run, each a function from numbers to a matplotlib `Figure`, in one house style.

Colours are those of Okabe and Ito, which colour-blind readers tell apart, and are never the only difference: markers
and hatches carry the same distinction in black and white. No figure is registered with pyplot, so there is nothing to
close. `to_svg` writes text as text, in colours of which `PALETTE` knows the names, so that a page can restyle them.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from headgate.counting import LayerRecord

P = ParamSpec("P")
T = TypeVar("T")
Metrics: TypeAlias = Sequence[Mapping[str, Any]]

PALETTE: Final[Mapping[str, str]] = MappingProxyType({
    "ink": "#1b1f24", "muted": "#636c76", "grid": "#dde1e6", "paper": "#ffffff", "dense": "#cbd2d9",
    "blue": "#0072b2", "orange": "#e69f00", "vermilion": "#d55e00", "green": "#009e73", "purple": "#cc79a7",
})  # fmt: skip
"""The house colours by name; Okabe and Ito's, and greys."""

INK, MUTED, GRID, PAPER, DENSE, BLUE, ORANGE, VERMILION, GREEN, PURPLE = PALETTE.values()

WIDTH: Final = 4.6  # inches; a page sets figures side by side, a telephone one below the other
MOST_CLASSES: Final = 20
STRENGTH: Final = 0.7  # of the scale's colour over the grey image

_SIZES: Final = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5, "axes.titlepad": 8, "axes.linewidth": 0.7, "grid.linewidth": 0.6, "lines.linewidth": 1.6,
    "hatch.linewidth": 0.9, "xtick.major.size": 3, "ytick.major.size": 0, "legend.handlelength": 1.5,
    "legend.handletextpad": 0.5, "legend.columnspacing": 1.1,
    "figure.constrained_layout.h_pad": 0.06, "figure.constrained_layout.w_pad": 0.06,
}  # fmt: skip
_STYLE: Final[Any] = (
    _SIZES
    | dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "text.color", "xtick.labelcolor", "ytick.labelcolor"), INK)
    | dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED)
    | dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
    | {"axes.titleweight": "bold", "axes.titlelocation": "left", "axes.grid": True, "axes.axisbelow": True}
    | {"grid.color": GRID, "figure.facecolor": PAPER, "axes.facecolor": "none"}
    | {"svg.fonttype": "none", "svg.hashsalt": "headgate"}
)

_SCALE: Final = matplotlib.colormaps["viridis"]
_LAID: Final = ListedColormap(STRENGTH * _SCALE(np.linspace(0, 1, 256)) + (1 - STRENGTH) * np.array([0.5, 0.5, 0.5, 1]))


def house_style(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in the house style, whatever the user's settings of matplotlib; those are as before afterwards."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return drawn


def canvas(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = canvas(WIDTH, height)
    return figure, figure.add_subplot()


@house_style
def to_png(figure: Figure, *, dpi: int = 200) -> bytes:
    """The figure on white, as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


@house_style
def to_svg(figure: Figure) -> str:
    """The figure on nothing, as an SVG with its text as text and without a date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _finish(figure: Figure, axes: Axes, title: str) -> Figure:
    """Fix the layout, and put above it, from the left edge, the title and a legend in one row or, if long, in two."""
    handles, labels = axes.get_legend_handles_labels()
    rows = 2 if sum(len(label) + 5 for label in labels) > 66 else min(len(labels), 1)
    axes.set_title(title, pad=8 + 15 * rows)  # holds their space
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    box = axes.get_position()
    left = (0.015 - box.x0) / box.width
    axes.set_title(title, pad=8 + 15 * rows, x=left)
    if labels:
        columns = -(-len(labels) // rows)
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(left, 1), ncols=columns, borderaxespad=0.1)
    return figure


def _ticks(count: int, *, integer: bool = False) -> MaxNLocator:
    return MaxNLocator(count, integer=integer, steps=[1, 2, 5, 10])


def _rows(axes: Axes, names: Sequence[str], **text: Any) -> None:
    """Horizontal rows, the first at the top; of very many not each is named."""
    every = -(-len(names) // 80) or 1
    axes.set_yticks(range(0, len(names), every), names[::every], **text)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(_ticks(6))


_TIMES: Final = FuncFormatter(lambda value, _: f"{value:g}×")


def _unit(largest: float) -> tuple[float, str]:
    """A divisor that makes numbers up to `largest` readable, and its name for an axis."""
    for size, name in ((1e9, ", billions"), (1e6, ", millions"), (1e3, ", thousands")):
        if largest >= size:
            return size, name
    return 1.0, ""


# ----------------------------------------------------- training, over the epochs


def _series(metrics: Metrics, kind: str, name: str) -> tuple[list[float], list[float]]:
    """Epochs (or steps, where a line has none) and figures of one kind of line."""
    lines = [line for line in metrics if line.get("kind") == kind and line.get(name) is not None]
    return [line.get("epoch", line["step"]) for line in lines], [line[name] for line in lines]


def _curves(axes: Axes, metrics: Metrics, name: str, unit: str, scale: float = 1) -> None:
    """The curve of the training batches, thin, and that of the test images, with markers."""
    for kind, label, colour, marker in (("train", "training batches", ORANGE, ""), ("eval", "test images", BLUE, "o")):
        x, y = _series(metrics, kind, name)
        if x:
            axes.plot(x, [scale * value for value in y], marker=marker, color=colour, ms=4, mec=PAPER, label=label)
    axes.set_ylabel(unit)
    axes.set_xlabel("epoch" if any("epoch" in line for line in metrics) else "step")
    axes.xaxis.set_major_locator(_ticks(7, integer=True))
    axes.yaxis.set_major_locator(_ticks(5))
    last = max((line.get("epoch", line["step"]) for line in metrics), default=1)
    axes.set_xlim(-0.02 * last, 1.02 * last)


def _reference(axes: Axes, level: float, label: str) -> None:
    axes.axhline(level, color=MUTED, lw=1.1, ls=(0, (4, 2)), label=label)


@house_style
def loss_curve(metrics: Metrics) -> Figure:
    """Loss over the epochs, from the lines of metrics.jsonl."""
    figure, axes = _figure(2.7)
    _curves(axes, metrics, "loss", "loss")
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, "Loss")


@house_style
def accuracy_curve(metrics: Metrics, dense: float | None = None) -> Figure:
    """Accuracy over the epochs; `dense` is what the dense counterpart reached, in [0, 1]."""
    figure, axes = _figure(2.7)
    _curves(axes, metrics, "accuracy", "top-1, %", scale=100)
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [np.zeros(1)])
    if dense is not None:
        _reference(axes, 100 * dense, f"dense: {100 * dense:.2f} %")
    axes.set_ylim(bottom=max(0.0, float(np.percentile(values, 15)) - 25))  # the first epochs may leave the frame
    return _finish(figure, axes, "Accuracy")


@house_style
def reduction_curve(metrics: Metrics, target: float | None = None) -> Figure:
    """MAC reduction of the gated layers over the epochs; `target` is the reduction that was asked for."""
    figure, axes = _figure(2.7)
    _curves(axes, metrics, "mac_reduction", "dense ÷ executed")
    if target is not None:
        _reference(axes, target, f"asked for: {target:g}×")
    axes.set_ylim(bottom=min(1.0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(_TIMES)
    return _finish(figure, axes, "MAC reduction of the gated layers")


@house_style
def density_curve(metrics: Metrics) -> Figure:
    """Density over the epochs, and below it the threshold offset T that steers it."""
    figure = canvas(WIDTH, 2.7)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _curves(upper, metrics, "density", "density, %", scale=100)
    _curves(lower, metrics, "offset", "T, std. dev.")
    lower.yaxis.set_major_locator(_ticks(3))
    upper.set_ylim(bottom=0)
    upper.set_xlabel("")
    figure.align_ylabels()
    return _finish(figure, upper, "Density, and the threshold offset T that steers it")


# ------------------------------------------------------------- layers and paths

_PATHS: Final = (  # of executed MACs: name, field of LayerRecord, colour, hatch
    ("base", "base_macs", BLUE, ""),
    ("conditional", "conditional_macs", ORANGE, "////"),
    ("overhead", "overhead_macs", PURPLE, "xxxx"),
)


@house_style
def macs_by_path(records: Sequence[LayerRecord]) -> Figure:
    """Two bars for layers whose MACs are of one kind, without and with gates, the latter split by path."""
    ungated = sum(record.executed_macs for record in records if not record.shape.gated)
    parts = [("not gated", ungated, MUTED, "")]
    parts += [(name, sum(getattr(r, field) for r in records), colour, hatch) for name, field, colour, hatch in _PATHS]
    dense = sum(record.dense_macs for record in records)
    divisor, unit = _unit(dense)
    figure, axes = _figure(2.1)
    axes.barh(0, dense / divisor, 0.62, color=DENSE, label="without gates")
    left = 0.0
    for name, macs, colour, hatch in parts:
        if macs:
            axes.barh(1, macs / divisor, 0.62, left=left, color=colour, hatch=hatch, ec=PAPER, lw=0.8, label=name)
        left += macs / divisor
    for row, total in enumerate((dense / divisor, left)):
        axes.annotate(f"{total:.3g}", (total, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    _rows(axes, ("dense", "gated"))
    axes.set_xlim(0, 1.12 * max(dense / divisor, left))
    axes.set_xlabel(f"{'binary ' * any(record.binary for record in records)}MACs per image{unit}")
    return _finish(figure, axes, "Where the MACs of an image go")


def _layer_rows(records: Sequence[LayerRecord]) -> tuple[Figure, Axes]:
    height = 0.28 if len(records) <= 8 else 0.21 if len(records) <= 32 else 0.16
    figure, axes = _figure(1.3 + height * len(records))
    _rows(axes, [record.name + " (binary)" * record.binary for record in records], fontsize=8)
    return figure, axes


@house_style
def macs_by_layer(records: Sequence[LayerRecord]) -> Figure:
    """For each layer a wide grey bar, its dense MACs, and in it a narrow one: what is executed, stacked by path."""
    divisor, unit = _unit(max(record.dense_macs for record in records))
    rows = np.arange(len(records))
    dense = np.array([record.dense_macs for record in records]) / divisor
    figure, axes = _layer_rows(records)
    axes.barh(rows, dense, 0.84, color=DENSE, label="dense")
    left = np.array([0.0 if record.shape.gated else record.executed_macs for record in records]) / divisor
    if left.any() and any(record.shape.gated for record in records):
        axes.barh(rows, left, 0.42, color=MUTED, label="not gated")
    for name, field, colour, hatch in _PATHS:
        width = np.array([getattr(record, field) for record in records]) / divisor
        if width.any():
            axes.barh(rows, width, 0.5, left=left, color=colour, hatch=hatch, ec=PAPER, lw=0.4, label=name)
        left = left + width
    for row, record in enumerate(records):
        if record.shape.gated:
            at = (max(dense[row], left[row]), row)
            saved = "∞" if np.isinf(record.mac_reduction) else f"{record.mac_reduction:.1f}×"
            axes.annotate(saved, at, (3, 0), textcoords="offset points", va="center", size=8)
    axes.set_xlim(0, 1.12 * max(dense.max(), left.max()))
    axes.set_xlabel(f"MACs per image{unit}")
    return _finish(figure, axes, "MACs by layer")


_KERNELS: Final = (("3×3", "o", BLUE), ("1×1", "D", VERMILION), ("other kernels", "s", GREEN))


@house_style
def channels_used(records: Sequence[LayerRecord]) -> Figure:
    """For each gated layer the share of its input channels that an output is computed from: η + density · (1 − η)."""
    figure, axes = _layer_rows(records)
    base = [100 * record.base_macs / record.dense_macs for record in records]
    used = [100 * record.channels_used for record in records]
    gated = [row for row, record in enumerate(records) if record.shape.gated]
    axes.hlines(gated, [base[i] for i in gated], [used[i] for i in gated], color=DENSE, lw=3)
    axes.plot([base[i] for i in gated], gated, "|", color=INK, ms=7, mew=1.2, label="base path, η")
    for name, marker, colour in _KERNELS:
        rows = [row for row in gated if _kernel(records[row]) == name]
        if rows:
            axes.plot([used[row] for row in rows], rows, marker, color=colour, ms=6, mec=PAPER, mew=0.7, label=name)
    for row, record in enumerate(records):
        if not record.shape.gated:
            axes.text(1, row, "not gated: all ", transform=axes.get_yaxis_transform(), ha="right", va="center", size=8)
    axes.set_xlim(0, min(103, max(40, 1.3 * max((used[row] for row in gated), default=100))))
    axes.set_xlabel("input channels used, %")
    return _finish(figure, axes, "Channels used by layer")


def _kernel(record: LayerRecord) -> str:
    name = "×".join(map(str, record.shape.kernel))
    return name if name in ("3×3", "1×1") else "other kernels"


# -------------------------------------------------------------------- images


@house_style
def reduction_histogram(reductions: NDArray[np.float64]) -> Figure:
    """How many images have which MAC reduction."""
    figure, axes = _figure(2.9)
    axes.hist(reductions, bins=min(40, max(8, len(reductions) // 12)), color=BLUE, ec=PAPER, lw=0.5)
    low, middle, high = np.percentile(reductions, (5, 50, 95))
    axes.axvline(middle, color=INK, lw=1.3, label=f"median {middle:.2f}×")
    within = f"90 % of the images: {low:.2f}× to {high:.2f}×"
    axes.axvspan(low, high, color=ORANGE, alpha=0.22, lw=0, zorder=0, label=within)
    axes.set_ylabel("images")
    axes.set_xlabel("MAC reduction, gated layers")
    axes.xaxis.set_major_formatter(_TIMES)
    axes.xaxis.set_major_locator(_ticks(7))
    axes.yaxis.set_major_locator(_ticks(5, integer=True))
    axes.grid(axis="x", visible=False)
    return _finish(figure, axes, "MAC reduction, image by image")


@house_style
def reduction_by_class(
    reductions: NDArray[np.float64], labels: NDArray[np.integer[Any]], classes: Sequence[str]
) -> Figure:
    """The spread of the MAC reduction in each class, the cheapest class first; of many classes, both ends only."""
    members = [reductions[labels == label] for label in range(len(classes))]
    order = sorted((i for i, values in enumerate(members) if len(values)), key=lambda i: -np.median(members[i]))
    if len(order) > MOST_CLASSES:
        order = order[: MOST_CLASSES // 2] + order[-(MOST_CLASSES // 2) :]
    figure, axes = _figure(1.2 + 0.25 * len(order))
    stats = [np.percentile(members[i], (0, 25, 50, 75, 100)) for i in order]
    rows = np.arange(len(order))
    low, first, middle, third, high = np.array(stats).T
    axes.hlines(rows, low, high, color=MUTED, lw=0.9)
    axes.barh(rows, third - first, 0.56, left=first, color=BLUE, alpha=0.55, lw=0, label="middle half")
    axes.plot(middle, rows, "|", color=INK, ms=9, mew=1.6, label="median")
    axes.plot(low, rows, "o", color=VERMILION, ms=5, mec=PAPER, mew=0.6, label="dearest")
    axes.plot(high, rows, "D", color=GREEN, ms=5, mec=PAPER, mew=0.6, label="cheapest")
    _rows(axes, [str(classes[i]) for i in order])
    axes.set_xlabel("MAC reduction, gated layers")
    axes.xaxis.set_major_formatter(_TIMES)
    return _finish(figure, axes, "MAC reduction by class")


def overlay(image: NDArray[np.uint8], share: NDArray[np.float64], top: float) -> NDArray[np.uint8]:
    """An image (h, w, 3) in grey under a map (h, w) of shares, coloured by the house scale from 0 to `top`."""
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None] / 255
    colour = _SCALE(np.clip(share / top, 0, 1))[..., :3]
    mixed: NDArray[np.uint8] = np.rint(255 * (STRENGTH * colour + (1 - STRENGTH) * grey)).astype(np.uint8)
    return mixed


def scale_css() -> str:
    """The scale of `overlay` over mid grey, from 0 upwards, as the colours of a CSS gradient."""
    stops = _LAID(np.linspace(0, 1, 9))[:, :3]
    return ", ".join(f"rgb({', '.join(str(round(255 * part)) for part in stop)})" for stop in stops)


@house_style
def image_grid(
    rows: Sequence[tuple[str, Sequence[tuple[NDArray[np.uint8], str]]]], *, top: float | None = None
) -> Figure:
    """Rows of a name and captioned images (h, w, 3); with `top`, also the scale of `overlay` up to there."""
    columns = max(len(images) for _, images in rows)
    figure = canvas(1.0 + 1.2 * columns, 0.2 + 1.35 * len(rows) + (0.6 if top else 0))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, images) in zip(grid, rows, strict=True):
        for axes in axes_row:
            axes.set_axis_off()
        for axes, (image, caption) in zip(axes_row, images, strict=False):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(caption, fontsize=8, fontweight="normal", loc="center", pad=2)
        axes_row[0].text(-0.1, 0.5, name, transform=axes_row[0].transAxes, ha="right", va="center", fontsize=8.5)
    if top:
        mapped = ScalarMappable(Normalize(0, 100 * top), _LAID)
        figure.colorbar(mapped, ax=grid, location="bottom", shrink=0.6, aspect=40, label="open decisions, %")
    return figure
