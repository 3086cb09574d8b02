"""Weights, norms and thresholds for shapes without trained weights.

One pass over the benchmark's own images, layer by layer in the order of execution: each batch norm takes the
statistics of what reaches it, and the threshold of each decision of a gated layer becomes the quantile of its own
scores that leaves the asked share of them open. So no channel is open or closed throughout, and the decisions are real:
they follow from the images, and taking them is part of what is timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headgate.errors import BenchmarkError
from headgate.nn.control import observe
from headgate.nn.gated_conv import GatedConv2d, Observation
from headgate.nn.gates import GroupGate
from headgate.nn.sum_norm import SumNorm
from headgate.ops.batch_norm import normalise
from headgate.ops.decision import SCORE_EPS

__all__ = ["Decisions", "observe_decisions", "settle_", "smooth_kernels_"]


MARGIN: Final = 1e-3
"""Of a threshold above the highest score that it closes, in standard deviations: many scores may be that same one,
where ReLU left a whole neighbourhood of inputs at zero, and rounding must not open them all."""


@torch.no_grad()
def smooth_kernels_(model: nn.Module, seed: int) -> None:
    """Give every convolution kernels that blur, in place: a random weight for each pair of channels, spread binomially.

    Behind random kernels maps lose the structure of their images within a few layers, and masks with it; trained
    kernels keep it. With these, open decisions have about as many open neighbours as in trained networks.
    """
    generator = torch.Generator().manual_seed(seed)
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        window = torch.outer(*(_binomial(size) for size in conv.kernel_size))
        weight = torch.randn(conv.weight.shape[:2], generator=generator) * math.sqrt(2 / conv.weight.shape[1])
        conv.weight.copy_(weight[:, :, None, None] * window)


def _binomial(size: int) -> Float[Tensor, " size"]:
    return torch.tensor([math.comb(size - 1, i) / 2 ** (size - 1) for i in range(size)])


@torch.no_grad()
def settle_(model: nn.Module, images: Float[Tensor, "n c h w"], *, density: float | None = None) -> None:
    """Give every norm the statistics of `images` and, with `density`, every gate thresholds that reach it; in place.

    Args:
        model: in evaluation mode; gates of "activation" or "group" granularity.
        density: share of open decisions of each threshold, in [0, 1); None leaves thresholds alone.
    Raises: BenchmarkError: the images do not make the network compute finite numbers.
    """
    model.eval()
    with _hooks(model, density):
        output = model(images)
    if not torch.isfinite(output).all():
        raise BenchmarkError(f"{type(model).__name__} must compute finite numbers on synthetic images, got nan or inf")


@contextmanager
def _hooks(model: nn.Module, density: float | None) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    for module in model.modules():
        if isinstance(module, GatedConv2d):
            handles.append(module.register_forward_pre_hook(lambda m, inputs: _settle_gated(m, inputs[0], density)))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(lambda m, inputs: _take_statistics(m, inputs[0])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _take_statistics(norm: Any, x: Float[Tensor, "n c h w"]) -> None:
    if norm.running_mean is not None:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _settle_gated(layer: Any, x: Float[Tensor, "n c h w"], density: float | None) -> None:
    assert isinstance(layer, GatedConv2d)
    partial_sum = layer.partial_sum(x)
    if isinstance(layer.partial_norm, SumNorm):
        _take_statistics(layer.partial_norm, partial_sum)
    if layer.final_norm is not None:
        _take_statistics(layer.final_norm, layer.final_sum(x))
    if density is None:
        return
    assert layer.partial_norm is not None
    normalised = normalise(partial_sum, layer.partial_norm.state())
    if isinstance(layer.gate, GroupGate):
        layer.gate.score_var.fill_(1 - SCORE_EPS)  # the score is the plain mean
        layer.gate.score_var.copy_(layer.gate.score(normalised).square().mean((0, 2, 3)))
    scores = layer.gate.score(normalised).transpose(0, 1).flatten(1)
    closed = scores.shape[1] - round(density * scores.shape[1])
    layer.gate.threshold.copy_(scores.kthvalue(max(closed, 1), dim=1).values + MARGIN)


class Decisions(NamedTuple):
    """What the gates of one layer decided on some images.

    Attributes:
        density: share of open decisions.
        after_open: share of open decisions among those whose left neighbour on the map is open; as large as the
            density where decisions are independent. None where there is no such neighbour.
    """

    density: float
    after_open: float | None


@torch.no_grad()
def observe_decisions(model: nn.Module, images: Float[Tensor, "n c h w"]) -> dict[str, Decisions]:
    """Run a gated model in torch and say what each gated layer decided, by name."""
    found: dict[str, Decisions] = {}

    def note(name: str, _layer: GatedConv2d, observation: Observation) -> None:
        assert observation.decision is not None
        opened = observation.decision.bool()
        left, right = opened[..., :-1], opened[..., 1:]
        after = float((left & right).sum() / left.sum()) if left.any() else None
        found[name] = Decisions(float(opened.float().mean()), after)

    with observe(model, note, decisions=True):
        model(images)
    return found
