"""The native engine has no binary kernels: a binary network is refused by name, never exported as something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headgate import models
from headgate.benchmarking.plain import plain
from headgate.convert import gate_
from headgate.errors import ExportError, ModelError
from headgate.exporting import export
from headgate.nn import GateConfig, force_gates

REFUSED = r"'stages\.0\.0\.conv'.*got a binary convolution, for which the engine has no kernels"


@pytest.mark.parametrize("precision", ["float32", "int8", "bfloat16"])
@pytest.mark.parametrize("gated", [False, True], ids=["dense", "gated"])
def test_a_binary_network_is_refused(gated: bool, precision: Any, tmp_path: Path) -> None:
    model, x = models.create("digits-binary-resnet", width=8).eval(), torch.randn(2, 1, 8, 8)
    if gated:
        gate_(model, GateConfig(groups=2))
    path, calibration = tmp_path / "model.hgplan", x if precision == "int8" else None
    with pytest.raises(ExportError, match=REFUSED):
        export(model, path, example_input=x, precision=precision, calibration=calibration)
    assert not path.exists()


@pytest.mark.parametrize("state", ["open", "closed"])
def test_held_gates_are_refused_too(state: Any, tmp_path: Path) -> None:
    model = models.create("digits-binary-resnet", width=8).eval()
    gate_(model, GateConfig(groups=2))
    with force_gates(model, state), pytest.raises(ExportError, match=REFUSED):
        export(model, tmp_path / "model.hgplan", example_input=torch.randn(1, 1, 8, 8))
    with pytest.raises(ModelError, match=r"'stages\.0\.0\.conv' must have weights and inputs in numbers"):
        plain(model, state)
