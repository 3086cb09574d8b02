"""Gate any convolutional network: `gate_` by its graph, `apply_structure_` by the names that a checkpoint recorded."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from headgate.errors import ConfigError, ModelError
from headgate.graph import ConvSite, conv_sites, find_layer, find_norm, near_names, norm_activation
from headgate.nn.binary import BinaryConv2d
from headgate.nn.config import GateConfig
from headgate.nn.control import gated_layers
from headgate.nn.gated_conv import GatedConv2d
from headgate.nn.selection import dividing_groups

_BASE_PATH = ("activation", "group", "channel")  # granularities that split a layer's channels into groups


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What `gate_` did with one convolution.

    Attributes:
        name: the layer's path in the model.
        gated: it is gated now.
        groups: G of this layer; 1 where it stays dense.
        lowered_from: the configured groups, where they do not divide this layer's channels; else None.
        reason: why it stays dense; empty where it is gated.
        activation: the activation behind, or None.
        two_sided: that activation saturates on both sides.
        residual: a residual is added before it.
        c_in, c_out, kernel, stride, conv_groups: the convolution; None for a functional one.
        out_size: (height, width) of its output, where an example input was given.
    """

    name: str
    gated: bool
    groups: int
    lowered_from: int | None
    reason: str
    activation: str | None
    two_sided: bool
    residual: bool
    c_in: int | None
    c_out: int | None
    kernel: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    conv_groups: int | None
    out_size: tuple[int, int] | None

    @property
    def shape(self) -> str:
        """For example "64→128 3×3 /2"."""
        if self.kernel is None or self.stride is None:
            return "?"
        stride = "" if set(self.stride) == {1} else " /" + "×".join(map(str, dict.fromkeys(self.stride)))
        groups = "" if self.conv_groups == 1 else f" g{self.conv_groups}"
        return f"{self.c_in}→{self.c_out} {'×'.join(map(str, self.kernel))}{stride}{groups}"

    @property
    def note(self) -> str:
        """The last column of the table: why it is dense, or how it is gated."""
        if not self.gated:
            return self.reason
        parts = [f"lowered from {self.lowered_from}"] if self.lowered_from else []
        return ", ".join(parts + ["residual"] * self.residual + ["two-sided"] * self.two_sided)


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """What `gate_` did, layer by layer, in the order of the graph. `print(report)` shows a table.

    Attributes:
        model: class name of the model.
        config: the settings that were asked for.
        layers: every convolution, gated or not.
    """

    model: str
    config: GateConfig
    layers: tuple[LayerReport, ...]

    @property
    def gated(self) -> tuple[LayerReport, ...]:
        """The layers that are gated now."""
        return tuple(layer for layer in self.layers if layer.gated)

    @property
    def dense(self) -> tuple[LayerReport, ...]:
        """The layers that stay dense, each with its reason."""
        return tuple(layer for layer in self.layers if not layer.gated)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "model": self.model,
            "config": _plain(self.config),
            "layers": [{**dataclasses.asdict(layer), "shape": layer.shape} for layer in self.layers],
        }

    def __str__(self) -> str:
        head = f"{self.model}: {len(self.gated)} of {len(self.layers)} convolutions gated"
        if not self.gated:
            head += "; nothing to gate, the model is unchanged"
        titles = ("layer", "convolution", "gate", "activation", "note")
        rows = [titles] + [
            (x.name, x.shape, f"G={x.groups}" if x.gated else "dense", x.activation or "-", x.note) for x in self.layers
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([head, *lines])


# ---------------------------------------------------------------------------------------------------------------- plan


def gate_(model: nn.Module, config: GateConfig | None = None, *, example_input: Any = None) -> GateReport:
    """Gate a model's convolutions, in place.

    Every convolution that is followed by an activation, through a batch norm and a residual sum or without them, is
    replaced by a `GatedConv2d` at the same path, and the norm that it takes over by `nn.Identity` (by its activation
    alone for timm's BatchNormAct2d). The first convolution, depthwise ones and squeeze-and-excite ones stay dense.
    Nothing else of the model changes: not its class, its forward, its mode or its other names.

    Args:
        model: any network that `torch.fx` can trace in evaluation mode. It is left untouched where an error is raised.
        config: how to gate; `GateConfig()` by default.
        example_input: a batch, or a tuple of positional inputs. With it, map sizes are known and code that branches
            on shapes can be followed.
    Returns: every convolution, what was done with it, and why.
    Raises:
        ModelError: the model has no convolution, is gated already, or cannot be traced.
        ConfigError: a pattern matches no convolution, or `groups` exceeds the channels of every layer.
    """
    config = config if config is not None else GateConfig()
    _require_dense(model)
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        raise ModelError(f"model must have a Conv2d to gate, got {type(model).__name__} with none")
    if isinstance(model, _ConvNd):
        raise ModelError(f"model must contain its convolutions, got a bare {type(model).__name__}; wrap it in a module")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ModelError("model must have initialised parameters, got a lazy module; run one forward pass first")
    sites = conv_sites(model, example_input)
    _check_patterns(config, [site.name for site in sites], model)
    reasons = {site.name: _reason(site, config) for site in sites}
    _check_groups(config, [site for site in sites if not reasons[site.name]])
    layers = tuple(_plan(site, config, reasons[site.name]) for site in sites)
    places = {site.name: site for site in sites}
    replacements = [
        _Replacement.of(
            places[layer.name].conv,
            places[layer.name].norm,
            dataclasses.replace(config, groups=layer.groups),
            layer.two_sided,
        )
        for layer in layers
        if layer.gated
    ]
    _replace_all(model, replacements)
    return GateReport(model=type(model).__name__, config=config, layers=layers)


def _require_dense(model: nn.Module) -> None:
    gated = gated_layers(model)
    if gated:
        raise ModelError(
            f"model must be dense, got {type(model).__name__} with {len(gated)} gated layers (first: "
            f"{next(iter(gated))!r}); build it anew, or gate once with another config"
        )


def _check_patterns(config: GateConfig, names: list[str], model: nn.Module) -> None:
    for option in ("include", "exclude"):
        for pattern in getattr(config, option):
            if any(fnmatchcase(name, pattern) for name in names):
                continue
            if any(name.startswith(f"{pattern}.") for name in names):
                hint = f"it holds convolutions: write {pattern + '.*'!r}"
            else:
                near = near_names(pattern, names)
                hint = f"near it: {near}" if near else f"convolutions are named like {', '.join(map(repr, names[:3]))}"
            raise ConfigError(
                f"{option} must name convolutions of {type(model).__name__}, got {pattern!r} that matches none; {hint}"
            )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _reason(site: ConvSite, config: GateConfig) -> str:
    """Why this layer stays dense whatever its channels; empty where it does not."""
    if site.obstacle is not None:
        return site.obstacle
    if _matches(site.name, config.exclude):
        return "excluded"
    if _matches(site.name, config.include):
        return ""
    if site.first:
        return "first convolution"
    if site.norm is None and site.pooled:
        return "works on a 1×1 map, as in squeeze and excite"
    return site.missing or ""


def _check_groups(config: GateConfig, candidates: list[ConvSite]) -> None:
    if config.granularity not in _BASE_PATH:
        return
    convs = [site.conv for site in candidates if isinstance(site.conv, nn.Conv2d)]
    most = max((min(conv.in_channels, conv.out_channels) // conv.groups for conv in convs), default=None)
    if most is not None and config.groups > most:
        raise ConfigError(
            f"groups must not exceed the channels of every layer, got groups={config.groups} where the widest layer "
            f"that can be gated has {most} per convolution group; lower groups"
        )


def _plan(site: ConvSite, config: GateConfig, reason: str) -> LayerReport:
    conv = site.conv if isinstance(site.conv, _ConvNd) else None
    groups, lowered_from = config.groups, None
    if not reason and config.granularity in _BASE_PATH and isinstance(conv, nn.Conv2d):
        inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        groups = dividing_groups(inputs, outputs, config.groups)
        lowered_from = config.groups if groups != config.groups else None
        if lowered_from and groups == 1:
            reason = f"no number up to groups={config.groups} but 1 divides its {inputs} inputs and {outputs} outputs"
    return LayerReport(
        name=site.name,
        gated=not reason,
        groups=1 if reason else groups,
        lowered_from=None if reason else lowered_from,
        reason=reason,
        activation=site.activation,
        two_sided=site.two_sided,
        residual=site.residual,
        c_in=conv.in_channels if conv is not None else None,
        c_out=conv.out_channels if conv is not None else None,
        kernel=tuple(conv.kernel_size) if conv is not None else None,
        stride=tuple(conv.stride) if conv is not None else None,
        conv_groups=conv.groups if conv is not None else None,
        out_size=site.out_size,
    )


# ------------------------------------------------------------------------------------------------------------- replace


@dataclass(frozen=True)
class _Replacement:
    """A convolution and its norm, and what takes their places. Making one changes nothing yet."""

    conv: nn.Module
    norm: nn.Module | None
    gated: GatedConv2d
    in_norms_place: nn.Module | None

    @classmethod
    def of(cls, conv: nn.Module | None, norm: nn.Module | None, config: GateConfig, two_sided: bool) -> _Replacement:
        assert isinstance(conv, nn.Conv2d)
        assert norm is None or isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
        gated = GatedConv2d(conv, norm, config, two_sided=two_sided)
        if norm is None:
            return cls(conv, None, gated, None)
        for sum_norm in (gated.final_norm, gated.partial_norm):
            if sum_norm is not None:
                sum_norm.train(norm.training)
                sum_norm.sync = isinstance(norm, nn.SyncBatchNorm)
        gated.gate.sync = isinstance(norm, nn.SyncBatchNorm)
        rest: nn.Module = nn.Identity()
        act = norm_activation(norm)
        if act is not None:
            drop = getattr(norm, "drop", None)
            rest = nn.Sequential(OrderedDict(drop=drop if isinstance(drop, nn.Module) else nn.Identity(), act=act))
        rest.train(norm.training)
        gated.absorbed = (rest,)
        return cls(conv, norm, gated, rest)


def _replace_all(model: nn.Module, replacements: Iterable[_Replacement]) -> None:
    """Swap modules at every path at which they are registered."""
    swap: dict[nn.Module, nn.Module] = {}
    for new in replacements:
        swap[new.conv] = new.gated
        if new.norm is not None and new.in_norms_place is not None:
            swap[new.norm] = new.in_norms_place
    for parent in list(model.modules()):
        if parent in swap or isinstance(parent, GatedConv2d):
            continue
        for name, child in list(parent._modules.items()):
            if child in swap:
                parent._modules[name] = swap[child]


# ----------------------------------------------------------------------------------------------------------- structure


def gated_structure(model: nn.Module) -> dict[str, Any]:
    """How a model is gated, as plain values: what `apply_structure_` needs to gate a dense one alike.

    Returns: {"config": …, "layers": {name: {"groups", "two_sided", "norm": the norm's path or None, and "config" with
        the settings in which this layer differs from the common ones, and "forced" and "binary" where it is}}}.
    Raises: ModelError: nothing is gated, or a norm's place is no longer in the model.
    """
    layers = gated_layers(model)
    if not layers:
        raise ModelError(f"model must have gated convolutions, got {type(model).__name__} with none; call gate_ first")
    paths = {id(module): name for name, module in model.named_modules()}
    first = next(iter(layers.values())).config
    common = dataclasses.replace(first, groups=max(layer.config.groups for layer in layers.values()))
    described: dict[str, Any] = {}
    for name, layer in layers.items():
        norm = paths.get(id(layer.absorbed[0])) if layer.absorbed else None
        if layer.absorbed and norm is None:
            raise ModelError(f"model must keep the place of the norm that {name!r} took over, got it removed")
        described[name] = {"groups": layer.config.groups, "two_sided": layer.two_sided, "norm": norm}
        own, shared = _plain(layer.config), _plain(dataclasses.replace(common, groups=layer.config.groups))
        if own != shared:
            described[name]["config"] = {key: value for key, value in own.items() if value != shared[key]}
        if layer.gate.forced is not None:  # part of the function: a static network is not its gated twin
            described[name]["forced"] = layer.gate.forced
        if layer.binary:
            described[name]["binary"] = True
    return {"config": _plain(common), "layers": described}


def _plain(config: GateConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def apply_structure_(model: nn.Module, structure: Mapping[str, Any]) -> None:
    """Gate a dense model as `gated_structure` recorded, in place and by name: no tracing.

    Args:
        model: dense, with the names of the model that was recorded. It is left untouched where an error is raised.
    Raises:
        ModelError: it is gated already, or a name of the structure is missing or is another kind of layer.
        ConfigError: the structure is not one that `gated_structure` returned.
        ShapeError: a layer's groups do not divide its channels.
    """
    _require_dense(model)
    try:
        config = dict(structure["config"])
        layers = {
            name: (GateConfig(**config | entry.get("config", {}) | {"groups": entry["groups"]}), entry)
            for name, entry in dict(structure["layers"]).items()
        }
        wanted = [(name, entry["norm"], bool(entry["two_sided"])) for name, (_, entry) in layers.items()]
        forced = {name: entry["forced"] for name, (_, entry) in layers.items() if "forced" in entry}
        if not set(forced.values()) <= {"open", "closed"}:
            raise ValueError(f"unknown forced state in {forced}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"structure must be what gated_structure returns, got one that fails with {error!r}"
        ) from error
    replacements = []
    for name, norm_name, two_sided in wanted:
        conv = find_layer(model, name, nn.Conv2d, "a Conv2d")
        binary = bool(layers[name][1].get("binary"))
        if isinstance(conv, BinaryConv2d) != binary:
            kind = "a BinaryConv2d" if binary else "a Conv2d that is not binary"
            raise ModelError(f"{name!r} must be {kind}, got {type(conv).__name__}; build the model that was saved")
        norm = None if norm_name is None else find_norm(model, norm_name)
        replacements.append(_Replacement.of(conv, norm, layers[name][0], two_sided))
    _replace_all(model, replacements)
    for name, layer in gated_layers(model).items():
        layer.gate.forced = forced.get(name)
