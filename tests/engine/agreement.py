"""How what an engine computed is compared with the plan interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from plan_interpreter import PlanInterpreter, Run
from plan_networks import settle
from torch import Tensor, nn

import headgate as hg

SAFE = 1e-5
"""Outputs are compared end to end only where no score lies nearer to its threshold, in standard deviations."""
FLOAT32 = 2e-4
"""Relative to the largest output: float32 sums against float64 ones, through a few layers."""


def plan_of(model: nn.Module, x: Tensor, folder: Path) -> Path:
    path = folder / "model.hgplan"
    hg.export(model, path, example_input=x[:1])
    return path


def gated(x: Tensor, model: nn.Module, **options: Any) -> nn.Module:
    hg.gate_(model, hg.GateConfig(**{"groups": 4} | options), example_input=x)
    return settle(model, x)


def undoubted(path: Path, *, shift: float = 0.0) -> tuple[Tensor, Run]:
    """Images that leave no decision in doubt, and what the interpreter makes of them."""
    interpreter = PlanInterpreter(path)
    for _ in range(100):
        x = torch.randn(2, *interpreter.shapes[interpreter.plan["input"]])
        run = interpreter.run(x, shift=shift)
        if all(gate.margin.abs().min() > SAFE for gate in run.gates.values()):
            return x, run
    raise AssertionError("no images without doubtful decisions: use a smaller network")


def check(run: Run, output: Tensor, decisions: Mapping[str, tuple[int, int]]) -> None:
    """Decisions and outputs are the interpreter's. `decisions`: by layer, how many there are and how many are open."""
    expected = run.output.view_as(output)
    assert (output.double() - expected).abs().max() <= FLOAT32 * expected.abs().max()
    for name, gate in run.gates.items():
        assert decisions[name] == (gate.own.numel(), int(gate.own.sum())), name
