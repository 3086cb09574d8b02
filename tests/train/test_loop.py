"""The loop on scikit-learn's digits: budget, resuming, interruption, faults, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import headgate.train.loop as loop
from headgate import recipes
from headgate.checkpoint import load
from headgate.counting import Counts
from headgate.errors import CheckpointError, DataError, DivergedError
from headgate.nn import GateConfig, gated_layers, shift_thresholds_
from headgate.train import BudgetConfig, DataConfig, DistillConfig, InterruptedRun, Recipe, evaluate, train
from headgate.train.log import read_metrics
from headgate.train.prepare import evaluation_batches

pytestmark = pytest.mark.slow
DIGITS = DataConfig(source="digits", augment="crop")


def recipe(**changes: object) -> Recipe:
    base = replace(
        recipes.get("digits-cnn"),
        epochs=3,
        gate=GateConfig(groups=4, shuffle=True),
        budget=BudgetConfig(mac_reduction=2.5),
        eval_every=1,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("steering", ["threshold", "penalty"])
def test_training_learns_and_ends_on_the_budget(tmp_path: Path, steering: str) -> None:
    budget = BudgetConfig(mac_reduction=2.5, steering=steering)  # type: ignore[arg-type]
    result = train(recipe(epochs=8, budget=budget), tmp_path, console=False)
    assert result.evaluation.accuracy > 0.9
    assert result.evaluation.counts.mac_reduction == pytest.approx(2.5, rel=0.03)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy"] == pytest.approx(result.evaluation.accuracy)
    model = load(tmp_path / "model.safetensors")
    again = evaluate(model, evaluation_batches(model, DIGITS))
    assert again.accuracy == pytest.approx(result.evaluation.accuracy)
    assert again.counts.mac_reduction == pytest.approx(result.evaluation.counts.mac_reduction)
    lines = read_metrics(tmp_path)
    assert {"loss", "accuracy", "density", "mac_reduction", "lr", "offset"} <= lines[0].keys()
    assert [line["kind"] for line in lines].count("eval") == 8


def test_target_and_forced_and_dense_runs(tmp_path: Path) -> None:
    low = train(recipe(budget=BudgetConfig(target=0.0)), tmp_path / "low", console=False).evaluation
    high = train(recipe(budget=BudgetConfig(target=1.5)), tmp_path / "high", console=False).evaluation
    static = train(recipe(budget=BudgetConfig(forced="closed")), tmp_path / "static", console=False).evaluation
    dense = train(recipes.dense(recipe()), tmp_path / "dense", console=False).evaluation
    assert low.counts.density > high.counts.density > 0
    assert static.counts.density == 0
    assert static.counts.mac_reduction == pytest.approx(4)
    assert static.accuracy > 0.5
    assert not dense.counts.gated_layers


@pytest.mark.parametrize("granularity", ["group", "channel", "l1norm", "fc"])
def test_every_gate_trains(tmp_path: Path, granularity: str) -> None:
    gate = GateConfig(groups=4, granularity=granularity)  # type: ignore[arg-type]
    budget = BudgetConfig(mac_reduction=1.5)
    result = train(recipe(gate=gate, budget=budget, epochs=6), tmp_path, console=False)
    assert result.evaluation.accuracy > 0.7
    assert result.evaluation.counts.mac_reduction == pytest.approx(1.5, rel=0.03)


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_interrupted_run_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recipe(budget=BudgetConfig(mac_reduction=2.5, elastic=0.5, close_epochs=1))
    train(whole, tmp_path / "whole", console=False)

    steps = 0
    step = loop._Run._step

    def interrupting(self: loop._Run, *args: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 30:  # in the middle of the second epoch of 22 steps
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop._Run, "_step", interrupting)
    with pytest.raises(InterruptedRun, match="state is saved"):
        train(whole, tmp_path / "parts", console=False)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    train(whole, tmp_path / "parts", console=False)

    expected, got = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    evals = [[line for line in read_metrics(tmp_path / run) if line["kind"] == "eval"] for run in ("whole", "parts")]
    assert evals[0] == evals[1]


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    train(recipe(epochs=1), tmp_path, console=False)
    with pytest.raises(CheckpointError, match=r"another recipe \(seed: 0 then, 1 now\)"):
        train(recipe(epochs=1, seed=1), tmp_path, console=False)
    with pytest.raises(CheckpointError, match="holds a run already"):
        train(recipe(epochs=1), tmp_path, resume=False, console=False)


def test_nan_stops_with_step_and_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task_loss = loop.task_loss
    calls = 0

    def diverging(*args: object, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = task_loss(*args, **options)  # type: ignore[arg-type]
        return loss * float("nan") if calls == 25 else loss

    monkeypatch.setattr(loop, "task_loss", diverging)
    with pytest.raises(DivergedError, match=r"the loss is nan at step 2 of epoch 1.*state\.safetensors"):
        train(recipe(), tmp_path, console=False)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "state.safetensors").values())
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_go_bad_in_the_last_step_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clamp, calls, steps = loop.clamp_thresholds_, 0, 22  # of an epoch

    def spoiling(model: torch.nn.Module, pulled_to: float) -> None:
        nonlocal calls
        clamp(model, pulled_to)
        calls += 1
        if calls == 2 * steps:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = float("inf")

    monkeypatch.setattr(loop, "clamp_thresholds_", spoiling)
    message = r"weights are not finite before step 0 of epoch 2; the last good state is kept in .*state\.safetensors"
    with pytest.raises(DivergedError, match=message):
        train(recipe(), tmp_path, console=False)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "state.safetensors").values())
    assert not (tmp_path / "model.safetensors").exists()


def test_the_loss_alone_pulls_thresholds_to_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, slopes = [], []
    threshold_loss = loop.threshold_loss

    def noting(model: torch.nn.Module, target: float, weight: float) -> torch.Tensor:
        weights.append(weight)
        slopes.append(next(iter(gated_layers(model).values())).gate.slope)
        return threshold_loss(model, target, weight)

    monkeypatch.setattr(loop, "threshold_loss", noting)
    gate = GateConfig(groups=4, threshold=-1.0, slope=2.0)
    budget = BudgetConfig(target=4.0, steering="pull", weight=0.0001, weight_final=0.2, slope_final=3.0)
    result = train(recipe(gate=gate, budget=budget, epochs=4), tmp_path, console=False)
    offsets = [line["offset"] for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert offsets == [0.0] * len(offsets)  # nothing but the loss moves them
    thresholds = [layer.gate.threshold for layer in gated_layers(load(result.folder / "model.safetensors")).values()]
    assert all((value > 2.0).all() and (value <= 7.0).all() for value in thresholds)
    assert weights[0] == pytest.approx(0.0001)
    assert slopes[0] == 2.0
    assert weights == sorted(weights)
    assert slopes == sorted(slopes)
    assert weights[-1] == pytest.approx(0.2, rel=0.02)
    assert slopes[-1] == pytest.approx(3.0, rel=0.02)


def test_a_state_of_before_an_option_existed_goes_on(tmp_path: Path) -> None:
    """Options are added with defaults that change nothing; a run must survive an update of headgate."""
    train(recipe(epochs=1), tmp_path, console=False)
    (tmp_path / "summary.json").unlink()
    state = tmp_path / "state.safetensors"
    with safe_open(state, "pt") as file:
        header = json.loads(file.metadata()["headgate.state"])
    del header["recipe"]["budget"]["weight_final"]
    save_file(load_file(state), state, metadata={"headgate.state": json.dumps(header)})
    train(recipe(epochs=1), tmp_path, console=False)
    assert (tmp_path / "summary.json").exists()


def test_full_disk_keeps_the_earlier_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, large = os.write, 0

    def full(descriptor: int, data: bytes) -> int:
        nonlocal large
        large += len(data) > 10_000 and os.fstat(descriptor).st_size == 0  # a state's start, not the recipe
        if large > 1:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(recipe(), tmp_path, console=False)
    assert load_file(tmp_path / "state.safetensors")
    leftovers = {path.name for path in tmp_path.iterdir()} - {"state.safetensors", "metrics.jsonl", "recipe.json"}
    assert leftovers == {"tensorboard"}


def test_wrong_data_is_an_error_that_leaves_no_folder(tmp_path: Path) -> None:
    config = recipe()
    missing = replace(config, data=replace(config.data, source=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="nowhere"):
        train(missing, tmp_path / "run", console=False)
    few = replace(config, architecture=replace(config.architecture, num_classes=7))
    with pytest.raises(DataError, match="10 classes, the network 7"):
        train(few, tmp_path / "run", console=False)
    assert not (tmp_path / "run").exists()


def test_from_a_dense_checkpoint_with_a_teacher(tmp_path: Path) -> None:
    dense = train(recipes.dense(recipe()), tmp_path / "dense", console=False)
    checkpoint = str(dense.folder / "model.safetensors")
    budget = BudgetConfig(mac_reduction=2.0, close_epochs=0.5)
    student = recipe(epochs=2, init_from=checkpoint, distill=DistillConfig(teacher=checkpoint), budget=budget)
    result = train(student, tmp_path / "gated", console=False)
    first = next(line for line in read_metrics(tmp_path / "gated") if line["kind"] == "train")
    assert first["accuracy"] > 0.5  # it did not start from scratch
    assert result.evaluation.accuracy > 0.9


def test_one_elastic_checkpoint_serves_several_budgets(tmp_path: Path) -> None:
    budget = BudgetConfig(mac_reduction=2.0, elastic=1.0)
    result = train(recipe(epochs=6, budget=budget), tmp_path, console=False)
    model = load(result.folder / "model.safetensors")
    reductions, accuracies = [], []
    for _ in range(3):
        evaluation = evaluate(model, evaluation_batches(model, DIGITS))
        reductions.append(evaluation.counts.mac_reduction)
        accuracies.append(evaluation.accuracy)
        shift_thresholds_(model, 0.5)
    assert reductions == sorted(reductions)
    assert reductions[-1] > 1.15 * reductions[0]
    assert min(accuracies) > 0.8


WORKER = """
import os
import sys
from dataclasses import replace
import torch
from headgate import recipes
from headgate.nn import GateConfig
from headgate.train import BudgetConfig, train

