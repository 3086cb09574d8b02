"""Gated networks: sums, scores and decisions are the model's, and outputs under the same decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from plan_interpreter import PlanInterpreter, Run
from plan_networks import ROUNDED, Gated, close, compare, decisions_of, exported, settle
from torch import Tensor, nn

import headgate as hg
from headgate import models
from headgate.nn import GateConfig, gated_layers
from headgate.ops.batch_norm import normalise

BASES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "shuffled": {"shuffle": True},
    "first fraction": {"grouped": False},
}


def gated(x: Tensor, model: nn.Module | None = None, **options: Any) -> nn.Module:
    model = Gated() if model is None else model
    hg.gate_(model, GateConfig(**{"groups": 4} | options), example_input=x)
    return settle(model, x)


@torch.no_grad()
def agree(model: nn.Module, x: Tensor, plan: PlanInterpreter) -> Run:
    """In float64, with no decision near its threshold, the plan's own decisions and outputs are the model's."""
    run = plan.run(x)
    with decisions_of(model.double()) as decisions:
        expected = model(x.double())
    assert all(torch.equal(gate.decision, decisions[name]) for name, gate in run.gates.items())
    close(run.output, expected, ROUNDED)
    return run


@pytest.mark.parametrize("granularity", ["activation", "group", "channel"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("norm", ["separate", "shared", "none"])
def test_gates(granularity: str, base: str, norm: str, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 13, 12)
    mode = "separate" if norm == "none" else norm
    model = gated(x, Gated(norm=norm != "none"), granularity=granularity, norm=mode, **BASES[base])
    report, plan = compare(model, x, tmp_path)
    assert [layer.name for layer in report.gated] == ["conv1", "conv2"]
    assert all(layer.gate == f"{granularity} G=4" for layer in report.gated)
    assert ("residual" in report.gated[1].fused) == (norm != "none")
    run = agree(model, x, plan)
    assert 0.2 < run.gates["conv1"].own.float().mean() < 0.8


@pytest.mark.parametrize("granularity", ["activation", "group", "channel"])
@pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid])
def test_two_sided_gates(granularity: str, act: type[nn.Module], tmp_path: Path) -> None:
    x = torch.randn(3, 3, 13, 12)
    model = gated(x, Gated(act=act), granularity=granularity)
    assert all(layer.two_sided for layer in gated_layers(model).values())
    report, plan = compare(model, x, tmp_path)
    assert report.gated[0].fused == ("norm", act.__name__.lower())
    agree(model, x, plan)


@pytest.mark.parametrize("granularity", ["activation", "group"])
@pytest.mark.parametrize("bound", [0.4, 1.0])
def test_channel_bound(granularity: str, bound: float, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 13, 12)
    model = gated(x, granularity=granularity, channel_bound=bound)
    _, plan = exported(model, x, tmp_path)
    run = agree(model, x, plan)
    if bound == 1:  # no fraction is above it: nothing is left of the gates
        assert not run.gates
    else:
        own = run.gates["conv1"].own
        assert 0 < own.float().mean() < (run.gates["conv1"].margin > 0).float().mean()


def test_partial_sums_and_scores_are_the_models(tmp_path: Path) -> None:
    """Layer by layer: P, F, the normalised partial sum and the score, with biases and shuffled groups."""
    x = torch.randn(3, 3, 13, 12)
    model = gated(x, granularity="group", shuffle=True)
    _, plan = exported(model, x, tmp_path)
    inputs: dict[str, Tensor] = {}
    layers = gated_layers(model.double())
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _m, args, _y, name=name: inputs.__setitem__(name, args[0]))
    with torch.no_grad():
        with decisions_of(model) as decisions:
            model(x.double())
        run = plan.run(x, decisions=decisions)
        for name, layer in layers.items():
            gate, (sum_of_both, partial) = run.gates[name], (layer.final_sum, layer.partial_sum)
            assert layer.bias is not None
            bias = layer.bias.view(1, -1, 1, 1)
            close(gate.final_sum + bias, sum_of_both(inputs[name]), 1e-6)
            close(gate.partial_sum + bias, partial(inputs[name]), 1e-6)
            assert layer.partial_norm is not None
            normalised = normalise(partial(inputs[name]), layer.partial_norm.state())
            close(gate.normalised, normalised, 1e-6)
            threshold = layer.gate.effective_threshold().view(1, -1, 1, 1)
            close(gate.margin, layer.gate.score(normalised) - threshold, 1e-6)


def test_offsets_are_folded_into_thresholds(tmp_path: Path) -> None:
    x = torch.randn(3, 3, 13, 12)
    model = gated(x)
    _, plan = exported(model, x, tmp_path)
    by_dial = plan.run(x, shift=0.25)
    hg.shift_thresholds_(model, 0.25)
    report, shifted = exported(model, x, tmp_path)
    for name, gate in agree(model, x, shifted).gates.items():
        assert torch.equal(gate.own, by_dial.gates[name].own)
    hg.shift_thresholds_(model, 1e38)
    with torch.no_grad():
        for layer in gated_layers(model).values():
            layer.gate.threshold.fill_(float("inf"))
    _, closed = exported(model, x, tmp_path)
    assert not any(gate.own.any() for gate in closed.run(x).gates.values())
    assert len(report.gated) == 2


@pytest.mark.parametrize("state", ["open", "closed"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("norm", ["separate", "shared", "none"])
def test_held_gates_become_plain_convolutions(state: Any, base: str, norm: str, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 13, 12)
    mode = "separate" if norm == "none" else norm
    model = gated(x, Gated(norm=norm != "none"), norm=mode, **BASES[base])
    with hg.force_gates(model, state):
        _, plan = exported(model, x, tmp_path)
        with torch.no_grad():
            expected = model.double()(x.double())
    close(plan.run(x).output, expected, ROUNDED)
    op = next(op for op in plan.ops if op["name"] == "conv2")
    assert op["kind"] == "conv"
    assert ("input_channels" in op) == (state == "closed" and base != "grouped")
    assert op["groups"] == (4 if state == "closed" and base != "first fraction" else 1)
    assert plan.tensors[op["weight"]].shape[1] == (32 if state == "open" else 8)
    report, _ = exported(model, x, tmp_path)
    assert len(report.gated) == 2


def test_open_gates_of_any_kind_and_convolution_groups(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 9, 9)
    for options in ({"granularity": "l1norm"}, {"granularity": "fc"}, {"shuffle": True}):
        model = Gated()
        if "shuffle" in options:
            model.conv2 = nn.Conv2d(32, 32, (3, 1), padding=(1, 0), groups=2)
        model = gated(x, model, **options)
        for state in ("open", "closed") if "shuffle" in options else ("open",):
            with hg.force_gates(model, state):  # type: ignore[arg-type]
                compare_forced(model.float(), x, tmp_path)


def compare_forced(model: nn.Module, x: Tensor, folder: Path) -> None:
    _, plan = exported(model, x, folder)
    with torch.no_grad():
        close(plan.run(x).output, model.double()(x.double()), ROUNDED)


def test_a_norm_that_gating_left_is_absorbed(tmp_path: Path) -> None:
    model = nn.Sequential(
        hg.GatedConv2d(nn.Conv2d(8, 8, 3, padding="same"), nn.BatchNorm2d(8), GateConfig(groups=2)),
        nn.BatchNorm2d(8),
        nn.SiLU(),
    )
    x = torch.randn(3, 8, 7, 6)
    report, plan = compare(settle(model, x), x, tmp_path)
    assert [(operator.kind, operator.fused) for operator in report.operators] == [
        ("gated_conv", ("norm", "norm", "silu"))
    ]
    agree(model, x, plan)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18-cifar", {"granularity": "group", "shuffle": True}),
        ("resnet20", {"shuffle": True}),
        ("resnet32", {"granularity": "channel"}),
        ("resnet56", {"norm": "shared"}),
        ("vgg16-cifar", {"granularity": "group"}),
        ("mobilenetv1-cifar", {"grouped": False}),
        ("alexnet-cifar", {"channel_bound": 0.1}),
        ("digits-cnn", {"granularity": "channel", "grouped": False}),
        ("digits-resnet", {"granularity": "group", "norm": "shared"}),
    ],
)
def test_own_networks(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = models.create(name, width=8)
    x = torch.randn(4, *model.architecture.input_shape())  # type: ignore[union-attr, operator]
    model = gated(x, model, **options)
    if "channel_bound" in options:
        _, plan = exported(model, x, tmp_path)
        agree(model, x, plan)
        return
    report, _ = compare(model, x, tmp_path)
    assert {layer.name for layer in report.gated} == gated_layers(model).keys()
    assert 0 < report.base_macs < report.macs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {"granularity": "group", "shuffle": True}),
        ("mobilenet_v2", {"granularity": "channel"}),
        ("squeezenet1_1", {}),
        ("googlenet", {"norm": "shared"}),
    ],
)
def test_torchvision(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **extra)
    x = torch.randn(2, 3, 40, 40)
    report, _ = compare(gated(x, model, **options), x, tmp_path, dtypes=(torch.float64,))
    assert len(report.gated) == len(gated_layers(model))


@pytest.mark.parametrize("name", hg.list_pretrained())
def test_shipped_models(name: str, tmp_path: Path) -> None:
    model, x = hg.pretrained(name), torch.rand(8, 3, 32, 32)
    report, plan = compare(model, model.preprocess(x), tmp_path)  # type: ignore[operator]
    assert len(report.gated) == len(gated_layers(model))
    assert report.dense[0].name == "conv1" or report.gated
    agree(model, model.preprocess(x), plan)  # type: ignore[operator]
