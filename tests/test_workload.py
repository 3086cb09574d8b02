"""The waist between networks and simulators: geometry is checked, and what is written is read back, or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headgate.errors import CheckpointError, ConfigError, DtypeError, HeadgateError, ShapeError
from headgate.workload import GRANULARITIES, GateTrace, LayerShape, load_traces, save_traces


def shape(**changes: Any) -> LayerShape:
    values: dict[str, Any] = {
        "name": "layer1.0.conv1",
        "c_in": 16,
        "c_out": 32,
        "kernel": (3, 3),
        "stride": (2, 2),
        "padding": (1, 1),
        "in_size": (9, 7),
        "out_size": (5, 4),
        "groups": 4,
        "granularity": "activation",
    }
    return LayerShape(**{**values, **changes})


def trace(images: int = 3, *, keep: bool = True, **changes: Any) -> GateTrace:
    layer = shape(**changes)
    decisions = np.random.default_rng(0).random((images, layer.decisions, *layer.decision_size)) < 0.3
    return GateTrace.from_decisions(layer, decisions, keep=keep)


def test_sizes_against_a_convolution() -> None:
    conv = nn.Conv2d(12, 18, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=6)
    output = conv(torch.zeros(1, 12, 11, 13))
    layer = LayerShape(
        name="conv",
        c_in=12,
        c_out=18,
        kernel=(3, 5),
        stride=(2, 1),
        padding=(1, 2),
        dilation=(1, 2),
        conv_groups=6,
        in_size=(11, 13),
        out_size=(output.shape[2], output.shape[3]),
    )
    assert layer.weights == conv.weight.numel()
    assert layer.out_elements == output[0].numel()
    assert layer.in_elements == 12 * 11 * 13
    assert layer.macs_dense == output.shape[2] * output.shape[3] * 18 * 2 * 3 * 5


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_same_may_be_one_pixel_short_on_one_side() -> None:
    even = nn.Conv2d(1, 1, 4, padding="same")
    assert even(torch.zeros(1, 1, 9, 7)).shape[2:] == (9, 7)
    values = {"kernel": (4, 4), "stride": (1, 1), "padding": (2, 2)}
    assert shape(**values, out_size=(9, 7)).out_size == (9, 7)
    assert shape(**values, out_size=(10, 8)).out_size == (10, 8)
    with pytest.raises(ShapeError, match="height 9 or 10"):
        shape(**values, out_size=(8, 7))


@pytest.mark.parametrize(
    ("granularity", "decisions", "size"),
    [
        ("dense", 0, (1, 1)),
        ("activation", 32, (5, 4)),
        ("group", 8, (5, 4)),
        ("channel", 32, (1, 1)),
        ("l1norm", 16, (1, 1)),
        ("fc", 32, (1, 1)),
    ],
)
def test_decisions_of_every_granularity(granularity: str, decisions: int, size: tuple[int, int]) -> None:
    layer = shape(granularity=granularity, groups=1 if granularity == "dense" else 4, conv_groups=2)
    assert (layer.decisions, layer.decision_size) == (decisions, size)
    assert layer.gated == (granularity != "dense")


def test_every_granularity_of_the_gates_is_known() -> None:
    from typing import get_args

    from headgate.nn.config import Granularity

    assert {"dense", *get_args(Granularity)} == set(GRANULARITIES)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"name": 3}, ConfigError, "name must be a string, got 3"),
        ({"c_in": 0}, ConfigError, "c_in must be an integer ≥ 1, got 0"),
        ({"c_out": True}, ConfigError, "c_out must be an integer ≥ 1, got True"),
        ({"groups": 2.0}, ConfigError, "groups must be an integer ≥ 1, got 2.0"),
        ({"kernel": 3}, ConfigError, "kernel must be a pair"),
        ({"stride": (1, 0)}, ConfigError, "stride must be an integer ≥ 1"),
        ({"padding": (-1, 0)}, ConfigError, "padding must be an integer ≥ 0"),
        ({"grouped": 1}, ConfigError, "grouped must be True or False"),
        ({"granularity": "pixel"}, ConfigError, "granularity must be one of dense, activation"),
        ({"granularity": "dense"}, ConfigError, "a dense layer has groups=1, got groups=4"),
        ({"conv_groups": 3}, ShapeError, "conv_groups must divide"),
        ({"groups": 5}, ShapeError, "groups must divide .* got groups=5 for 16 input and 32 output .* lower groups"),
        ({"conv_groups": 8}, ShapeError, "got groups=4 for 2 input"),
        ({"out_size": (5, 3)}, ShapeError, r"out_size must have the width 4 .* got \(5, 3\) for 'layer1.0.conv1'"),
        ({"kernel": (13, 3)}, ShapeError, "out_size must have the height"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, Any], error: type[HeadgateError], text: str) -> None:
    with pytest.raises(error, match=text):
        shape(**changes)


def test_gates_without_a_base_path_take_any_number_of_groups() -> None:
    assert shape(granularity="fc", groups=7).groups == 7


def test_a_shape_is_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        shape().c_in = 3  # type: ignore[misc]
    assert len({shape(), shape(), shape(groups=2)}) == 2


def test_json_round_trip() -> None:
    layer = shape(name="größer", shuffle=True, dilation=(1, 1))
    assert LayerShape.from_json(layer.to_json()) == layer
    assert json.loads(layer.to_json())["kernel"] == [3, 3]
    assert LayerShape.from_dict(layer.to_dict()) == layer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[1]", "expected a JSON object"),
        ('{"name": "a", "color": 1}', r"unknown fields \['color'\], missing \['c_in', 'c_out'"),
    ],
)
def test_foreign_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LayerShape.from_json(text)


def test_counts_and_densities() -> None:
    decisions = np.zeros((2, 32, 5, 4), bool)
    decisions[0, :16] = True
    decisions[1, 0, 0, 0] = True
    counted = GateTrace.from_decisions(shape(), decisions)
    assert counted.images == 2
    assert counted.pixels == 20
    assert counted.open_counts.dtype == np.int32
    assert counted.open_counts[:, 0].tolist() == [20, 1]
    assert counted.open_fraction().tolist() == [0.5, 1 / 640]
    assert counted.density() == pytest.approx((0.5 + 1 / 640) / 2, rel=1e-15)
    assert GateTrace(shape=shape(), open_counts=counted.open_counts).density() == counted.density()


@pytest.mark.parametrize("granularity", GRANULARITIES[1:])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_decisions_survive_packing(granularity: str, images: int) -> None:
    layer = shape(granularity=granularity)
    decisions = np.random.default_rng(1).random((images, layer.decisions, *layer.decision_size)) < 0.5
    assert np.array_equal(GateTrace.from_decisions(layer, decisions).decisions(), decisions)


def test_an_odd_number_of_decisions_is_padded_within_the_image() -> None:
    layer = shape(c_in=3, c_out=3, groups=1, in_size=(1, 1), out_size=(1, 1))
    decisions = np.array([[1, 0, 1], [1, 1, 1]]).reshape(2, 3, 1, 1)
    packed = GateTrace.from_decisions(layer, decisions)
    assert packed.packed is not None
    assert packed.packed.tolist() == [[0b10100000], [0b11100000]]
    assert np.array_equal(packed.decisions(), decisions.astype(bool))


def test_a_trace_is_a_copy_and_read_only() -> None:
    counts = np.zeros((1, 32), np.int32)
    counted = GateTrace(shape=shape(), open_counts=counts)
    counts[0, 0] = 7
    assert counted.open_counts[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        counted.open_counts[0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"shape": shape(granularity="dense", groups=1)}, ConfigError, "needs a gated layer"),
        ({"open_counts": np.zeros((2, 32))}, DtypeError, "must hold integers, got float64"),
        ({"open_counts": np.zeros((2, 31), int)}, ShapeError, r"must be \(images, 32\), got \(2, 31\)"),
        ({"open_counts": np.zeros(32, int)}, ShapeError, r"got \(32,\)"),
        ({"open_counts": np.full((2, 32), 21)}, ConfigError, "in 0 … 20, got 21 … 21"),
        ({"open_counts": np.full((2, 32), -1)}, ConfigError, "got -1"),
        ({"packed": np.zeros((2, 79), np.uint8)}, ShapeError, r"packed must be \(2, 80\)"),
        ({"packed": np.zeros((2, 80), np.int8)}, DtypeError, "must hold uint8"),
        ({"packed": np.ones((2, 80), np.uint8)}, ConfigError, "differ from the packed decisions"),
    ],
)
def test_a_trace_that_cannot_be_is_refused(changes: dict[str, Any], error: type[HeadgateError], text: str) -> None:
    values: dict[str, Any] = {"shape": shape(), "open_counts": np.zeros((2, 32), int)}
    with pytest.raises(error, match=text):
        GateTrace(**{**values, **changes})


def test_decisions_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match="decisions must be"):
        GateTrace.from_decisions(shape(), np.zeros((2, 32, 4, 5), bool))


def test_questions_that_have_no_answer() -> None:
    with pytest.raises(ConfigError, match="counts only"):
        trace(keep=False).decisions()
    with pytest.raises(ConfigError, match="at least one image"):
        trace(images=0).density()


def test_traces_survive_a_file(tmp_path: Path) -> None:
    traces = [trace(), trace(keep=False, granularity="group", name="b"), trace(images=0, granularity="fc")]
    path = tmp_path / "traces.npz"
    save_traces(path, traces)
    assert [file.name for file in tmp_path.iterdir()] == ["traces.npz"]
    loaded = load_traces(path)
    assert [one.shape for one in loaded] == [one.shape for one in traces]
    for one, other in zip(loaded, traces, strict=True):
        assert np.array_equal(one.open_counts, other.open_counts)
        assert (one.packed is None) == (other.packed is None)
    assert np.array_equal(loaded[0].decisions(), traces[0].decisions())
    save_traces(path, [])
    assert load_traces(path) == []


def test_the_file_is_plain_arrays(tmp_path: Path) -> None:
    path = tmp_path / "traces.npz"
    save_traces(path, [trace()])
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["header", "open_counts_0", "packed_0"]
        assert json.loads(arrays["header"].tobytes())["layers"] == [shape().to_dict()]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "traces.npz"
    save_traces(path, [trace(images=1)])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", full)
        with pytest.raises(CheckpointError, match="No space left"):
            save_traces(path, [trace(images=2)])
    assert load_traces(path)[0].images == 1
    assert [file.name for file in tmp_path.iterdir()] == ["traces.npz"]


def test_files_that_hold_no_traces_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "traces.npz"
    with pytest.raises(CheckpointError, match="no such file"):
        load_traces(path)
    with pytest.raises(CheckpointError, match=r"nowhere"):
        save_traces(tmp_path / "nowhere" / "traces.npz", [])
    with pytest.raises(CheckpointError):
        load_traces(tmp_path)
    save_traces(path, [trace()])
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated or does not hold gate traces"):
            load_traces(path)
    path.write_bytes(b"<html>" * 100)
    with pytest.raises(CheckpointError, match="does not hold"):
        load_traces(path)


def header(**changes: Any) -> np.ndarray:
    values = {"format": "headgate.gate_traces", "version": 1, "layers": [shape().to_dict()]}
    return np.frombuffer(json.dumps({**values, **changes}).encode(), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weights": np.zeros(3)}, "does not hold"),
        ({"header": header(format="other")}, "does not hold gate traces"),
        ({"header": header(version=2)}, "version 2, expected 1"),
        ({"header": header()}, "open_counts_0"),
        ({"header": header(layers=None)}, "does not hold"),
        ({"header": header(), "open_counts_0": np.zeros((1, 3), int)}, "open_counts must be"),
        ({"header": header(), "open_counts_0": np.array([{}], object)}, "allow_pickle"),
    ],
)
def test_archives_of_something_else_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "traces.npz"
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match=message):
        load_traces(path)
