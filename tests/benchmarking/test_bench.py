"""`headgate bench` from end to end on the smallest network, and how it fails."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_bench import QUICK, bench, computing
from torch import nn

from headgate import cli
from headgate.benchmarking import Request
from headgate.benchmarking import run as runs
from headgate.benchmarking import work as works
from headgate.benchmarking.libraries.library import Absent, Library, Runner, Work
from headgate.cli.bench import Bench
from headgate.errors import BenchmarkError, ConfigError

SYNTHETIC = Request(
    models=("digits-cnn",),
    densities=(0.2,),
    masks=("iid", "group"),
    groups=4,
    batches=(2,),
    threads=("one",),
    repeats=2,
)


def with_against(request: Request, *against: str) -> Request:
    return Request.from_dict(request.to_dict() | {"against": against})


def test_everything_in_one_child(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "digits-cnn", "--density", "0.2", "--mask", "clustered", "--groups", "4", *QUICK]
    against = ["--against", "torch", "torch-channels-last", "grouped", "thinner"]
    assert cli.main([*arguments, *against, "--out", str(tmp_path / "result")]) == 0
    shown = capsys.readouterr().out
    for word in ("PyTorch", "grouped, G =", "thinner,", "clustered, 20 %", "of theory", "gated layers"):
        assert word in shown
    stored = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert (tmp_path / "result.png").exists()
    (findings,) = stored["findings"]
    (setting,) = findings["settings"]
    assert {timed["kind"] for timed in setting["timed"]} == {"dense", "pruned", "gated"}
    assert all(0 < timed["ms"]["q1"] <= timed["ms"]["median"] <= timed["ms"]["q3"] for timed in setting["timed"])
    assert findings["call"]["overhead_us"]["median"] > 0
    assert findings["gated"][0]["density"]["features.3"] == pytest.approx(0.2, abs=0.03)
    request = Request.from_dict(stored["request"])
    assert stored["command"] == request.command()
    assert not list(tmp_path.glob("*.part"))


def test_trained_networks_decide_on_real_images(tmp_path: Path, cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "LIBRARIES", ())
    names = ("resnet20-cifar10-activation", "resnet20-cifar10-group")
    request = Request(
        models=names, data=str(cifar10), dense="resnet20-cifar10-dense", batches=(1,), threads=("one",), repeats=2
    )
    findings = bench(with_against(request, "grouped"), tmp_path).findings()
    assert [gated.name for gated in findings.gated] == [*names]
    for gated in findings.gated:
        assert 2 < gated.dense_macs / gated.executed_macs < 4
        assert gated.after_open is not None
    (setting,) = findings.settings
    assert [timed.kind for timed in setting.timed].count("dense") == 1
    for table in setting.layers:
        assert all(layer.dense_ms is not None for layer in table.gated)
    assert findings.network == "resnet20-cifar10-dense"


def test_a_rival_that_computes_something_else_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, change, message in (
        ("off", lambda y: 1.01 * y, "must compute what torch does"),
        ("nan", lambda y: y * np.nan, "must compute what torch does"),
        ("cut", lambda y: y[:, :3], "must give an output of"),
    ):
        monkeypatch.setattr(works, "LIBRARIES", (computing("torch", change), computing("ncnn", lambda y: y)))
        (tmp_path / name).mkdir()
        findings = bench(with_against(SYNTHETIC, "torch", "ncnn"), tmp_path / name).findings()
        (label,) = findings.absent
        assert label == "torch, dense, float32"
        assert message in findings.absent[label]
        assert [timed.name for timed in findings.settings[0].timed if not timed.ours] == ["ncnn"]


def test_an_engine_that_computes_something_else_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "reference", lambda *_: np.ones((2, 10), np.float32))
    with pytest.raises(BenchmarkError, match="headgate: dense must compute what torch does"):
        bench(with_against(SYNTHETIC), tmp_path).findings()


def test_precisions_are_compared_with_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "LIBRARIES", (computing("torch", lambda y: y), computing("ncnn", lambda y: y)))
    request = Request.from_dict(
        with_against(SYNTHETIC, "torch", "int8", "grouped").to_dict() | {"precisions": ["float32", "int8"]}
    )
    findings = bench(request, tmp_path).findings()
    (setting,) = findings.settings
    dense = [(timed.name, timed.dtype) for timed in setting.timed if timed.kind == "dense" and not timed.ours]
    assert dense == [("torch", "float32"), ("torch", "int8"), ("ncnn", "int8")]
    pruned = [(timed.name, timed.dtype) for timed in setting.timed if timed.kind == "pruned"]
    assert {*pruned} == {(name, dtype) for name in ("torch", "headgate") for dtype in ("float32", "int8")}
    gated = [(timed.network, timed.dtype) for timed in setting.timed if timed.kind == "gated"]
    assert gated == [(name, dtype) for name in ("iid, 20 %", "group, 20 %") for dtype in ("float32", "int8")]
    assert [(about.name, about.dtype) for about in findings.gated] == gated
    assert [(table.network, table.dtype) for table in setting.layers] == gated
    plans = [about.plan_bytes for about in findings.gated]
    assert plans[0] != plans[1]
    for timed in setting.timed:
        best = setting.best(timed.dtype)
        assert best is not None
        assert best.dtype == timed.dtype
        assert setting.speedup(timed) == best.ms.median / timed.ms.median
    for table in setting.layers:
        own = [x for x in setting.timed if x.ours and x.kind == "dense" and x.dtype == table.dtype]
        assert len(own) == 1
        assert all(layer.dense_ms is not None for layer in table.gated)
        whole, best = setting.whole(table), setting.best(table.dtype)
        assert whole is not None
        assert best is not None
        assert whole.dense_ms == best.ms.median
    assert setting.best("bfloat16") is None


def test_a_library_that_takes_the_process_down_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The child is a script that sends what a worker does, and dies where it is to try the second library."""
    script = tmp_path / "python"
    script.write_text(
        f"""#!{sys.executable}
import json, os, sys
task = json.load(sys.stdin)
with os.fdopen(task["events"], "w", buffering=1) as events:
    for label in ("A", "B", "C"):
        if label in task["absent"]:
            continue
        print(json.dumps({{"attempt": label}}), file=events)
        if label == "B":
            print("heap is corrupt")
            sys.stdout.flush()
            os.abort()
        print(json.dumps({{"attempt": None}}), file=events)
    if "C" not in task["absent"] and task["request"]["seed"]:
        os.abort()
    print(json.dumps({{"error": ["BenchmarkError", str(task["absent"])]}}), file=events)
"""
    )
    script.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(script))
    with pytest.raises(BenchmarkError, match=r"\{'B': 'its process died with exit code -6: heap is corrupt'\}"):
        runs.benchmark(SYNTHETIC)
    with pytest.raises(BenchmarkError, match="the process that timed died with exit code -6: it said nothing"):
        runs.benchmark(Request.from_dict(SYNTHETIC.to_dict() | {"seed": 1}))


