"""Magnitude pruning: the schedule, which weights go, that they stay away, and the theoretical count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import digits, fit
from torch import nn

from headgate.baselines import MagnitudePruner, PruningSchedule, perforate_, theoretical_macs
from headgate.convert import gate_
from headgate.counting import count
from headgate.errors import ConfigError, ModelError
from headgate.models.digits import digits_cnn
from headgate.nn import GateConfig


def weights(model: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)) -> dict[str, torch.Tensor]:
    """As the next forward pass will use them: while masks hold, torch renews `weight` only then."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            masked = hasattr(module, "weight_orig")
            found[name] = (module.weight_orig * module.weight_mask if masked else module.weight).detach().clone()
    return found


def zeros(weight: torch.Tensor) -> int:
    return int((weight == 0).sum())


def test_the_schedule_is_the_cubic_one() -> None:
    schedule = PruningSchedule(final=0.9, initial=0.1, begin=10, end=30, every=5)
    assert [schedule.sparsity(step) for step in (0, 9)] == [0.0, 0.0]
    expected = [0.9 - 0.8 * (1 - t / 20) ** 3 for t in (0, 5, 10, 15, 20)]
    assert [schedule.sparsity(step) for step in range(10, 31, 5)] == pytest.approx(expected)
    assert schedule.sparsity(1000) == 0.9
    assert [step for step in range(100) if schedule.due(step)] == [10, 15, 20, 25, 30]
    assert [step for step in range(9) if PruningSchedule(final=0.5, end=5, every=4).due(step)] == [0, 4, 5]


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_the_share_asked_for_is_zero_after_each_step(scope: Any) -> None:
    model, batches = digits_cnn(width=8), digits(128)
    pruner = MagnitudePruner(model, PruningSchedule(final=0.8, end=9, every=3), scope=scope)
    seen = []

    def before_step(step: int) -> None:
        before = weights(model)
        sparsity = pruner.step(step)
        if step not in (0, 3, 6, 9):
            return
        seen.append(sparsity)
        after = weights(model)
        if scope == "layer":
            assert all(zeros(weight) == round(sparsity * weight.numel()) for weight in after.values())
            groups = [[name] for name in after]
        else:
            assert sum(map(zeros, after.values())) == round(sparsity * sum(w.numel() for w in after.values()))
            groups = [list(after)]
        for group in groups:
            gone = torch.cat([before[name][after[name] == 0].abs() for name in group])
            kept = torch.cat([before[name][after[name] != 0].abs() for name in group])
            if len(gone):
                assert gone.max() <= kept.min()
            for name in group:
                assert torch.equal(after[name][after[name] != 0], before[name][after[name] != 0])

    fit(model, batches, 8, before_step=before_step)
    assert seen == pytest.approx([0.8 - 0.8 * (1 - t / 3) ** 3 for t in range(4)])
    assert pruner.sparsity() == pytest.approx(0.8, abs=1e-3)


def test_zeros_stay_through_training_and_parameters_stay_the_optimisers() -> None:
    model, batches = digits_cnn(width=8), digits(128)
    parameters = {id(p) for p in model.parameters()}
    keys = set(model.state_dict())
    pruner = MagnitudePruner(model, PruningSchedule(final=0.6, end=1))
    fit(model, batches, 4, before_step=pruner.step)
    assert {id(p) for p in model.parameters()} == parameters
    pruner.finish_()
    assert set(model.state_dict()) == keys
    assert {id(p) for p in model.parameters()} == parameters
    assert all(zeros(weight) == round(0.6 * weight.numel()) for weight in weights(model).values())


def test_filters_of_least_norm_go_whole() -> None:
    model = digits_cnn(width=8)
    norms = {name: weight.abs().sum((1, 2, 3)) for name, weight in weights(model, (nn.Conv2d,)).items()}
    pruner = MagnitudePruner(model, PruningSchedule(final=0.5, end=1), unit="filter", exclude=("features.0",))
    pruner.step(1)
    for name, weight in weights(model, (nn.Conv2d,)).items():
        dead = (weight == 0).flatten(1).all(1)
        if name == "features.0":
            assert not dead.any()
            continue
        assert torch.equal(dead, norms[name] <= norms[name].median())
        assert zeros(weight) == int(dead.sum()) * weight[0].numel()
        assert int(dead.sum()) == len(dead) // 2
    assert not zeros(model.classifier.weight)


