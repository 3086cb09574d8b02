"""Baselines and binary layers: what cannot be right is refused, the rest works on signs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headgate import models
from headgate.baselines.fbs import fbs_
from headgate.baselines.magnitude import MagnitudePruner, PruningSchedule, theoretical_macs
from headgate.baselines.perforation import perforate_
from headgate.baselines.ssl import GroupLasso, SSLConfig
from headgate.errors import ModelError
from headgate.nn import force_gates


def network() -> nn.Module:
    return models.create("digits-binary-resnet", width=8).eval()


def images() -> Tensor:
    return torch.randn(2, 1, 8, 8)


def test_zeroed_weights_would_be_ones() -> None:
    model, schedule = network(), PruningSchedule(final=0.5, end=10)
    with pytest.raises(ModelError, match=r"6 binary ones \(first: 'stages\.0\.0\.conv'\)"):
        MagnitudePruner(model, schedule)
    MagnitudePruner(model, schedule, exclude=("stages.*",))
    with pytest.raises(ModelError, match="binary"):
        theoretical_macs(model, images())
    with pytest.raises(ModelError, match="binary"):
        GroupLasso(model, SSLConfig(filters=1e-4), images())


def test_perforation_leaves_binary_layers_alone() -> None:
    conversion = perforate_(network(), 0.5, images())
    assert conversion.converted == ("conv1",)


def test_boosted_binary_layers_are_the_dense_ones_when_all_channels_are_computed() -> None:
    model, dense, x = network(), network(), images()
    dense.load_state_dict(model.state_dict())
    fbs_(model)
    with torch.no_grad(), force_gates(model, "open"):
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)
