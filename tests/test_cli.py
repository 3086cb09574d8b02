"""The command line: what it prints, its exit codes, and that errors of use come without a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from PIL import Image

from headgate import cli
from headgate.checkpoint import Preprocess, save
from headgate.cli.train import Train
from headgate.exporting import export
from headgate.exporting.plan import KEY
from headgate.models import create
from headgate.train.finished import find_model
from headgate.train.prepare import evaluation_batches


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense and a gated run on the digits."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["train", "digits-cnn", "--epochs", "4", "--quiet"]
    assert cli.main([*common, "--dense", "--out", str(folder / "dense")]) == 0
    assert cli.main([*common, "--mac-reduction", "3", "--groups", "4", "--out", str(folder / "gated")]) == 0
    return folder


def test_train_eval_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(runs / "gated"), "--data", "digits"]) == 0
    shown = capsys.readouterr().out
    assert "features.3" in shown
    assert "MAC reduction" in shown

    assert cli.main(["eval", str(runs / "gated" / "model.safetensors"), "--data", "digits", "--shift", "1"]) == 0
    assert shown != capsys.readouterr().out

    assert cli.main(["report", str(runs / "gated"), "--dense", str(runs / "dense")]) == 0
    assert "report" in capsys.readouterr().out
    assert list((runs / "gated" / "report").glob("*.html"))


def test_export(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "model.hgplan"
    assert cli.main(["export", str(runs / "gated"), str(plan)]) == 0
    assert "gated_conv" in capsys.readouterr().out
    assert plan.exists()
    assert cli.main(["export", "resnet20-cifar10-dense", str(plan)]) == 1
    assert "--image 3 32 32" in capsys.readouterr().err
    assert cli.main(["export", "resnet20-cifar10-dense", str(plan), "--image", "3", "32", "32"]) == 0
    assert cli.main(["export", "resnet20-cifar10-dense", str(plan), "--image", "3", "0", "32"]) == 1
    assert "image must be" in capsys.readouterr().err


def test_export_in_8_bits(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "model.hgplan"
    arguments = ["export", str(runs / "gated"), str(plan), "--precision", "int8"]
    assert cli.main([*arguments, "--calibration", "64"]) == 0
    assert "int8" in capsys.readouterr().out
    assert cli.main([*arguments, "--calibration", "64", "--explain"]) == 0
    table = capsys.readouterr().out
    assert "masked dense" in table
    assert "sparse" in table
    assert cli.main([*arguments, "--calibration", "0"]) == 1
    assert "calibration must be" in capsys.readouterr().err


def input_scales(plan: Path) -> list[float]:
    with safetensors.safe_open(plan, "numpy") as file:
        operators = json.loads(file.metadata()[KEY])["ops"]
    return [operator["input_scale"] for operator in operators if "input_scale" in operator]


def test_ranges_come_from_training_images(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training images are bright, test images black: only with the former does any layer read something else than 0."""
    data = tmp_path / "data"
    for split, brightness in (("train", 255), ("test", 0)):
        for label in range(10):
            folder = data / split / str(label)
            folder.mkdir(parents=True)
            Image.new("L", (8, 8), brightness).save(folder / "image.png")
    plans = {}
    for name, source in (("bright", data), ("digits", "digits")):
        plans[name] = tmp_path / f"{name}.hgplan"
        arguments = ["export", str(runs / "gated"), str(plans[name]), "--precision", "int8", "--data", str(source)]
        assert cli.main([*arguments, "--calibration", "7"]) == 0
    capsys.readouterr()
    model, _ = find_model(str(runs / "gated"))
    bright = model.preprocess(torch.ones(7, 1, 8, 8))
    options = {"example_input": bright, "precision": "int8", "calibration": bright}
    export(model, tmp_path / "expected.hgplan", **options)  # type: ignore[arg-type]
    expected = pytest.approx(input_scales(tmp_path / "expected.hgplan"))
    assert input_scales(plans["bright"]) == expected
    assert input_scales(plans["digits"]) != expected

    before = plans["bright"].read_bytes()
    shutil.rmtree(data / "train")
    arguments = ["export", str(runs / "gated"), str(plans["bright"]), "--precision", "int8", "--data", str(data)]
    assert cli.main(arguments) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "no training images: " in shown
    assert "expected 'train-*.parquet' or 'train/<class>/<image>'" in shown
    checkpoint = str(runs / "gated" / "model.safetensors")
    assert cli.main(["export", checkpoint, str(plans["bright"]), "--image", "1", "8", "8", "--precision", "int8"]) == 1
    assert "data must be given" in capsys.readouterr().err
    assert plans["bright"].read_bytes() == before


