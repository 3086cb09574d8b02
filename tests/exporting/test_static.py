"""Plans are read as they were written; and the plans without gates that are made of gated ones."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from plan_interpreter import PlanInterpreter
from plan_networks import EveryOperator, Gated, close, settle
from torch import Tensor, nn

import headgate as hg
from headgate.errors import PlanError
from headgate.exporting.plan import Conv, GatedConv, Plan, read, write
from headgate.exporting.static import grouped, opened
from headgate.nn import GateConfig, force_gates

X = torch.zeros(1, 3, 8, 8)


def gated(**options: Any) -> nn.Module:
    model = Gated(channels=16)
    hg.gate_(model, GateConfig(**{"groups": 4} | options), example_input=X)
    return settle(model, torch.randn(4, 3, 8, 8))


def plan_of(model: nn.Module, path: Path, **options: Any) -> Plan:
    hg.export(model, path, example_input=X, **options)
    return read(path)


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "activation", "channel_bound": 0.25},
        {"granularity": "group", "shuffle": True, "precision": "int8"},
        {"granularity": "group", "precision": "bfloat16"},
        {"granularity": "channel", "grouped": False},
    ],
)
def test_a_plan_is_read_as_it_was_written(options: dict[str, Any], tmp_path: Path) -> None:
    precision = options.get("precision", "float32")
    model = gated(**{name: value for name, value in options.items() if name != "precision"})
    ranges = {"calibration": torch.randn(4, 3, 8, 8)} if precision == "int8" else {}
    plan = plan_of(model, tmp_path / "a.hgplan", precision=precision, **ranges)
    assert any(isinstance(operator, GatedConv) for operator in plan.operators)
    write(plan, tmp_path / "b.hgplan")
    assert (tmp_path / "a.hgplan").read_bytes() == (tmp_path / "b.hgplan").read_bytes()


def test_every_operator_is_read_as_it_was_written(tmp_path: Path) -> None:
    model, x = EveryOperator(), torch.randn(3, 3, 27, 30)
    hg.export(settle(model, x), tmp_path / "a.hgplan", example_input=x)
    write(read(tmp_path / "a.hgplan"), tmp_path / "b.hgplan")
    assert (tmp_path / "a.hgplan").read_bytes() == (tmp_path / "b.hgplan").read_bytes()


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.hgplan"
    with pytest.raises(PlanError, match=r"m\.hgplan must be a plan file of version 1, got FileNotFoundError"):
        read(path)
    path.write_text("no plan")
    with pytest.raises(PlanError, match="got SafetensorError"):
        read(path)
    hg.export(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), path, example_input=X)
    with safetensors.safe_open(path, "pt") as file:
        plan = json.loads(file.metadata()["headgate.plan"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for change, problem in (
        ({"version": 2}, "got ValueError: version 2"),
        ({"ops": [{**plan["ops"][0], "kind": "lstm"}]}, "got KeyError: 'lstm'"),
        ({"ops": [{**plan["ops"][0], "weight": "lost"}]}, "got KeyError: 'lost'"),
        ({"ops": [{"kind": "conv", "name": "0", "inputs": [0], "output": 1}]}, "got TypeError"),
    ):
        safetensors.torch.save_file(tensors, path, {"headgate.plan": json.dumps(plan | change)})
        with pytest.raises(PlanError, match=problem):
            read(path)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(PlanError, match=r"got KeyError: 'headgate\.plan'"):
        read(path)


def same(plan: Plan, expected: Plan) -> None:
    """Assert equal operators, whose tensors may differ by rounding."""
    assert plan.values == expected.values
    assert [type(operator) for operator in plan.operators] == [type(operator) for operator in expected.operators]
    for one, other in zip(plan.operators, expected.operators, strict=True):
        for field in fields(one):
            left, right = getattr(one, field.name), getattr(other, field.name)
            if isinstance(left, Tensor):
                torch.testing.assert_close(left.float(), right.float())
            else:
                assert left == right, (one.name, field.name)


@pytest.mark.parametrize("options", [{}, {"granularity": "group", "shuffle": True}, {"norm": "shared"}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_opened_is_the_plan_of_open_gates(options: dict[str, Any], precision: str, tmp_path: Path) -> None:
    model = gated(**options)
    plan = plan_of(model, tmp_path / "gated.hgplan", precision=precision)
    with force_gates(model, "open"):
        expected = plan_of(model, tmp_path / "open.hgplan")
    same(opened(plan), expected)


def test_grouped_is_the_plan_of_closed_gates(tmp_path: Path) -> None:
    model = gated(shuffle=True)
    plan = plan_of(model, tmp_path / "gated.hgplan")
    with force_gates(model, "closed"):
        hg.export(model, tmp_path / "closed.hgplan", example_input=X)
    write(grouped(plan, 4), tmp_path / "grouped.hgplan")
    x = torch.randn(2, 3, 8, 8)
    expected = PlanInterpreter(tmp_path / "closed.hgplan").run(x).output
    close(PlanInterpreter(tmp_path / "grouped.hgplan").run(x).output, expected, 1e-5)


@pytest.mark.parametrize(("asked", "groups"), [(2, 2), (7, 4), (8, 8)])
def test_groups_are_any_that_divide(asked: int, groups: int, tmp_path: Path) -> None:
    """Sums of more or fewer inputs than the base path's are scaled, so that what follows keeps its range."""
    plan = plan_of(gated(), tmp_path / "gated.hgplan")
    gate, conv = plan.operators[1], grouped(plan, asked).operators[1]
    assert isinstance(gate, GatedConv)
    assert isinstance(conv, Conv)
    assert conv.groups == groups
    assert conv.input_channels is not None
    outputs, inputs = len(gate.weight) // groups, 16 // groups
    own = gate.weight[:outputs, conv.input_channels[0].long()] * gate.partial_scale[:outputs].view(-1, 1, 1, 1)
    torch.testing.assert_close(conv.weight[:outputs], own * (4 / inputs) ** 0.5)
    torch.testing.assert_close(conv.bias.float(), gate.partial_bias)
