"""Binary multiply-accumulates are counted apart from the others, and reduced as they are."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from headgate.convert import gate_
from headgate.counting import BufferModel, Counts, MacLedger, count, trace
from headgate.nn import BinaryConv2d, GateConfig, GatedConv2d, Observation, force_gates, observe
from headgate.workload import LayerShape

STEM, CONV, HEAD = 36 * 3 * 4, 36 * 4 * 8 * 9, 8 * 5  # MACs of the network below on 6×6 images


def network(granularity: str | None = None) -> nn.Sequential:
    """A stem and a classifier of numbers round a binary convolution."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.Hardtanh(),
        BinaryConv2d(4, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardtanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    if granularity is not None:
        gate_(model, GateConfig(groups=2, granularity=granularity))  # type: ignore[arg-type]
    return model.eval()


def images(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, 6, 6)


def test_a_dense_binary_network_has_totals_of_both_kinds() -> None:
    counts = count(network(), images())
    assert [(record.name, record.binary) for record in counts.by_layer()] == [("0", False), ("3", True), ("8", False)]
    assert counts.total(network=True) == (STEM + HEAD, STEM + HEAD)
    assert counts.total(network=True, binary=True) == (CONV, CONV)
    assert (counts.network_dense_macs, counts.network_executed_macs) == (STEM + HEAD, STEM + HEAD)
    assert (counts.dense_macs, counts.executed_macs, counts.mac_reduction) == (0, 0, 1)
    assert counts.by_path() == {
        "base": 0, "conditional": 0, "overhead": 0, "dense": STEM + HEAD,
        "binary base": 0, "binary conditional": 0, "binary dense": CONV,
    }  # fmt: skip
    assert counts.uncounted == ()


def test_gates_reduce_binary_macs() -> None:
    model, x = network("activation"), images()
    seen: list[Observation] = []
    with observe(model, lambda _n, _l, observation: seen.append(observation)):
        model(x)
    opened = seen[0].open_counts.sum(1).to(torch.int64).numpy()
    counts = count(model, x)
    executed = CONV // 2 + opened * 2 * 9  # an open output completes its sum over the other two inputs
    assert 0 < opened.min() < opened.max()
    assert counts.by_image(binary=True).tolist() == executed.tolist()
    assert counts.by_image().tolist() == [0] * 5
    assert counts.total(binary=True) == (CONV, executed.mean())
    assert counts.mac_reduction == CONV / executed.mean()
    assert counts.network_mac_reduction == (STEM + CONV + HEAD) / (STEM + executed.mean() + HEAD)
    np.testing.assert_array_equal(counts.reduction_by_image(), CONV / executed)
    assert counts.total(network=True) == (STEM + HEAD, STEM + HEAD)
    paths = counts.by_path()
    assert paths["binary base"] + paths["binary conditional"] == executed.mean()
    for state, reduction in (("open", 1.0), ("closed", 2.0)):
        with force_gates(model, state):  # type: ignore[arg-type]
            assert count(model, x).mac_reduction == reduction


def test_a_gate_adds_macs_that_are_not_binary() -> None:
    counts = count(network("channel"), images())
    assert counts.total() == (0, 8 * 36)  # additions; c_out for each output pixel
    assert counts.by_path()["overhead"] == 8 * 36
    record = counts.by_layer()[1]
    assert record.executed_macs == record.base_macs + record.conditional_macs + 8 * 36
    assert counts.mac_reduction == CONV / (counts.total(binary=True).executed_macs + 8 * 36)


def test_the_ledger_steers_by_the_same_reduction() -> None:
    model, x = network("group"), images()
    ledger, open_counts = MacLedger(model, x), {}
    with torch.no_grad(), observe(model, lambda name, _l, seen: open_counts.update({name: seen.open_counts})):
        model(x)
    counts = count(model, x)
    assert float(ledger.reduction(open_counts)) == pytest.approx(counts.mac_reduction, rel=1e-6)
    assert float(ledger.reduction(open_counts, network=True)) == pytest.approx(counts.network_mac_reduction, rel=1e-6)


def test_gates_of_both_kinds_are_reduced_together() -> None:
    config = GateConfig(groups=2)
    wide = nn.Conv2d(8, 8, 1, bias=False)
    model = nn.Sequential(
        GatedConv2d(BinaryConv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), config),
        nn.Hardtanh(),
        GatedConv2d(wide, nn.BatchNorm2d(8), config),
        nn.Hardtanh(),
    ).eval()
    with force_gates(model, "closed"):
        counts = count(model, torch.randn(2, 4, 3, 3))
    assert counts.total() == (9 * 64, 9 * 32)
    assert counts.total(binary=True) == (9 * 32, 9 * 16)
    assert counts.mac_reduction == 2
    assert str(counts).splitlines()[-5:-1] == [
        "gated layers: 576 → 288 MACs per image, 2.00× fewer",
        "gated layers: 288 → 144 binary MACs per image, 2.00× fewer",
        "network: 576 → 288 MACs per image, 2.00× fewer",
        "network: 288 → 144 binary MACs per image, 2.00× fewer",
    ]


def test_the_table_says_which_layers_are_binary() -> None:
    with force_gates(model := network("activation"), "closed"):
        lines = str(count(model, images())).splitlines()
    assert [" ".join(line.split()[1:4]) for line in lines[2:5]] == [
        "dense 3→4 1×1",
        "binary activation G=2",
        "dense 8→5 1×1",
    ]
    assert lines[6:9] == [
        "gated layers: 10.37 k → 5.18 k binary MACs per image, 2.00× fewer",
        "network: 472 → 472 MACs per image, 1.00× fewer",
        "network: 10.37 k → 5.18 k binary MACs per image, 2.00× fewer",
    ]


def test_files_keep_the_kind_and_old_ones_are_read(tmp_path: Path) -> None:
    counts = count(network("activation"), images())
    counts.save(tmp_path / "counts.json")
    again = Counts.load(tmp_path / "counts.json")
    assert again.to_dict() == counts.to_dict()
    assert str(again) == str(counts)
    values = counts.to_dict()
    assert values["summary"]["binary_dense_macs"] == CONV
    assert values["summary"]["network_dense_macs"] == STEM + HEAD
    assert values["binary_by_image"] == counts.by_image(binary=True).tolist()
    assert [layer["binary"] for layer in values["by_layer"]] == [False, True, False]

    old = copy.deepcopy(values)  # as it was written before there were binary layers
    for layer in old["layers"]:
        del layer["shape"]["binary"]
    assert not any(layer.binary for layer in Counts.from_dict(old).layers)


def test_traces_keep_the_kind() -> None:
    (layer,) = trace(network("activation"), images())
    assert layer.shape.binary
    assert LayerShape.from_json(layer.shape.to_json()) == layer.shape


def test_a_binary_weight_moves_one_bit() -> None:
    model = network("activation")
    with force_gates(model, "closed"):
        traffic = count(model, images()).traffic(BufferModel(weight_bytes=4, activation_bytes=2))
    stem, conv, _ = traffic.layers
    assert stem.dense == (4 * 12, 2 * 3 * 36, 2 * 4 * 36)
    assert conv.dense == (288 / 8, 2 * 4 * 36, 2 * 8 * 36)
    assert conv.gated == (144 / 8, 2 * 4 * 36, 2 * 8 * 36)
