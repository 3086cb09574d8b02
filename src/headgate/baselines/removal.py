"""Take channels that carry nothing out of a network, so that a plain smaller network is left.

A channel goes when every layer that reads it can do without: its weights there are zero, at least for what is itself
needed; or it is zero for every image; or it has one other value that can be added to that layer's bias. Channels that
are tied together (residual sums, depthwise convolutions) go together or not at all. The smaller network computes what
the larger one did, in evaluation.

Own code instead of Torch-Pruning's dependency graph: that finds which slices belong together, which is the smaller
half. It does not know whether they may go (it removes what it is told to, and drops what batch norms made of it), and
would make every baseline need a package that only one of them is about.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, fx, nn

from headgate.baselines.branches import drop_branch_, layer_names, without_layers
from headgate.baselines.channels import Channels, Layer, Space, find_channels, graph_over
from headgate.models import identify
from headgate.tracing import evaluation_mode, placed

__all__ = ["Removal", "remove"]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What `remove` made.

    Attributes:
        model: the smaller network: plain convolutions, norms and linear layers under their old names. It is of the
            class that it was, with `architecture` and `preprocess`; or a `torch.fx.GraphModule` where a branch was
            dropped. Either can be saved and loaded. Where the class has layers that run in training only, or its own
            code counts on the old channels, it is a GraphModule without an `architecture`, which loads only into one
            that was made alike.
        channels: of each layer that is left, its output channels before and after.
        dropped: layers of residual branches that added nothing, and went altogether.
        kept: layers whose outputs all had to stay whatever they carry, each with the reason.
    """

    model: nn.Module
    channels: dict[str, tuple[int, int]]
    dropped: tuple[str, ...]
    kept: dict[str, str]

    def __str__(self) -> str:
        fewer = {name: counts for name, counts in self.channels.items() if counts[0] != counts[1]}
        lines = [f"{name}: {before} → {after} channels" for name, (before, after) in fewer.items()]
        lines += [f"{name}: dropped" for name in self.dropped]
        lines += [f"{name}: all channels stay, {why}" for name, why in self.kept.items()]
        return "\n".join(lines or ["nothing to remove"])


def remove(model: nn.Module, example_input: Any) -> Removal:
    """Remove every channel and residual branch that carries nothing.

    In evaluation mode the result equals `model` up to rounding. Every layer keeps at least one channel. A branch goes
    where all that it adds is zero, and nothing else reads what it is added to later on. Channels of a convolution with
    several groups go in equal numbers from each, or with whole groups. Control flow is that of evaluation mode.

    Args:
        model: dense. It is left as it is; the result shares nothing with it.
        example_input: a batch, or a tuple of positional inputs.
    Raises: ModelError: the model is gated or cannot be traced, or `example_input` does not fit it.
    Source: our own; what Wen et al. (2016, section 3) leave to the implementation.
    """
    own = copy.deepcopy(model)
    smaller, dropped = _without_branches(own, example_input)
    found = find_channels(smaller, example_input)
    gone = _choose(found)
    channels, kept = {}, {}
    for name, layer in found.layers.items():
        module = smaller.get_submodule(name)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        space = layer.makes.root
        channels[name] = (space.channels, space.channels - int(gone[space].sum()))
        if space.pinned is not None:
            kept[name] = space.pinned
        _cut_layer_(module, layer, gone[layer.reads.root], gone[space])
    for name, space in found.norms.items():
        _cut_norm_(smaller.get_submodule(name), ~gone[space.root])
    rebuilt = _as_its_builder_has_it(own, smaller, dropped, example_input)
    architecture = identify(model)
    if rebuilt is not None and architecture is not None:
        rebuilt.architecture = architecture  # type: ignore[assignment]  # nn.Module's attributes are tensors to mypy
    return Removal(model=smaller if rebuilt is None else rebuilt, channels=channels, dropped=dropped, kept=kept)


# --------------------------------------------------------------------------------------------------------------- model


