"""Torch-Pruning's pruners end at the reduction that was named, by headgate's counting."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from dead_channels import images, trained_
from torch import nn

from headgate import GateConfig, count, gate_
from headgate.baselines.torch_pruning import GroupSparsity, Method, prune
from headgate.errors import BackendError, ConfigError, ModelError
from headgate.models.registry import create

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("torch_pruning") is None, reason="torch-pruning is not installed (extra `baselines`)"
)


def macs(model: nn.Module, x: torch.Tensor) -> int:
    return count(model, x).network_dense_macs


@needs_package
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("digits-resnet", "group-l1"),
        ("digits-resnet", "group-l2"),
        ("digits-resnet", "depgraph"),
        ("mobilenetv1-cifar", "depgraph"),
    ],
)
def test_the_reduction_that_was_named(name: str, method: Method, generator: torch.Generator) -> None:
    model = trained_(create(name, width=8, in_channels=3), generator).float()
    x = images(generator).float()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = prune(model, x, mac_reduction=2.0, method=method)
    assert 2.0 <= macs(model, x) / macs(pruned, x) < 2.2
    assert pruned(x).shape == (2, 10)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert type(pruned) is type(model)
    assert pruned.architecture == model.architecture


@needs_package
def test_the_macs_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.1, 2.0, 0.2]).view(4, 1, 1, 1).expand(4, 1, 3, 3))
        model[2].weight.fill_(1.0)
    x = torch.zeros(1, 1, 8, 8)
    pruned = prune(model, x, mac_reduction=1.9, method="group-l1")
    assert macs(model, x) == 4 * 9 * 36 + 4 * 2 * 9 * 16
    assert macs(pruned, x) == 2 * 9 * 36 + 2 * 2 * 9 * 16  # the two weak channels went
    assert pruned[0].weight[:, 0, 0, 0].tolist() == [1.0, 2.0]


@needs_package
def test_pruners_do_not_share_state(generator: torch.Generator) -> None:
    x = images(generator).float()
    for _ in range(2):
        grouped = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1))
        assert macs(grouped, x) / macs(prune(grouped, x, mac_reduction=1.5), x) >= 1.5


@needs_package
def test_the_regulariser_decays_weak_groups_more(generator: torch.Generator) -> None:
    model = trained_(create("digits-cnn", width=4), generator).float().train()
    x = images(generator, 1).float()
    conv = model.features[0]
    with torch.no_grad():
        conv.weight[1] *= 0.1
    sparsity = GroupSparsity(model, x, weight=0.5)
    assert model.training
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sparsity.add_gradients_()
    ratio = (conv.weight.grad / conv.weight).detach().flatten(1).mean(1)  # decay of each filter
    assert ratio[1] == ratio.max() > ratio.min() > 0


@needs_package
def test_a_reduction_out_of_reach() -> None:
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ModelError, match=r"mac_reduction must be at most \d+\.\d\d for this DigitsCNN"):
        prune(create("digits-cnn", width=4), x, mac_reduction=1e6)


@needs_package
def test_a_gated_model() -> None:
    model = create("digits-cnn", width=4)
    gate_(model, GateConfig(groups=2))
    with pytest.raises(ModelError, match="model must be dense, got a gated DigitsCNN"):
        prune(model, torch.zeros(1, 1, 8, 8), mac_reduction=2.0)


def test_bad_options() -> None:
    model, x = create("digits-cnn", width=4), torch.zeros(1, 1, 8, 8)
    with pytest.raises(ConfigError, match="mac_reduction must be > 1, got 1"):
        prune(model, x, mac_reduction=1)
    with pytest.raises(ConfigError, match="mac_reduction must be a finite number, got nan"):
        prune(model, x, mac_reduction=float("nan"))
    with pytest.raises(ConfigError, match="method must be one of group-l1, group-l2, depgraph, got 'taylor'"):
        prune(model, x, mac_reduction=2.0, method="taylor")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weight must be ≥ 0, got -1"):
        GroupSparsity(model, x, weight=-1.0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(BackendError, match=r"needs the package torch-pruning.*pip install 'headgate\[baselines\]'"):
        prune(create("digits-cnn", width=4), torch.zeros(1, 1, 8, 8), mac_reduction=2.0)