def test_gated_convolutions_are_pruned_but_not_their_gates() -> None:
    model = digits_cnn(width=8)
    gate_(model, GateConfig(granularity="fc", groups=1))
    pruner = MagnitudePruner(model, PruningSchedule(final=0.5, end=1))
    fit(model, digits(128), 3, before_step=pruner.step)
    pruner.finish_()
    assert zeros(model.features[3].weight) == model.features[3].weight.numel() // 2
    assert not zeros(model.features[3].gate.fc.weight)


def test_pruned_training_fits_digits() -> None:
    torch.manual_seed(0)
    model, batches = digits_cnn(width=8), digits(512)
    pruner = MagnitudePruner(model, PruningSchedule(final=0.7, begin=16, end=64, every=4))
    assert fit(model, batches, 14, before_step=pruner.step) > 0.8
    assert pruner.sparsity() == pytest.approx(0.7, abs=1e-3)


def test_theoretical_macs_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(32, 3))
    with torch.no_grad():
        for module, kept in ((model[0], 5), (model[1], 1), (model[3], 10)):
            module.weight.fill_(1.0).view(-1)[kept:] = 0
    counts = theoretical_macs(model, torch.zeros(2, 1, 4, 4))
    assert counts.by_layer == {"0": (16 * 18, 16 * 5), "1": (16 * 2, 16), "3": (96, 10)}
    assert (counts.dense_macs, counts.nonzero_macs) == (288 + 32 + 96, 80 + 16 + 10)
    assert counts.theoretical_mac_reduction == 416 / 106
    assert count(model, torch.zeros(1, 1, 4, 4)).network_executed_macs == 416  # a dense kernel executes all
    pruner = MagnitudePruner(model, PruningSchedule(final=0.999, end=1), exclude=("0", "1"))
    pruner.step(1)
    assert theoretical_macs(model, torch.zeros(1, 1, 4, 4)).by_layer["3"] == (96, 0)


def test_theoretical_macs_are_not_those_of_gates() -> None:
    model = digits_cnn(width=8)
    gate_(model, GateConfig(groups=2))
    with pytest.raises(ModelError, match="must not be gated, got DigitsCNN with gates"):
        theoretical_macs(model, torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final": 1.0, "end": 5}, r"final must be a share of zeros in \(0, 1\), got 1.0"),
        ({"final": 0.5, "initial": 0.6, "end": 5}, r"initial must be in \[0, final=0.5\], got 0.6"),
        ({"final": 0.5, "begin": 5, "end": 5}, "begin and end must be steps 0 ≤ begin < end, got begin=5, end=5"),
        ({"final": 0.5, "end": 5, "every": 0}, "every must be a number of steps ≥ 1, got 0"),
    ],
)
def test_bad_schedules(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruningSchedule(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "block"}, "unit must be one of weight, filter, got 'block'"),
        ({"scope": "world"}, "scope must be one of layer, network, got 'world'"),
        ({"unit": "filter", "scope": "network"}, "scope must be 'layer' where unit is 'filter', got 'network'"),
        ({"exclude": ("fc",)}, "exclude must name layers, got 'fc' that matches none"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MagnitudePruner(digits_cnn(width=4), PruningSchedule(final=0.5, end=1), **options)


def test_bad_models() -> None:
    schedule = PruningSchedule(final=0.5, end=1)
    with pytest.raises(ModelError, match="must have layers to prune, got ReLU with none"):
        MagnitudePruner(nn.ReLU(), schedule)
    model = digits_cnn(width=4)
    perforate_(model, 0.5, torch.zeros(1, 1, 8, 8))
    with pytest.raises(ModelError, match="must not be perforated"):
        MagnitudePruner(model, schedule)
    model = digits_cnn(width=4)
    MagnitudePruner(model, schedule).step(1)
    with pytest.raises(ModelError, match="must not be pruned yet"):
        MagnitudePruner(model, schedule)