def _without_branches(model: nn.Module, example_input: Any) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The model as its graph, whose sums have no operand that is always zero, and the layers that went."""
    smaller = graph_over(model, example_input)
    before = layer_names(smaller)
    while drop_branch_(smaller, find_channels(smaller, example_input).zeros):
        pass
    left = layer_names(smaller)
    return smaller, tuple(name for name in before if name not in left)


def _as_its_builder_has_it(
    model: nn.Module, smaller: fx.GraphModule, dropped: tuple[str, ...], example_input: Any
) -> nn.Module | None:
    """What a checkpoint can rebuild: the model, over whose layers the graph is, or that without the dropped ones.

    Returns: None where that is another network than the graph: it has layers that run in training only, which were not
        cut, or code of its own that counts on the old channels.
    """
    outputs = []
    try:
        rebuilt = without_layers(model, dropped) if dropped else model
        if {*layer_names(rebuilt)} != {*layer_names(smaller)}:
            return None
        for network in (smaller, rebuilt):
            with evaluation_mode(network):
                outputs.append(network(*placed(network, example_input)))
        torch.testing.assert_close(*outputs)
    except Exception:  # whatever such code raises
        return None
    return rebuilt


# ------------------------------------------------------------------------------------------------------------- channels


def _choose(found: Channels) -> dict[Space, Bool[Tensor, " channels"]]:
    """Which channels of each space go: at first all that may, less what turns out to be needed, until nothing does."""
    gone: dict[Space, Tensor] = {}
    spaces = [space for layer in found.layers.values() for space in (layer.reads, layer.makes)]
    for space in (*spaces, *found.norms.values()):
        gone[space.root] = torch.full((space.root.channels,), space.root.pinned is None)
    changed = True
    while changed:
        changed = False
        for layer in reversed(found.layers.values()):
            changed |= _keep_needed_(layer, gone)
        if not changed:
            for layer in found.layers.values():
                changed |= _even_out_(layer, gone)
    return gone


def _keep_needed_(layer: Layer, gone: Mapping[Space, Tensor]) -> bool:
    """Keep what a layer reads for the outputs that stay, and one channel of everything.

    Returns: whether that is more than was kept before.
    """
    inputs, outputs = gone[layer.reads.root], gone[layer.makes.root]
    before = int(inputs.sum() + outputs.sum())
    reads = ~layer.settled.cpu() & ~outputs[:, None]
    inputs &= ~reads.view(layer.groups, -1, reads.shape[1]).any(1).flatten()
    for chosen in (inputs, outputs):
        chosen[0] &= not chosen.all()
    return int(inputs.sum() + outputs.sum()) != before


def _even_out_(layer: Layer, gone: Mapping[Space, Tensor]) -> bool:
    """Leave every group of a convolution that stays the same number of channels. Returns whether anything changed."""
    inputs = gone[layer.reads.root].view(layer.groups, -1)  # views: what is written below is written there
    outputs = gone[layer.makes.root].view(layer.groups, -1)
    before = int(inputs.sum() + outputs.sum())
    stays = ~(inputs.all(1) & outputs.all(1))
    for chosen in (inputs, outputs):
        most = min(int(chosen[stays].sum(1).min()), chosen.shape[1] - 1)
        surplus = chosen & (chosen.cumsum(1) > most) & stays[:, None]
        chosen[surplus] = False
    return int(inputs.sum() + outputs.sum()) != before


# ------------------------------------------------------------------------------------------------------------------ cut


@torch.no_grad()
def _cut_layer_(module: nn.Conv2d | nn.Linear, layer: Layer, gone_in: Tensor, gone_out: Tensor) -> None:
    """Take inputs and outputs out of a layer; what the inputs always added goes into its bias."""
    inputs, outputs = gone_in.view(layer.groups, -1), gone_out.view(layer.groups, -1)
    stays = ~(inputs.all(1) & outputs.all(1))
    rows = (~gone_out).nonzero().flatten()
    columns = torch.stack([(~mask).nonzero().flatten() for mask in inputs[stays]])  # (groups that stay, inputs of one)
    of_row = columns.repeat_interleave(len(rows) // len(columns), 0)
    lost = (layer.contribution.cpu() * inputs.repeat_interleave(outputs.shape[1], 0)).sum(1)[rows]
    weight, device = module.weight, module.weight.device
    by_channel = weight if isinstance(module, nn.Conv2d) else weight.view(len(weight), -1, layer.repeat)
    left = by_channel[rows[:, None].to(device), of_row.to(device)]
    module.weight = _like(weight, left if isinstance(module, nn.Conv2d) else left.flatten(1))
    if module.bias is not None or lost.any():
        bias = torch.zeros_like(rows, dtype=weight.dtype, device=device) if module.bias is None else module.bias[rows]
        module.bias = _like(module.bias if module.bias is not None else weight, bias + lost.to(bias))
    if isinstance(module, nn.Conv2d):
        module.groups = len(columns)
        module.in_channels, module.out_channels = columns.numel(), len(rows)
    else:
        module.in_features, module.out_features = columns.numel() * layer.repeat, len(rows)


@torch.no_grad()
def _cut_norm_(norm: nn.Module, stays: Tensor) -> None:
    for name in ("weight", "bias"):
        parameter = getattr(norm, name)
        if parameter is not None:
            setattr(norm, name, _like(parameter, parameter[stays.to(parameter.device)]))
    for name in ("running_mean", "running_var"):
        buffer = getattr(norm, name)
        setattr(norm, name, buffer[stays.to(buffer.device)].clone())
    norm.num_features = int(stays.sum())  # type: ignore[assignment]  # an integer of nn.BatchNorm2d


def _like(old: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(), requires_grad=old.requires_grad)
