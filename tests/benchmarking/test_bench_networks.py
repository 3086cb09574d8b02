"""What is timed: synthetic thresholds, networks with held gates as plain ones, thinner networks, images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import headgate as hg
from headgate.benchmarking.images import pink_noise, real_images, stored_images, white_noise
from headgate.benchmarking.plain import ChannelShuffle, plain
from headgate.benchmarking.synthetic import observe_decisions, settle_, smooth_kernels_
from headgate.benchmarking.thinner import narrowest, thinner
from headgate.errors import BenchmarkError, ConfigError, DataError, ModelError
from headgate.models import create
from headgate.nn import force_gates, gated_layers
from headgate.nn.selection import shuffle_channels

SHAPE = (3, 32, 32)
ROUNDING = 1e-4
"""Relative to the largest output: the same float32 network, its norms applied by other operators."""


def settled(images: torch.Tensor, *, density: float | None = None, **options: object) -> nn.Module:
    model = create("resnet20", width=8).eval()
    hg.gate_(model, hg.GateConfig(**{"groups": 4} | options), example_input=images[:1])  # type: ignore[arg-type]
    settle_(model, images, density=density)
    return model


@pytest.mark.parametrize("granularity", ["activation", "group"])
@pytest.mark.parametrize("density", [0.0, 0.06, 0.5])
def test_every_threshold_reaches_the_density(granularity: str, density: float) -> None:
    images = white_noise(6, SHAPE, 1)
    model = settled(images, density=density, granularity=granularity)
    decisions = observe_decisions(model, images)
    assert decisions.keys() == gated_layers(model).keys()
    first = decisions["layer1.0.conv1"]
    assert first.density == pytest.approx(density, abs=0.01)
    mean = sum(decided.density for decided in decisions.values()) / len(decisions)
    assert mean == pytest.approx(density, abs=0.03)
    layer = gated_layers(model)["layer1.0.conv1"]
    assert layer.gate.threshold.unique().numel() > 1  # each decision's own quantile


def test_the_pass_leaves_no_hooks_and_the_plan_opens_what_torch_opens(tmp_path: Path) -> None:
    images = white_noise(4, SHAPE, 2)
    model = settled(images, density=0.2)
    hg.export(model, tmp_path / "m.hgplan", example_input=images[:1])  # refuses hooks
    engine = hg.Engine(tmp_path / "m.hgplan", threads=1)
    engine(images.numpy())
    decided = observe_decisions(model, images)
    first = next(layer for layer in engine.stats() if layer.decisions)
    assert first.density == pytest.approx(decided[first.name].density, abs=0.002)


def test_images_that_break_the_network_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="finite numbers on synthetic images"):
        settle_(create("resnet20", width=8), torch.full((2, *SHAPE), float("nan")))


def test_pink_noise_and_blurring_kernels_cluster_decisions() -> None:
    white, pink = white_noise(8, SHAPE, 3), pink_noise(8, SHAPE, 3)
    assert pink.var((2, 3), correction=0).allclose(torch.ones(8, 3), atol=1e-4)
    independent = observe_decisions(settled(white, density=0.1), white)
    model = create("resnet20", width=8).eval()
    smooth_kernels_(model, 0)
    hg.gate_(model, hg.GateConfig(groups=4), example_input=pink[:1])
    settle_(model, pink, density=0.1)
    clustered = observe_decisions(model, pink)
    for name, decided in independent.items():
        if "downsample" in name:
            continue
        assert decided.after_open is not None
        assert decided.after_open < 0.3
    shares = [decided.after_open for decided in clustered.values() if decided.after_open is not None]
    assert sum(shares) / len(shares) > 0.35


@pytest.mark.parametrize("norm", ["separate", "shared"])
def test_held_open_is_the_dense_network_with_its_names(norm: str) -> None:
    images = white_noise(3, SHAPE, 4)
    gated = settled(images, density=0.3, norm=norm)
    dense = plain(gated, "open")
    assert not gated_layers(dense)
    assert dict(dense.named_modules()).keys() == dict(create("resnet20", width=8).named_modules()).keys()
    with torch.no_grad(), force_gates(gated, "open"):
        expected = gated(images)
        assert (dense(images) - expected).abs().max() <= ROUNDING * expected.abs().max()


@pytest.mark.parametrize("shuffle", [False, True])
def test_held_closed_is_a_network_of_grouped_convolutions(shuffle: bool) -> None:
    images = white_noise(3, SHAPE, 5)
    gated = settled(images, shuffle=shuffle)
    closed = plain(gated, "closed")
    groups = [module.groups for module in closed.modules() if isinstance(module, nn.Conv2d)]
    assert groups.count(4) == len(gated_layers(gated))
    with torch.no_grad(), force_gates(gated, "closed"):
        expected = gated(images)
        assert (closed(images) - expected).abs().max() <= ROUNDING * expected.abs().max()


def test_a_first_fraction_has_no_grouped_form() -> None:
    images = white_noise(2, SHAPE, 6)
    with pytest.raises(ModelError, match="grouped base"):
        plain(settled(images, grouped=False), "closed")


def test_the_channel_shuffle_is_the_gates() -> None:
    x = torch.arange(24.0).view(2, 12, 1, 1)
    assert torch.equal(ChannelShuffle(3)(x), shuffle_channels(x, 3))


def test_thinner_networks_keep_input_and_output() -> None:
    model = create("resnet20", width=16)
    thin = thinner(model, 7 / 16, torch.zeros(2, *SHAPE))
    convs = [module for module in thin.modules() if isinstance(module, nn.Conv2d)]
    assert narrowest(model) == 16
    assert sorted({conv.out_channels for conv in convs}) == [7, 14, 28]
    assert convs[0].in_channels == 3
    assert thin(torch.zeros(2, *SHAPE)).shape == (2, 10)
    assert narrowest(model) == 16  # untouched
    depthwise = thinner(create("mobilenetv1-cifar"), 0.5, torch.zeros(2, *SHAPE))
    assert depthwise(torch.zeros(2, *SHAPE)).shape == (2, 10)


def test_layers_that_do_not_fit_are_refused() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1, groups=1)
            self.c = nn.Conv2d(10, 10, 1, groups=10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))  # type: ignore[no-any-return]

    with pytest.raises(ModelError, match=r"cannot be made 0\.50 as wide"):
        thinner(Uneven(), 0.5, torch.zeros(2, *SHAPE))


def test_stored_images(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.ones((5, *SHAPE), np.float32))
    np.save(tmp_path / "double.npy", np.ones((5, *SHAPE)))
    (tmp_path / "foreign.npy").write_text("no array")
    assert stored_images(str(tmp_path / "good.npy"), 4).shape == (4, *SHAPE)
    for name, message in (
        ("good.npy", "at least 6 images, got 5"),
        ("double.npy", "expected float32"),
        ("foreign.npy", "not a readable .npy file"),
        ("missing.npy", "not a readable .npy file"),
    ):
        with pytest.raises(DataError, match=message):
            stored_images(str(tmp_path / name), 6)
    with pytest.raises(ConfigError, match="data must be given"):
        real_images(nn.Identity(), None, None, 1)
