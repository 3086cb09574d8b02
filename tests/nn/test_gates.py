"""The step and its surrogate, the five gates, what they cost, and which input channels a base path takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from headgate.errors import ShapeError
from headgate.nn import GateConfig
from headgate.nn.gates import FCGate, Gate, GroupGate, L1NormGate, make_gate
from headgate.nn.selection import base_blocks, base_mask, shuffle_channels, shuffle_permutation
from headgate.nn.sum_norm import SumNorm
from headgate.ops.step import step

GRANULARITIES = ("activation", "group", "channel", "l1norm", "fc")


def gate_of(granularity: Any, *, two_sided: bool = False, **options: Any) -> Gate:
    config = GateConfig(groups=4, granularity=granularity, **options)
    return make_gate(config, c_in=8, c_out=16, output_groups=4, two_sided=two_sided).double()


@pytest.mark.parametrize("slope", [0.5, 2.0, 4.0])
def test_surrogate_is_the_derivative_of_a_sigmoid_and_peaks_at_a_quarter_of_the_slope(slope: float) -> None:
    margin = torch.linspace(-3, 3, 601, dtype=torch.float64, requires_grad=True)
    opened = step(margin, slope)
    assert torch.equal(opened, (margin > 0).double())
    opened.sum().backward()
    assert margin.grad is not None
    smooth = margin.detach().clone().requires_grad_()
    torch.sigmoid(slope * smooth).sum().backward()
    torch.testing.assert_close(margin.grad, smooth.grad)
    peak = margin.grad.max()
    assert peak.item() == pytest.approx(slope / 4)
    assert margin[margin.grad.argmax()].abs() < 1e-9


def test_step_is_closed_at_the_threshold_and_for_nan() -> None:
    assert step(torch.tensor([0.0, -0.0, float("nan"), 1e-30]), 2.0).tolist() == [0, 0, 0, 1]


def test_step_without_a_gradient_is_the_same() -> None:
    margin = torch.randn(100)
    assert torch.equal(step(margin, 2.0), step(margin.clone().requires_grad_(), 2.0))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_scores_have_about_unit_variance_after_training(granularity: Any) -> None:
    """So that one threshold means about the same density whatever was averaged."""
    gate = gate_of(granularity).train()
    with torch.no_grad():
        if isinstance(gate, FCGate):
            nn.init.orthogonal_(gate.fc.weight)
        for _ in range(200):
            shape = (16, 8 if gate.statistic == "input" else 16, 4, 4)
            gate(torch.randn(shape, dtype=torch.float64))
        gate.eval()
        score = gate.score(torch.randn((512, *shape[1:]), dtype=torch.float64))
    assert score.shape[1] == gate.decisions
    assert score.mean().item() == pytest.approx(0, abs=0.1)
    assert score.var().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("granularity", ["activation", "group", "channel"])
def test_two_sided_gates_open_near_the_centre(granularity: Any) -> None:
    gate = gate_of(granularity, two_sided=True).eval()
    near, far = torch.full((1, 16, 2, 2), 0.1).double(), torch.full((1, 16, 2, 2), 2.0).double()
    assert gate(near).all()
    assert not gate(far).any()
    assert not gate(-far).any()


def test_a_two_sided_threshold_of_zero_opens_half() -> None:
    gate = gate_of("activation", two_sided=True).eval()
    assert gate(torch.randn(64, 16, 8, 8, dtype=torch.float64)).mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("granularity", ["group", "channel"])
def test_averaged_two_sided_scores_have_zero_mean_and_unit_variance(granularity: Any) -> None:
    gate = gate_of(granularity, two_sided=True).train()
    for _ in range(60):
        gate.score(torch.randn(64, 16, 4, 4, dtype=torch.float64))
    score = gate.eval().score(torch.randn(512, 16, 4, 4, dtype=torch.float64))
    assert score.mean().item() == pytest.approx(0, abs=0.1)
    assert score.var().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_thresholds_start_where_they_are_configured(granularity: Any, threshold: float) -> None:
    gate = gate_of(granularity, threshold=threshold)
    assert (gate.threshold == threshold).all()
    assert len(gate.threshold) == gate.decisions
    gate.offset += 0.25
    assert (gate.effective_threshold() == threshold + 0.25).all()


@pytest.mark.parametrize(
    ("granularity", "additions", "multiplications"),
    [
        ("activation", 0, 0),
        ("group", (16 - 4) * 9, 0),
        ("channel", 16 * 9, 0),
        ("l1norm", 8 * 25, 0),
        ("fc", 8 * 25, 8 * 16),
    ],
)
def test_overhead_is_the_appendix_table(granularity: Any, additions: int, multiplications: int) -> None:
    assert gate_of(granularity).overhead(8, 16, in_pixels=25, out_pixels=9) == (additions, multiplications)


def test_decisions_are_per_group_and_per_input_where_they_should_be() -> None:
    assert isinstance(gate_of("group"), GroupGate)
    assert gate_of("group").decisions == 4
    assert isinstance(gate_of("l1norm"), L1NormGate)
    assert gate_of("l1norm").decisions == 8
    assert gate_of("fc").decisions == 16


# ----------------------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("conv_groups", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_grouped_selection_serves_every_input_equally_often(groups: int, shuffle: bool, conv_groups: int) -> None:
    mask = base_mask(32, 16, groups, conv_groups=conv_groups, shuffle=shuffle)[:, :, 0, 0]
    inputs = 16 // conv_groups
    assert mask.shape == (32, inputs)
    assert (mask.sum(1) == inputs // groups).all()
    for block in mask.chunk(conv_groups):
        assert (block.sum(0) == 32 // conv_groups // groups).all()


def test_first_fraction_serves_the_same_inputs_to_all() -> None:
    mask = base_mask(6, 8, 2, grouped=False)[:, :, 0, 0]
    assert mask[:, :4].all()
    assert not mask[:, 4:].any()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("conv_groups", [1, 2])
def test_base_blocks_are_the_masked_weights(shuffle: bool, conv_groups: int) -> None:
    weight = torch.randn(16, 16 // conv_groups, 3, 3)
    mask = base_mask(16, 16, 4, conv_groups=conv_groups, shuffle=shuffle)
    blocks = base_blocks(weight, 4, conv_groups=conv_groups, shuffle=shuffle)
    assert blocks.shape == (16, 4 // conv_groups, 3, 3)
    for output in range(16):
        chosen = weight[output][mask[output, :, 0, 0]]
        assert sorted(blocks[output].flatten().tolist()) == sorted(chosen.flatten().tolist())


def test_shuffle_follows_its_permutation() -> None:
    x = torch.randn(2, 12, 3, 5)
    assert torch.equal(shuffle_channels(x, 3), x[:, shuffle_permutation(12, 3)])
    assert torch.equal(shuffle_channels(x, 3), nn.ChannelShuffle(3)(x))
    halves = torch.cat([shuffle_channels(x[:, :6], 3), shuffle_channels(x[:, 6:], 3)], dim=1)
    assert torch.equal(shuffle_channels(x, 3, conv_groups=2), halves)


def test_selection_refuses_groups_that_do_not_divide() -> None:
    with pytest.raises(ShapeError, match="groups=4 for 6 input and 8 output channels"):
        base_mask(16, 12, 4, conv_groups=2)


# ------------------------------------------------------------------------------------------------------------ sum norm


@pytest.mark.parametrize("affine", [False, True])
def test_sum_norm_scales_statistics_by_its_share(affine: bool) -> None:
    bn = nn.BatchNorm2d(4, affine=affine)
    bn.running_mean, bn.running_var = torch.randn(4), torch.rand(4)
    norm = SumNorm(4, affine=affine)
    norm.copy_from(bn, share=0.25)
    assert torch.equal(norm.running_mean, bn.running_mean * 0.25)
    assert torch.equal(norm.running_var, bn.running_var * 0.25)
    assert (norm.weight is None) == (not affine)
    assert f"affine={affine}" in repr(norm)
