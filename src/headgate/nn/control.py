"""Reach all gates of a model: list them, force them, shift them, watch them, pull their thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headgate.errors import ConfigError, ModelError
from headgate.nn.config import require_finite
from headgate.nn.gated_conv import GatedConv2d, Observation, Observer


def gated_layers(model: nn.Module) -> dict[str, GatedConv2d]:
    """Gated convolutions by name, in the order of registration. A shared module appears once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GatedConv2d)}


def _require_gated(model: nn.Module) -> dict[str, GatedConv2d]:
    layers = gated_layers(model)
    if not layers:
        raise ModelError(f"model must have gated convolutions, got {type(model).__name__} with none; call gate_ first")
    return layers


@contextmanager
def force_gates(model: nn.Module, state: Literal["open", "closed"]) -> Iterator[None]:
    """Hold every gate open or closed inside a `with` block; nested blocks restore what they found.

    Open, a freshly gated network equals the dense one; closed, only the base paths run.

    Raises: ConfigError: another state. ModelError: nothing is gated.
    """
    if state not in ("open", "closed"):
        raise ConfigError(f"state must be 'open' or 'closed', got {state!r}")
    gates = [layer.gate for layer in _require_gated(model).values()]
    before = [gate.forced for gate in gates]
    for gate in gates:
        gate.forced = state
    try:
        yield
    finally:
        for gate, forced in zip(gates, before, strict=True):
            gate.forced = forced


@torch.no_grad()
def shift_thresholds_(model: nn.Module, offset: float) -> None:
    """Shift every threshold by `offset` standard deviations, in place: the run-time dial.

    Positive offsets close gates and save more; shifts add up, are saved with the model, and -offset undoes one.

    Raises: ConfigError: the offset is not finite. ModelError: nothing is gated.
    """
    if not torch.isfinite(torch.tensor(float(offset))):
        raise ConfigError(f"offset must be finite, got {offset!r}")
    for layer in _require_gated(model).values():
        layer.gate.offset += offset


def set_channel_bound_(model: nn.Module, bound: float) -> None:
    """Set τ of every gated convolution, in place: see `GateConfig.channel_bound`.

    Raises: ConfigError: it is outside [0, 1]. ModelError: nothing is gated.
    """
    for layer in _require_gated(model).values():
        layer.config = replace(layer.config, channel_bound=bound)


def threshold_loss(model: nn.Module, target: float, weight: float = 1e-4) -> Float[Tensor, ""]:
    """weight · Σ_layers Σ_channels (target − Δ)²: pulls every threshold toward T.

    Args:
        target: T, in standard deviations.
        weight: λ.
    Raises: ModelError: nothing is gated. ConfigError: a number that is not finite.
    Source: Hua et al., NeurIPS 2019, appendix A.1.
    """
    require_finite("target", target)
    require_finite("weight", weight)
    terms = [(target - layer.gate.threshold).square().sum() for layer in _require_gated(model).values()]
    return weight * torch.stack(terms).sum()


@contextmanager
def observe(
    model: nn.Module, notify: Callable[[str, GatedConv2d, Observation], None], *, decisions: bool = False
) -> Iterator[None]:
    """Call `notify(name, layer, observation)` after each forward pass of each gated layer inside the block.

    Args:
        decisions: also pass the full decision maps (slower: the fused operator does not write them).
    """
    layers = _require_gated(model)
    before = {name: layer.observer for name, layer in layers.items()}

    def bind(name: str) -> Observer:
        return Observer(lambda layer, observation: notify(name, layer, observation), decisions)

    for name, layer in layers.items():
        layer.observer = bind(name)
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.observer = before[name]
