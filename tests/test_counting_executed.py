"""Executed work against a brute-force count: loops over images, outputs, pixels and taps, from the decision maps."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headgate.counting import MacLedger, count, trace
from headgate.errors import DataError, ModelError
from headgate.nn import GateConfig, GatedConv2d, Observation, force_gates, observe, shift_thresholds_

CASES = [
    {"granularity": granularity, "grouped": grouped, "conv_groups": conv_groups, "channel_bound": bound}
    for granularity, grouped, conv_groups, bound in itertools.product(
        ("activation", "group", "channel"), (True, False), (1, 2), (0.0, 0.45)
    )
] + [{"granularity": granularity, "conv_groups": groups} for granularity in ("l1norm", "fc") for groups in (1, 2)]


def gated(
    c_in: int, c_out: int, kernel: int = 3, *, conv_groups: int = 1, stride: int = 1, **options: Any
) -> GatedConv2d:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=conv_groups, bias=False)
    layer = GatedConv2d(conv, nn.BatchNorm2d(c_out), GateConfig(**{"groups": 2} | options))
    with torch.no_grad():
        layer.gate.threshold.normal_(0, 0.5)
    return layer


def network(**options: Any) -> nn.Sequential:
    """A dense stem, a gated 3×3 with stride 2, a gated 1×1, a dense classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        gated(8, 12, stride=2, **options),
        nn.ReLU(),
        gated(12, 8, 1, **options),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def loops(layer: GatedConv2d, x: Tensor, decision: Tensor, out_size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """MACs of the base and of the conditional path of each image, one at a time."""
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    inputs = layer.in_channels // layer.conv_groups
    granularity = layer.config.granularity
    per_decision = layer.out_channels // layer.gate.decisions if granularity != "l1norm" else 1
    base, conditional = [0] * len(x), [0] * len(x)
    for n, o, i in itertools.product(range(len(x)), range(layer.out_channels), range(inputs)):
        source = o // (layer.out_channels // layer.conv_groups) * inputs + i
        for row, column in itertools.product(range(out_size[0]), range(out_size[1])):
            at = (row, column) if layer.gate.per_pixel else (0, 0)
            if granularity == "l1norm":
                conditional[n] += taps * int(decision[n, source, 0, 0])
            elif granularity == "fc":
                conditional[n] += taps * int(decision[n, o, 0, 0]) * bool(x[n, source].any())
            elif layer.base_mask[o, i, 0, 0]:
                base[n] += taps
            else:
                conditional[n] += taps * int(decision[n, o // per_decision, *at])
    return base, conditional


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_equals_a_brute_force_count(case: dict[str, Any]) -> None:
    model, x = network(**case), torch.randn(3, 3, 6, 4)
    seen: dict[str, tuple[Tensor, Observation]] = {}
    inputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name in ("2", "4")
    ]

    def keep(name: str, _layer: GatedConv2d, observation: Observation) -> None:
        seen[name] = (inputs[name], observation)

    with torch.no_grad(), observe(model, keep, decisions=True):
        model(x)
    for hook in hooks:
        hook.remove()

    counts = count(model, x)
    expected, executed, dense = np.zeros(3, np.int64), 0, 0
    for layer in counts.gated_layers:
        map_in, observation = seen[layer.name]
        assert observation.decision is not None
        module = model.get_submodule(layer.name)
        assert isinstance(module, GatedConv2d)
        base, conditional = loops(module, map_in, observation.decision, observation.out_size)
        assert base == 3 * [layer.base_macs]
        assert layer.conditional_macs.tolist() == conditional
        pixels_in, pixels_out = map_in[0, 0].numel(), observation.out_size[0] * observation.out_size[1]
        overhead = module.gate.overhead(module.in_channels, module.out_channels, pixels_in, pixels_out)
        assert (layer.additions, layer.multiplications) == overhead
        assert layer.dense_macs == pixels_out * module.weight.numel()
        expected += np.array(base) + np.array(conditional) + sum(overhead)
        executed += sum(conditional)
        dense += layer.dense_macs - layer.base_macs
    assert counts.by_image().tolist() == expected.tolist()
    assert counts.by_image().dtype == np.int64
    assert counts.executed_macs == expected.sum() / 3
    assert counts.density == executed / (3 * dense)
    assert 0 < counts.density < 1
    check_sums(counts)


def check_sums(counts: Any) -> None:
    """Every breakdown adds up to the same totals."""
    paths, records = counts.by_path(), counts.by_layer()
    assert sum(paths.values()) == pytest.approx(counts.network_executed_macs, rel=1e-12)
    assert sum(record.executed_macs for record in records) == pytest.approx(counts.network_executed_macs, rel=1e-12)
    ungated = sum(layer.dense_macs for layer in counts.layers if not layer.gated)
    assert (counts.by_image(network=True) - counts.by_image()).tolist() == [ungated] * counts.images
    assert counts.mac_reduction == counts.dense_macs / counts.executed_macs
    assert counts.network_mac_reduction == counts.network_dense_macs / counts.network_executed_macs
    for record, layer in zip(records, counts.layers, strict=True):
        if layer.gated:
            share = layer.base_macs / layer.dense_macs
            assert record.channels_used == pytest.approx(share + record.density * (1 - share), rel=1e-12)
            assert record.executed_macs == record.base_macs + record.conditional_macs + record.overhead_macs
        else:
            assert (record.executed_macs, record.channels_used, record.density) == (record.dense_macs, 1.0, 1.0)
        assert record.mac_reduction == record.dense_macs / record.executed_macs


@pytest.mark.parametrize("granularity", ["activation", "group", "channel", "l1norm", "fc"])
def test_open_is_dense_and_closed_is_the_base_path(granularity: str) -> None:
    model, x = network(granularity=granularity), torch.randn(2, 3, 6, 6)
    with force_gates(model, "open"):
        opened = count(model, x)
    with force_gates(model, "closed"):
        closed = count(model, x)
    overhead = sum(layer.overhead_macs for layer in opened.layers)
    if granularity == "fc":  # also of open channels only the live inputs count, and ReLU may leave a map all zero
        assert (opened.by_image() <= opened.dense_macs + overhead).all()
    else:
        assert opened.by_image().tolist() == 2 * [opened.dense_macs + overhead]
        assert opened.density == 1.0
    assert closed.by_image().tolist() == 2 * [sum(layer.base_macs for layer in closed.gated_layers) + overhead]
    assert closed.density == 0.0
    if granularity in ("activation", "group", "channel"):
        assert closed.by_path()["base"] == closed.dense_macs / 2


def test_one_group_leaves_nothing_to_skip() -> None:
    model = nn.Sequential(gated(4, 4, granularity="activation", groups=1)).eval()
    assert count(model, torch.randn(1, 4, 3, 3)).mac_reduction == 1.0
    assert count(model, torch.randn(1, 4, 3, 3)).density == 1.0


def test_a_module_that_runs_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = gated(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(nn.functional.avg_pool2d(self.layer(x), 2))

    model, x = Twice().eval(), torch.randn(2, 4, 6, 6)
    counts = count(model, x)
    assert [layer.name for layer in counts.layers] == ["layer", "layer#2"]
    assert [layer.shape.out_size for layer in counts.layers] == [(6, 6), (3, 3)]
    assert [t.shape.name for t in trace(model, x)] == ["layer", "layer#2"]
    check_sums(counts)
    opened: dict[str, Tensor] = {}

    def add(name: str, _layer: GatedConv2d, observation: Observation) -> None:
        opened[name] = opened[name] + observation.open_counts if name in opened else observation.open_counts

    with torch.no_grad(), observe(model, add):
        model(x)
    assert float(MacLedger(model, x).executed(opened)) == counts.executed_macs
    model.layer = gated(4, 4, granularity="channel")
    with pytest.raises(ModelError, match="cost the same each time it runs"):
        MacLedger(model, x)


# ------------------------------------------------------------------------ trace


@pytest.mark.parametrize("decisions", [True, False])
@pytest.mark.parametrize("granularity", ["activation", "group", "channel", "l1norm", "fc"])
def test_trace_has_the_decisions_that_were_counted(granularity: str, decisions: bool) -> None:
    model, x = network(granularity=granularity), torch.randn(5, 3, 6, 6)
    counts = count(model, x)
    traces = trace(model, [x[:2], x[2:]], decisions=decisions)
    assert [t.shape for t in traces] == [layer.shape for layer in counts.gated_layers]
    for t, layer in zip(traces, counts.gated_layers, strict=True):
        assert t.images == 5
        assert (t.packed is not None) == decisions
        if granularity == "fc":
            continue  # work depends on the live inputs too
        skippable = layer.dense_macs - layer.base_macs
        assert (t.open_fraction() * skippable).round().astype(int).tolist() == layer.conditional_macs.tolist()
    assert model[2].observer is None


def test_trace_errors() -> None:
    with pytest.raises(DataError, match="empty loader"):
        trace(network(), [])
    with pytest.raises(ModelError, match="must have gated convolutions"):
        trace(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4))
    with pytest.raises(DataError, match="trace each size by itself"):
        trace(network(), [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8)])


# ----------------------------------------------------------------------- ledger


def observed(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    counts: dict[str, Tensor] = {}
    with observe(model, lambda name, _, observation: counts.update({name: observation.open_counts})):
        model(x)
    return counts


@pytest.mark.parametrize(
    "case", [*CASES[::5], {"granularity": "l1norm", "conv_groups": 2}, {"granularity": "fc"}], ids=str
)
def test_ledger_agrees_with_count(case: dict[str, Any]) -> None:
    model, x = network(**case), torch.randn(4, 3, 6, 6)
    ledger, counts = MacLedger(model, x), count(model, x)
    with torch.no_grad():
        opened = observed(model, x)
    assert ledger.names == ("2", "4")
    assert ledger.dense == counts.dense_macs
    assert ledger.dense + ledger.ungated == counts.network_dense_macs
    assert ledger.fixed + ledger.conditional == counts.dense_macs + sum(x.overhead_macs for x in counts.layers)
    rtol = 0.02 if case["granularity"] == "fc" else 1e-6  # fc: a mean of products is not the product of means
    assert float(ledger.executed(opened)) == pytest.approx(counts.executed_macs, rel=rtol)
    assert float(ledger.reduction(opened)) == pytest.approx(counts.mac_reduction, rel=rtol)
    assert float(ledger.density(opened)) == pytest.approx(counts.density, rel=rtol)
    network_reduction = float(ledger.reduction(opened, network=True))
    assert network_reduction == pytest.approx(counts.network_mac_reduction, rel=rtol)
    expected = [record.density for record in counts.by_layer() if record.shape.gated]
    assert ledger.densities(opened).tolist() == pytest.approx(expected, rel=2 * rtol)


def test_fc_ledger_weighs_convolution_groups() -> None:
    model, x = network(granularity="fc", conv_groups=2), torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        opened = observed(model, x)
    assert float(MacLedger(model, x).executed(opened)) == pytest.approx(count(model, x).executed_macs, rel=1e-6)


def test_ledger_is_differentiable_and_leaves_no_trace() -> None:
    model, x = network().train(), torch.randn(4, 3, 6, 6)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    ledger = MacLedger(model, x)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    executed = ledger.executed(observed(model, x))
    assert executed.shape == ()
    executed.backward()
    for layer in (model[2], model[4]):
        gradient = layer.gate.threshold.grad
        assert gradient is not None
        assert (gradient <= 0).all()  # a higher threshold executes less
        assert gradient.any()
    opened = {"2": torch.zeros(4, 12, requires_grad=True), "4": torch.zeros(4, 8)}
    ledger.executed(opened).backward()
    assert opened["2"].grad is not None
    assert opened["2"].grad.unique().tolist() == [4 * 9 / 4]  # MACs of one activation ÷ images


def test_ledger_errors() -> None:
    model, x = network(), torch.randn(1, 3, 6, 6)
    with pytest.raises(ModelError, match=r"missing \['4'\], unknown \['5'\]"):
        MacLedger(model, x).executed({"2": torch.zeros(1, 12), "5": torch.zeros(1)})
    with pytest.raises(ModelError, match="needs gated layers"):
        MacLedger(nn.Sequential(nn.Conv2d(3, 3, 1)), x)


def test_ledger_is_cheap() -> None:
    model = nn.Sequential(*(gated(8, 8, 1) for _ in range(20))).eval()
    ledger = MacLedger(model, torch.randn(1, 8, 2, 2))
    opened = {name: torch.rand(128, 64) for name in ledger.names}

    def seconds() -> float:
        start = time.perf_counter()
        ledger.executed(opened)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(50)) < 0.5e-3  # 0.1 ms on an idle core


def test_shifted_thresholds_execute_less() -> None:
    model, x = network(), torch.randn(4, 3, 6, 6)
    before = count(model, x)
    shift_thresholds_(model, 1.0)
    assert count(model, x).executed_macs < before.executed_macs
    shift_thresholds_(model, -1.0)
    assert count(model, x).to_dict() == before.to_dict()
