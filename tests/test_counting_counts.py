"""What `count` returns: JSON, the table, off-chip traffic, and the same from several processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import headgate.counting
from headgate.counting import BufferModel, Counts, LayerCounts, Uncounted, count
from headgate.errors import CheckpointError, ConfigError, DataError
from headgate.nn import GateConfig, GatedConv2d
from headgate.workload import LayerShape


def network(granularity: str = "activation", **options: object) -> nn.Sequential:
    config = GateConfig(granularity=granularity, groups=2, **options)  # type: ignore[arg-type]
    gated = GatedConv2d(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), config)
    return nn.Sequential(nn.Conv2d(3, 4, 1), gated, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


# ------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("granularity", ["activation", "group", "channel", "l1norm", "fc"])
def test_json_round_trip(granularity: str, tmp_path: Path) -> None:
    counts = count(network(granularity), torch.randn(5, 3, 6, 6))
    counts.save(tmp_path / "counts.json")
    again = Counts.load(tmp_path / "counts.json")
    assert again.to_dict() == counts.to_dict()
    assert str(again) == str(counts)
    assert again.by_layer() == counts.by_layer()
    assert again.by_image().tolist() == counts.by_image().tolist()
    assert again.traffic().to_dict() == counts.traffic().to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["counts.json"]


def test_json_can_be_read_without_headgate() -> None:
    counts = count(network(), torch.randn(3, 3, 6, 6))
    values = json.loads(json.dumps(counts.to_dict()))
    assert values["summary"]["mac_reduction"] == counts.mac_reduction
    assert values["summary"]["network_mac_reduction"] == counts.network_mac_reduction
    assert values["by_path"] == counts.by_path()
    assert values["by_image"] == counts.by_image().tolist()
    assert [layer["name"] for layer in values["by_layer"]] == ["0", "1", "5"]
    assert values["by_layer"][1]["shape"]["granularity"] == "activation"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "got format 'other'"),
        ({"version": 99}, "version 1, got 99; update headgate"),
        ({"layers": [{}]}, "incomplete"),
        ({"images": 7}, "7 values, got"),
    ],
)
def test_foreign_json(change: dict[str, object], message: str, tmp_path: Path) -> None:
    values = count(network(), torch.randn(3, 3, 6, 6)).to_dict() | change
    with pytest.raises(DataError, match=message):
        Counts.from_dict(values)
    (tmp_path / "counts.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"counts\.json does not hold counts: .*"):
        Counts.load(tmp_path / "counts.json")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        Counts.load(tmp_path / "missing.json")
    for content in ('{"format": "headga', "[]", "\ufffd"):
        (tmp_path / "bad.json").write_text(content, "utf-8")
        with pytest.raises(CheckpointError, match="does not hold counts"):
            Counts.load(tmp_path / "bad.json")
    with pytest.raises(CheckpointError, match="cannot write"):
        count(network(), torch.randn(1, 3, 6, 6)).save(tmp_path / "no folder" / "counts.json")


def test_the_table() -> None:
    gated = LayerShape(
        name="features.3", c_in=64, c_out=128, kernel=(3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8), groups=8,
        granularity="activation",
    )  # fmt: skip
    dense = LayerShape(name="fc", c_in=128, c_out=10, kernel=(1, 1), in_size=(1, 1), out_size=(1, 1))
    skippable = gated.macs_dense * 7 // 8
    ones = np.ones(2, np.int64)
    counts = Counts(
        layers=(
            layer_counts(gated, conditional_macs=np.array([skippable // 4, skippable // 2])),
            layer_counts(dense, conditional_macs=0 * ones),
        ),
        images=2,
        uncounted=(Uncounted("up", "aten.convolution", 2.5e6),),
        uncalled=("aux",),
    )
    assert str(counts).splitlines() == [
        "layer       granularity     channels  kernel  map  dense MACs  executed  density   used     ÷",
        "─" * 93,
        "features.3  activation G=8    64→128     3×3  8×8      4.72 M    2.14 M   0.3750  0.453  2.21",
        "fc          dense             128→10     1×1  1×1      1.28 k    1.28 k           1.000  1.00",
        "─" * 93,
        "gated layers: 4.72 M → 2.14 M MACs per image, 2.21× fewer",
        "network: 4.72 M → 2.14 M MACs per image, 2.21× fewer",
        "by path: base 589.82 k, conditional 1.55 M, overhead 0, dense 1.28 k; density 0.3750; 2 images",
        "not counted: aten.convolution in up, 2.50 M MACs per image",
        "never ran: aux",
    ]
    assert repr(counts) == "Counts(2 layers, 2 images, mac_reduction=2.207, density=0.3750)"


# ---------------------------------------------------------------------- traffic


def layer_counts(shape: LayerShape, **arrays: object) -> LayerCounts:
    images = len(next(iter(arrays.values())))  # type: ignore[arg-type]
    values: dict[str, object] = {
        "conditional_macs": np.zeros(images, np.int64),
        "conditional_weights": np.zeros(images, np.int64),
        "input_channels": np.full(images, shape.c_in),
        "output_channels": np.full(images, shape.c_out),
    }
    values |= arrays
    return LayerCounts(shape=shape, calls=1, additions=0, multiplications=0, **values)  # type: ignore[arg-type]


def test_traffic_by_hand() -> None:
    """4→8 channels, 3×3, 6×6 maps, G = 2: 288 weights, 144 of them base; 144 inputs; 288 outputs."""
    shape = LayerShape(
        name="conv", c_in=4, c_out=8, kernel=(3, 3), padding=(1, 1), in_size=(6, 6), out_size=(6, 6), groups=2,
        granularity="activation", grouped=False,
    )  # fmt: skip
    # image 0: all closed, so only base inputs are read; image 1: 3 of the 8 output channels have open decisions
    layer = layer_counts(shape, conditional_weights=np.array([0, 3 * 18]), input_channels=np.array([2, 4]))
    counts = Counts(layers=(layer,), images=2)

    traffic = counts.traffic(BufferModel(weight_bytes=2, activation_bytes=1, buffer_bytes=144))
    assert traffic.layers[0].dense == (2 * 288, 144, 288)
    assert traffic.layers[0].gated == (2 * (144 + 144 + 54) / 2, (72 + 144) / 2, 288)
    assert traffic.dense_bytes == 1008
    assert traffic.gated_bytes == 342 + 108 + 288
    assert traffic.reduction == 1008 / 738
    assert traffic.saved == pytest.approx(1 - 738 / 1008)

    # a smaller buffer: 144 bytes of inputs do not fit, so they are streamed once for every 100 bytes of weights
    traffic = counts.traffic(BufferModel(weight_bytes=2, activation_bytes=1, buffer_bytes=100))
    assert traffic.layers[0].dense == (576, 144 * 6, 288)
    assert traffic.layers[0].gated == (342, (72 + 144 * 4) / 2, 288)


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({"granularity": "activation"}, 4),
        ({"granularity": "activation", "grouped": False}, 2),
        ({"granularity": "l1norm"}, 0),
        ({"granularity": "fc"}, 0),
    ],
)
def test_closed_gates_read_the_base_path_only(options: dict[str, object], reads: int) -> None:
    model = network(**options).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        model[1].gate.threshold.fill_(1e6)
    layer = count(model, torch.randn(2, 3, 6, 6)).layers[1]
    assert layer.input_channels.tolist() == [reads, reads]
    assert layer.conditional_weights.tolist() == [0, 0]
    assert layer.output_channels.tolist() == ([0, 0] if options["granularity"] == "fc" else [8, 8])
    with torch.no_grad():
        model[1].gate.threshold.fill_(-1e6)
    layer = count(model, torch.randn(2, 3, 6, 6)).layers[1]
    assert layer.input_channels.tolist() == [4, 4]
    assert layer.output_channels.tolist() == [8, 8]
    base = 144 if options["granularity"] == "activation" else 0
    assert layer.conditional_weights.tolist() == [288 - base] * 2


@pytest.mark.parametrize("granularity", ["activation", "group"])
def test_conditional_weights_are_those_of_channels_with_open_decisions(granularity: str) -> None:
    model = network(granularity).eval()
    threshold = model[1].gate.threshold
    with torch.no_grad():
        threshold.fill_(1e6)
        threshold[-1] = -1e6
    layer = count(model, torch.randn(1, 3, 6, 6)).layers[1]
    channels = 1 if granularity == "activation" else 4
    assert layer.conditional_weights.tolist() == [channels * 2 * 9]


def test_the_channel_bound_saves_weights() -> None:
    model, x = network().eval(), torch.randn(4, 3, 6, 6)
    free = count(model, x).traffic()
    object.__setattr__(model[1].config, "channel_bound", 0.5)
    bounded = count(model, x).traffic()
    assert bounded.gated_bytes < free.gated_bytes
    assert bounded.dense_bytes == free.dense_bytes
    assert bounded.reduction > free.reduction


def test_buffer_model_errors() -> None:
    for name in ("weight_bytes", "activation_bytes", "buffer_bytes"):
        for value in (0, -1, 1.5, True):
            with pytest.raises(ConfigError, match=f"{name} must be an integer ≥ 1, got {value}"):
                BufferModel(**{name: value})  # type: ignore[arg-type]


# ------------------------------------------------------------ several processes

SCRIPT = """
import json, sys
import torch, torch.distributed as dist
from headgate.counting import count
from test_counting_counts import network

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(0)
model, x = network().eval(), torch.randn(7, 3, 6, 6)
index = torch.arange(7)
share = torch.cat([index, index[:1]])[rank::2]  # as DistributedSampler: every other image, padded with a copy
found = {
    "by index": count(model, [(x[part], part, part) for part in share.split(3)]),
    "by rank": count(model, x[:4] if rank == 0 else x[4:]),
    "one is empty": count(model, [] if rank == 0 else [x]),
}
if rank == 0:
    found["alone"] = count(model, x, gather=False)
results = {case: counts.to_dict() for case, counts in found.items()}
try:
    count(model, x if rank == 0 else x[:, :1])
except Exception as error:
    results["failure"] = f"{type(error).__name__}: {error}"
print(json.dumps(results))
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    tests, source = Path(__file__).parent, Path(headgate.counting.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (source, tests))), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(output) for output, _ in outputs)

    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(7, 3, 6, 6)
    expected = count(model, x).to_dict()
    for case in ("by index", "by rank", "one is empty"):
        assert first[case] == second[case] == expected, case
    assert first["alone"] == expected
    assert first["failure"].startswith(
        "ModelError: every process must count its share of the images, but rank 1 failed"
    )
    assert second["failure"].startswith("RuntimeError")


# ------------------------------------------------------------------------- docs


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parent.parent / "docs" / "counting.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})  # our own page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.json", "traces.npz"]