def test_a_rival_that_cannot_run_is_absent_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Work) -> Runner:
        raise Absent("no such operator")

    def fail(work: Work) -> Runner:
        raise RuntimeError("broken\nat length")

    def build(work: Work) -> Runner:
        raise AssertionError("must not be tried")

    libraries = (
        Library(name="torch", title="A", packages=(), build=refuse),
        Library(name="onnxruntime", title="B", packages=(), build=fail),
        Library(name="openvino", title="C", packages=("json", "no_such_package"), build=build),
        Library(name="ncnn", title="D", packages=(), build=build, unholdable="it chooses by itself"),
        computing("torch-compile", lambda y: y),
    )
    monkeypatch.setattr(works, "LIBRARIES", libraries)
    names = [library.name for library in libraries]
    findings = bench(Request.from_dict(SYNTHETIC.to_dict() | {"against": names, "held": "avx2"}), tmp_path).findings()
    assert findings.absent == {
        "A, dense, float32": "no such operator",
        "B, dense, float32": "RuntimeError: broken",
        "C": "no_such_package not installed; pip install no_such_package",
        "D": "cannot be held to avx2: it chooses by itself",
    }
    (setting,) = findings.settings
    assert [timed.name for timed in setting.timed] == ["torch-compile", "headgate", "headgate", "headgate"]
    assert setting.best("float32") == setting.timed[0]


