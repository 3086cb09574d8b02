"""Pruned networks come back from their checkpoints as they were, and into given models; or an error says why not."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from dead_channels import images, silence_, trained_
from torch import Tensor, fx, nn

from headgate import GateConfig, cli, count, export, gate_
from headgate.baselines import (
    GroupLasso,
    MagnitudePruner,
    PruningSchedule,
    SSLConfig,
    fbs_,
    perforate_,
    prune,
    pruned_structure,
    remove,
)
from headgate.checkpoint import Preprocess, info, load, save
from headgate.errors import CheckpointError, ExportError
from headgate.models import create, identify
from headgate.nn import gated_layers

Prune = Callable[[nn.Module, Tensor], nn.Module]

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("torch_pruning") is None, reason="torch-pruning is not installed (extra `baselines`)"
)


def perforated(model: nn.Module, x: Tensor) -> nn.Module:
    perforate_(model, 0.5, x, mask="uniform")
    return model


def with_fbs(model: nn.Module, x: Tensor) -> nn.Module:
    fbs_(model, 0.3)
    return model


def removed(model: nn.Module, x: Tensor) -> nn.Module:
    """By SSL: every third filter is weak, as after training under a group lasso, is zeroed, and goes."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                for parameter in module.parameters():
                    parameter[::3] *= 0.01
    GroupLasso(model, SSLConfig(filters=1.0), x).zero_()
    return remove(model, x).model


def by_torch_pruning(model: nn.Module, x: Tensor) -> nn.Module:
    return prune(model, x, mac_reduction=1.2)


METHODS = [perforated, with_fbs, removed, pytest.param(by_torch_pruning, marks=needs_package)]


def network(name: str = "digits-resnet", seed: int = 0) -> nn.Module:
    """Norms as after training, in evaluation mode; of another seed, other values in all of it."""
    torch.manual_seed(seed)
    return trained_(create(name, width=8, in_channels=3), torch.Generator().manual_seed(seed)).float()


