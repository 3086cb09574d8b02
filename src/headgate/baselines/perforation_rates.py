"""How much to perforate each layer: a greedy choice under a budget of MACs.

Source: Figurnov et al., "PerforatedCNNs: acceleration through elimination of redundant convolutions", NeurIPS 2016,
section 3.4, and the authors' code: rates and cost are theirs, with MACs in the place of measured time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headgate.baselines.conversion import swap_
from headgate.baselines.perforation import Perforator, find_sites
from headgate.baselines.perforation_masks import Batches, MaskKind, require_rate
from headgate.counting import count
from headgate.errors import ConfigError, ModelError

RATES: tuple[float, ...] = (1 / 3, *(1 - 1 / n for n in range(2, 21)))
"""Compute 2/3, 1/2, 1/3, … 1/20 of the positions."""


def choose_rates(
    model: nn.Module,
    batches: Batches,
    *,
    mac_reduction: float,
    mask: MaskKind = "grid",
    rates: Sequence[float] = RATES,
    seed: int = 0,
    exclude: tuple[str, ...] = (),
) -> dict[str, float]:
    """Raise the rate of one layer after the other until the network meets a budget.

    Each step tries the next rate of every layer and takes the one of least cost: the loss that the network has gained
    since it was dense ÷ the MACs it has lost, without any training in between. Takes (layers · steps) passes over the
    batches, in evaluation mode. The model is not changed.

    Args:
        model: dense and trained.
        batches: (images, labels) of the training split; a few hundred images.
        mac_reduction: of the network: dense ÷ executed MACs of all its convolutions and linear layers.
        mask, seed, exclude: as for `perforate_`.
        rates: the steps of a layer, rising.
    Returns: the rates of the layers that are to be perforated, for `perforate_`.
    Raises:
        ConfigError: a reduction that is not above 1, or beyond what the highest rates give; no batches; rates that do
            not rise or are outside [0, 1).
        ModelError: nothing can be perforated.
    """
    _check(batches, mac_reduction, rates)
    model = copy.deepcopy(model).eval()
    images = batches[0][0]
    sites = {name: site for name, site in find_sites(model, images, exclude).items() if not site.obstacle}
    if not sites:
        raise ModelError(f"model must have a convolution to perforate, got {type(model).__name__} with none")
    dense_macs = count(model, images[:1]).network_dense_macs
    dense_loss = _loss(model, batches)
    perforator = Perforator(model, sites, mask, batches, seed)
    layers = {name: site.perforated() for name, site in sites.items()}
    swap_(model, {site.conv: layers[name] for name, site in sites.items()})
    for layer in layers.values():
        layer.train()  # it has no statistics, and copying from the dense output is the faster way
    macs = {name: site.layer.dense_macs // layers[name].positions for name, site in sites.items()}  # of a position
    steps = {name: _steps(perforator, name, rates) for name in sites}
    saved = {
        name: [(layers[name].positions - computed) * macs[name] for _, computed, _ in steps[name]] for name in sites
    }

    at = dict.fromkeys(sites, 0)
    most = dense_macs / (dense_macs - sum(of[-1] for of in saved.values()))
    if most < mac_reduction:
        raise ConfigError(f"mac_reduction must be one that the rates can reach, here {most:.2f}, got {mac_reduction}")
    while dense_macs / (dense_macs - _total(saved, at)) < mac_reduction:
        costs = {}
        for name in (name for name in sites if at[name] + 1 < len(steps[name])):
            layers[name].copy_from_(steps[name][at[name] + 1][2])
            gained = _loss(model, batches) - dense_loss
            costs[name] = gained / _total(saved, at | {name: at[name] + 1})
            layers[name].copy_from_(steps[name][at[name]][2])
        best = min(costs, key=costs.__getitem__)
        at[best] += 1
        layers[best].copy_from_(steps[best][at[best]][2])
    return {name: steps[name][step][0] for name, step in at.items() if step}


def _check(batches: Batches, mac_reduction: float, rates: Sequence[float]) -> None:
    if not batches:
        raise ConfigError("batches must hold (images, labels), got none")
    if not mac_reduction > 1:
        raise ConfigError(f"mac_reduction must be > 1, got {mac_reduction!r}")
    for i, rate in enumerate(rates):
        require_rate(f"rates[{i}]", rate)
    if not rates or any(b <= a for a, b in zip((0.0, *rates), rates, strict=False)):
        raise ConfigError(f"rates must be rising numbers above 0, got {rates!r}")


def _steps(perforator: Perforator, name: str, rates: Sequence[float]) -> list[tuple[float, int, Tensor]]:
    """(rate, computed positions, source) of a layer, from none skipped on, without rates that save nothing more."""
    steps: list[tuple[float, int, Tensor]] = []
    for rate in (0.0, *rates):
        source = perforator.source(name, rate)
        computed = int((source.flatten() == torch.arange(source.numel())).sum())
        if not steps or computed < steps[-1][1]:
            steps.append((rate, computed, source))
    return steps


def _total(saved: dict[str, list[int]], at: dict[str, int]) -> int:
    return sum(saved[name][step] for name, step in at.items())


@torch.no_grad()
def _loss(model: nn.Module, batches: Batches) -> float:
    device = next(model.parameters()).device
    total = sum(
        float(F.cross_entropy(model(images.to(device)), labels.to(device), reduction="sum"))
        for images, labels in batches
    )
    return total / sum(len(labels) for _, labels in batches)
