"""Whole networks on AArch64, exported here and run by an emulator: `make test-neon`."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from agreement import check, gated, plan_of, undoubted
from plan_interpreter import Run
from plan_networks import EveryOperator, Gated, settle
from torch import Tensor, nn

import headgate as hg

RUN_PLAN = os.environ.get("HEADGATE_RUN_PLAN", "")
ISAS = ("neon", "portable")

pytestmark = pytest.mark.skipif(not RUN_PLAN, reason="`make test-neon` builds and emulates the engine for AArch64")


def emulate(path: Path, x: Tensor, isa: str, threads: int = 1) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """The plan's outputs, one row per image, and by gated layer the numbers of decisions and of open ones."""
    source, target = path.with_name("input"), path.with_name("output")
    x.numpy().tofile(source)
    done = subprocess.run(
        [*shlex.split(RUN_PLAN), str(path), str(source), str(target), str(threads)],
        env=os.environ | {"HEADGATE_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    used, *layers = done.stdout.splitlines()
    assert used == (isa or "neon")
    decisions = {name: (int(all_), int(open_)) for name, all_, open_ in (line.split("\t") for line in layers)}
    return torch.from_numpy(np.fromfile(target, np.float32).reshape(len(x), -1)), decisions


def agree(path: Path) -> Run:
    x, run = undoubted(path)
    for isa in ISAS:
        check(run, *emulate(path, x, isa))
    return run


@pytest.mark.parametrize(
    ("granularity", "bound"),
    [("activation", 0.0), ("activation", 0.4), ("group", 0.0), ("group", 0.4), ("channel", 0.0)],
)
@pytest.mark.parametrize("channels", [16, 40])
def test_gated_networks(granularity: str, bound: float, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 3, 13, 12)
    model = gated(x, Gated(channels=channels), granularity=granularity, channel_bound=bound)
    assert agree(plan_of(model, x, tmp_path)).gates


def test_every_other_operator(tmp_path: Path) -> None:
    torch.manual_seed(5)
    x = torch.randn(2, 3, 17, 19)
    agree(plan_of(settle(EveryOperator(), x), x, tmp_path))


def test_the_shipped_dense_network(tmp_path: Path) -> None:
    model = hg.pretrained("resnet20-cifar10-dense")
    assert isinstance(model, nn.Module)
    agree(plan_of(model.eval(), torch.randn(2, 3, 32, 32), tmp_path))


@pytest.mark.parametrize("granularity", ["activation", "group"])
def test_results_do_not_depend_on_batch_or_threads(granularity: str, tmp_path: Path) -> None:
    torch.manual_seed(8)
    x = torch.randn(9, 3, 13, 12)
    path = plan_of(gated(x, Gated(), granularity=granularity), x, tmp_path)
    expected, _ = emulate(path, x, "neon")
    for threads, (first, last) in [(1, (4, 5)), (2, (0, 9)), (3, (2, 9))]:
        assert torch.equal(emulate(path, x[first:last], "neon", threads)[0], expected[first:last])


def test_neon_is_the_best_there_and_nothing_of_x86_is(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 13, 12)
    path = plan_of(settle(Gated(), x), x, tmp_path)
    emulate(path, x, "")
    with pytest.raises(AssertionError, match=r"HEADGATE_ISA=avx2: this build of headgate lacks it; unset .* to neon"):
        emulate(path, x, "avx2")
