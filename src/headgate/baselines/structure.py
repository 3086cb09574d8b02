"""How a network was pruned, as plain values: for a checkpoint to record, and to do to a dense network by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headgate.baselines.branches import layer_names
from headgate.baselines.conversion import swap_
from headgate.baselines.fbs import FBSConv2d
from headgate.baselines.perforation import PerforatedConv2d, perforated_layers
from headgate.errors import ConfigError, ModelError
from headgate.graph import find_layer, find_norm
from headgate.nn import GatedConv2d

__all__ = ["apply_pruned_structure_", "pruned_structure"]

_KINDS: Final = (nn.Conv2d, nn.Linear, _BatchNorm)
"""What may have other numbers of channels."""


def pruned_structure(model: nn.Module, dense: nn.Module | None = None) -> dict[str, Any] | None:
    """How a model was pruned: what `apply_pruned_structure_` needs to make a dense one alike.

    Weights that are zero are no structure: they are in the weights.

    Args:
        dense: the network as it was before, with weights or on the meta device. None: it is not known, and channels
            and dropped layers cannot be told.
    Returns: None where the model is as dense; else what there is of
        perforated: convolution → [height, width] of its input maps. The positions are in the weights.
        fbs: convolution → {"norm": path of the norm that it took over, "channels": how many each image computes, and
            "forced" where its gates are held}.
        channels: convolution, linear layer or batch norm of other numbers of channels than in `dense` → all of them, as
            that module calls them, and whether it has a "bias".
        dropped: convolutions and linear layers that `dense` has, and the model has not.
    Raises: ModelError: the place of a norm that an FBS convolution took over is no longer in the model.
    """
    paths = {id(module): name for name, module in model.named_modules()}
    fbs = {}
    for name, layer in model.named_modules():
        if isinstance(layer, FBSConv2d):
            norm = paths.get(id(layer.absorbed[0]))
            if norm is None:
                raise ModelError(f"model must keep the place of the norm that {name!r} took over, got it removed")
            fbs[name] = {"norm": norm, "channels": layer.gate.active}
            if layer.gate.forced is not None:
                fbs[name]["forced"] = layer.gate.forced
    own, before = _all_channels(model), {} if dense is None else _all_channels(dense)
    structure = {
        "perforated": {name: list(layer.in_size) for name, layer in perforated_layers(model).items()},
        "fbs": fbs,
        "channels": {name: own[name] for name in before if name in own and own[name] != before[name]},
        "dropped": [] if dense is None else [name for name in layer_names(dense) if name not in own],
    }
    return {key: value for key, value in structure.items() if value} or None


# --------------------------------------------------------------------------------------------------------------- apply


def apply_pruned_structure_(model: nn.Module, structure: Mapping[str, Any]) -> None:
    """Prune a dense model as `pruned_structure` recorded, in place and by name: no tracing.

    What is new or of another size has no values yet: load the weights next. Layers that have the recorded channels
    already stay as they are. Dropped layers must not be there any more: `without_layers` takes them out.

    Args:
        model: dense, with the names of the model that was recorded. It is left untouched where an error is raised.
    Raises:
        ModelError: a name of the structure is missing or is another kind of layer, or a dropped layer is there.
        ConfigError: the structure is not one that `pruned_structure` returned.
        ShapeError: a layer cannot be perforated for its size, or a norm has other channels than its convolution.
    """
    wanted = _read(structure)
    there = {*layer_names(model)} & {*wanted.dropped}
    if there:
        raise ModelError(
            f"model must be without the {len(wanted.dropped)} layers that were dropped, got a {type(model).__name__} "
            f"with {min(there)!r}; take them out with headgate.baselines.without_layers"
        )
    new: dict[str, nn.Module] = {}
    for name, channels in wanted.channels.items():
        layer = find_layer(model, name, _KINDS, "a convolution, linear layer or batch norm")
        _require_channels(name, layer, channels)
        if channels != _channels(layer):
            new[name] = _with_channels(layer, channels)
    for name, in_size in wanted.perforated.items():
        conv = find_layer(model, name, nn.Conv2d, "a Conv2d")
        new[name] = PerforatedConv2d(cast(nn.Conv2d, new.get(name, conv)), in_size)
    for name, entry in wanted.fbs.items():
        conv, norm = find_layer(model, name, nn.Conv2d, "a Conv2d"), find_norm(model, entry.norm)
        conv, norm = cast(nn.Conv2d, new.get(name, conv)), cast(nn.BatchNorm2d, new.get(entry.norm, norm))
        fbs = FBSConv2d(conv, norm, density=1.0)
        if entry.channels > fbs.out_channels:
            raise ConfigError(f"{name!r} must compute at most {fbs.out_channels} channels, got {entry.channels}")
        fbs.gate.active, fbs.gate.forced = entry.channels, entry.forced
        new |= {name: fbs, entry.norm: fbs.absorbed[0]}
    swap_(model, {model.get_submodule(name): layer for name, layer in new.items()})


# ---------------------------------------------------------------------------------------------------------------- read


class _FBS(NamedTuple):
    norm: str
    channels: int
    forced: Literal["open", "closed"] | None = None


class _Structure(NamedTuple):
    perforated: dict[str, tuple[int, int]]
    fbs: dict[str, _FBS]
    channels: dict[str, dict[str, int]]
    dropped: list[str]


def _read(structure: Mapping[str, Any]) -> _Structure:
    """Raises ConfigError: it is damaged, as far as can be told without the model."""
    try:
        unknown = structure.keys() - {*_Structure._fields}
        if unknown:
            raise ValueError(f"unknown entries {sorted(unknown)}")
        fbs = {name: _FBS(**entry) for name, entry in structure.get("fbs", {}).items()}
        wanted = _Structure(
            perforated={name: (_count(h), _count(w)) for name, (h, w) in structure.get("perforated", {}).items()},
            fbs={name: entry._replace(channels=_count(entry.channels)) for name, entry in fbs.items()},
            channels={name: dict(channels) for name, channels in structure.get("channels", {}).items()},
            dropped=[str(name) for name in structure.get("dropped", [])],
        )
        if any(entry.forced not in (None, "open", "closed") for entry in fbs.values()):
            raise ValueError("an unknown forced state")
        if len({entry.norm for entry in fbs.values()}) < len(fbs) or fbs.keys() & wanted.perforated.keys():
            raise ValueError("a layer that is taken over twice")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"structure must be what pruned_structure returns, got one that fails with {error!r}"
        ) from error
    return wanted


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected an integer of at least 1, got {value!r}")
    return value


# ------------------------------------------------------------------------------------------------------------ channels


def _all_channels(model: nn.Module) -> dict[str, dict[str, int]]:
    """Of every layer that the model has, and of the norms that were taken over, at their places."""
    found = {}
    paths = {id(module): name for name, module in model.named_modules()}
    for name, layer in model.named_modules():
        channels = _channels(layer)
        if channels is not None:
            found[name] = channels
        if isinstance(layer, GatedConv2d) and layer.absorbed and id(layer.absorbed[0]) in paths:
            found[paths[id(layer.absorbed[0])]] = {"num_features": layer.out_channels}
    return found


def _channels(layer: nn.Module) -> dict[str, int] | None:
    """Numbers of channels as torch's layers name them, and whether there is a bias; None for another kind of layer."""
    match layer:
        case PerforatedConv2d():
            return _channels(layer.conv)
        case nn.Conv2d() | GatedConv2d():
            groups = layer.conv_groups if isinstance(layer, GatedConv2d) else layer.groups
            counts = {"in_channels": layer.in_channels, "out_channels": layer.out_channels, "groups": groups}
        case nn.Linear():
            counts = {"in_features": layer.in_features, "out_features": layer.out_features}
        case _BatchNorm():
            return {"num_features": layer.num_features}
        case _:
            return None
    return {**counts, "bias": layer.bias is not None}


