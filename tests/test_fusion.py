"""`fuse`: what it rewrites, that it computes the same, and that it shares everything with the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn

from headgate.convert import gate_
from headgate.errors import ModelError
from headgate.fusion import NormAct, fuse, set_sync_
from headgate.nn import GateConfig, GatedConv2d, force_gates, observe
from headgate.nn.gates import Gate
from headgate.nn.sum_norm import SumNorm

TOLERANCE = 1e-9  # float64; the same decisions, other orders of summation


def calls(fused: fx.GraphModule) -> dict[str, tuple[bool, bool]]:
    """(residual, relu) of every call that can take them."""
    return {
        str(node.target): (node.args[1] is not None, bool(node.args[2]))
        for node in fused.graph.nodes
        if node.op == "call_module" and len(node.args) == 3
    }


def left(fused: fx.GraphModule) -> list[str]:
    """Sums and activations that are still nodes of their own."""
    names = ("add", "iadd", "relu")
    return [n.name for n in fused.graph.nodes if any(name in n.name for name in names) and len(n.args) < 3]


def train_alike(model: nn.Module, x: Tensor, run: nn.Module | None = None) -> None:
    """A step of the fused model and one of the model itself give the same gradients and statistics."""
    twin = copy.deepcopy(model)
    run = run if run is not None else fuse(model)
    fused, plain = run(x), twin(x)
    assert (fused - plain).abs().max() < TOLERANCE * plain.abs().max()
    fused.square().sum().backward()
    plain.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert (a.grad is None) == (b[1].grad is None), name
        if a.grad is not None and b[1].grad is not None:
            assert (a.grad - b[1].grad).abs().max() <= TOLERANCE * max(1.0, b[1].grad.abs().max().item()), name
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert (a.double() - b.double()).abs().max() < TOLERANCE, name


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("gated", [False, True], ids=["dense", "gated"])
def test_fuses_residual_networks(name: str, gated: bool) -> None:
    model = getattr(torchvision.models, name)(num_classes=10).double()
    if gated:
        gate_(model, GateConfig(groups=4))
    fused = fuse(model.train())
    assert left(fused) == []
    found = calls(fused)
    blocks, per_block = {"resnet18": (8, 2), "resnet50": (16, 3)}[name]
    downsamples = sum("downsample" in target for target in model.state_dict() if target.endswith("downsample.0.weight"))
    # Of each block's last layer and its downsample the later one takes the residual and the ReLU; where a gated layer
    # is the other one, it stays a plain call.
    plain = downsamples if gated else 0
    assert len(found) == 1 + blocks * per_block + downsamples - plain
    assert sum(residual for residual, _ in found.values()) == blocks
    assert sum(relu for _, relu in found.values()) == 1 + blocks * per_block
    assert found["layer2.0.downsample.0" if gated else "layer2.0.downsample.1"] == (True, True)
    if name == "resnet18":
        train_alike(model, torch.randn(4, 3, 64, 64, dtype=torch.float64), fused)


@pytest.mark.parametrize("granularity", ["activation", "group", "channel", "l1norm", "fc"])
@pytest.mark.parametrize("norm", ["separate", "shared"])
def test_every_gate_trains_the_same_fused(granularity: Any, norm: Any) -> None:
    block = torchvision.models.resnet.BasicBlock(8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), block).double().train()
    gate_(model, GateConfig(groups=2, granularity=granularity, norm=norm))
    train_alike(model, torch.randn(4, 3, 9, 9, dtype=torch.float64))


def test_parameters_buffers_and_gates_are_shared() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    )
    gate_(model, GateConfig(groups=2))
    fused = fuse(model.train())
    pointers = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in fused.parameters()} == pointers
    assert list(model.state_dict()) == list(copy.deepcopy(model).state_dict())
    x = torch.randn(2, 3, 8, 8)
    before = model[1].running_mean.clone()
    fused(x)
    assert not torch.equal(model[1].running_mean, before)
    assert model[1].num_batches_tracked == 1
    seen: list[str] = []
    with force_gates(model, "closed"), observe(model, lambda name, *_: seen.append(name)):
        assert (fused.eval()(x) - model.eval()(x)).abs().max() < 1e-5
    assert seen == ["3", "3"]


def test_the_norms_own_mode_counts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    fused = fuse(model.train())
    model.eval()
    x = torch.randn(2, 3, 8, 8)
    assert (fused(x) - model(x)).abs().max() < 1e-5
    assert model[1].num_batches_tracked == 0


class Tail(nn.Module):
    """Convolution a → norm → tail(that, shortcut); the shortcut is a convolution b → norm."""

    def __init__(self, tail: Callable[[Tensor, Tensor], Tensor], *, late: bool = False) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.tail, self.late = tail, late

    def forward(self, x: Tensor) -> Tensor:
        if self.late:
            y = self.norm_a(self.a(x))
            return self.tail(y, F.max_pool2d(self.b(x), 3, 1, 1))
        shortcut = self.norm_b(self.b(x))
        return self.tail(self.norm_a(self.a(x)), shortcut)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (lambda y, s: F.relu(y + s), {"norm_b": (False, False), "norm_a": (True, True)}),
        (lambda y, s: (s + y).relu(), {"norm_b": (False, False), "norm_a": (True, True)}),
        (lambda y, s: F.relu(s + F.relu(y)), {"norm_b": (True, True), "norm_a": (False, True)}),
        (lambda y, s: F.relu(y) + F.relu(s), {"norm_b": (False, True), "norm_a": (False, True)}),
        (lambda y, s: y + s, {"norm_b": (False, False), "norm_a": (False, False)}),
        (lambda y, s: F.relu6(y + s), {"norm_b": (False, False), "norm_a": (False, False)}),
        (lambda y, s: F.relu(y + 2 * s), {"norm_b": (False, False), "norm_a": (True, True)}),
        (lambda y, s: F.relu(torch.add(y, s, alpha=2)), {"norm_b": (False, False), "norm_a": (False, False)}),
        (lambda y, s: F.relu(y) + y + s, {"norm_b": (False, False), "norm_a": (False, False)}),
        (lambda y, s: F.relu(y + y) + s, {"norm_b": (False, False), "norm_a": (False, False)}),
        (lambda y, s: F.relu(y.add_(s)), {"norm_b": (False, False), "norm_a": (True, True)}),
        (lambda y, s: F.relu(F.dropout(y, 0.0) + s), {"norm_b": (True, True), "norm_a": (False, False)}),
    ],
)
def test_what_is_rewritten(tail: Callable[[Tensor, Tensor], Tensor], expected: dict[str, tuple[bool, bool]]) -> None:
    model = Tail(tail).double().train()
    assert calls(fuse(model)) == expected
    train_alike(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))


def test_a_residual_that_is_computed_later_moves_the_call() -> None:
    model = Tail(lambda y, s: F.relu(y + s), late=True).double().train()
    assert calls(fuse(model)) == {"norm_a": (True, True)}
    train_alike(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))


def test_a_residual_that_is_changed_in_place_is_not_moved() -> None:
    def tail(y: Tensor, shortcut: Tensor) -> Tensor:
        shortcut.mul_(2)
        return F.relu(y + shortcut)

    model = Tail(tail).double().train()
    assert calls(fuse(model)) == {"norm_b": (False, False), "norm_a": (False, False)}
    train_alike(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))


def test_sums_that_broadcast_are_left_with_an_example() -> None:
    model = Tail(lambda y, s: F.relu(y + s.mean((2, 3), keepdim=True))).double().train()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    fused = fuse(model, x)
    assert calls(fused)["norm_a"] == (False, False)
    assert model.norm_a.num_batches_tracked == 0
    train_alike(model, x, fused)
    with pytest.raises(ModelError, match="example_input must fit Tail, got one that fails"):
        fuse(model, x[:, :2])


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4, momentum=None), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4)],
    ids=["cumulative", "no statistics", "group norm"],
)
def test_other_norms_are_left(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).double().train()
    assert calls(fuse(model)) == {}
    train_alike(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))


def test_a_norm_without_affine_parameters_is_fused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, eps=1e-2), nn.ReLU()).double().train()
    assert calls(fuse(model)) == {"1": (False, True)}
    train_alike(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))


def test_dropout_stays_and_a_rate_of_zero_goes() -> None:
    def model(rate: float) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(rate), nn.ReLU()).train()

    assert calls(fuse(model(0.0))) == {"1": (False, True)}
    assert calls(fuse(model(0.5))) == {"1": (False, False)}


def test_timms_norm_with_activation_is_fused() -> None:
    layers = pytest.importorskip("timm.layers")
    relu, silu = layers.BatchNormAct2d(4), layers.BatchNormAct2d(4, act_layer=nn.SiLU)
    none = layers.BatchNormAct2d(4, apply_act=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), silu, nn.Conv2d(4, 4, 3), none, nn.ReLU())
    model = model.double().train()
    assert calls(fuse(model)) == {"1": (False, True), "5": (False, True)}
    train_alike(model, torch.randn(2, 3, 12, 12, dtype=torch.float64))


def test_synchronisation_reaches_every_statistic() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
    )
    gate_(model, GateConfig(groups=2, granularity="group"))
    fused = fuse(model)
    kinds = (SumNorm, NormAct, Gate)
    for sync in (True, False):
        set_sync_(fused, sync)
        states = [m.sync for m in fused.modules() if isinstance(m, kinds)]
        assert states == [sync] * 4
    assert fuse(nn.Sequential(nn.SyncBatchNorm(4))).get_submodule("0").sync


def test_the_mode_of_the_model_is_baked_in() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.conv(x)
            return (x, self.head(x)) if self.training else x

    model, x = Heads().train(), torch.randn(1, 3, 4, 4)
    assert len(fuse(model)(x)) == 2
    assert isinstance(fuse(model.eval())(x), Tensor)


def test_a_layer_that_is_called_twice_is_fused_twice() -> None:
    conv = GatedConv2d(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), GateConfig(groups=2))
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU()).double().eval()
    fused = fuse(model)
    assert [node.op for node in fused.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    assert (fused(x) - model(x)).abs().max() < TOLERANCE


def test_a_norm_that_is_called_once_fused_and_once_with_an_activation_it_cannot_take() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.ReLU(), nn.Conv2d(4, 4, 1), norm, nn.Tanh()).double().train()
    train_alike(model, torch.randn(2, 4, 5, 5, dtype=torch.float64))


def test_untraceable_models_are_refused() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(3)

    with pytest.raises(ModelError, match=r"model must be traceable by torch\.fx, got Branch"):
        fuse(Branch())
    constant = Constant()
    with pytest.raises(ModelError, match="must not make tensors in forward to be fused, got Constant"):
        fuse(constant)
    assert not [name for name in vars(constant) if "constant" in name]
