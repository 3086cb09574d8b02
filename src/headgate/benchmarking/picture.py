"""One picture of a record: milliseconds by runner for each setting, and speed-up by layer beside theory."""

from __future__ import annotations

import os
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from headgate.benchmarking.record import LayerTable, Record, Setting, Timed, titled
from headgate.files import write_atomic
from headgate.plots import PALETTE, canvas, house_style, to_png

__all__ = ["draw", "write_picture"]

BARS: Final = 5.4  # inches, a panel's width
LAYERS: Final = 3.2
LEAST: Final = 11.5  # of the whole picture: what its head takes
ROW: Final = 0.2
KINDS: Final = {
    "library, dense": (PALETTE["muted"], ""),
    "library, dense, bfloat16": (PALETTE["dense"], "////"),
    "library, dense, int8": (PALETTE["dense"], "...."),
    "library, pruned statically": (PALETTE["orange"], ""),
    "headgate, pruned statically": (PALETTE["orange"], "////"),
    "headgate, dense": (PALETTE["purple"], ""),
    "headgate, gated": (PALETTE["blue"], ""),
}


def write_picture(record: Record, path: str | os.PathLike[str]) -> None:
    """Draw a record as a PNG, whole or not at all.

    Raises: CheckpointError: it cannot be written.
    """
    write_atomic(path, to_png(draw(record), dpi=130))


@house_style
def draw(record: Record) -> Figure:
    """The figure: above a panel for each setting, below one for each gated network at the first setting."""
    settings = record.settings
    tables = [table for table in settings[0].layers if any(layer.measured is not None for layer in table.gated)]
    width = max(BARS * len(settings), LAYERS * len(tables), LEAST)
    bars = ROW * max(len(setting.timed) for setting in settings) + 0.9
    layers = ROW * max((len(table.gated) for table in tables), default=0) + 0.9
    legend = 1.1
    heights = [legend, bars, *([layers] if tables else [])]
    figure = canvas(width, sum(heights))
    rows: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    _head(rows[0], record, settings[0])
    for axes, setting in zip(rows[1].subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        _bars(axes, setting)
    if tables:
        panels = rows[2].subplots(1, len(tables), squeeze=False, sharey=True)[0]
        for axes, table in zip(panels, tables, strict=True):
            _layers(axes, table)
    return figure


def _head(figure: Figure, record: Record, layers_of: Setting) -> None:
    first = record.findings[0]
    held = record.request.get("held")
    shape = "×".join(map(str, first.shape))
    title = f"{first.network}, {shape}, on {record.machine['cpu']} ({held + ' forced' if held else first.isa})"
    figure.text(0.01, 0.97, title, weight="bold", size=11, va="top")
    above = (
        "Above: median time of one image, and quartiles; ×: times faster than the best library on the dense network in "
        "the same dtype, ◆."
    )
    below = (
        "Below: how many times faster a layer is than in headgate's dense plan (blue), and would be if time followed "
    )
    below += f"MACs (grey); the number is blue ÷ grey. {layers_of.threads} thread(s), batches of {layers_of.batch}."
    figure.text(0.01, 0.7, f"{above}\n{below}", color=PALETTE["muted"], va="top", size=8)
    present = {_kind(timed) for setting in record.settings for timed in setting.timed}
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor=PALETTE["paper"], label=kind)
        for kind, (colour, hatch) in KINDS.items()
        if kind in present
    ]
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.005, 0), ncols=len(handles))


def _kind(timed: Timed) -> str:
    if timed.kind == "gated":
        return "headgate, gated"
    if timed.kind == "pruned":
        return f"{'headgate' if timed.ours else 'library'}, pruned statically"
    if timed.ours:
        return "headgate, dense"
    return titled("library, dense", timed.dtype)


def _bars(axes: Axes, setting: Setting) -> None:
    shown = setting.timed
    longest = max(timed.ms.median for timed in shown)
    for row, timed in enumerate(shown):
        colour, hatch = KINDS[_kind(timed)]
        spread = timed.ms
        errors = [[max(0.0, spread.median - spread.q1)], [max(0.0, spread.q3 - spread.median)]]
        axes.barh(
            row,
            spread.median,
            0.72,
            color=colour,
            hatch=hatch,
            edgecolor=PALETTE["paper"],
            lw=0.4,
            xerr=errors,
            error_kw={"elinewidth": 0.9, "ecolor": PALETTE["ink"]},
        )
        speedup = setting.speedup(timed)
        text = f"{spread.median:.3g} ms" + ("" if speedup is None else f"  {speedup:.2f}×")
        mark = " ◆" if timed is setting.best(timed.dtype) else ""
        at = (min(spread.q3, 1.1 * longest), row)  # quartiles of a disturbed run may leave the frame
        axes.annotate(text + mark, at, (4, 0), textcoords="offset points", va="center", size=7.5)
    _rows(axes, [timed.title for timed in shown])
    axes.set_xlim(0, 1.5 * longest)
    axes.set_xlabel("milliseconds for each image")
    axes.set_title(f"{setting.threads} thread{'s' if setting.threads > 1 else ''}, batches of {setting.batch}")


def _layers(axes: Axes, table: LayerTable) -> None:
    layers = table.gated
    rows = range(len(layers))
    axes.barh(rows, [layer.theory for layer in layers], 0.8, color=PALETTE["dense"])
    measured = [layer.measured or 0.0 for layer in layers]
    axes.barh(rows, measured, 0.42, color=PALETTE["blue"])
    for row, layer in enumerate(layers):
        at = (max(layer.theory, layer.measured or 0.0), row)
        text = f"{layer.fraction:.2f}" if layer.fraction is not None else ""
        axes.annotate(text, at, (3, 0), textcoords="offset points", va="center", size=7.5)
    axes.axvline(1, color=PALETTE["ink"], lw=0.8)
    _rows(axes, [layer.name for layer in layers])
    axes.set_xlim(0, 1.15 * max([layer.theory for layer in layers] + measured))
    axes.set_xlabel("speed-up")
    total = table.total
    fraction = f": {total.fraction:.2f} of theory" if total is not None and total.fraction is not None else ""
    axes.set_title(f"{table.title}{fraction}")


def _rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, size=7.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