def test_some_training_images_are_of_all_classes(runs: Path) -> None:
    model, config = find_model(str(runs / "gated"))
    assert config is not None
    (images, labels, _), *_ = evaluation_batches(model, config, split="train", limit=100)
    assert images.shape == (100, 1, 8, 8)
    assert len(labels.unique()) == 10
    again = next(evaluation_batches(model, config, split="train", limit=100))
    assert torch.equal(images, again[0])


def test_export_in_bfloat16(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "model.hgplan"
    assert cli.main(["export", str(runs / "gated"), str(plan), "--precision", "bfloat16"]) == 0
    assert "bfloat16" in capsys.readouterr().out
    assert plan.exists()


def test_export_explains(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = tmp_path / "model.hgplan"
    assert cli.main(["export", str(runs / "gated"), str(plan), "--explain", "--batch", "2"]) == 0
    shown = capsys.readouterr().out
    assert "masked dense" in shown
    assert "batches of 2, 1 thread(s)" in shown
    assert len([*(tmp_path / "headgate" / "paths").iterdir()]) == 1
    assert cli.main(["export", str(runs / "gated"), str(plan), "--explain", "--batch", "0"]) == 1
    assert "batch must be" in capsys.readouterr().err
    before = plan.read_bytes()
    assert cli.main(["export", str(runs / "gated"), str(plan), "--explain", "--threads", "0"]) == 1
    assert "threads must be" in capsys.readouterr().err
    assert plan.read_bytes() == before
    arguments = ["export", "resnet20-cifar10-group", str(plan), "--image", "3", "32", "32", "--explain"]
    assert cli.main(arguments) == 1
    assert "data must be given" in capsys.readouterr().err


def test_train_resumes_a_finished_run_at_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs", "4", "--mac-reduction", "3", "--groups", "4", "--out", str(runs / "gated"), "--quiet"]
    assert cli.main(["train", "digits-cnn", *options]) == 0
    assert "digits-cnn-activation" in capsys.readouterr().out


def test_models_lists_recipes_and_architectures(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "resnet20-cifar10" in shown
    assert "torchvision/" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "resnet21-cifar10"], "did you mean"),
        (["train", "digits-cnn", "--mac-reduction", "9"], "mac_reduction must be below 8"),
        (["train", "digits-cnn", "--mac-reduction", "3", "--target", "1"], "exactly one of"),
        (["train", "digits-cnn", "--dense", "--groups", "4"], "--dense trains without gates"),
        (["train", "digits-cnn", "--granularity", "pixel"], "granularity must be one of"),
        (["train", "digits-cnn", "--groups", "0"], "groups must be an integer ≥ 1"),
        (["train", "digits-cnn", "--groups", "1000"], "1000"),
        (["train", "digits-cnn", "--target", "nan"], "target must be a finite number, got nan"),
        (["train", "digits-cnn", "--epochs", "-1"], "epochs must be ≥ 1, got -1"),
        (["train", "digits-cnn", "--num-classes", "0"], "num_classes must be ≥ 1, got 0"),
        (["train", "digits-cnn", "--lr", "1e40"], "lr must be in (0, 1000]"),
        (["train", "digits-cnn", "--dense", "--channel-bound", "0.1"], "got also channel_bound"),
        (["train", "resnet20-cifar10", "--data", "digits"], "digits has images of 1 channels, the network takes 3"),
        (["train", "resnet20-cifar10", "--data", "/no/such/folder"], "/no/such/folder"),
        (["train", "digits-cnn", "--init-from", "/no/such.safetensors"], "/no/such.safetensors"),
        (["eval", "/no/such.safetensors", "--data", "digits"], "/no/such.safetensors"),
        (["eval", "no-such-model", "--data", "digits"], "no-such-model"),
        (["report", "/no/such/run"], "/no/such/run"),
    ],
)
def test_errors_of_use_are_clear_and_leave_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown
    assert not list(tmp_path.iterdir())


