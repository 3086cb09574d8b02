from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from headgate.errors import ConfigError
from headgate.nn import GateConfig, GatedConv2d, force_gates
from headgate.train import BudgetConfig
from headgate.train.budget import (
    FixedTarget,
    PenaltySteering,
    ThresholdSteering,
    calibrate_,
    fold_offset_,
    make_steering,
    set_offset_,
)


def normal_density(offset: float) -> float:
    """Share of normal scores above a threshold: a gate as the controller sees it."""
    return 0.5 * math.erfc(offset / math.sqrt(2))


@pytest.mark.parametrize("reduction", [1.5, 2.0, 3.0, 3.9])
def test_threshold_steering_reaches_the_share_from_both_sides(reduction: float) -> None:
    for start in (-2.0, 3.0):
        steering = ThresholdSteering(1 / reduction, base_share=0.25)
        steering.offset = start
        share = 1.0
        for _ in range(600):
            share = 0.25 + 0.75 * normal_density(steering.offset)
            steering.update(share, 1.0)
        assert 1 / share == pytest.approx(reduction, rel=0.01)


def test_closing_starts_open_and_ends_at_the_target() -> None:
    steering = ThresholdSteering(1 / 3, base_share=0.25, closing=True)
    assert FixedTarget(1.0, closing=True).offset == PenaltySteering(0.5, closing=True).offset < -2
    densities = []
    assert normal_density(steering.offset) > 0.95
    for step in range(2000):
        density = normal_density(steering.offset)
        densities.append(density)
        steering.update(0.25 + 0.75 * density, min(step / 1000, 1.0))
    assert max(densities) > 0.9
    assert densities[-1] == pytest.approx((1 / 3 - 0.25) / 0.75, rel=0.02)


def test_penalty_multiplier_rises_above_and_falls_below_the_target() -> None:
    steering = PenaltySteering(0.5)
    steering.update(0.8, 1.0)
    risen = steering.multiplier
    assert risen > 0
    steering.update(0.4, 1.0)
    assert steering.multiplier < risen
    share = torch.tensor(0.8, requires_grad=True)
    penalty = steering.penalty(share)
    assert penalty is not None
    penalty.backward()
    assert share.grad is not None
    assert float(share.grad) == pytest.approx(steering.multiplier / 0.5)


def test_state_round_trip() -> None:
    for steering, other in (
        (ThresholdSteering(0.3, 0.1), ThresholdSteering(0.3, 0.1)),
        (PenaltySteering(0.3), PenaltySteering(0.3)),
        (FixedTarget(1.5), FixedTarget(1.5)),
    ):
        steering.update(0.9, 0.5)
        other.restore(steering.state())
        assert other.state() == steering.state()


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mac_reduction must be below 4\.00.*got 5.*more groups"):
        make_steering(BudgetConfig(mac_reduction=5), base_share=0.25)
    assert make_steering(BudgetConfig(forced="closed"), base_share=0.25) is None


def small_net() -> nn.Sequential:
    conv, norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
    return nn.Sequential(GatedConv2d(conv, norm, GateConfig(groups=2)), nn.ReLU())


def test_fold_keeps_decisions() -> None:
    net, x = small_net().eval(), torch.randn(4, 8, 6, 6)
    set_offset_(net, 0.75)
    before = net(x)
    fold_offset_(net)
    assert float(net[0].gate.offset) == 0  # type: ignore[union-attr, arg-type]
    assert torch.equal(net(x), before)
    with force_gates(net, "open"):
        assert not torch.equal(net(x), before)


@pytest.mark.parametrize("wanted", [1.05, 1.3, 1.6, 1.9, 1.99])
def test_calibrate_finds_the_offset_from_anywhere(wanted: float) -> None:
    for start in (-3.0, 0.0, 3.0):
        net = small_net()
        set_offset_(net, start)

        def measure(net: nn.Sequential = net) -> float:
            return 1 / (0.5 + 0.5 * normal_density(float(net[0].gate.offset)))  # type: ignore[union-attr, arg-type]

        assert calibrate_(net, wanted, measure, tries=25) == pytest.approx(wanted, rel=0.003)
        assert measure() == pytest.approx(wanted, rel=0.003)


def test_calibrate_keeps_the_nearest_where_the_budget_is_out_of_reach() -> None:
    net = small_net()
    assert calibrate_(net, 3.0, lambda: 1.5 + min(float(net[0].gate.offset), 0.4)) < 2  # type: ignore[union-attr, arg-type]
