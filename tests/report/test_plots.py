"""The figures: what is drawn is what was counted, in readable type, and matplotlib's global state is left alone."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
import torch
from fabricated import metrics
from matplotlib._pylab_helpers import Gcf
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from headgate import plots
from headgate.convert import gate_
from headgate.counting import Counts, count
from headgate.models import create
from headgate.nn import GateConfig


def bars(axes: Axes, label: str) -> np.ndarray:
    """The widths of one series of horizontal bars."""
    (container,) = [container for container in axes.containers if container.get_label() == label]
    return np.array([bar.get_width() for bar in container])


def points(axes: Axes, label: str) -> np.ndarray:
    """One series as (n, 2)."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)], axis=1)


def reductions_of(counts: Counts) -> np.ndarray:
    return counts.dense_macs / counts.by_image()


def test_bars_by_layer_are_the_counts(counts: Counts) -> None:
    records = counts.by_layer()
    (axes,) = plots.macs_by_layer(records).axes
    assert axes.get_xlabel() == "MACs per image, thousands"
    np.testing.assert_allclose(1e3 * bars(axes, "dense"), [record.dense_macs for record in records])
    np.testing.assert_allclose(1e3 * bars(axes, "base"), [record.base_macs for record in records])
    np.testing.assert_allclose(1e3 * bars(axes, "conditional"), [record.conditional_macs for record in records])
    executed = sum(bars(axes, label) for label in ("not gated", "base", "conditional"))
    np.testing.assert_allclose(1e3 * executed, [record.executed_macs for record in records])
    assert [label.get_text() for label in axes.get_yticklabels()] == [record.name for record in records]
    written = {text.get_text() for text in axes.texts}
    assert written == {f"{record.mac_reduction:.1f}×" for record in records if record.shape.gated}


def test_paths_add_up_to_the_network(counts: Counts) -> None:
    (axes,) = plots.macs_by_path(counts.by_layer()).axes
    paths = counts.by_path()
    for label, path in (("base", "base"), ("conditional", "conditional"), ("not gated", "dense")):
        np.testing.assert_allclose(1e3 * bars(axes, label), [paths[path]])
    np.testing.assert_allclose(1e3 * bars(axes, "without gates"), [counts.network_dense_macs])


def test_channels_used_are_eta_plus_density_times_the_rest(counts: Counts) -> None:
    records = counts.by_layer()
    (axes,) = plots.channels_used(records).axes
    gated = [(row, record) for row, record in enumerate(records) if record.shape.gated]
    expected = [(100 * (1 / 4 + record.density * (1 - 1 / 4)), row) for row, record in gated]
    np.testing.assert_allclose(points(axes, "3×3"), expected)
    np.testing.assert_allclose(points(axes, "base path, η"), [(25, row) for row, _ in gated])


def test_kernels_differ_in_colour_and_in_marker() -> None:
    model = create("digits-resnet")
    gate_(model, GateConfig(groups=4, granularity="group"), example_input=torch.zeros(1, 1, 8, 8))
    records = count(model, torch.rand(3, 1, 8, 8)).by_layer()
    (axes,) = plots.channels_used(records).axes
    looks = {line.get_label(): (line.get_marker(), line.get_color()) for line in axes.lines}
    assert looks["1×1"][0] != looks["3×3"][0]
    assert looks["1×1"][1] != looks["3×3"][1]
    rows = [int(row) for row in points(axes, "1×1")[:, 1]]
    assert [records[row].shape.kernel for row in rows] == [(1, 1)] * 2
    overhead = bars(plots.macs_by_layer(records).axes[0], "overhead")
    assert (overhead > 0).sum() == sum(record.shape.gated for record in records)


def test_histogram_holds_every_image(counts: Counts) -> None:
    reductions = reductions_of(counts)
    (axes,) = plots.reduction_histogram(reductions).axes
    heights = [patch.get_height() for patch in axes.containers[0]]
    assert sum(heights) == counts.images == len(reductions)
    (line,) = axes.lines
    assert line.get_xdata()[0] == pytest.approx(np.median(reductions))


def test_classes_are_sorted_and_spanned(counts: Counts) -> None:
    reductions, labels = reductions_of(counts), np.arange(counts.images) % 3
    (axes,) = plots.reduction_by_class(reductions, labels, ("a", "b", "c", "none of these")).axes
    named = [label.get_text() for label in axes.get_yticklabels()]
    members = {name: reductions[labels == i] for i, name in enumerate("abc")}
    assert named == sorted("abc", key=lambda name: -np.median(members[name]))
    for series, statistic in (("dearest", np.min), ("median", np.median), ("cheapest", np.max)):
        expected = [(statistic(members[name]), row) for row, name in enumerate(named)]
        np.testing.assert_allclose(points(axes, series), expected)


