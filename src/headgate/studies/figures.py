"""The studies' figures: trade-off curves, budgets, correlations, traffic, the spread of cost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from headgate.plots import (
    BLUE,
    DENSE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    VERMILION,
    canvas,
    house_style,
    image_grid,
    overlay,
)
from headgate.studies.extremes import picture
from headgate.studies.store import Row, rows
from headgate.studies.trial import Result

__all__ = ["bars", "budgets", "correlations", "extremes", "frontier", "methods", "spread", "trade_off", "traffic"]

_COLOURS: Final = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, INK, MUTED)
_MARKERS: Final = "osD^vPX"
_LINES: Final = ("-", "--", "-.", ":")
_SIZE: Final = (6.4, 4.2)  # inches


def _curves(table: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by variant, in their order."""
    return {
        variant: [row for row in table if row.variant == variant]
        for variant in dict.fromkeys(row.variant for row in table)
    }


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINES[index % len(_LINES)],
        "markersize": 5,
        "capsize": 2.5,
    }


def _without_caps(style: dict[str, Any]) -> dict[str, Any]:
    """For lines without error bars."""
    return {key: value for key, value in style.items() if key != "capsize"}


def _times(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")


@house_style
def trade_off(results: Sequence[Result]) -> Figure:
    """Top-1 error against MAC reduction of the gated layers, a curve for each variant, bars of one standard deviation.

    A trial without gates is a level: it can be had at any cost above its own.
    """
    figure = canvas(*_SIZE)
    axes = figure.add_subplot()
    curves = _curves(rows(results))
    styles = itertools.count()
    for variant, table in curves.items():
        errors = [100 * (1 - row.mean("accuracy")) for row in table]
        if all(row.mean("mac_reduction") == 1 for row in table):
            axes.axhline(errors[0], color=DENSE, linewidth=2.5, zorder=0, label=variant)
            continue
        order = np.argsort([row.mean("mac_reduction") for row in table])
        axes.errorbar(
            [table[i].mean("mac_reduction") for i in order],
            [errors[i] for i in order],
            [100 * table[i].spread("accuracy") for i in order],
            label=variant,
            **_style(next(styles)),
        )
    _times(axes, "MAC reduction, gated layers")
    axes.set_ylabel("top-1 error, %")
    axes.legend()
    _title(figure, "Error against MACs")
    return figure


@house_style
def methods(results: Sequence[Result]) -> Figure:
    """Top-1 error against MAC reduction of the whole network, a curve for each method, bars of one standard deviation.

    Where a reduction is theoretical (zeros among weights that are multiplied all the same) the markers are hollow.
    """
    figure = canvas(1.25 * _SIZE[0], 1.25 * _SIZE[1])
    axes = figure.add_subplot()
    styles = itertools.count()
    for variant, table in _curves(rows(results)).items():
        errors = [100 * (1 - row.mean("accuracy")) for row in table]
        if not table[0].point:
            axes.axhline(errors[0], color=DENSE, linewidth=2.5, zorder=0, label=variant)
            continue
        theoretical = bool(table[0].results[0].measured)
        reached = [
            row.measured("theoretical_mac_reduction") if theoretical else row.mean("network_mac_reduction")
            for row in table
        ]
        order = np.argsort(reached)
        axes.errorbar(
            [reached[i] for i in order],
            [errors[i] for i in order],
            [100 * table[i].spread("accuracy") for i in order],
            label=f"{variant} (theoretical)" if theoretical else variant,
            markerfacecolor="none" if theoretical else None,
            **_style(next(styles)),
        )
    _times(axes, "MAC reduction, whole network")
    axes.set_ylabel("top-1 error, %")
    axes.legend(ncols=2)
    _title(figure, "Error against MACs, by method")
    return figure


@house_style
def frontier(results: Sequence[Result]) -> Figure:
    """Top-1 error against MAC reduction of the whole network, and against speed-up in the engine, batch 1 and 32.

    One checkpoint at several settings of its thresholds has no markers.
    """
    figure = canvas(1.9 * _SIZE[0], _SIZE[1])
    panels = figure.subplots(1, 3, sharey=True)
    styles = itertools.count()
    for variant, table in _curves(rows(results)).items():
        style = _style(next(styles))
        settings = [_settings(row) for row in table]
        if settings[0]:
            reached = [setting["network_mac_reduction"] for setting in settings[0]]
            errors = [100 * (1 - setting["accuracy"]) for setting in settings[0]]
            panels[0].plot(reached, errors, label=variant, **_without_caps(style) | {"marker": ""})
            continue
        errors = [100 * (1 - row.mean("accuracy")) for row in table]
        spread = [100 * row.spread("accuracy") for row in table]
        for axes, key in zip(panels, (None, "speedup_1", "speedup_32"), strict=True):
            places = [row.mean("network_mac_reduction") if key is None else row.measured(key) for row in table]
            axes.errorbar(places, errors, spread, label=variant, **style)
    for axes, label in zip(
        panels, ("MAC reduction, whole network", "speed-up, batch 1", "speed-up, batch 32"), strict=True
    ):
        _times(axes, label)
    panels[0].set_ylabel("top-1 error, %")
    panels[0].legend()
    _title(figure, "At equal MACs, and at equal time")
    return figure


def _settings(row: Row) -> list[dict[str, float]]:
    """Of a dial; seeds are averaged."""
    dials = [result.measured["offsets"] for result in row.results if result.measured and "offsets" in result.measured]
    return [
        {key: float(np.mean([setting[key] for setting in settings])) for key in settings[0]}
        for settings in zip(*dials, strict=True)
    ]


@house_style
def bars(results: Sequence[Result]) -> Figure:
    """Top-1 accuracy of each variant, with its MAC reduction written beside it."""
    table = rows(results)
    figure = canvas(_SIZE[0], 0.6 + 0.36 * len(table))
    axes = figure.add_subplot()
    places = range(len(table), 0, -1)
    accuracies = [100 * row.mean("accuracy") for row in table]
    gated = [row.mean("mac_reduction") > 1 for row in table]
    axes.barh(
        places, accuracies, 0.7, [100 * row.spread("accuracy") for row in table],
        color=[BLUE if one else DENSE for one in gated],
    )  # fmt: skip
    for place, accuracy, row in zip(places, accuracies, table, strict=True):
        axes.text(accuracy, place, f" {accuracy:.1f} % at {row.mean('mac_reduction'):.2f}×", va="center", fontsize=8)
    axes.set_yticks(places, [row.variant for row in table])
    axes.set_xlim(0, 1.3 * max(accuracies))
    axes.set_xlabel("top-1, %")
    axes.grid(visible=False, axis="y")
    _title(figure, "Gates together with other methods")
    return figure


@house_style
def budgets(results: Sequence[Result]) -> Figure:
    """Left: the reduction reached over the one named. Right: top-1 error against the reduction reached."""
    figure = canvas(1.5 * _SIZE[0], _SIZE[1])
    left, right = figure.subplots(1, 2)
    curves = {name: table for name, table in _curves(rows(results)).items() if "reduction" in table[0].point}
    for index, (variant, table) in enumerate(curves.items()):
        named = [float(row.point["reduction"]) for row in table]
        reached = [row.mean("mac_reduction") for row in table]
        off = [100 * (r / n - 1) for r, n in zip(reached, named, strict=True)]
        off_spread = [100 * row.spread("mac_reduction") / n for row, n in zip(table, named, strict=True)]
        left.errorbar(named, off, off_spread, label=variant, **_style(index))
        errors = [100 * (1 - row.mean("accuracy")) for row in table]
        right.errorbar(reached, errors, [100 * row.spread("accuracy") for row in table], **_style(index))
    left.axhspan(-3, 3, color=DENSE, alpha=0.5, zorder=0)
    _times(left, "MAC reduction named")
    left.set_ylabel("reached, % off")
    left.legend()
    _times(right, "MAC reduction reached")
    right.set_ylabel("top-1 error, %")
    _title(figure, "Does training end at the budget?")
    return figure


@house_style
def correlations(results: Sequence[Result]) -> Figure:
    """Correlation of partial and final sums, layer by layer, for each number of groups; seeds are averaged."""
    figure = canvas(1.5 * _SIZE[0], _SIZE[1])
    variants = list(dict.fromkeys(result.variant for result in results))
    for axes, variant in zip(np.atleast_1d(figure.subplots(1, len(variants), sharey=True)), variants, strict=True):
        for index, row in enumerate(_curves(rows(results))[variant]):
            measured = [result.measured["layers"] for result in row.results if result.measured]
            names = list(measured[0])
            values = [np.mean([layers[name] for layers in measured]) for name in names]
            axes.plot(
                range(1, len(names) + 1), values, label=f"G = {row.point['groups']}, mean {np.mean(values):.2f}",
                **_without_caps(_style(index)),
            )  # fmt: skip
        axes.set_xlabel("gated layer")
        axes.set_title(variant)
        axes.set_ylim(0, 1)
        axes.legend()
    figure.axes[0].set_ylabel("correlation")
    _title(figure, "How much a partial sum says about the final one")
    return figure


@house_style
def traffic(results: Sequence[Result]) -> Figure:
    """For each variant: off-chip bytes saved, and accuracy, over the bound τ."""
    curves = _curves(rows(results))
    figure = canvas(0.9 * _SIZE[0] * len(curves), _SIZE[1])
    panels = np.atleast_1d(figure.subplots(1, len(curves), sharey=True))
    for axes, (variant, table) in zip(panels, curves.items(), strict=True):
        bounds = [100 * float(row.point["tau"]) for row in table]
        axes.plot(bounds, [100 * row.measured("saved") for row in table], color=BLUE, marker="o")
        axes.set_xlabel("τ: a channel of an image with so many open decisions is skipped, %")
        axes.set_title(variant)
        other = axes.twinx()
        accuracies = [100 * row.measured("accuracy") for row in table]
        other.plot(bounds, accuracies, color=VERMILION, marker="s", linestyle="--")
        other.set_ylim(0, 100)
        other.grid(visible=False)
        other.set_ylabel("top-1, % (dashed)", color=VERMILION)
    panels[0].set_ylabel("off-chip bytes saved, %", color=BLUE)
    _title(figure, "Traffic under a channel-wise bound")
    return figure


@house_style
def spread(results: Sequence[Result]) -> Figure:
    """For each variant: the share of channels that each layer uses, 1×1 hatched; how reductions of images spread."""
    figure = canvas(1.5 * _SIZE[0], _SIZE[1])
    table = rows(results)
    panels = np.atleast_2d(figure.subplots(len(table), 2, squeeze=False))
    for (left, right), row in zip(panels, table, strict=True):
        measured = [result.measured for result in row.results if result.measured]
        layers = measured[0]["layers"]
        used = [100 * np.mean([one["layers"][name]["channels_used"] for one in measured]) for name in layers]
        pointwise = [layer["kernel"] == [1, 1] for layer in layers.values()]
        bars = left.bar(range(1, len(used) + 1), used, color=BLUE)
        for bar, hatched in zip(bars, pointwise, strict=True):
            bar.set_hatch("////" if hatched else "")
            bar.set_edgecolor("white")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_ylabel("channels used, %")
        left.set_title(row.variant)
        reductions = np.concatenate([one["reductions"] for one in measured])
        right.hist(reductions, bins=40, color=GREEN)
        right.set_title(f"{reductions.min():.2f}× to {reductions.max():.2f}×")
        right.set_ylabel("images")
    panels[-1][0].set_xlabel("gated layer; hatched: 1×1")
    _times(panels[-1][1], "MAC reduction of an image")
    _title(figure, "Where the work goes, by layer and by image")
    return figure


@house_style
def extremes(results: Sequence[Result]) -> Figure:
    """The cheapest and the dearest image of some classes, each with where its decisions were open; of the first seed.

    Networks whose decisions are for whole channels have no maps.
    """
    shown = [
        (result.variant, one)
        for result in results
        if result.seed == results[0].seed and result.measured
        for one in result.measured["extremes"]
        if one["open"] is not None
    ]
    top = max(float(picture(one["open"]).max()) / 255 for _, one in shown)
    cells: dict[str, list[tuple[NDArray[np.uint8], str]]] = {}
    for variant, one in shown:
        image = np.broadcast_to(np.atleast_3d(picture(one["picture"])), (*picture(one["picture"]).shape[:2], 3))
        row = cells.setdefault(f"{one['label']}", [])
        row.append((image, f"{variant}, {one['reduction']:.2f}×"))
        row.append((overlay(image, picture(one["open"]) / 255, top), f"{one['kind']}"))
    return image_grid(list(cells.items()), top=top)
