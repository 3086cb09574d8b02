"""The greedy choice of rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import digits, fit
from torch import nn

from headgate.baselines import choose_rates, perforate_, perforated_layers, perforation_rates
from headgate.counting import count
from headgate.errors import ConfigError, ModelError
from headgate.models.digits import digits_cnn

STEPS = (0.5, 0.75)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(3)
    model = digits_cnn(width=8)
    fit(model, digits(512), 6)
    return model


def copy_of(model: nn.Module) -> Any:
    twin = digits_cnn(width=8)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


@pytest.mark.parametrize("mask", ["uniform", "grid", "pooling", "impact"])
@pytest.mark.parametrize("reduction", [1.5, 3.0])
def test_meets_its_budget_and_no_more_than_a_step_beyond(trained: nn.Module, mask: Any, reduction: float) -> None:
    model, batches = copy_of(trained), digits(128)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rates = choose_rates(model, batches, mac_reduction=reduction, mask=mask)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    dense = count(model, batches).network_dense_macs
    largest = max(layer.dense_macs for layer in count(model, batches).layers)
    perforate_(model, rates, batches[0][0], mask=mask, batches=batches)
    executed = count(model, batches).network_executed_macs
    assert dense / reduction - largest / 3 <= executed <= dense / reduction


@pytest.mark.parametrize("reduction", [1.5, 2.0, 3.0])
def test_each_step_is_the_cheapest(trained: nn.Module, reduction: float) -> None:
    """Against the plain statement of the rule, one network built anew for every candidate."""
    batches, chosen = digits(64), dict[str, float]()
    dense = count(trained, batches[0][0][:1]).network_dense_macs

    def measure(rates: dict[str, float]) -> tuple[float, float]:
        model = copy_of(trained)
        perforate_(model, rates, batches[0][0])
        with torch.no_grad():
            loss = float(F.cross_entropy(model(batches[0][0]), batches[0][1]))
        return loss, count(model, batches[0][0][:1]).network_executed_macs

    start, macs = measure({})
    while dense / macs < reduction:
        candidates = []
        for name in ("features.0", "features.3", "features.7", "features.10"):
            at = STEPS.index(chosen[name]) + 1 if name in chosen else 0
            if at < len(STEPS):
                rates = chosen | {name: STEPS[at]}
                loss, executed = measure(rates)
                candidates.append(((loss - start) / (dense - executed), executed, rates))
        _, macs, chosen = min(candidates, key=lambda candidate: candidate[0])
    assert choose_rates(trained, batches, mac_reduction=reduction, rates=STEPS) == chosen


def test_cost_is_loss_for_macs_not_loss_alone(trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer would cost half the loss of the second, but has an eighth of its MACs."""
    price = {"features.0": 1.0, "features.3": 2.0, "features.7": 100.0, "features.10": 100.0}

    def loss(model: nn.Module, _batches: Any) -> float:
        layers = perforated_layers(model)
        return sum(price[name] * (1 - layer.computed / layer.positions) for name, layer in layers.items())

    monkeypatch.setattr(perforation_rates, "_loss", loss)
    assert choose_rates(trained, digits(64), mac_reduction=1.2, rates=STEPS) == {"features.3": 0.5}


def test_excluded_layers_stay_dense(trained: nn.Module) -> None:
    rates = choose_rates(trained, digits(64), mac_reduction=1.3, exclude=("features.0", "features.3"))
    assert rates
    assert set(rates) <= {"features.7", "features.10"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mac_reduction": 1.0}, "mac_reduction must be > 1, got 1.0"),
        ({"mac_reduction": 100.0}, r"mac_reduction must be one that the rates can reach, here 1\d\.\d\d, got 100"),
        ({"mac_reduction": 2.0, "rates": (0.5, 0.5)}, "rates must be rising numbers above 0"),
        ({"mac_reduction": 2.0, "rates": (0.5, 1.0)}, r"rates\[1\] must be a share of skipped positions"),
        ({"mac_reduction": 2.0, "rates": ()}, "rates must be rising numbers above 0"),
        ({"mac_reduction": 2.0, "mask": "round"}, "mask must be one of"),
    ],
)
def test_bad_arguments(trained: nn.Module, options: dict[str, Any], message: str, unchecked_types: None) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_rates(trained, digits(64), **options)
    with pytest.raises(ConfigError, match=r"batches must hold \(images, labels\), got none"):
        choose_rates(trained, [], mac_reduction=2.0)


def test_nothing_to_perforate() -> None:
    model = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(ModelError, match="must have a convolution to perforate, got Sequential with none"):
        choose_rates(model, digits(64), mac_reduction=2.0)