def test_of_many_classes_both_ends_are_shown() -> None:
    labels = np.repeat(np.arange(100), 2)
    (axes,) = plots.reduction_by_class(2 + labels / 100, labels, [f"c{i}" for i in range(100)]).axes
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert named == [f"c{i}" for i in (*range(99, 89, -1), *range(9, -1, -1))]


def test_curves_follow_the_metrics() -> None:
    lines = metrics(gated=True)
    (axes,) = plots.accuracy_curve(lines, 0.95).axes
    np.testing.assert_allclose(points(axes, "training batches"), [(step / 20, 2 * step) for step in (10, 20, 30, 40)])
    np.testing.assert_allclose(points(axes, "test images"), [(2, 90)])
    assert points(axes, "dense: 95.00 %")[0, 1] == pytest.approx(95)
    assert axes.get_ylim()[1] > 95
    (axes,) = plots.reduction_curve(lines, 2.5).axes
    assert points(axes, "asked for: 2.5×")[0, 1] == 2.5
    upper, lower = plots.density_curve(lines).axes
    assert points(upper, "training batches")[:, 1] == pytest.approx(20)
    assert points(lower, "training batches")[:, 1] == pytest.approx([0.25, 0.5, 0.75, 1])
    (axes,) = plots.loss_curve([{"kind": "train", "step": step, "loss": 1.0} for step in (1, 2)]).axes
    assert axes.get_xlabel() == "step"


def test_overlay_is_the_scale_over_grey() -> None:
    image = np.full((2, 2, 3), 128, np.uint8)
    share = np.array([[0, 0.2], [0.4, 0.9]])
    laid = plots.overlay(image, share, top=0.4)
    brightness = laid.astype(float) @ [0.299, 0.587, 0.114]
    assert brightness[0, 0] < brightness[0, 1] < brightness[1, 0]
    np.testing.assert_array_equal(laid[1, 0], laid[1, 1])  # beyond the end of the scale
    first, *_, last = plots.scale_css().split("), ")
    near = [np.array([float(part) for part in stop.strip("rgb()").split(",")]) for stop in (first, last)]
    np.testing.assert_allclose(near, [laid[0, 0], laid[1, 0]], atol=1.5)


def all_figures(counts: Counts) -> list[Figure]:
    lines, records, reductions = metrics(gated=True), counts.by_layer(), reductions_of(counts)
    image = np.zeros((8, 8, 3), np.uint8)
    return [
        plots.loss_curve(lines),
        plots.accuracy_curve(lines, 0.95),
        plots.reduction_curve(lines, 2.5),
        plots.density_curve(lines),
        plots.macs_by_path(records),
        plots.macs_by_layer(records),
        plots.channels_used(records),
        plots.reduction_histogram(reductions),
        plots.reduction_by_class(reductions, np.arange(len(reductions)) % 10, [str(i) for i in range(10)]),
        plots.image_grid([("row", [(image, "caption")] * 3)], top=0.5),
    ]


def test_no_type_is_smaller_than_8_points_and_nothing_leaves_the_frame(counts: Counts) -> None:
    for figure in all_figures(counts):
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        assert texts
        assert min(text.get_fontsize() for text in texts) >= 8
        width, height = figure.get_size_inches() * figure.dpi
        for text in texts:
            box = text.get_window_extent()
            if box.width and text.axes is not None and text.axes.axison:
                assert box.x0 >= -1, text.get_text()
                assert box.x1 <= width + 1, text.get_text()
                assert box.y0 >= -1, text.get_text()
                assert box.y1 <= height + 1, text.get_text()


def test_png_and_svg(counts: Counts) -> None:
    figure = plots.macs_by_layer(counts.by_layer())
    picture = Image.open(io.BytesIO(plots.to_png(figure, dpi=100)))
    assert picture.size[0] == pytest.approx(100 * plots.WIDTH, abs=1)
    svg = plots.to_svg(figure)
    assert "features.3</text>" in svg  # as text, not as outlines
    assert svg == plots.to_svg(figure)
    assert plots.PALETTE["orange"] in svg


def test_the_users_settings_neither_matter_nor_change(counts: Counts) -> None:
    usual = plots.to_svg(plots.macs_by_layer(counts.by_layer()))
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        assert plots.to_svg(plots.macs_by_layer(counts.by_layer())) == usual
        assert dict(matplotlib.rcParams) == before


def test_no_figure_is_left_open(counts: Counts) -> None:
    before = Gcf.get_all_fig_managers()
    assert all_figures(counts)
    assert Gcf.get_all_fig_managers() == before