def test_options_reach_the_recipe() -> None:
    gate = {
        "grouped": False,
        "shuffle": False,
        "threshold": 0.5,
        "slope": 3.0,
        "channel_bound": 0.1,
        "exclude": ("fc*",),
    }
    budget = {"target": 1.0, "weight": 1e-3, "weight_final": 1e-2, "slope_final": 4.0}
    recipe = Train(recipe="digits-cnn", **gate, **budget).to_recipe()  # type: ignore[arg-type]
    assert recipe.gate is not None
    assert recipe.budget is not None
    assert {name: getattr(recipe.gate, name) for name in gate} == gate
    assert {name: getattr(recipe.budget, name) for name in budget} == budget


def test_another_goal_replaces_the_papers_way_to_its_target() -> None:
    for goal, steering in (({"target": 1.0}, "pull"), ({"mac_reduction": 3.0}, "threshold")):
        budget = Train(recipe="resnet18-cifar10-paper", **goal).to_recipe().budget  # type: ignore[arg-type]
        assert budget is not None
        assert budget.steering == steering
        assert {name: getattr(budget, name) for name in ("target", "mac_reduction")} == (
            dict.fromkeys(("target", "mac_reduction")) | goal
        )


def test_a_gated_checkpoint_is_no_start(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gated = runs / "gated" / "model.safetensors"
    out = tmp_path / "run"
    assert cli.main(["train", "digits-cnn", "--epochs", "1", "--init-from", str(gated), "--out", str(out)]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert f"init_from must be a dense checkpoint, got {gated}" in shown
    assert not out.exists()


def test_an_unusable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert cli.main(["train", "digits-cnn", "--epochs", "1", "--dense", "--quiet", "--out", str(out)]) == 1
        assert "choose another folder" in " ".join(capsys.readouterr().err.split())


def test_a_teacher_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(create("digits-cnn", 7), tmp_path / "seven.safetensors")
    save(create("resnet20", width=8), tmp_path / "colour.safetensors")
    normalised = create("digits-cnn")
    normalised.preprocess = Preprocess([0.5], [0.5])  # type: ignore[assignment]
    save(normalised, tmp_path / "shifted.safetensors")
    for name, message in (
        ("shifted", "got another mean or std"),
        ("seven", "10 classes, got 7"),
        ("colour", "cannot take this data's images"),
    ):
        arguments = ["train", "digits-cnn", "--teacher", str(tmp_path / f"{name}.safetensors")]
        assert cli.main([*arguments, "--out", str(tmp_path / "run")]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_evaluation_on_data_of_other_classes_or_size(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(runs / "gated" / "model.safetensors")
    for size, classes, message in ((8, 12, "must have the 10 classes"), (16, 10, "was trained on (8, 8)")):
        data = tmp_path / str(size)
        for split in ("train", "test"):
            for label in range(classes):
                folder = data / split / f"class{label:02}"
                folder.mkdir(parents=True)
                Image.new("L", (size, size), label).save(folder / "image.png")
        assert cli.main(["eval", model, "--data", str(data)]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert cli.main(["eval", model, "--data", "digits", "--images", "-1"]) == 1
    assert "images must be ≥ 1" in capsys.readouterr().err


def test_a_run_folder_without_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(tmp_path), "--data", "digits"]) == 1
    assert "holds no finished run" in capsys.readouterr().err


def test_the_installed_command() -> None:
    done = subprocess.run([sys.executable, "-m", "headgate.cli", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    for command in ("train", "eval", "report", "models", "demo"):
        assert command in done.stdout
