"""Feature boosting and suppression: against the dense network, its winners, gradients, and what is counted."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import accuracy, digits, fit, randomise_
from torch import Tensor, nn

from headgate.baselines import FBSConv2d, fbs_, fbs_layers, observe_saliencies, saliency_loss, set_density_
from headgate.counting import count, trace
from headgate.errors import ConfigError, ExportError, ModelError
from headgate.exporting import export
from headgate.fusion import fuse
from headgate.models.digits import digits_cnn
from headgate.models.resnet import digits_resnet
from headgate.nn import force_gates


def boosts_of_one_(model: nn.Module) -> None:
    with torch.no_grad():
        for layer in fbs_layers(model).values():
            layer.gate.predictor.linear.weight.zero_()
            layer.gate.predictor.linear.bias.fill_(1.0)


def layer_of(c_in: int = 6, c_out: int = 10, *, density: float = 0.5, **options: Any) -> FBSConv2d:
    conv, norm = nn.Conv2d(c_in, c_out, 3, padding=1, **options), nn.BatchNorm2d(c_out)
    randomise_(nn.Sequential(norm))
    return FBSConv2d(conv, norm, density).eval()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("network", [digits_cnn, digits_resnet])
def test_all_channels_with_boosts_of_1_are_the_dense_network(network: Any, training: bool) -> None:
    dense = randomise_(network(width=8)).train(training)
    model = copy.deepcopy(dense)
    assert fbs_(model, 1.0).converted
    boosts_of_one_(model)
    x = torch.randn(8, 1, 8, 8)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


def test_gates_forced_open_are_the_dense_network_and_closed_compute_nothing() -> None:
    dense = randomise_(digits_cnn(width=8)).eval()
    model, x = copy.deepcopy(dense), torch.randn(4, 1, 8, 8)
    fbs_(model, 0.25)
    with force_gates(model, "open"):
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    with force_gates(model, "closed"):
        assert not model.features[3](torch.randn(4, 8, 8, 8)).any()
    assert not torch.allclose(model(x), dense(x))


@pytest.mark.parametrize(("density", "k"), [(0.01, 1), (0.3, 3), (0.31, 4), (0.5, 5), (1.0, 10)])
def test_exactly_k_channels_of_each_image_are_not_zero(density: float, k: int) -> None:
    layer, x = layer_of(density=density), torch.randn(7, 6, 5, 4) * torch.rand(7, 6, 1, 1) * 10
    assert layer.gate.active == k
    with torch.no_grad():
        layer.gate.predictor.linear.bias.fill_(5.0)  # no saliency is 0
        output = layer(x)
    alive = output.ne(0).any(3).any(2)
    assert alive.sum(1).tolist() == [k] * 7
    saliency = layer.gate.score(x).flatten(1)
    assert torch.equal(alive, saliency >= saliency.topk(k).values[:, -1:])
    if k == 5:
        assert (alive != alive[0]).any()  # images differ in which


def test_output_by_the_formula() -> None:
    layer, x = layer_of(bias=False), torch.randn(3, 6, 5, 4)
    residual = torch.randn(3, 10, 5, 4)
    predictor, norm = layer.gate.predictor.linear, layer.final_norm
    assert norm is not None
    boost = (x.abs().mean((2, 3)) @ predictor.weight.T + predictor.bias).relu()
    saliency = boost * norm.weight.abs()
    winners = torch.zeros_like(saliency)
    for image in range(3):
        winners[image, saliency[image].argsort(descending=True)[:5]] = 1
    normed = F.batch_norm(
        F.conv2d(x, layer.weight, padding=1), norm.running_mean, norm.running_var, norm.weight, norm.bias
    )
    expected = (boost * winners)[:, :, None, None] * normed
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x, residual, True), (expected + residual).relu(), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_predictor_of_winners_only_and_no_scale() -> None:
    layer, x = layer_of(density=0.2).train(), torch.randn(1, 6, 5, 4)
    layer(x).square().sum().backward()
    gradient = layer.gate.predictor.linear.bias.grad
    assert gradient is not None
    assert torch.equal(gradient != 0, layer.gate(x).flatten() > 0)
    assert int((gradient != 0).sum()) == 2
    assert layer.gate.predictor.linear.weight.grad.any()
    assert layer.weight.grad.any()
    assert layer.final_norm.bias.grad.any()
    assert layer.final_norm.weight.grad is None
    assert not layer.gate.threshold.requires_grad


def test_saliency_loss_is_the_l1_norm_and_pulls_saliencies_down() -> None:
    model, x = digits_cnn(width=4), torch.randn(5, 1, 8, 8)
    fbs_(model, 0.5)
    with observe_saliencies(model) as saliencies:
        model(x)
    assert {name: tuple(value.shape) for name, value in saliencies.items()} == {
        "features.3": (5, 4),
        "features.7": (5, 8),
        "features.10": (5, 8),
    }
    loss = saliency_loss(saliencies, weight=0.1)
    assert float(loss.detach()) == pytest.approx(
        0.1 * sum(float(s.detach().abs().sum()) / 5 for s in saliencies.values()), rel=1e-5
    )
    loss.backward()
    assert (fbs_layers(model)["features.3"].gate.predictor.linear.bias.grad > 0).all()
    model(x)
    assert len(saliencies) == 3  # nothing listens any more
    copy.deepcopy(model)


def loops(layer: FBSConv2d, x: Tensor) -> list[int]:
    """MACs of each image: pairs of an output channel that is computed and an input channel that is not zero."""
    with torch.no_grad():
        decision, output = layer.gate(x).flatten(1), layer(x)
    inputs, outputs = layer.in_channels // layer.conv_groups, layer.out_channels // layer.conv_groups
    taps = layer.kernel_size[0] * layer.kernel_size[1] * output.shape[2] * output.shape[3]
    return [
        sum(
            taps
            for o, i in itertools.product(range(layer.out_channels), range(inputs))
            if decision[n, o] and x[n, o // outputs * inputs + i].any()
        )
        for n in range(len(x))
    ]


@pytest.mark.parametrize("groups", [1, 2])
def test_counts_the_channels_that_are_active_on_both_sides(groups: int) -> None:
    layer, x = layer_of(density=0.3, groups=groups), torch.randn(4, 6, 5, 4)
    x[0, 2], x[1, 3:], x[3] = 0, 0, 0
    counts = count(nn.Sequential(layer), x)
    (only,) = counts.layers
    assert only.conditional_macs.tolist() == loops(layer, x)
    assert only.conditional_macs[3] == 0
    if groups == 1:
        assert only.conditional_macs.tolist() == [n * 3 * 9 * 20 for n in (5, 3, 6, 0)]
    assert (only.additions, only.multiplications) == (6 * 20, 6 * 10 + 3 * 20)
    assert only.base_macs == 0
    assert not counts.uncounted


def test_channels_of_no_saliency_are_not_computed_even_among_the_k() -> None:
    layer, x = layer_of(density=1.0), torch.randn(2, 6, 5, 4)
    with torch.no_grad():
        layer.gate.predictor.linear.bias[:4] = -100
    assert count(nn.Sequential(layer), x).layers[0].output_channels.tolist() == [6, 6]


@pytest.mark.parametrize("density", [0.25, 0.5])
def test_a_networks_reduction_is_about_the_square_of_its_density(density: float) -> None:
    model, batches = digits_cnn(width=16), digits(64)
    report = fbs_(model, density)
    assert [layer.note for layer in report.layers][:2] == [
        "first convolution",
        f"computes {int(16 * density)} of 16 channels",
    ]
    counts = count(model, batches)
    assert not counts.uncounted
    for layer in counts.gated_layers:
        assert (layer.output_channels == int(layer.shape.c_out * density)).all()
    inner = counts.gated_layers[2]  # both sides are winners' there
    assert (inner.conditional_macs <= inner.dense_macs * density**2).all()
    assert [t.open_fraction().tolist() for t in trace(model, batches)][2] == [density] * 64


def test_training_fits_digits_and_density_is_a_dial() -> None:
    torch.manual_seed(0)
    model, batches = digits_cnn(width=8), digits(512)
    fbs_(model)
    fit(model, batches, 8)
    set_density_(model, 0.5)
    before = accuracy(model, batches)
    states = [layer.gate.predictor.linear.weight.clone() for layer in fbs_layers(model).values()]
    after = fit(model, batches, 6)
    assert after > max(before, 0.8)
    for state, layer in zip(states, fbs_layers(model).values(), strict=True):
        assert not torch.equal(state, layer.gate.predictor.linear.weight)
        assert layer.gate.active == layer.out_channels // 2


@pytest.mark.parametrize("network", [digits_cnn, digits_resnet])
def test_can_be_fused_for_training(network: Any) -> None:
    model, x = randomise_(network(width=8)), torch.randn(4, 1, 8, 8)
    fbs_(model, 0.5)
    model.train()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(fuse(model, x)(x), twin(x), rtol=1e-4, atol=1e-4)


def test_bfloat16_chooses_the_same_channels_from_the_same_input() -> None:
    layer, x = layer_of(c_out=64), torch.randn(8, 6, 5, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
        assert layer.gate.predictor(x).dtype == torch.float32
    assert low.dtype == torch.bfloat16
    assert torch.equal(low.ne(0).any(3).any(2), layer(x.float()).ne(0).any(3).any(2))


def test_state_round_trip_and_refused_export(tmp_path: Any) -> None:
    model, twin, x = digits_cnn(width=8), digits_cnn(width=8), torch.randn(2, 1, 8, 8)
    fbs_(model, 0.5)
    fbs_(twin, 0.5)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(x), model.eval()(x))
    with pytest.raises(ExportError, match="got a FBSConv2d that computes something of its own"):
        export(model, tmp_path / "plan.safetensors", example_input=x)


def test_what_stays_dense_is_named() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4),
    )  # fmt: skip
    conversion = fbs_(model, 0.5, exclude=("7",))
    assert str(conversion).splitlines() == [
        "Sequential: 1 of 5 convolutions converted by FBS",
        "0   dense: first convolution",
        "2   dense: no batch norm follows",
        "4   computes 2 of 4 channels",
        "7   dense: excluded",
        "10  dense: no activation follows: it is an output of the model",
    ]
    assert isinstance(model[5], nn.Identity)


@pytest.mark.parametrize("density", [0.0, 1.5, -1, True, "half", float("nan")])
def test_bad_densities(density: Any, unchecked_types: None) -> None:
    model = digits_cnn(width=4)
    with pytest.raises(ConfigError, match=r"density must be a share of channels in \(0, 1\], got"):
        fbs_(model, density)
    fbs_(model)
    with pytest.raises(ConfigError, match=r"density must be a share of channels in \(0, 1\], got"):
        set_density_(model, density)


def test_bad_models_and_saliencies() -> None:
    with pytest.raises(ModelError, match="must have FBS convolutions, got DigitsCNN with none; call fbs_ first"):
        set_density_(digits_cnn(width=4), 0.5)
    with pytest.raises(ModelError, match="run the model inside observe_saliencies"):
        saliency_loss({})
    with pytest.raises(ConfigError, match="exclude must name layers, got 'stem' that matches none"):
        fbs_(digits_cnn(width=4), exclude=("stem",))
