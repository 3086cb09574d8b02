"""The command line: what it prints, its exit codes, and that errors of use come without a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from headgate import cli
from headgate.checkpoint import Preprocess, save
from headgate.models import create


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
    assert "no gated convolution has a choice of paths" in capsys.readouterr().out
    assert cli.main([*arguments, "--calibration", "0"]) == 1
    assert "calibration must be" in capsys.readouterr().err


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
