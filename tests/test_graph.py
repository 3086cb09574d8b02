"""Which convolutions are found, and what is seen around them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from headgate.graph import ConvSite, conv_sites


class Tail(nn.Module):
    """stem convolution → convolution "conv" → norm → whatever the test appends."""

    def __init__(self, tail: Callable[[Tensor, Tensor], Any], norm: nn.Module | None = None, **conv: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, **conv})
        self.norm = norm if norm is not None else nn.BatchNorm2d(8)
        self.tail = tail

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.tail(self.norm(self.conv(x)), x)


def site(model: nn.Module, name: str = "conv", example: Any = None) -> ConvSite:
    return {s.name: s for s in conv_sites(model, example)}[name]


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "F.relu": (F.relu, "relu"),
    "torch.relu": (torch.relu, "relu"),
    "torch.relu_": (torch.relu_, "relu"),
    "F.relu in place": (lambda y: F.relu(y, inplace=True), "relu"),
    "method": (lambda y: y.relu(), "relu"),
    "method in place": (lambda y: y.relu_(), "relu"),
    "relu6": (F.relu6, "relu6"),
    "leaky_relu": (lambda y: F.leaky_relu(y, 0.1), "leakyrelu"),
    "elu": (F.elu, "elu"),
    "gelu": (F.gelu, "gelu"),
    "silu": (F.silu, "silu"),
    "x · sigmoid(x)": (lambda y: y * torch.sigmoid(y), "silu"),
    "hardswish": (F.hardswish, "hardswish"),
    "mish": (F.mish, "mish"),
    "clamp from 0": (lambda y: y.clamp(min=0), "relu"),
    "clamp to [0, 6]": (lambda y: torch.clamp(y, 0, 6), "relu6"),
    "hardtanh to [0, 6]": (lambda y: F.hardtanh(y, 0.0, 6.0), "relu6"),
    "tanh": (torch.tanh, "tanh"),
    "sigmoid method": (lambda y: y.sigmoid(), "sigmoid"),
    "hardsigmoid": (F.hardsigmoid, "hardsigmoid"),
    "hardtanh": (F.hardtanh, "hardtanh"),
    "softsign": (F.softsign, "softsign"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_functional_activations(name: str, residual: bool) -> None:
    activation, expected = ACTIVATIONS[name]
    found = site(Tail(lambda y, x: activation(y + x if residual else y)))
    assert (found.activation, found.norm_name, found.residual) == (expected, "norm", residual)
    assert found.two_sided == (expected in ("tanh", "sigmoid", "hardsigmoid", "hardtanh", "softsign"))
    assert (found.obstacle, found.missing) == (None, None)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.PReLU(), "prelu"),
        (nn.Hardswish(), "hardswish"),
        (nn.SiLU(), "silu"),
        (nn.Hardtanh(), "hardtanh"),
        (nn.Hardtanh(0.0, 6.0), "relu6"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
    ],
)
def test_module_activations(module: nn.Module, expected: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), module)
    assert site(model, "1").activation == expected


@pytest.mark.parametrize(
    "add",
    [
        lambda y, x: y + x,
        lambda y, x: x + y,
        lambda y, x: torch.add(y, x),
        lambda y, x: y.add(x),
        lambda y, x: y.add_(x),
    ],
)
def test_residual_sums(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    found = site(Tail(lambda y, x: F.relu(add(y, x))))
    assert (found.activation, found.residual) == ("relu", True)


def test_augmented_assignment_is_a_residual_sum() -> None:
    def tail(y: Tensor, x: Tensor) -> Tensor:
        y += x
        return F.relu(F.dropout(y, 0.1))

    assert site(Tail(tail)).residual


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (lambda y, x: y, "no activation follows: it is an output of the model"),
        (lambda y, x: torch.cat([y, x]), "no activation follows, but cat"),
        (lambda y, x: F.relu(torch.add(y, x, alpha=0.5)), "no activation follows, but add"),
        (lambda y, x: F.relu(y + 1), "no activation follows, but add"),
        (lambda y, x: F.relu(0.1 * y + x), "no activation follows, but mul"),
        (lambda y, x: F.relu(y + x + x), "no activation follows, but add"),
        (lambda y, x: F.relu(F.max_pool2d(y, 2)), "no activation follows, but maxpool2d"),
        (lambda y, x: F.logsigmoid(y), "no activation follows, but logsigmoid"),
        (lambda y, x: F.relu(y) + torch.tanh(y), "followed by one- and two-sided activations"),
        (lambda y, x: F.relu(y) + y, "no activation follows: it is an output of the model"),
    ],
)
def test_says_why_no_activation_was_found(tail: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    found = site(Tail(tail))
    assert found.missing == reason
    assert found.activation is None
    assert found.norm_name == "norm"


def test_every_use_of_a_norm_may_lead_to_an_activation() -> None:
    assert site(Tail(lambda y, x: F.relu(y) + F.silu(y))).activation == "relu"


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.GroupNorm(2, 8), "followed by GroupNorm, not by BatchNorm2d"),
        (nn.InstanceNorm2d(8), "followed by InstanceNorm2d, not by BatchNorm2d"),
        (nn.BatchNorm2d(8, momentum=None), r"its BatchNorm2d averages cumulatively \(momentum=None\)"),
        (nn.BatchNorm2d(8, track_running_stats=False), "its BatchNorm2d keeps no running statistics"),
    ],
)
def test_norms_that_cannot_be_taken_over(norm: nn.Module, reason: str) -> None:
    found = site(Tail(lambda y, x: F.relu(y), norm))
    assert found.norm is None
    assert found.missing is not None
    assert re.fullmatch(reason, found.missing)


def test_a_norm_without_affine_parameters_and_a_synchronised_one_are_taken_over() -> None:
    for norm in (nn.BatchNorm2d(8, affine=False), nn.SyncBatchNorm(8)):
        assert site(Tail(lambda y, x: F.relu(y), norm)).norm is norm


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_subclasses_that_compute_something_of_their_own_are_left() -> None:
    assert site(Tail(lambda y, x: F.relu(y), OwnNorm(8))).missing == "its norm OwnNorm computes something of its own"
    model = Tail(lambda y, x: F.relu(y))
    model.conv = OwnConv(8, 8, 3, padding=1)
    assert site(model).obstacle == "OwnConv computes something of its own"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"padding_mode": "reflect"}, "padding_mode is 'reflect', not 'zeros'"),
        ({"groups": 8}, "depthwise: one input channel per group cannot be split"),
    ],
)
def test_convolutions_that_cannot_be_gated(options: dict[str, Any], reason: str) -> None:
    assert site(Tail(lambda y, x: F.relu(y), **options)).obstacle == reason


def test_depthwise_with_a_multiplier_is_depthwise() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 24, 3, groups=8), nn.ReLU())
    assert str(site(model, "1").obstacle).startswith("depthwise")


def test_hooks_and_parametrisations_are_not_dropped() -> None:
    hooked, parametrised = Tail(lambda y, x: F.relu(y)), Tail(lambda y, x: F.relu(y))
    hooked.conv.register_forward_hook(lambda *_: None)
    parametrizations.weight_norm(parametrised.conv)
    for model in (hooked, parametrised):
        assert site(model).obstacle == "has hooks or parametrisations, which gating would drop"


def test_shared_modules() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.a, self.b, self.norm = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(F.relu(self.conv(self.stem(x)))))
            return F.relu(self.norm(self.a(x))) + F.relu(self.norm(self.b(x)))

    model = Twice()
    assert site(model).obstacle == "called 2 times in one forward pass"
    assert site(model, "a").missing == site(model, "b").missing == "its BatchNorm2d is shared by 2 calls"


def test_a_norm_whose_parameters_are_used_elsewhere_is_kept() -> None:
    model = Tail(lambda y, x: F.relu(y) * model.norm.weight.view(1, -1, 1, 1))
    assert site(model).missing == "the parameters of its BatchNorm2d are used elsewhere too"


def test_a_convolution_whose_output_is_used_twice() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.stem(x))
            return F.relu(self.norm(y)) + y

    assert site(Fork()).obstacle == "its output is used by 2 operations"


def test_first_convolutions_have_no_convolution_above_them() -> None:
    class Stems(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(11, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = (x - 0.5) / 0.2
            return F.relu(self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(x)), x], 1)))

    assert [s.name for s in conv_sites(Stems()) if s.first] == ["a", "b"]


class SqueezeExcite(nn.Module):
    def __init__(self, keepdim: bool) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.after = nn.Conv2d(8, 8, 1)
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        squeezed = x.mean((2, 3), keepdim=True) if self.keepdim else F.adaptive_avg_pool2d(x, 1)
        return F.relu(self.after(x * torch.sigmoid(self.up(F.relu(self.down(squeezed))))))


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("example", [None, torch.zeros(1, 3, 9, 9)], ids=["graph", "shapes"])
def test_maps_of_one_pixel_are_known_from_the_graph_and_from_shapes(keepdim: bool, example: Tensor | None) -> None:
    pooled = {s.name: s.pooled for s in conv_sites(SqueezeExcite(keepdim), example)}
    assert pooled == {"stem": False, "down": True, "up": True, "after": False}


def test_functional_and_unreached_convolutions_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.unused, self.one = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv1d(8, 8, 1)
            self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(F.conv2d(self.stem(x), self.weight))
            return F.relu(self.one(x.flatten(2)))

    found = {s.name: s.obstacle for s in conv_sites(Odd())}
    assert found == {
        "stem": None,
        "conv2d": "a functional convolution; make it an nn.Conv2d module to gate it",
        "one": "Conv1d is not a Conv2d",
        "unused": "not reached by the forward pass in evaluation mode",
    }


def test_sizes_are_recorded_with_an_example() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, (1, 3)), nn.ReLU())
    found = site(model, "2", torch.zeros(1, 3, 11, 9))
    assert (found.in_size, found.out_size) == ((5, 4), (5, 2))
    assert site(model, "2").in_size is None


def test_reading_leaves_the_model_as_it_was() -> None:
    model = Tail(lambda y, x: F.dropout(F.relu(y)) + torch.tensor([1.0])).train()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random, attributes = torch.get_rng_state(), set(model.__dict__)
    example = torch.zeros(2, 3, 5, 5)
    for given in (None, example):
        conv_sites(model, given)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert set(model.__dict__) == attributes
    assert (model.training, model.norm.training) == (True, False)
    assert example.eq(0).all()
