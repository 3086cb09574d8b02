"""The correlation penalty by hand, its mask, and the orthogonal start."""

from __future__ import annotations

import math

import pytest
import torch
from dead_channels import Separable
from torch import nn

from headgate.baselines.decorrelation import Decorrelation, DecorrelationConfig, correlation_penalty, orthogonal_
from headgate.errors import ConfigError, ModelError
from headgate.models.registry import create

BOUND = 1e-4


def conv_of(rows: list[list[float]], groups: int = 1) -> nn.Conv2d:
    """A 1×1 convolution of these filters."""
    weight = torch.tensor(rows)
    conv = nn.Conv2d(weight.shape[1] * groups, len(weight), 1, groups=groups, bias=False)
    with torch.no_grad():
        conv.weight.copy_(weight.view_as(conv.weight))
    return conv


def penalty(conv: nn.Conv2d, **options: float | bool) -> float:
    return Decorrelation(conv, DecorrelationConfig(**({"weight": 1.0} | options))).penalty().item()


def test_orthogonal_filters_cost_nothing() -> None:
    assert penalty(conv_of([[3.0, 4.0], [-4.0, 3.0]])) == 0.0


def test_two_equal_filters_by_hand() -> None:
    conv = conv_of([[1.0, 2.0], [1.0, 2.0]])
    assert penalty(conv, channels=False) == pytest.approx(math.sqrt(2) / 2)
    assert penalty(conv) == pytest.approx(math.sqrt(2))  # the two channels are parallel too
    assert penalty(conv, weight=3.0) == pytest.approx(3 * math.sqrt(2))


def test_scale_and_sign_do_not_matter() -> None:
    assert penalty(conv_of([[1.0, 2.0], [-10.0, -20.0]]), channels=False) == pytest.approx(math.sqrt(2) / 2)


def test_an_angle_by_hand() -> None:
    conv = conv_of([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])  # cosines √½, 0, √½, each twice
    assert penalty(conv, channels=False) == pytest.approx(math.sqrt(4 * 0.5) / 3)


def test_channels_are_compared_over_filters() -> None:
    conv = conv_of([[1.0, 1.0], [1.0, -1.0], [0.0, 1.0]])  # channels (1, 1, 0) and (1, −1, 1) are orthogonal
    assert penalty(conv) == penalty(conv, channels=False) > 0


def test_filters_that_are_on_their_way_out_are_left_out() -> None:
    rows = torch.tensor([[1.0, 2.0], [2.0, -1.0], [1e-5, 2e-5]])
    assert correlation_penalty(rows, BOUND).item() == 0.0
    assert correlation_penalty(rows, 1e-6).item() == pytest.approx(math.sqrt(2) / 3)
    assert correlation_penalty(rows[:1], BOUND).item() == 0.0


def test_the_mask_follows_the_weights() -> None:
    conv = conv_of([[1.0, 2.0], [1e-5, 2e-5]])
    decorrelation = Decorrelation(conv, DecorrelationConfig(weight=1.0, channels=False))
    before = decorrelation.penalty().item()
    with torch.no_grad():
        conv.weight[1] *= 1e5
    assert (before, decorrelation.penalty().item()) == (0.0, pytest.approx(math.sqrt(2) / 2))


def test_each_group_of_a_convolution_is_a_layer() -> None:
    equal = conv_of([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [-2.0, 1.0]], groups=2)
    assert penalty(equal, channels=False) == pytest.approx(math.sqrt(2) / 2)


def test_the_gradient_pushes_filters_apart() -> None:
    conv = conv_of([[1.0, 0.1], [1.0, -0.1]])
    decorrelation = Decorrelation(conv, DecorrelationConfig(weight=0.1, channels=False))
    before = decorrelation.penalty().item()
    for _ in range(200):
        conv.zero_grad()
        decorrelation.penalty().backward()
        with torch.no_grad():
            conv.weight -= conv.weight.grad
    assert decorrelation.penalty().item() < 0.1 * before


def test_the_gradient_is_finite_at_its_ends() -> None:
    for rows in ([[3.0, 4.0], [-4.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [1.0, 2.0]]):
        conv = conv_of(rows)
        Decorrelation(conv, DecorrelationConfig(bound=0.0)).penalty().backward()
        assert conv.weight.grad is not None
        assert conv.weight.grad.isfinite().all()


def test_the_start_is_orthogonal_and_of_hes_size(generator: torch.Generator) -> None:
    model = create("digits-cnn", width=8)
    orthogonal_(model, generator)
    decorrelation = DecorrelationConfig(weight=1.0, channels=False)
    assert Decorrelation(model.features[3:4], decorrelation).penalty().item() < 1e-6
    for name in ("3", "7", "10"):
        conv = model.features.get_submodule(name)
        assert conv.weight.square().mean().item() == pytest.approx(2 / (conv.out_channels * 9))
    again = create("digits-cnn", width=8)
    orthogonal_(again, torch.Generator().manual_seed(20190901))
    assert torch.equal(again.features[3].weight, model.features[3].weight)


def test_more_filters_than_weights_have_orthogonal_columns(generator: torch.Generator) -> None:
    conv = nn.Conv2d(2, 8, 1, bias=False)
    orthogonal_(conv, generator)
    columns = conv.weight.flatten(1).double()
    gram = columns.T @ columns
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64) * gram[0, 0], rtol=0, atol=1e-6)
    assert conv.weight.square().mean().item() == pytest.approx(2 / 8)


def test_depthwise_convolutions_are_left_alone(generator: torch.Generator) -> None:
    model = Separable()
    before = model.depthwise.weight.clone()
    orthogonal_(model, generator)
    assert torch.equal(model.depthwise.weight, before)
    assert model.depthwise not in Decorrelation(model, DecorrelationConfig()).convs


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="weight must be ≥ 0, got -1"):
        DecorrelationConfig(weight=-1.0)
    with pytest.raises(ConfigError, match="bound must be a finite number, got inf"):
        DecorrelationConfig(bound=float("inf"))
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(ModelError, match="model must have a Conv2d that is not depthwise, got Sequential with none"):
        Decorrelation(depthwise, DecorrelationConfig())
