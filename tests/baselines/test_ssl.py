"""Group lasso by hand, what zeroing zeroes, and that the smaller network is the masked one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from dead_channels import Separable, images, trained_
from torch import nn

from headgate import count
from headgate.baselines.removal import remove
from headgate.baselines.ssl import (
    GroupLasso,
    Kind,
    SSLConfig,
    ZeroMask,
    group_norms,
    residual_branches,
    shape_macs,
    zero_columns,
)
from headgate.errors import ConfigError, ModelError
from headgate.models.registry import create


def tiny(groups: int = 1) -> nn.Sequential:
    """A 2×2 convolution with one tap, weights 3, 4, 0, 12 in the order (filter, channel)."""
    conv = nn.Conv2d(2, 2, 1, groups=groups, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([3.0, 4.0, 0.0, 12.0][: conv.weight.numel()]).view_as(conv.weight))
    return nn.Sequential(conv, nn.BatchNorm2d(2), nn.ReLU())


@pytest.mark.parametrize(
    ("kind", "norms"),
    [
        ("filters", [5.0, 12.0]),
        ("channels", [3.0, math.sqrt(160)]),
        ("shapes", [3.0, math.sqrt(160)]),
        ("depth", [13.0]),
    ],
)
def test_norms_by_hand(kind: Kind, norms: list[float]) -> None:
    actual, size = group_norms(tiny()[0], kind)
    torch.testing.assert_close(actual, torch.tensor(norms))
    assert size == 4 // len(norms)


def test_shapes_tell_taps_apart() -> None:
    conv = nn.Conv2d(1, 2, (1, 2), bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[3.0, 1.0], [4.0, 0.0]]).view_as(conv.weight))
    torch.testing.assert_close(group_norms(conv, "shapes")[0], torch.tensor([5.0, 1.0]))
    torch.testing.assert_close(group_norms(conv, "channels")[0], torch.tensor([math.sqrt(26)]))


def test_each_group_of_a_convolution_has_its_own_columns() -> None:
    conv = tiny(groups=2)[0]
    assert group_norms(conv, "filters")[0].tolist() == group_norms(conv, "shapes")[0].tolist() == [3.0, 4.0]


def test_the_norm_behind_belongs_to_the_filter_and_the_layer() -> None:
    model = tiny()
    with torch.no_grad():
        model[1].bias[1] = 2.0
    torch.testing.assert_close(group_norms(model[0], "filters", model[1])[0], torch.tensor([26.0, 149.0]).sqrt())
    assert group_norms(model[0], "depth", model[1])[1] == 8
    assert group_norms(model[0], "channels", model[1])[0][0] == 3.0


def test_the_penalty_by_hand() -> None:
    config = SSLConfig(filters=0.1, channels=0.01, shapes=0.001)
    lasso = GroupLasso(tiny(), config, torch.zeros(1, 2, 4, 4))
    filters, columns = math.sqrt(26) + math.sqrt(145), 3 + math.sqrt(160)
    assert lasso.penalty().item() == pytest.approx(0.1 * filters + 0.01 * columns + 0.001 * columns)


def test_depth_is_of_residual_branches_only() -> None:
    model = create("digits-resnet", width=4)
    x = torch.zeros(1, 1, 8, 8)
    branches = (
        ("layer1.0.conv1", "layer1.0.conv2"),
        ("layer2.0.conv1", "layer2.0.conv2"),
        ("layer3.0.conv1", "layer3.0.conv2"),
    )
    assert residual_branches(model, x) == branches
    expected = sum(
        math.sqrt(model.get_submodule(name).weight.square().sum().item() + channels)  # and as many norm weights of 1
        for branch, channels in zip(branches, (4, 8, 16), strict=True)
        for name in branch
    )
    assert GroupLasso(model, SSLConfig(depth=2.0), x).penalty().item() == pytest.approx(2 * expected)


def test_a_branch_with_squeeze_and_excite_is_one() -> None:
    branches = residual_branches(create("torchvision/efficientnet_b0"), torch.zeros(1, 3, 32, 32))
    assert len(branches) == 9
    assert [name.removeprefix("features.2.1.") for name in branches[0]] == [
        "block.0.0", "block.1.0", "block.2.fc1", "block.2.fc2", "block.3.0"
    ]  # fmt: skip


def test_the_gradient_of_a_zero_group_is_zero() -> None:
    model = tiny()[:1]
    with torch.no_grad():
        model[0].weight[1] = 0.0
    GroupLasso(model, SSLConfig(filters=1.0), torch.zeros(1, 2, 4, 4)).penalty().backward()
    torch.testing.assert_close(model[0].weight.grad.flatten(), torch.tensor([0.6, 0.8, 0.0, 0.0]))


def test_zeroing_takes_groups_at_the_bound_and_the_norm_behind() -> None:
    model = tiny()
    with torch.no_grad():
        model[0].weight[0] = torch.tensor([6.0, 0.0])[:, None, None]
        model[1].weight.copy_(torch.tensor([0.0, 5.0]))  # norms 6 and 13
    x = torch.zeros(1, 2, 4, 4)
    assert GroupLasso(model, SSLConfig(filters=1.0, bound=0.46), x).zero_() == (("0", "filters", 0, 2),)
    assert GroupLasso(model, SSLConfig(filters=1.0, bound=0.47), x).zero_() == (("0", "filters", 1, 2),)
    assert model[0].weight.flatten().tolist() == [0, 0, 0, 12]
    assert (model[1].weight.tolist(), model[1].bias.tolist()) == ([0, 5], [0, 0])


@pytest.mark.parametrize("kind", ["channels", "shapes"])
def test_zeroing_columns_leaves_the_norm(kind: Kind) -> None:
    model = tiny()
    GroupLasso(model, SSLConfig(**{kind: 1.0}, bound=0.3), torch.zeros(1, 2, 4, 4)).zero_()
    assert model[0].weight.flatten().tolist() == [0, 4, 0, 12]
    assert model[1].weight.tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["filters", "channels", "shapes"])
@pytest.mark.parametrize(
    ("name", "size"), [("torchvision/resnet18", 32), ("resnet20", 8), ("vgg16-cifar", 32), ("mobilenetv1-cifar", 32)]
)
def test_the_smaller_network_equals_the_masked_one(
    name: str, size: int, kind: Kind, generator: torch.Generator
) -> None:
    width = {} if "/" in name else {"width": 8}
    model = trained_(create(name, **width), generator)
    x = images(generator, size=size)
    with torch.no_grad():
        before = model(x)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # every second channel of everything is weak
                module.weight[::2, ...] *= 1e-3
                module.weight[:, ::2] *= 1e-3
            elif isinstance(module, nn.BatchNorm2d):
                module.weight[::2] *= 1e-3
                module.bias[::2] *= 1e-3
    zeroed = GroupLasso(model, SSLConfig(**{kind: 1.0}), x).zero_()
    assert sum(group.zeroed for group in zeroed) > 0.3 * sum(group.groups for group in zeroed)
    removal = remove(model, x)
    with torch.no_grad():
        masked, smaller = model(x), removal.model(x)
    assert not torch.allclose(before, masked)
    torch.testing.assert_close(smaller, masked, rtol=0, atol=1e-11 * float(masked.abs().max()))
    left = count(removal.model, x)
    assert left.network_dense_macs < 0.5 * count(model, x).network_dense_macs
    assert sum(shape_macs(removal.model, left).values()) <= left.network_dense_macs


def test_a_depthwise_network_loses_channels_through_and_through(generator: torch.Generator) -> None:
    model, x = trained_(Separable(), generator), images(generator)
    with torch.no_grad():
        for module in (model.stem, model.bn1, model.depthwise, model.bn2):
            for parameter in module.parameters():
                parameter[[2, 3, 7]] *= 1e-9
    GroupLasso(model, SSLConfig(filters=1.0), x).zero_()
    removal = remove(model, x)
    assert {removal.channels[name] for name in ("stem", "depthwise")} == {(8, 5)}
    with torch.no_grad():
        torch.testing.assert_close(removal.model(x), model(x), rtol=0, atol=1e-12)
    macs = {layer.name: layer.dense_macs for layer in count(removal.model, x).layers}
    assert (macs["stem"], macs["depthwise"], macs["pointwise"]) == (5 * 27 * 64, 5 * 9 * 64, 5 * 12 * 64)


def test_a_layer_under_the_bound_takes_its_whole_branch(generator: torch.Generator) -> None:
    model, x = trained_(create("digits-resnet", width=4, in_channels=3), generator), images(generator)
    with torch.no_grad():
        for name in ("layer2.0.conv1", "layer2.0.bn1"):
            for parameter in model.get_submodule(name).parameters():
                parameter *= 1e-9
    zeroed = GroupLasso(model, SSLConfig(depth=1.0), x).zero_()
    assert [(group.layer, group.zeroed) for group in zeroed if group.zeroed] == [("layer2.0.conv1", 1)]
    removal = remove(model, x)
    assert removal.dropped == ("layer2.0.conv1", "layer2.0.conv2")
    with torch.no_grad():
        torch.testing.assert_close(removal.model(x), model(x), rtol=0, atol=1e-12)


def test_columns_are_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1, groups=2))
    x = torch.zeros(1, 2, 5, 5)
    with torch.no_grad():
        model[0].weight[:, 1, 0] = 0.0  # three columns of 18
        model[2].weight[:3, :, 1, 1] = 0.0  # two columns of the first group's 18
        model[2].weight[3, 0, 0, 0] = 0.0  # no column
    assert (zero_columns(model[0]), zero_columns(model[2])) == ((3, 18), (2, 36))
    assert shape_macs(model, count(model, x)) == {"0": 15 * 4 * 25, "2": (16 + 18) * 3 * 25}


def test_zeros_stay_through_fine_tuning() -> None:
    model = tiny()
    mask = ZeroMask(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimiser.zero_grad()
        (model[0](torch.ones(1, 2, 3, 3)) - 1).square().sum().backward()
        optimiser.step()
        mask.apply_()
    weight = model[0].weight.flatten().tolist()
    assert weight[2] == 0.0
    assert weight[0] != 3.0


@pytest.mark.slow
def test_training_under_the_lasso_empties_filters_of_digits() -> None:
    from headgate.train.data import load_in_memory

    data = load_in_memory("digits", "train", channels=1)
    x, y = data.images.float() / 255, data.labels
    model = create("digits-cnn", width=16)
    lasso = GroupLasso(model, SSLConfig(filters=0.02, bound=0.1), x[:1])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=12)
    for _ in range(12):
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            (F.cross_entropy(model(x[batch]), y[batch]) + lasso.penalty()).backward()
            optimiser.step()
        schedule.step()
    model.eval()
    zeroed = lasso.zero_()
    removal = remove(model, x[:1])
    assert sum(group.zeroed for group in zeroed) > 5
    assert count(removal.model, x[:1]).network_dense_macs < 0.9 * count(model, x[:1]).network_dense_macs
    with torch.no_grad():
        assert (removal.model(x).argmax(1) == y).float().mean() > 0.85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of filters, channels, shapes, depth must be > 0"),
        ({"filters": -1.0}, "filters must be ≥ 0, got -1.0"),
        ({"shapes": float("nan")}, "shapes must be a finite number, got nan"),
        ({"depth": 1.0, "bound": -1e-3}, "bound must be ≥ 0, got -0.001"),
        ({"depth": 1.0, "bound": 1.0}, "bound must be < 1, got 1.0"),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SSLConfig(**options)


def test_bad_models() -> None:
    with pytest.raises(ModelError, match="depth needs residual branches, got DigitsCNN without any"):
        GroupLasso(create("digits-cnn", width=4), SSLConfig(depth=1.0), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ModelError, match="model must have a Conv2d to regularise, got Linear with none"):
        GroupLasso(nn.Linear(2, 2), SSLConfig(filters=1.0), torch.zeros(1, 2))
    model, x = tiny(), torch.zeros(1, 2, 4, 4)
    with pytest.raises(ModelError, match="counts must be of this model, got '0'"):
        shape_macs(nn.Module(), count(model, x))
