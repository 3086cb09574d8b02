"""Following models: control flow, optional arguments, and clear errors where it cannot be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headgate.errors import ModelError
from headgate.graph import ConvSite, conv_sites
from headgate.nn import GateConfig, GatedConv2d
from headgate.tracing import evaluation_mode, trace


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


# ------------------------------------------------------------------------------------------------------------- tracing


class Branches(nn.Module):
    """Branches and loops on shapes and values, assertions, optional arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor, scale: float | None = None, *, flip: bool = False) -> Tensor:
        assert x.shape[1] == 3, "images have three channels"
        n, _, h, w = x.size()
        if flip or scale is not None:
            x = x.flip(-1)
        x = F.relu(self.stem(x))
        for _ in range(int(h) - 8):
            x = x + 0.0
        if x.shape[-1] > 5 and len(x) > 0:
            x = F.relu(self.conv(x))
        if x.mean() < -1:
            x = self.other(x)
        first, second = (F.relu(part) for part in x.chunk(2, dim=1))
        parts = [part * float(w > 0) for part in x.split(4, 1)]
        return (first + second).view(n, -1, x.size(2) * x.shape[3]) + parts[0].flatten(2)


def test_control_flow_is_followed_with_an_example() -> None:
    found = {s.name: s for s in conv_sites(Branches(), torch.zeros(2, 3, 12, 12))}
    assert found["conv"].activation == "relu"
    assert found["other"].obstacle == "not reached by the forward pass in evaluation mode"


def test_control_flow_is_refused_without_an_example() -> None:
    with pytest.raises(ModelError, match=r"got Branches, which fails in the model's own forward.*pass example_input"):
        conv_sites(Branches())


def test_the_submodule_that_fails_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Branches()))
    with pytest.raises(ModelError, match=r"fails in submodule '1\.0' \(Branches\) with TraceError"):
        conv_sites(model)


def test_an_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"fails in submodule 'stem' \(Conv2d\).*expected input.*to have 3 channels"):
        conv_sites(Tail(lambda y, x: F.relu(y)), torch.zeros(1, 4, 8, 8))


def test_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor, extra: dict[str, Tensor]) -> Tensor:
            return F.relu(self.b(F.relu(self.a(x)) + extra["bias"]))

    example = (torch.zeros(1, 3, 4, 4), {"bias": torch.zeros(1, 8, 1, 1)})
    assert [s.name for s in conv_sites(Two(), example)] == ["a", "b"]


def test_optional_arguments_keep_their_defaults() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor, target: Tensor | None = None, features: bool = False) -> Any:
            x = F.relu(self.b(self.a(x)))
            return x if target is None and not features else (x, target)

    assert site(Optional(), "b").activation == "relu"


def test_the_first_of_optional_arguments_is_the_input() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, pixels: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
            if pixels is None:
                raise ValueError("pixels must be given")
            return F.relu(self.b(self.a(pixels)))

    for example in (None, torch.zeros(1, 3, 4, 4)):
        assert site(Keywords(), "b", example).activation == "relu"


def test_wrapped_models_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    with pytest.raises(ModelError, match=r"inside DataParallel; use model\.module"):
        trace(nn.DataParallel(model))
    with pytest.raises(ModelError, match=r"gate or fuse first, then torch\.compile"):
        trace(torch.compile(model, backend="eager"))  # type: ignore[arg-type]


def test_gated_layers_are_leaves() -> None:
    model = nn.Sequential(GatedConv2d(nn.Conv2d(4, 4, 1), None, GateConfig(groups=2)), nn.ReLU())
    assert [node.op for node in trace(model).nodes] == ["placeholder", "call_module", "call_module", "output"]


def test_evaluation_mode_restores_flags_after_an_error() -> None:
    model = Tail(lambda y, x: y).train()
    model.norm.eval()

    def fail() -> None:
        assert not model.training
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(model):
        fail()
    assert (model.training, model.norm.training, torch.is_grad_enabled()) == (True, False, True)