def _require_channels(name: str, layer: nn.Module, channels: Mapping[str, Any]) -> None:
    """Raises ConfigError: they are not those of such a layer, or do not fit together."""
    own = _channels(layer) or {}
    try:
        counts = {key: _count(value) for key, value in channels.items() if key != "bias"}
        groups = counts.get("groups", 1)
        fit = channels.keys() == own.keys() and not any(count % groups for count in counts.values())
    except ValueError:
        fit = False
    if not fit:
        raise ConfigError(f"channels of {name!r} must be {', '.join(own)} that fit together, got {dict(channels)}")


def _with_channels(layer: nn.Module, channels: Mapping[str, int]) -> nn.Module:
    """A copy with other numbers of channels, whose parameters and statistics have no values yet."""
    new: Any = copy.deepcopy(layer)
    for attribute, count in channels.items():
        if attribute != "bias":
            setattr(new, attribute, count)
    match new:
        case nn.Conv2d():
            shape = (new.out_channels, new.in_channels // new.groups, *new.kernel_size)
        case nn.Linear():
            shape = (new.out_features, new.in_features)
        case _:
            shape = (new.num_features,)
    biased = channels.get("bias", new.bias is not None)
    new.bias = _parameter(new.weight if new.bias is None else new.bias, shape[:1]) if biased else None
    new.weight = None if new.weight is None else _parameter(new.weight, shape)
    for name in ("running_mean", "running_var"):
        statistic = getattr(new, name, None)
        if statistic is not None:
            setattr(new, name, statistic.new_empty(shape))
    return cast(nn.Module, new)


def _parameter(like: Tensor, shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(like.detach().new_empty(shape), requires_grad=like.requires_grad)
