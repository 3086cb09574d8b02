"""Structured sparsity learning: group lasso over filters, channels, filter shapes and depth, then removal.

Source: Wen, Wu, Wang, Chen, Li, "Learning structured sparsity in deep neural networks", NeurIPS 2016, sections 3.1–3.3.

    lasso = GroupLasso(model, SSLConfig(filters=1e-4, channels=1e-4), example_input)
    loss = task_loss + lasso.penalty()      # in every training step
    lasso.zero_()                           # at the end
    smaller = remove(model, example_input).model

Where a batch norm follows, its weight and bias belong to the filter's group (and to the layer's, for depth): the norm
undoes any scaling of a filter, so that a lasso on filters alone would shrink all of them and choose none; and a zeroed
channel is then zero and not some other constant. A zeroed layer of a residual branch takes the whole branch along.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headgate.baselines.branches import residual_sums
from headgate.baselines.channels import as_graph, weight_by_group
from headgate.baselines.conversion import require_numbers
from headgate.counting import Counts
from headgate.errors import ConfigError, ModelError
from headgate.graph import conv_sites
from headgate.nn.config import require_finite

__all__ = [
    "GroupLasso",
    "Kind",
    "SSLConfig",
    "ZeroMask",
    "Zeroed",
    "group_norms",
    "residual_branches",
    "shape_macs",
    "zero_columns",
]

Kind = Literal["filters", "channels", "shapes", "depth"]
KINDS: Final[tuple[Kind, ...]] = ("filters", "channels", "shapes", "depth")


@dataclass(frozen=True, kw_only=True)
class SSLConfig:
    """How strongly each structure is regularised, and when a group of weights counts as gone.

    Attributes:
        filters, channels, shapes, depth: λ of each kind of group; 0 leaves it out. Filters: all weights of an output
            channel. Channels: all of an input channel. Shapes: one tap of one input channel over all filters. Depth:
            all of a convolution inside a residual branch.
        bound: groups whose root mean square weight is at most this share of the largest are zeroed: the largest of the
            layer, for depth of all layers. A share, because the scale of a layer in front of a norm is arbitrary.
    """

    filters: float = 0.0
    channels: float = 0.0
    shapes: float = 0.0
    depth: float = 0.0
    bound: float = 0.05

    def __post_init__(self) -> None:
        for name in (*KINDS, "bound"):
            value = getattr(self, name)
            require_finite(name, value)
            if value < 0:
                raise ConfigError(f"{name} must be ≥ 0, got {value}")
        if self.bound >= 1:
            raise ConfigError(f"bound must be < 1, got {self.bound}: nothing would be left")
        if not self.kinds:
            raise ConfigError(f"one of {', '.join(KINDS)} must be > 0, got 0 for all: nothing would be regularised")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is regularised."""
        return tuple(kind for kind in KINDS if getattr(self, kind) > 0)


def group_norms(conv: nn.Conv2d, kind: Kind, norm: nn.Module | None = None) -> tuple[Float[Tensor, " groups"], int]:
    """ℓ2 norms of a convolution's groups of weights of one kind, differentiable; and the weights in one group.

    The subgradient at a group that is zero is zero. In a convolution with several groups each has columns of its own.

    Args: norm: behind the convolution; its weight and bias belong to the groups of "filters" and "depth".
    """
    weight = weight_by_group(conv)
    match kind:
        case "channels":
            norms = torch.linalg.vector_norm(weight, dim=(1, 3, 4)).flatten()
        case "shapes":
            norms = torch.linalg.vector_norm(weight, dim=1).flatten()
        case "filters" | "depth":
            rows = torch.cat([conv.weight.flatten(1), *(p[:, None] for p in _affine(norm))], 1)
            norms = torch.linalg.vector_norm(rows, dim=1 if kind == "filters" else None).view(-1)
            return norms, rows.numel() // norms.numel()
    return norms, weight.numel() // norms.numel()


def _affine(norm: nn.Module | None) -> list[Tensor]:
    """A norm's weight and bias, where it has them."""
    found = (getattr(norm, name, None) for name in ("weight", "bias"))
    return [parameter for parameter in found if isinstance(parameter, Tensor)]


class Zeroed(NamedTuple):
    """How many groups of one kind of one layer were zeroed, of how many."""

    layer: str
    kind: Kind
    zeroed: int
    groups: int