def test_an_engine_that_decides_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headgate.benchmarking import subject

    observe = subject.observe_decisions

    def other(model: nn.Module, images: torch.Tensor) -> Any:
        return {
            name: decided._replace(density=decided.density + 0.1) for name, decided in observe(model, images).items()
        }

    monkeypatch.setattr(subject, "observe_decisions", other)
    with pytest.raises(BenchmarkError, match="the engine opens"):
        bench(with_against(SYNTHETIC), tmp_path).findings()


def test_held_to_an_instruction_set() -> None:
    record = runs.benchmark(Request.from_dict(with_against(SYNTHETIC, "torch").to_dict() | {"held": "avx2"}))
    assert record.findings[0].isa == "avx2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-cnn"], "model must be a run's folder"),
        (["digits-cnn", "--density", "0.1"], "density and mask go together"),
        (["digits-cnn", "--density", "1.5", "--mask", "iid"], "density must be in [0, 1)"),
        (["digits-cnnn", "--density", "0.1", "--mask", "iid", "--groups", "4"], "did you mean"),
        (["digits-cnn", "--density", "0.1", "--mask", "iid", "--data", "x"], "drop data and dense"),
        (["digits-cnn", "resnet20", "--density", "0.1", "--mask", "iid"], "one architecture is timed, got 2"),
        (["digits-cnn", "--density", "0.1", "--mask", "iid", "--groups", "999"], "groups must not exceed"),
        (["a.hgplan", "b.hgplan"], "one plan is timed at a time, got 2"),
        (
            ["a.hgplan", "--dense", "resnet20-cifar10-dense"],
            "with its own gates held open, got dense=",
        ),
        (["a.hgplan"], "a.hgplan"),
        (["resnet20-cifar10-dense"], "data must be given"),
        (["resnet20-cifar10-dense", "--image", "3", "32", "32"], "image is for the synthetic mode"),
        (["resnet20-cifar10-dense", "--data", "/no/such/folder"], "/no/such/folder"),
        (["resnet20-cifar10-dense", "--against", "tflite"], "against must be of all, torch"),
        (["resnet20-cifar10-dense", "--repeats", "1"], "repeats must be in [2"),
        (["resnet20-cifar10-dense", "--precision", "int8", "int8"], "precision must hold each value once"),
        (["resnet20-cifar10-dense", "--batches", "4", "1", "4"], "batches must hold each value once, got 4 1 4"),
        (["a.hgplan", "--precision", "int8"], "a plan has its own precision, got precision=int8"),
        (["resnet20-cifar10-dense", "--batches", "0"], "batches must be in [1"),
        (["a.hgplan", "--out", "/no/such/folder/x"], "out must be in a folder that exists"),
    ],
)
def test_errors_of_use(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in " ".join(shown.split())
    assert not list(tmp_path.iterdir())


def test_a_child_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.sys, "executable", "/bin/false")
    with pytest.raises(BenchmarkError, match="died with exit code 1: it said nothing"):
        runs.benchmark(SYNTHETIC)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_ends_the_child_and_leaves_nothing(number: signal.Signals, said: str, tmp_path: Path) -> None:
    arguments = ["digits-cnn", "--density", "0.2", "--mask", "iid", "--groups", "4", "--against", "torch"]
    process = subprocess.Popen(
        [sys.executable, "-m", "headgate.cli", "bench", *arguments, "--repeats", "100000", "--out", "result"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        children = wait_for_children(process.pid)
        time.sleep(1.0)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip() == said
    assert not list(tmp_path.iterdir())
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def wait_for_children(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children")
    for _ in range(600):
        found = [int(child) for child in children.read_text().split()]
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("no child process was started")


def test_a_request_says_how_to_ask_for_it_again() -> None:
    request = Request(models=("a b",), data="x", precisions=("int8",), batches=(4,), threads=("all",), held="avx2")
    assert request.command() == ("headgate bench 'a b' --data x --precision int8 --batches 4 --threads all --isa avx2")
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    with pytest.raises(ConfigError, match="models must hold at least one"):
        Request(models=())


def test_every_option_has_an_example() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text("utf-8")
    commands = " ".join(re.findall(r"^headgate bench .*", text, re.MULTILINE))
    for field in dataclasses.fields(Bench):
        assert field.name == "models" or f"--{field.name} " in commands