torch.set_num_threads(1)
gate = GateConfig(groups=4, granularity=sys.argv[2])
budget = BudgetConfig(mac_reduction=2.5)
train(
    replace(recipes.get("digits-cnn"), epochs=2, batch_size=256, sync_norm=True, gate=gate, budget=budget),
    sys.argv[1].format(rank=os.environ.get("RANK", "0")),
    console=False,
)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # or its threads may outlive the interpreter and abort it
"""
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("granularity", ["activation", "group"])
def test_two_processes_train_like_one(tmp_path: Path, granularity: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    for name, command in (("one", (sys.executable, str(script))), ("two", (*LAUNCH, str(script)))):
        done = subprocess.run(
            [*command, str(tmp_path / name), granularity], env=ENVIRONMENT, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [line["kind"] for line in one] == ["train", "train", "eval"]
    for a, b in zip(one, two, strict=True):  # 10 steps: few enough that rounding flips no decision that matters
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        # the final calibration stops anywhere within its tolerance of 0.3 %
        assert a["mac_reduction"] == pytest.approx(b["mac_reduction"], rel=1e-3 if a["kind"] == "train" else 7e-3)
    # as trained: the final calibration shifts them all, anywhere within its tolerance
    expected, got = (load_file(tmp_path / name / "state.safetensors") for name in ("one", "two"))
    thresholds = [name for name in expected if name.endswith("threshold")]
    assert thresholds
    for name in thresholds:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-4)
    counts = [Counts.load(tmp_path / name / "counts.json") for name in ("one", "two")]
    assert counts[0].images == counts[1].images == 360
    assert counts[1].executed_macs == pytest.approx(counts[0].executed_macs, rel=7e-3)


def test_processes_that_see_different_folders_are_told(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "state.safetensors").write_text("of an earlier session, on one node's own disk")
    command = [*LAUNCH, str(script), str(tmp_path / "{rank}"), "activation"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    assert "exists for 1 of 2 processes; put the run's folder on a file system that all nodes share" in done.stderr
    assert not (tmp_path / "1").exists()
