"""Perforated convolutions against the dense ones, their gradients, networks of them, and what is counted."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import digits, fit, randomise_
from torch import Tensor, nn

from headgate.baselines import MagnitudePruner, PerforatedConv2d, PruningSchedule, perforate_, perforated_layers
from headgate.baselines.perforation_masks import grid_mask, nearest_computed, ranked_mask
from headgate.convert import gate_
from headgate.counting import count
from headgate.errors import ConfigError, ModelError, ShapeError
from headgate.fusion import fuse
from headgate.models.digits import digits_cnn
from headgate.models.resnet import digits_resnet
from headgate.nn import GateConfig

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (3, 2), "padding": (0, 1), "stride": (1, 3), "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 1},
]
SIZES = [(7, 5), (8, 8), (11, 13)]
ROUNDINGS = 64 * 2.0**-24  # of a sum of a few dozen products, relative to the sum of their absolute values


def sparse_source(size: tuple[int, int], kind: str, rate: float, generator: torch.Generator) -> Tensor:
    weight = torch.zeros(size) if kind == "uniform" else torch.rand(size, generator=generator)
    mask = grid_mask(size, rate, generator) if kind == "grid" else ranked_mask(weight, rate, generator)
    return nearest_computed(mask, generator)


def dense_and_bound(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        exact = copy.deepcopy(conv).double()
        mass = copy.deepcopy(exact)
        mass.weight.abs_()
        if mass.bias is not None:
            mass.bias.abs_()
        return exact(x.double()), ROUNDINGS * mass(x.double().abs())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # of the dense convolution
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "grid", "ranked"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "-".join(map(str, g.values())))
def test_equals_dense_where_computed_and_the_nearest_elsewhere(
    geometry: dict[str, Any], kind: str, training: bool, generator: torch.Generator
) -> None:
    for size, rate in itertools.product(SIZES, (0.0, 1 / 3, 0.5, 0.8, 0.95)):
        conv, x = nn.Conv2d(4, 6, **geometry), torch.randn(2, 4, *size)
        layer = PerforatedConv2d(conv, size)
        exact, bound = dense_and_bound(conv, x)
        layer.copy_from_(sparse_source(layer.out_size, kind, rate, generator))
        output = layer.train(training)(x).double()
        assert output.shape == exact.shape
        height, width = layer.out_size
        computed = [(p // width, p % width) for p in range(height * width) if int(layer.source.flatten()[p]) == p]
        assert layer.computed == len(computed) >= 1
        if rate == 0:
            assert len(computed) == height * width
        for row, column in itertools.product(range(height), range(width)):
            distances = {(r, c): (r - row) ** 2 + (c - column) ** 2 for r, c in computed}
            place = divmod(int(layer.source[row, column]), width)
            assert distances[place] == min(distances.values())
            error = (output[:, :, row, column] - exact[:, :, place[0], place[1]]).abs()
            assert (error <= bound[:, :, place[0], place[1]]).all()


def test_the_weight_and_bias_are_taken_over() -> None:
    conv = nn.Conv2d(4, 6, 3)
    layer = PerforatedConv2d(conv, (5, 5))
    assert layer.conv.weight is conv.weight
    assert layer.conv.bias is conv.bias
    assert [name for name, _ in layer.named_parameters()] == ["conv.weight", "conv.bias"]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "-".join(map(str, g.values())))
def test_gradients_are_those_of_the_copies(
    geometry: dict[str, Any], training: bool, generator: torch.Generator
) -> None:
    """A computed position's output has the summed gradient of all that copy it; a skipped one's has none."""
    conv = nn.Conv2d(4, 6, **geometry).double()
    layer = PerforatedConv2d(conv, (7, 6))
    layer.copy_from_(sparse_source(layer.out_size, "uniform", 0.6, generator))
    layer.train(training)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    at_output = torch.randn(2, 6, *layer.out_size, dtype=torch.float64)
    inputs = [x, *conv.parameters()]
    actual = torch.autograd.grad(layer(x), inputs, at_output)
    dense = conv(x)
    summed = torch.zeros(2, 6, layer.positions, dtype=torch.float64)
    for place, source in enumerate(layer.source.flatten().tolist()):
        summed[:, :, source] += at_output.flatten(2)[:, :, place]
    expected = torch.autograd.grad(dense, inputs, summed.view_as(dense))
    for mine, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


def test_state_brings_the_positions_along(generator: torch.Generator) -> None:
    layer, other = PerforatedConv2d(nn.Conv2d(4, 6, 3), (9, 7)), PerforatedConv2d(nn.Conv2d(4, 6, 3), (9, 7))
    layer.copy_from_(sparse_source((7, 5), "uniform", 0.5, generator))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 9, 7)
    assert torch.equal(other.eval()(x), layer.eval()(x))
    assert other.computed == layer.computed < layer.positions


def test_bad_layers_sources_and_sizes() -> None:
    with pytest.raises(ShapeError, match="padding_mode must be 'zeros', got 'reflect'"):
        PerforatedConv2d(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (5, 5))
    layer = PerforatedConv2d(nn.Conv2d(4, 6, 3), (5, 5))
    with pytest.raises(ShapeError, match=r"source must have the output's size \(3, 3\), got \(2, 3\)"):
        layer.copy_from_(torch.zeros(2, 3, dtype=torch.int64))
    for source in (torch.arange(1, 10) % 9, torch.full((9,), 9), torch.full((9,), -1)):
        with pytest.raises(ShapeError, match="source must name computed positions"):
            layer.copy_from_(source.view(3, 3))
    with pytest.raises(ShapeError, match=r"input maps must be \(5, 5\), .* got \(6, 5\)"):
        layer(torch.zeros(1, 4, 6, 5))


# ------------------------------------------------------------------------------------------------------ a whole network


@pytest.mark.parametrize("mask", ["uniform", "grid", "pooling", "impact"])
@pytest.mark.parametrize("network", [digits_cnn, digits_resnet])
def test_a_network_runs_trains_and_counts_what_it_computes(network: Any, mask: Any) -> None:
    model, batches = randomise_(network(width=8)), digits(64)
    dense = {layer.name: layer.dense_macs for layer in count(model, batches[0][0][:1]).layers}
    conversion = perforate_(model, 0.5, batches[0][0], mask=mask, batches=batches)
    layers = perforated_layers(model)
    assert set(conversion.converted) == set(layers)
    assert len(layers) >= 4
    counts = count(model, batches)
    assert not counts.uncounted
    assert not counts.uncalled
    for layer in counts.layers:
        name = layer.name.removesuffix(".conv")
        share = layers[name].computed / layers[name].positions if name in layers else 1
        assert layer.dense_macs == layer.executed_macs()[0] == dense[name] * share
        assert share == 1 or 0.4 <= share <= 0.6
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, batches, 1)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_macs_of_a_network_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(64, 3))
    conversion = perforate_(model, {"0": 0.5}, torch.zeros(1, 1, 4, 4), mask="uniform")
    counts = count(model, torch.zeros(2, 1, 4, 4))
    assert [layer.dense_macs for layer in counts.layers] == [8 * 9 * 2, 16 * 2 * 4, 64 * 3]
    assert counts.network_executed_macs == 144 + 128 + 192
    assert str(conversion).splitlines() == [
        "Sequential: 1 of 2 convolutions converted by perforation",
        "0  computes 8 of 16 positions, uniform",
        "2  dense: of rate 0",
    ]


def test_rate_0_leaves_the_network_as_it_is() -> None:
    model, x = digits_resnet(width=8).eval(), torch.randn(2, 1, 8, 8)
    output = model(x)
    assert not perforate_(model, 0.0, x).converted
    assert not perforated_layers(model)
    assert torch.equal(model(x), output)


def test_masks_depend_on_the_seed_alone() -> None:
    def sources(rate: float, seed: int, **options: Any) -> dict[str, Tensor]:
        model = digits_cnn(width=4)
        perforate_(model, rate, torch.zeros(1, 1, 8, 8), seed=seed, mask="uniform", **options)
        return {name: layer.source for name, layer in perforated_layers(model).items()}

    first, again, other = sources(0.5, 0), sources(0.5, 0), sources(0.5, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    without = sources(0.5, 0, exclude=("features.0",))
    assert set(first) - set(without) == {"features.0"}
    assert all(torch.equal(source, first[name]) for name, source in without.items())


def test_fine_tuning_wins_accuracy_back() -> None:
    torch.manual_seed(1)
    batches = digits(512)
    model = digits_cnn(width=8)
    dense = fit(model, batches, 12)
    perforate_(model, 0.7, batches[0][0])
    before = fit(model, batches, 0)
    after = fit(model, batches, 4, lr=0.02)
    assert dense > 0.95
    assert before < dense - 0.1
    assert after > before + 0.1


def test_a_perforated_network_can_be_fused_for_training() -> None:
    model, x = randomise_(digits_resnet(width=8)), torch.randn(4, 1, 8, 8)
    perforate_(model, 0.5, x)
    model.train()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(fuse(model, x)(x), twin(x), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_perforated_is_named() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.mirrored = Own(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
            self.twice, self.last = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.twice(self.twice(self.mirrored(self.own(x))))
            return self.last(F.adaptive_avg_pool2d(x, 1))

    model, x = Net(), torch.zeros(1, 1, 4, 4)
    conversion = perforate_(model, 0.5, x)
    assert {layer.name: layer.note for layer in conversion.layers} == {
        "own": "Own may compute something of its own",
        "mirrored": "padding_mode is 'reflect', not 'zeros'",
        "twice": "runs several times for an image",
        "last": "its map is a single position",
    }
    with pytest.raises(ConfigError, match="got 'twice': runs several times"):
        perforate_(model, {"twice": 0.5}, x)


def test_only_a_dense_network_with_weights_of_its_own_is_perforated() -> None:
    x = torch.zeros(1, 1, 8, 8)
    model = digits_cnn(width=4)
    perforate_(model, 0.5, x)
    with pytest.raises(ModelError, match="must be dense, got DigitsCNN with 4 perforated layers"):
        perforate_(model, 0.5, x)
    model = digits_cnn(width=4)
    gate_(model, GateConfig(groups=2))
    with pytest.raises(ModelError, match="must be dense, got DigitsCNN with 3 gated layers"):
        perforate_(model, 0.5, x)
    model = digits_cnn(width=4)
    MagnitudePruner(model, PruningSchedule(final=0.5, end=1), exclude=("features.0",)).step(1)
    conversion = perforate_(model, 0.5, x)
    assert conversion.converted == ("features.0",)
    assert conversion.layers[1].note == "its weight is parametrised or masked"


def test_pooling_masks_compute_what_most_windows_read() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(2, 2, 1))
    conversion = perforate_(model, {"0": 0.8, "3": 0.5}, torch.zeros(1, 1, 9, 9), mask="pooling")
    layer = model[0]
    assert isinstance(layer, PerforatedConv2d)
    corners = torch.zeros(9, 9, dtype=torch.bool)
    corners[2:8:2, 2:8:2] = True  # four windows meet at these nine
    assert layer.computed == 16
    assert layer.source[corners].tolist() == torch.arange(81).view(9, 9)[corners].tolist()
    assert [layer.note for layer in conversion.layers] == [
        "computes 16 of 81 positions, pooling",
        "computes 8 of 16 positions, uniform, for no pooling layer follows",
    ]


@pytest.mark.parametrize(
    ("rates", "options", "message"),
    [
        (1.0, {}, r"rates must be a share of skipped positions in \[0, 1\), got 1.0"),
        ({"features.0": -0.1}, {}, r"rates\['features.0'\] must be a share .* got -0.1"),
        ({"features": 0.5}, {}, "rates must name convolutions, got 'features'; they are named like 'features.0'"),
        (0.5, {"mask": "fractal"}, "mask must be one of uniform, grid, pooling, impact, got 'fractal'"),
        (0.5, {"mask": "impact"}, r"the mask 'impact' needs batches of \(images, labels\), got none"),
        (0.5, {"exclude": ("stem",)}, "exclude must name layers, got 'stem' that matches none"),
        (0.5, {"exclude": "features.0"}, "exclude must be a sequence of names or patterns, got the string"),
    ],
)
def test_bad_arguments(rates: Any, options: dict[str, Any], message: str, unchecked_types: None) -> None:
    model = digits_cnn(width=4)
    with pytest.raises(ConfigError, match=message):
        perforate_(model, rates, torch.zeros(1, 1, 8, 8), **options)
    assert not perforated_layers(model)
    with pytest.raises(ModelError, match="must have convolutions to count"):
        perforate_(nn.Linear(2, 2), 0.5, torch.zeros(1, 2))
