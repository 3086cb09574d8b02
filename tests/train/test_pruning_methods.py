"""Every pruning method in the training loop: its reduction, resuming, fusion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import headgate.train.loop as loop
from headgate import recipes
from headgate.baselines import PruningConfig
from headgate.counting import count
from headgate.errors import ConfigError, ModelError
from headgate.models import Architecture
from headgate.nn import GateConfig
from headgate.train import BudgetConfig, InterruptedRun, Recipe, RunResult, train

pytestmark = pytest.mark.slow
METHODS: dict[str, dict[str, Any]] = {
    "perforation": {"method": "perforation"},
    "greedy": {"method": "perforation", "greedy": True, "mask": "grid"},
    "ssl": {"method": "ssl"},
    "decorrelation": {"method": "decorrelation", "orthogonal": True},
    "fbs": {"method": "fbs"},
    "magnitude": {"method": "magnitude"},
    "torch-pruning": {"method": "torch-pruning"},
}
DENSE_MACS = count(Architecture(name="digits-cnn").build(), torch.zeros(1, 1, 8, 8)).network_dense_macs


def recipe(method: str, **changes: Any) -> Recipe:
    if method == "torch-pruning":
        pytest.importorskip("torch_pruning", reason="torch-pruning is not installed: pip install 'headgate[baselines]'")
    pruning = PruningConfig(mac_reduction=2.0, **METHODS[method])
    base = recipes.dense(recipes.get("digits-cnn"))
    return replace(base, **({"epochs": 4, "pruning": pruning, "eval_every": 1} | changes))


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_ends_at_its_reduction(method: str, tmp_path: Path) -> None:
    result = train(recipe(method), tmp_path, console=False)
    assert result.evaluation.accuracy > 0.8
    executed = DENSE_MACS / result.evaluation.counts.network_executed_macs
    if method == "magnitude":
        weights = [w for name, w in load_file(tmp_path / "model.safetensors").items() if w.ndim > 1]
        zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        assert (zeros, executed) == (pytest.approx(0.5, abs=0.01), 1)
    else:
        assert 1.8 < executed < 2.5  # three layers of few channels; and what FBS skips varies by image


@pytest.mark.parametrize("method", ["ssl", "fbs", "magnitude"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(
    method: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(recipe(method), tmp_path / "whole", console=False)
    save = loop._Run._save_state

    def stop_after(run: Any) -> None:
        save(run)
        if run.progress.epoch == stop:
            raise InterruptedRun

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_save_state", stop_after)
        with pytest.raises(InterruptedRun):
            train(recipe(method), tmp_path / "parts", console=False)
    parts = train(recipe(method), tmp_path / "parts", console=False)
    assert _weights(parts).keys() == _weights(whole).keys()
    for name, value in _weights(whole).items():
        torch.testing.assert_close(_weights(parts)[name], value)


@pytest.mark.parametrize("method", ["perforation", "ssl", "fbs", "magnitude"])
def test_fusion_changes_nothing(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ModelError("not now")

    fused = train(recipe(method, epochs=1), tmp_path / "fused", console=False)
    monkeypatch.setattr(loop, "fuse", refuse)
    plain = train(recipe(method, epochs=1), tmp_path / "plain", console=False)
    assert fused.evaluation.loss == pytest.approx(plain.evaluation.loss, rel=0.02)


def test_gates_and_zeros_go_together(tmp_path: Path) -> None:
    gates = {"gate": GateConfig(groups=4), "budget": BudgetConfig(mac_reduction=2.0)}
    result = train(recipe("magnitude", **gates), tmp_path, console=False)
    assert result.evaluation.counts.mac_reduction == pytest.approx(2, rel=0.03)
    weight = load_file(tmp_path / "model.safetensors")["features.3.weight"]
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ConfigError, match="takes pruning by magnitude only, got 'ssl'"):
        recipe("ssl", **gates)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "lasso"}, "method must be one of perforation, .*got 'lasso'"),
        ({"method": "ssl", "mac_reduction": 1.0}, "mac_reduction must be > 1, got 1.0"),
        ({"method": "ssl", "weight": -1.0}, "weight must be ≥ 0, got -1.0"),
        ({"method": "ssl", "settled": 0.0}, r"settled must be a share of the run in \(0, 1\], got 0.0"),
        ({"method": "perforation", "mask": "holes"}, "mask must be one of .*got 'holes'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PruningConfig(**({"mac_reduction": 2.0} | options))


@pytest.mark.parametrize("method", ["ssl", "perforation"])
def test_a_reduction_beyond_the_network_is_refused(method: str, tmp_path: Path) -> None:
    far = replace(recipe(method), epochs=1, pruning=PruningConfig(mac_reduction=1e4, **METHODS[method]))
    with pytest.raises((ConfigError, ModelError), match="mac_reduction must be"):
        train(far, tmp_path, console=False)


def _weights(result: RunResult) -> dict[str, torch.Tensor]:
    return load_file(result.folder / "model.safetensors")