class GroupLasso:
    """The penalty on a model's convolutions, and their zeroing.

    Args:
        model: dense; its parameters are read and zeroed in place.
        example_input: a batch, or a tuple of positional inputs, to find the norms and the residual branches.
    Raises: ModelError: no convolution; a binary one; no residual branch where depth is regularised; or see `remove`.
    """

    def __init__(self, model: nn.Module, config: SSLConfig, example_input: Any) -> None:
        self.model, self.config = model, config
        self.convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
        if not self.convs:
            raise ModelError(f"model must have a Conv2d to regularise, got {type(model).__name__} with none")
        require_numbers(self.convs)
        sites = conv_sites(model, example_input)
        self._norms = {id(site.conv): site.norm for site in sites if site.norm is not None}
        self.branches = residual_branches(model, example_input)
        if config.depth and not self.branches:
            raise ModelError(f"depth needs residual branches, got {type(model).__name__} without any; set depth=0")

    def _layers(self, kind: Kind) -> Iterator[tuple[str, nn.Conv2d]]:
        inside = {name for branch in self.branches for name in branch}
        for name, conv in self.convs.items():
            if kind == "channels" and conv.groups == conv.in_channels > 1:
                continue  # depthwise: a channel is a filter
            if kind != "depth" or name in inside:
                yield name, conv

    def penalty(self) -> Float[Tensor, ""]:
        """Σ over kinds of λ · Σ over layers and groups of the ℓ2 norm of the group's weights; to add to the loss."""
        terms = [
            getattr(self.config, kind) * group_norms(conv, kind, self._norms.get(id(conv)))[0].sum()
            for kind in self.config.kinds
            for _, conv in self._layers(kind)
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def zero_(self) -> tuple[Zeroed, ...]:
        """Zero the groups under the bound, in place, and report on every layer and kind."""
        done: list[Zeroed] = []
        for kind in self.config.kinds:
            layers = dict(self._layers(kind))
            means = {name: self._means(conv, kind) for name, conv in layers.items()}
            largest = max(float(of_layer.max()) for of_layer in means.values())
            for name, conv in layers.items():
                bound = self.config.bound * (largest if kind == "depth" else float(means[name].max()))
                gone = means[name] <= bound
                self._zero_kind_(conv, kind, gone)
                done.append(Zeroed(layer=name, kind=kind, zeroed=int(gone.sum()), groups=len(gone)))
        if self.config.depth:
            for branch in self.branches:
                if any(not self.convs[name].weight.any() for name in branch):
                    for name in branch:
                        self._zero_filters_(self.convs[name], slice(None))
        return tuple(done)

    def _means(self, conv: nn.Conv2d, kind: Kind) -> Float[Tensor, " groups"]:
        """Root mean square weight of each group."""
        norms, size = group_norms(conv, kind, self._norms.get(id(conv)))
        means: Tensor = norms / size**0.5
        return means

    def _zero_kind_(self, conv: nn.Conv2d, kind: Kind, gone: Bool[Tensor, " groups"]) -> None:
        weight = weight_by_group(conv)
        match kind:
            case "filters":
                self._zero_filters_(conv, gone)
            case "depth":
                self._zero_filters_(conv, gone.expand(conv.out_channels))
            case "channels":
                weight.mul_(~gone.view(conv.groups, 1, -1, 1, 1))
            case "shapes":
                weight.mul_(~gone.view(conv.groups, 1, *weight.shape[2:]))

    def _zero_filters_(self, conv: nn.Conv2d, gone: Bool[Tensor, " c_out"] | slice) -> None:
        bias = [] if conv.bias is None else [conv.bias]
        for parameter in (conv.weight, *bias, *_affine(self._norms.get(id(conv)))):
            parameter[gone] = 0.0


# ------------------------------------------------------------------------------------------------------------- branches


def residual_branches(model: nn.Module, example_input: Any) -> tuple[tuple[str, ...], ...]:
    """The convolutions of each residual branch: what is added to a shortcut, which has fewer convolutions.

    Raises: ModelError: the model is gated or cannot be traced.
    """
    traced, branches = as_graph(model, example_input), []
    for _, operands in residual_sums(traced):
        convs = [tuple(name for name in names if _is_conv(traced, name)) for names in operands.values()]
        shortcut, branch = sorted(convs, key=len)
        if len(shortcut) < len(branch):
            branches.append(branch)
    return tuple(branches)


def _is_conv(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.Conv2d)


# -------------------------------------------------------------------------------------------------------- after zeroing


class ZeroMask:
    """Keeps the weights of convolutions that are zero now at zero, through fine-tuning.

    Args: model: masked, or already smaller; gradients and momentum may move its weights between calls of `apply_`.
    """

    def __init__(self, model: nn.Module) -> None:
        convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
        self._zeros = [(conv.weight, conv.weight == 0) for conv in convs if not conv.weight.all()]

    @torch.no_grad()
    def apply_(self) -> None:
        """Zero them again; after every step of the optimiser."""
        for weight, zeros in self._zeros:
            weight[zeros] = 0.0


def zero_columns(conv: nn.Conv2d) -> tuple[int, int]:
    """Columns of a convolution's weight matrices (one tap of one input channel over all filters) that are zero; of all.

    A matrix product leaves them out together with the rows of the unfolded images that they meet.
    """
    zero = group_norms(conv, "shapes")[0] == 0
    return int(zero.sum()), len(zero)


def shape_macs(model: nn.Module, counts: Counts) -> dict[str, int]:
    """MACs per image of each layer where zero columns of convolutions are left out.

    Args:   counts: of `model`, by `headgate.count`; its own figures are those of the dense layers.
    Raises: ModelError: `counts` is of another model.
    """
    macs = {}
    for layer in counts.layers:
        name = layer.name.split("#")[0]
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(f"counts must be of this model, got {name!r}, which it has not") from error
        zero, columns = zero_columns(module) if isinstance(module, nn.Conv2d) else (0, 1)
        macs[layer.name] = layer.dense_macs // columns * (columns - zero)
    return macs