def same_outputs(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        outputs = one(x)
        return not torch.equal(outputs[0], outputs[1]) and torch.equal(outputs, other(x))


# ----------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["digits-cnn", "digits-resnet", "resnet20"])
def test_round_trip(name: str, method: Prune, tmp_path: Path, generator: torch.Generator) -> None:
    dense, x = network(name), images(generator).float()
    dense.preprocess = Preprocess([0.5] * 3, [0.25] * 3)
    model = method(copy.deepcopy(dense), x).eval()
    assert model.state_dict().keys() != dense.state_dict().keys() or any(
        value.shape != dense.state_dict()[key].shape for key, value in model.state_dict().items()
    )
    save(model, tmp_path / "a")
    state = torch.get_rng_state()
    again = load(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert not again.training
    assert type(again) is type(dense)
    assert same_outputs(model, again, x)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert identify(again) == identify(dense)
    assert again.preprocess == dense.preprocess
    assert count(again, x).to_dict() == count(model, x).to_dict()
    about = info(tmp_path / "a")
    assert about.structure is None
    assert about.pruned == json.loads(json.dumps(pruned_structure(model, dense)))
    save(again, tmp_path / "b")
    assert info(tmp_path / "b") == about


@pytest.mark.parametrize("method", METHODS)
def test_into_a_dense_model(method: Prune, tmp_path: Path, generator: torch.Generator) -> None:
    x = images(generator).float()
    model, target = method(network(), x).eval(), network(seed=1).train()
    save(model, tmp_path / "a")
    state = torch.get_rng_state()
    assert load(tmp_path / "a", model=target) is target
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in target.modules())
    assert same_outputs(model, target.eval(), x)


@pytest.mark.parametrize("method", METHODS)
def test_into_a_model_that_is_pruned_alike(method: Prune, tmp_path: Path, generator: torch.Generator) -> None:
    x = images(generator).float()
    model = method(network(), x).eval()
    target = copy.deepcopy(model)
    for parameter in target.parameters():
        nn.init.normal_(parameter)
    parameters = [*target.parameters()]
    save(model, tmp_path / "a")
    load(tmp_path / "a", model=target)
    assert all(one is other for one, other in zip(target.parameters(), parameters, strict=True))
    assert same_outputs(model, target, x)


@pytest.mark.parametrize(
    ("method", "name"), [(perforated, "mobilenet_v2"), (with_fbs, "mobilenet_v2"), (removed, "squeezenet1_1")]
)
def test_a_torchvision_model_is_recognised(
    method: Prune, name: str, tmp_path: Path, generator: torch.Generator
) -> None:
    dense = torchvision.models.get_model(name, num_classes=7).eval()
    x = images(generator, size=32).float()
    model = method(copy.deepcopy(dense), x).eval()
    save(model, tmp_path / "a")
    about = info(tmp_path / "a").architecture
    assert about is not None
    assert (about["name"], about["num_classes"]) == (f"torchvision/{name}", 7)
    again = load(tmp_path / "a")
    assert type(again) is type(dense)
    assert same_outputs(model, again, x)


def test_a_network_that_is_not_pruned_says_nothing_of_it(tmp_path: Path) -> None:
    dense = network()
    save(dense, tmp_path / "dense")
    assert info(tmp_path / "dense").pruned is None
    pruner = MagnitudePruner(dense, PruningSchedule(final=0.5, end=1))
    pruner.step(1)
    pruner.finish_()
    save(dense, tmp_path / "zeros")
    assert info(tmp_path / "zeros").pruned is None
    assert (load(tmp_path / "zeros").layer2[0].conv1.weight == 0).float().mean() == 0.5


def with_six_channels(model: nn.Module, x: Tensor) -> nn.Module:
    """In the first convolution of the first block, instead of eight."""
    silence_(model, "layer1.0.conv1", "layer1.0.bn1", [1, 4])
    return remove(model, x).model


def test_a_smaller_network_that_is_gated(tmp_path: Path, generator: torch.Generator) -> None:
    x = images(generator).float()
    model = with_six_channels(network(), x)
    gate_(model, GateConfig(groups=2))
    assert gated_layers(model)["layer1.0.conv1"].out_channels == 6
    save(model, tmp_path / "a")
    about = info(tmp_path / "a")
    assert about.pruned is not None
    assert about.pruned["channels"]["layer1.0.bn1"] == {"num_features": 6}
    for again in (load(tmp_path / "a"), load(tmp_path / "a", model=network(seed=1))):
        assert same_outputs(model, again, x)
        load(tmp_path / "a", model=again)
        assert same_outputs(model, again, x)


def test_a_smaller_network_that_is_perforated(tmp_path: Path, generator: torch.Generator) -> None:
    x = images(generator).float()
    model = perforated(removed(network(), x), x).eval()
    save(model, tmp_path / "a")
    assert info(tmp_path / "a").pruned.keys() == {"channels", "perforated"}
    assert same_outputs(model, load(tmp_path / "a"), x)


def test_gates_of_fbs_that_are_held_stay_so(tmp_path: Path, generator: torch.Generator) -> None:
    x = images(generator).float()
    model = with_fbs(network(), x)
    for layer in gated_layers(model).values():
        layer.gate.forced = "open"
    save(model, tmp_path / "a")
    assert same_outputs(model, load(tmp_path / "a"), x)


# ------------------------------------------------------------------------------------------------------------- branches


def without_a_branch(x: Tensor) -> nn.Module:
    dense = network()
    silence_(dense, "layer1.0.conv1", "layer1.0.bn1", [1, 4])
    silence_(dense, "layer2.0.conv2", "layer2.0.bn2", [*range(16)])
    silence_(dense, "layer3.0.conv1", "layer3.0.bn1", [2])
    model = remove(dense, x).model
    assert isinstance(model, fx.GraphModule)
    return model


def test_a_dropped_branch_stays_away(tmp_path: Path, generator: torch.Generator) -> None:
    x = images(generator).float()
    model = without_a_branch(x)
    save(model, tmp_path / "a")
    about = info(tmp_path / "a")
    assert about.pruned is not None
    assert about.pruned["dropped"] == ["layer2.0.conv1", "layer2.0.conv2"]
    again = load(tmp_path / "a")
    assert isinstance(again, fx.GraphModule)
    assert same_outputs(model, again, x)
    assert count(again, x).to_dict() == count(model, x).to_dict()
    save(again, tmp_path / "b")
    assert info(tmp_path / "b") == about
    assert load(tmp_path / "a", model=again) is again

    target = network(seed=1)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(
        CheckpointError, match=r"must be without the 2 layers that were dropped, got a ResNet with 'lay"
    ):
        load(tmp_path / "a", model=target)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


# ----------------------------------------------------------------------------------------------------- what uses a file


@pytest.mark.parametrize("method", [perforated, with_fbs, removed])
def test_the_command_line(
    method: Prune, tmp_path: Path, generator: torch.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    x = images(generator, 1).float()
    model = method(trained_(create("digits-resnet", width=8), generator).float(), x)
    model.preprocess = Preprocess([0.5], [0.5], input_size=(8, 8))
    path, plan = str(tmp_path / "model.safetensors"), tmp_path / "model.hgplan"
    save(model, path)
    assert cli.main(["eval", path, "--data", "digits", "--images", "100"]) == 0
    assert "layer2.0.conv1" in capsys.readouterr().out
    code = cli.main(["export", path, str(plan), "--image", "1", "8", "8"])
    if method in (perforated, with_fbs):
        assert code == 1
        assert ("PerforatedConv2d" if method is perforated else "FBSConv2d") in capsys.readouterr().err
    assert plan.exists() == (method not in (perforated, with_fbs))


def test_an_exported_network_is_the_smaller_one(tmp_path: Path, generator: torch.Generator) -> None:
    x = images(generator).float()
    for name, model in (("channels", removed(network(), x)), ("branch", without_a_branch(x))):
        save(model, tmp_path / name)
        report = export(load(tmp_path / name), tmp_path / "plan", example_input=x)
        assert sum(operator.macs for operator in report.operators) == count(model, x).network_dense_macs


@pytest.mark.parametrize(("method", "layer"), [(perforated, "pad in PerforatedConv2d"), (with_fbs, "a FBSConv2d")])
def test_what_a_plan_cannot_express(method: Prune, layer: str, tmp_path: Path, generator: torch.Generator) -> None:
    x = images(generator).float()
    with pytest.raises(ExportError, match=rf"cannot export '(layer1.0.)?conv1.*{layer}"):
        export(method(network(), x), tmp_path / "plan", example_input=x)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("saved", "given", "message"),
    [
        (perforated, with_fbs, "holds a perforated ResNet, got a FBS ResNet; pass a dense one"),
        (with_fbs, perforated, "holds a FBS ResNet, got a perforated ResNet; pass a dense one"),
        (lambda model, x: model, perforated, "holds a dense ResNet, got a perforated ResNet; pass a dense one"),
        (lambda model, x: model, with_fbs, "holds a dense ResNet, got a FBS ResNet; pass a dense one"),
        (
            perforated,
            lambda model, x: perforated(model, x[:, :, :6, :6]),
            r"is pruned with \[8, 8\] in 'conv1', got \[6, 6\] in model; pass a dense one",
        ),
        (
            with_fbs,
            lambda model, x: (fbs_(model, 0.5), model)[1],
            r"is pruned with .*'channels': 3.* in 'layer1.0.conv1', got .*'channels': 4.* in model; pass a dense one",
        ),
        (
            removed,
            lambda model, x: create("digits-cnn", width=8, in_channels=3),
            "holds a pruned ResNet, which DigitsCNN",
        ),
        (
            with_six_channels,
            lambda model, x: create("digits-resnet", width=4),
            "holds another model than this ResNet: of another",
        ),
    ],
)
def test_a_model_that_is_pruned_otherwise(
    saved: Prune, given: Prune, message: str, tmp_path: Path, generator: torch.Generator
) -> None:
    x = images(generator).float()
    save(saved(network(), x), tmp_path / "a")
    target = given(network(seed=1), x)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "a", model=target)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def rewritten(path: Path, pruned: Any) -> None:
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["headgate"])
    text = json.dumps(header | {"pruned": pruned})
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"headgate": text})


