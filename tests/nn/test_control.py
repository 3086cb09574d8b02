"""What reaches all gates of a model: forcing, shifting, watching, pulling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from headgate.errors import ConfigError, ModelError
from headgate.nn import (
    GateConfig,
    GatedConv2d,
    Observation,
    force_gates,
    gated_layers,
    observe,
    shift_thresholds_,
    threshold_loss,
)


def network(granularity: Any = "activation", **options: Any) -> nn.Sequential:
    config = GateConfig(groups=2, granularity=granularity, **options)
    layers = [GatedConv2d(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), config) for _ in range(2)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU()).eval()


def densities(model: nn.Module, x: torch.Tensor) -> list[float]:
    """The fraction of open decisions of each layer."""
    found: list[float] = []

    def note(_name: str, _layer: GatedConv2d, observation: Observation) -> None:
        assert observation.decision is not None
        found.append(observation.decision.mean().item())

    with observe(model, note, decisions=True), torch.no_grad():
        model(x)
    return found


def test_lists_gated_layers_by_name() -> None:
    model = network()
    assert list(gated_layers(model)) == ["0", "2"]
    assert gated_layers(nn.Sequential(nn.Conv2d(1, 1, 1))) == {}


@pytest.mark.parametrize("granularity", ["activation", "group", "channel", "l1norm", "fc"])
def test_forced_gates_are_all_open_or_all_closed(granularity: Any) -> None:
    model, x = network(granularity), torch.randn(2, 8, 5, 5)
    with force_gates(model, "open"):
        assert densities(model, x) == [1, 1]
    with force_gates(model, "closed"):
        assert densities(model, x) == [0, 0]


def test_nested_forcing_restores_what_it_found() -> None:
    model = network()
    gates = [layer.gate for layer in gated_layers(model).values()]
    with force_gates(model, "open"):
        with force_gates(model, "closed"):
            assert [gate.forced for gate in gates] == ["closed", "closed"]
        assert [gate.forced for gate in gates] == ["open", "open"]
    assert [gate.forced for gate in gates] == [None, None]


def test_forcing_ends_when_the_block_raises() -> None:
    model = network()
    with pytest.raises(RuntimeError, match="inside"), force_gates(model, "open"):
        raise RuntimeError("inside")
    assert all(layer.gate.forced is None for layer in gated_layers(model).values())


@pytest.mark.parametrize("granularity", ["activation", "group", "channel", "l1norm", "fc"])
def test_shifting_thresholds_lowers_density_monotonically(granularity: Any) -> None:
    model, x = network(granularity), torch.randn(4, 8, 9, 9)
    for layer in gated_layers(model).values():
        layer.gate.threshold.data.normal_()
    first = []
    shift_thresholds_(model, -4.0)
    for _ in range(9):
        first.append(densities(model, x)[0])  # later layers' inputs change with the first one's gates
        shift_thresholds_(model, 1.0)
    assert first == sorted(first, reverse=True)
    assert first[0] > 0.9
    assert first[-1] < 0.1


def test_shifts_add_up_and_are_saved() -> None:
    model = network()
    shift_thresholds_(model, 0.5)
    shift_thresholds_(model, 0.25)
    other = network()
    other.load_state_dict(model.state_dict())
    assert other[0].gate.offset.item() == 0.75
    shift_thresholds_(model, -0.75)
    assert model[2].gate.offset.item() == 0


@pytest.mark.parametrize("granularity", ["activation", "group", "channel", "l1norm", "fc"])
@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_observed_counts_equal_the_decision_maps(granularity: Any, bound: float) -> None:
    model, x = network(granularity, channel_bound=bound), torch.randn(3, 8, 7, 5)
    counted: list[torch.Tensor] = []
    mapped: list[torch.Tensor] = []
    with torch.no_grad():
        with observe(model, lambda _n, _l, o: counted.append(o.open_counts)):
            model(x)
        with observe(model, lambda _n, _l, o: mapped.append(o.decision)):  # type: ignore[arg-type]
            model(x)
        maps_unasked = [m is None for m in mapped]
        mapped.clear()
        with observe(model, lambda _n, _l, o: mapped.append(o.decision), decisions=True):  # type: ignore[arg-type]
            model(x)
    assert all(maps_unasked) or granularity not in ("activation", "group") or bound > 0
    assert len(counted) == len(mapped) == 2
    for counts, decision in zip(counted, mapped, strict=True):
        assert set(decision.unique().tolist()) <= {0.0, 1.0}
        brute = [[int((decision[i, j] > 0.5).sum()) for j in range(decision.shape[1])] for i in range(len(decision))]
        assert counts.int().tolist() == brute


def test_observers_see_names_and_sizes_and_are_removed() -> None:
    model = nn.Sequential(
        GatedConv2d(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), GateConfig(groups=4, granularity="fc"))
    ).eval()
    seen: list[tuple[str, Observation]] = []
    x = torch.randn(2, 8, 9, 7)
    x[0, 3] = 0
    with observe(model, lambda name, _layer, o: seen.append((name, o))):
        model(x)
    name, observation = seen[0]
    assert (name, observation.in_size, observation.out_size) == ("0", (9, 7), (4, 3))
    assert observation.live_inputs is not None
    assert observation.live_inputs.tolist() == [[7], [8]]
    model(x)
    assert len(seen) == 1


def test_threshold_loss_is_the_sum_of_squared_distances() -> None:
    model = network()
    for layer in gated_layers(model).values():
        layer.gate.threshold.data.normal_()
    thresholds = torch.cat([layer.gate.threshold for layer in gated_layers(model).values()])
    loss = threshold_loss(model, target=1.5, weight=1e-2)
    assert loss.item() == pytest.approx(1e-2 * sum((1.5 - t) ** 2 for t in thresholds.tolist()), rel=1e-6)
    loss.backward()
    gradient = model[0].gate.threshold.grad
    torch.testing.assert_close(gradient, 2e-2 * (model[0].gate.threshold.detach() - 1.5))


@pytest.mark.parametrize("offset", [math.nan, math.inf])
def test_refuses_an_offset_that_is_not_finite(offset: float) -> None:
    with pytest.raises(ConfigError, match="offset must be finite"):
        shift_thresholds_(network(), offset)


def test_refuses_an_unknown_state(unchecked_types: None) -> None:
    with (
        pytest.raises(ConfigError, match="state must be 'open' or 'closed', got 'half'"),
        force_gates(
            network(),
            "half",  # type: ignore[arg-type]
        ),
    ):
        pass


def test_refuses_a_dense_model() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(ModelError, match="call gate_ first"):
        shift_thresholds_(dense, 1.0)
    with pytest.raises(ModelError, match="call gate_ first"):
        threshold_loss(dense, 1.0)
    with pytest.raises(ModelError, match="call gate_ first"), observe(dense, lambda *_: None):
        pass
