"""Which images the report looks at, what they cost, and where their gates open."""

from __future__ import annotations

import shutil
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fabricated import make_run
from PIL import Image

from headgate.counting import Counts, trace
from headgate.report.embed import Gallery
from headgate.report.looks import costs, maps
from headgate.report.run import read_run
from headgate.report.sample import (
    cheap_typical_dear,
    decision_maps,
    enlarged,
    extremes_by_class,
    pixels,
    take_sample,
    try_sample,
    upsample,
)
from headgate.train import DataConfig


def test_the_sample_costs_what_was_counted(runs: Path, counts: Counts) -> None:
    run = read_run(runs / "gated")
    sample = take_sample(run, None, 1000)
    assert sample.total == len(sample.labels) == 360
    np.testing.assert_allclose(sample.executed, counts.by_image(), rtol=0.01)  # other batches, other rounding
    everything = np.ones(360, bool)
    assert sample.mean_reduction(everything) == pytest.approx(counts.mac_reduction, rel=1e-3)
    few = take_sample(run, None, 10)
    assert (few.total, len(few.labels)) == (360, 10)
    spread = np.linspace(0, 359, 10).round().astype(int)
    np.testing.assert_array_equal(few.data.images, sample.data.images[spread])

    for label, cheapest, dearest in extremes_by_class(sample):
        members = np.flatnonzero(sample.labels == label)
        assert sample.labels[cheapest] == sample.labels[dearest] == label
        assert sample.reductions[cheapest] == sample.reductions[members].max()
        assert sample.reductions[dearest] == sample.reductions[members].min()
    chosen = cheap_typical_dear(sample)
    assert [kind for kind, _ in chosen] == ["cheap", "cheap", "typical", "typical", "dear", "dear"]
    assert len({image for _, image in chosen}) == 6
    assert chosen[0][1] == sample.executed.argmin()
    assert sample.executed[chosen[4][1]] == sample.executed.max()
    median = np.median(sample.reductions)
    assert all(abs(sample.reductions[image] / median - 1) < 0.02 for kind, image in chosen if kind == "typical")


def test_maps_are_shares_of_open_decisions(runs: Path) -> None:
    sample = take_sample(read_run(runs / "gated"), None, 40)
    images = [3, 17]
    maps = decision_maps(sample, images)
    batch = sample.data.images[images]
    traces = {part.shape.name: part for part in trace(sample.model, sample.model.preprocess(batch.float() / 255))}
    assert [layer.name for layer in maps] == [*traces, "all layers"]
    for layer in maps[:-1]:
        np.testing.assert_allclose(layer.shares, traces[layer.name].decisions().mean(1))
        assert layer.size == traces[layer.name].shape.decision_size
    # over an image, the mean of "all layers" is the density of all gated layers in it
    open_work = sum(part.open_fraction() * part.shape.macs_dense for part in traces.values())
    work = sum(part.shape.macs_dense for part in traces.values())
    np.testing.assert_allclose(maps[-1].shares.mean((1, 2)), open_work / work)


def test_small_pictures_stay_blocks_and_maps_stay_in_place() -> None:
    blocks = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert enlarged(blocks, 8).shape == (8, 8, 3)
    np.testing.assert_array_equal(enlarged(blocks, 8)[::4, ::4], blocks)
    assert enlarged(np.zeros((30, 60, 3), np.uint8), 20).shape == (10, 20, 3)
    maps = np.arange(4.0).reshape(1, 2, 2)
    np.testing.assert_array_equal(upsample(maps, 4, 6)[0, ::2, ::3], maps[0])
    assert upsample(maps, 3, 5).shape == (1, 3, 5)


def test_images_in_colour(photographs: Path, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", channels=3))
    sample = take_sample(run, str(photographs), 100)
    stored = np.asarray(Image.open(photographs / "test" / "class0" / "0.png"))
    np.testing.assert_array_equal(pixels(sample, 0), stored)
    assert sample.class_name(0) == "class0"
    gallery = Gallery()
    cards = costs(run, sample, gallery)["cards"]
    assert [name for name, _ in cards] == [f"class{label}" for label in range(10)]
    thumbnails = [Image.open(BytesIO(b64decode(card.source.partition(",")[2]))) for _, pair in cards for card in pair]
    assert all((np.asarray(thumbnail)[..., 0] != np.asarray(thumbnail)[..., 1]).any() for thumbnail in thumbnails)
    rows = maps(sample, gallery)["rows"]
    assert [row["kind"] for row in rows] == ["cheap", "cheap", "typical", "typical", "dear", "dear"]
    assert set(gallery.figures) == {"reduction-by-image", "reduction-by-class", "images", "decisions"}


def test_streamed_images_are_prepared_as_for_training(photographs: Path, tmp_path: Path) -> None:
    data = DataConfig(source=str(photographs), loading="stream", size=8)
    sample = take_sample(read_run(make_run(tmp_path / "run", channels=3, data=data)), None, 7)
    assert sample.data.images.shape == (7, 3, 9, 9)  # 256/224 of the size, the whole shorter side
    assert sample.total == 30
    np.testing.assert_array_equal(sample.labels, [i // 3 for i in np.linspace(0, 29, 7).round().astype(int)])


def test_data_of_another_kind_is_refused_in_words(photographs: Path, runs: Path) -> None:
    shutil.rmtree(photographs / "train" / "class9")
    shutil.rmtree(photographs / "test" / "class9")
    refusal = try_sample(read_run(runs / "gated"), str(photographs), 10)
    assert refusal == "expected 10 classes as the model has, got 9; give the dataset of the run"
