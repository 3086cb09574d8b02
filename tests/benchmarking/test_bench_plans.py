"""`headgate bench` of plan files: against the dense network that is rebuilt of what they hold."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_bench import QUICK, bench, computing
from rich.console import Console
from torch import nn

import headgate as hg
from headgate import cli
from headgate.benchmarking import Record, Request
from headgate.benchmarking import work as works
from headgate.benchmarking.show import show
from headgate.errors import BenchmarkError
from headgate.models import create

MACHINE = {"cpu": "a CPU", "usable_cores": 1, "load_average_at_start": 0.0}


def gated_plan(folder: Path, **options: Any) -> Path:
    model = create("digits-cnn").eval()
    x = torch.rand(8, 1, 8, 8)
    hg.gate_(model, hg.GateConfig(groups=4, granularity="group", shuffle=True), example_input=x)
    hg.export(model, folder / "m.hgplan", example_input=x, **options)
    return folder / "m.hgplan"


def of_plan(plan: Path, *against: str, **options: Any) -> Request:
    return Request(models=(str(plan),), against=against, batches=(2,), threads=("one",), repeats=2, **options)


def test_a_plan_is_compared_with_the_dense_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = gated_plan(tmp_path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((3, 1, 8, 8), np.float32))
    command = ["bench", str(plan), "--data", str(tmp_path / "x.npy"), *QUICK]
    against = ["--against", "torch", "torch-channels-last", "grouped", "thinner"]
    assert cli.main([*command, *against, "--out", str(tmp_path / "result")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("PyTorch: dense", "headgate: grouped, G =", "headgate: thinner,", "headgate: m.hgplan"):
        assert words in shown
    assert "m.hgplan with its gates held open, rebuilt from the file" in shown
    assert "white noise" not in shown
    (findings,) = json.loads((tmp_path / "result.json").read_text("utf-8"))["findings"]
    assert findings["absent"] == {}
    assert findings["gated"][0]["images"].startswith("3 images: ")
    (setting,) = findings["settings"]
    assert all(layer["dense_ms"] > 0 for layer in setting["layers"][0]["layers"])
    kinds = [(timed["name"], timed["kind"]) for timed in setting["timed"]]
    assert kinds == [
        ("PyTorch", "dense"),
        ("PyTorch, channels last", "dense"),
        *[("headgate", kind) for kind in ("dense", "pruned", "pruned", "gated")],
    ]
    np.save(tmp_path / "x.npy", np.zeros((3, 1, 8, 9), np.float32))
    assert cli.main(command) == 1
    assert "data must hold images of (1, 8, 8)" in capsys.readouterr().err


def test_the_dense_network_of_a_plan_has_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "LIBRARIES", ())
    findings = bench(of_plan(gated_plan(tmp_path)), tmp_path).findings()
    (table,) = findings.settings[0].layers
    assert all(layer.dense_ms is not None for layer in table.layers)
    (gated,) = findings.gated
    assert gated.images == "8 images: white noise, so masks are those of noise; --data images.npy takes yours"
    dense, own = findings.settings[0].timed
    assert (dense.kind, own.kind) == ("dense", "gated")
    assert dense.macs == gated.dense_macs
    assert own.macs == gated.executed_macs < dense.macs


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_a_plan_is_compared_in_its_own_precision(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = replace(computing("ncnn", lambda y: y), dense=("float32",), pruned=())
    monkeypatch.setattr(works, "LIBRARIES", (computing("torch", lambda y: y), narrow))
    monkeypatch.setattr(works, "computes_bf16", lambda: True)
    ranges: dict[str, Any] = {"calibration": torch.rand(8, 1, 8, 8)} if precision == "int8" else {}
    plan = gated_plan(tmp_path, precision=precision, **ranges)
    findings = bench(of_plan(plan, "torch", "ncnn", "grouped", "thinner"), tmp_path).findings()
    timed = findings.settings[0].timed
    assert [(x.name, x.kind, x.dtype) for x in timed] == [
        ("torch", "dense", "float32"),
        ("ncnn", "dense", "float32"),
        ("torch", "dense", precision),
        *[("torch", "pruned", precision)] * 2,
        *[("headgate", kind, precision) for kind in ("dense", "pruned", "pruned", "gated")],
    ]
    record = Record(command="", request=of_plan(plan).to_dict(), date="", machine=MACHINE, findings=(findings,))
    console = Console(file=io.StringIO(), width=200)
    show(record, console)
    assert f"m.hgplan computes in {precision}, and so do rivals that say so" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_plan_without_gates_is_its_own_dense_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "LIBRARIES", (computing("torch", lambda y: y),))
    x = torch.rand(4, 1, 8, 8)
    ranges: dict[str, Any] = {"precision": "int8", "calibration": x}
    for dtype, options in (("float32", {}), ("int8", ranges)):
        plan = tmp_path / f"{dtype}.hgplan"
        hg.export(create("digits-cnn").eval(), plan, example_input=x, **options)
        findings = bench(of_plan(plan, "all"), tmp_path).findings()
        assert findings.gated == ()
        assert findings.call.load_bytes == plan.stat().st_size
        assert [x.dtype for x in findings.settings[0].timed if x.ours] == [dtype]
        assert {*findings.absent} == {"grouped", "thinner"}
        assert "no gated network" in findings.absent["grouped"]


def test_a_network_that_cannot_be_made_thinner_is_timed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Paired(nn.Module):
        """Convolution groups that half as many channels do not divide into."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.pairs = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, groups=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pairs(self.conv(self.stem(x)).relu())  # type: ignore[no-any-return]

    monkeypatch.setattr(works, "LIBRARIES", ())
    model, x = Paired().eval(), torch.rand(2, 1, 8, 8)
    hg.gate_(model, hg.GateConfig(groups=4), example_input=x)
    hg.export(model, tmp_path / "m.hgplan", example_input=x)
    findings = bench(of_plan(tmp_path / "m.hgplan", "thinner", "grouped"), tmp_path).findings()
    assert {*findings.absent} == {"thinner"}
    assert "cannot be made" in findings.absent["thinner"]
    assert [timed.kind for timed in findings.settings[0].timed] == ["dense", "pruned", "gated"]


def test_images_that_overflow_give_no_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "LIBRARIES", ())
    plan = gated_plan(tmp_path, precision="int8", calibration=torch.rand(8, 1, 8, 8))
    np.save(tmp_path / "x.npy", np.full((2, 1, 8, 8), np.nan, np.float32))
    with pytest.raises(BenchmarkError, match="must read finite numbers"):
        bench(of_plan(plan, data=str(tmp_path / "x.npy")), tmp_path).findings()