@pytest.mark.parametrize(
    ("method", "pruned", "message"),
    [
        (perforated, None, "not in the model: .*source|missing in the file: conv1.weight"),
        (perforated, 5, "damaged headgate metadata"),
        (perforated, {"colour": {}}, r"structure must be what pruned_structure returns, .*\['colour'\]"),
        (
            perforated,
            {"perforated": {"conv1": [8, 8]}},
            "holds another model than this ResNet: missing in the file: lay",
        ),
        (with_fbs, {"fbs": {"layer1.0.conv1": {"norm": "bn1", "channels": 3}}}, "holds another model than this ResNet"),
        (
            removed,
            {"dropped": ["conv1"]},
            "cannot build: layers must make up residual branches of ResNet .* got 'conv1'",
        ),
        (removed, {"dropped": ["conv9"]}, "cannot build: model must have a convolution or linear layer named 'conv9'"),
        (removed, {"dropped": 5}, "cannot build"),
    ],
)
def test_damaged_structures(
    method: Prune, pruned: Any, message: str, tmp_path: Path, generator: torch.Generator
) -> None:
    save(method(network(), images(generator).float()), tmp_path / "a")
    rewritten(tmp_path / "a", pruned)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "a")


def test_positions_that_are_not_computed(tmp_path: Path, generator: torch.Generator) -> None:
    model, target = perforated(network(), images(generator).float()), network(seed=1)
    save(model, tmp_path / "a")
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(tmp_path / "a")
    tensors["layer1.0.conv1.source"][0, 0] = 64  # of 64
    safetensors.torch.save_file(tensors, tmp_path / "a", metadata)
    with pytest.raises(CheckpointError, match=r"is damaged in 'layer1.0.conv1': source must name computed positions"):
        load(tmp_path / "a", model=target)
    assert type(target.conv1) is nn.Conv2d


def test_files_from_before_pruning_was_recorded(tmp_path: Path, generator: torch.Generator) -> None:
    dense, x = network(), images(generator).float()
    save(dense, tmp_path / "a")
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        header = json.loads(file.metadata()["headgate"])
    del header["pruned"]
    tensors = safetensors.torch.load_file(tmp_path / "a")
    safetensors.torch.save_file(tensors, tmp_path / "a", {"headgate": json.dumps(header)})
    assert same_outputs(dense, load(tmp_path / "a"), x)
