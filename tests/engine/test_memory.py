"""How much memory a process that runs a plan needs, weights and maps included."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native_build import built, run

import headgate as hg
from headgate.models import create

REST = 20e6
"""Bytes beside weights and maps: the program, its libraries, what loading needs for a while, buffers of kernels."""


def bound(plan: Path, images: int) -> float:
    """The most bytes that may be resident: weights + 2 x the largest pair of an input and an output + REST.

    Weights are what the plan holds, and what Winograd's algorithm makes of them more.
    """
    data = plan.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    description = json.loads(header.pop("__metadata__")["headgate.plan"])
    weights = max(tensor["data_offsets"][1] for tensor in header.values())
    sizes = [4 * math.prod(value["shape"]) for value in description["values"]]
    pairs = [sizes[op["inputs"][0]] + sizes[op["output"]] for op in description["ops"]]
    more = sum(transformed(op, header, description["values"]) for op in description["ops"] if "weight" in op)
    return weights + more + images * 2 * max(pairs) + REST


def transformed(op: dict[str, Any], tensors: dict[str, Any], values: list[dict[str, Any]]) -> float:
    """The bytes that a convolution's weights grow by; at most, for the engine's rule leaves some layers out."""
    c_out, c_in, *kernel = tensors[op["weight"]]["shape"]
    if op["kind"] == "gated_conv":  # its base path
        c_in = tensors[op["base_inputs"]]["shape"][1]
    pixels = math.prod(values[op["output"]]["shape"][1:])
    if kernel != [3, 3] or op["stride"] != [1, 1] or (pixels < 64 and c_in * c_out > 256**2):
        return 0
    tile = 36 if c_in * c_out <= 128**2 else 16
    return 4 * c_in * c_out * (tile - 9)


@pytest.fixture(scope="module", params=["dense", "activation", "group"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 with 45 MB of weights."""
    torch.manual_seed(0)
    x = torch.zeros(1, 3, 32, 32)
    model = create("resnet18-cifar", num_classes=10).eval()
    if request.param != "dense":
        hg.gate_(model, hg.GateConfig(groups=8, granularity=request.param), example_input=x)
    path = tmp_path_factory.mktemp("memory") / "model.hgplan"
    hg.export(model, path, example_input=x)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 32])
def test_peak_memory(images: int, plan: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "input.npy", np.random.default_rng(0).normal(size=(images, 3, 32, 32)).astype(np.float32))
    done = run(built("native/tools/headgate-run"), "--threads", "1", "--stats", plan, tmp_path / "input.npy")
    peak = re.search(r"peak resident memory: (\d+\.\d) MB", done)
    assert peak is not None
    assert 1e6 * float(peak[1]) <= bound(plan, images)
