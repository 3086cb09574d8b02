"""Which output positions a perforated convolution computes, and from which of them the others are copied.

Source: Figurnov et al., "PerforatedCNNs: acceleration through elimination of redundant convolutions", NeurIPS 2016,
sections 3.2 and 3.3, and the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from headgate.errors import ConfigError
from headgate.graph import ONE_SIDED, TRANSPARENT, TWO_SIDED, operation
from headgate.tracing import evaluation_mode, trace

MaskKind = Literal["uniform", "grid", "pooling", "impact"]

Batches: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""(images, labels) each."""


def require_kind(kind: str) -> None:
    """Raises ConfigError: there is no mask of this kind."""
    if kind not in get_args(MaskKind):
        raise ConfigError(f"mask must be one of {', '.join(get_args(MaskKind))}, got {kind!r}")


def require_rate(name: str, rate: object) -> None:
    """Raises ConfigError: `rate` is no share of positions that may be skipped."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ConfigError(f"{name} must be a share of skipped positions in [0, 1), got {rate!r}")


# ----------------------------------------------------------------------------------------------------------- the masks


def ranked_mask(weight: Float[Tensor, "h w"], rate: float, generator: torch.Generator) -> Bool[Tensor, "h w"]:
    """The positions of the largest weights, ties broken at random; with equal weights the *uniform* mask.

    Args:    rate: share of positions to skip; at least one is computed.
    Returns: True where the output is computed. Masks of one generator's seed at rising rates lie within each other.
    """
    require_rate("rate", rate)
    order = torch.randperm(weight.numel(), generator=generator)
    order = order[torch.argsort(weight.flatten()[order], descending=True, stable=True)]
    computed = max(1, round((1 - rate) * weight.numel()))
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[:computed]] = True
    return mask.view(weight.shape)


def grid_mask(size: tuple[int, int], rate: float, generator: torch.Generator) -> Bool[Tensor, "h w"]:
    """The crossings of evenly spread rows and columns: a(i) = ⌈α(i − 1 + u)⌉, α = size ÷ number, u random in (0, 1).

    Rows and columns are thinned alike. As their product seldom is the number asked for, the nearest is taken.

    Args:    size: (height, width) of the output map.
    Returns: True where the output is computed.
    """
    require_rate("rate", rate)
    offsets = torch.rand(2, generator=generator).tolist()
    height, width = size
    rows = min(height, max(1, round(height * math.sqrt(1 - rate))))
    columns = min(width, max(1, round((1 - rate) * height * width / rows)))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[_spread(height, rows, offsets[0])[:, None], _spread(width, columns, offsets[1])] = True
    return mask


def _spread(size: int, number: int, offset: float) -> Tensor:
    places = torch.arange(number, dtype=torch.float64) + offset
    return (places * (size / number)).ceil().long().clamp(1, size) - 1


def nearest_computed(mask: Bool[Tensor, "h w"], generator: torch.Generator) -> Int64[Tensor, "h w"]:
    """For every position the computed one that is nearest in the plane, ties broken at random.

    Returns: places in the flattened map; a computed position's is its own.
    """
    computed = mask.nonzero()
    computed = computed[torch.randperm(len(computed), generator=generator)]
    columns = torch.arange(mask.shape[1])
    across = (columns[:, None] - computed[:, 1]).square()
    nearest = torch.stack([(across + (row - computed[:, 0]).square()).argmin(1) for row in range(mask.shape[0])])
    return (computed[:, 0] * mask.shape[1] + computed[:, 1])[nearest]


# --------------------------------------------------------------------------------------------- what masks are ranked by


def pooling_usage(model: nn.Module, sizes: dict[str, tuple[int, int]]) -> dict[str, Float[Tensor, "h w"]]:
    """How many windows of the pooling layer behind a convolution read each of its outputs.

    Norms, activations and dropout may stand between. Only windows that overlap, or leave gaps, tell positions apart.

    Args:    sizes: (height, width) of the outputs of the convolutions in question.
    Returns: the counts of those that an `nn.MaxPool2d` or `nn.AvgPool2d` follows.
    Raises:  ModelError: the model cannot be traced.
    """
    with evaluation_mode(model):
        graph = trace(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    usage = {}
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and name in sizes:
            pool = _next_pool(node, modules)
            if pool is not None:
                usage[name] = _windows(pool, sizes[name])
    return usage


def _next_pool(node: fx.Node, modules: dict[str, nn.Module]) -> nn.MaxPool2d | nn.AvgPool2d | None:
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            return module
        passes = node.op != "output" and operation(node, modules) in ONE_SIDED | TWO_SIDED | TRANSPARENT
        if not passes and not isinstance(module, _NormBase):
            return None
    return None


def _windows(pool: nn.MaxPool2d | nn.AvgPool2d, size: tuple[int, int]) -> Tensor:
    pooled = pool(torch.zeros(1, 1, *size)).shape[2:]

    def along(axis: int) -> Tensor:
        def of(option: Any) -> int:
            return int(option[axis] if isinstance(option, tuple) else option)

        starts = torch.arange(pooled[axis]) * of(pool.stride) - of(pool.padding)
        taps = torch.arange(of(pool.kernel_size)) * of(getattr(pool, "dilation", 1))
        places = (starts[:, None] + taps).flatten()
        places = places[(places >= 0) & (places < size[axis])]
        return torch.bincount(places, minlength=size[axis]).float()

    return along(0)[:, None] * along(1)


def impact(model: nn.Module, batches: Batches, names: Iterable[str]) -> dict[str, Float[Tensor, "h w"]]:
    """Estimated change of the loss if a position's outputs were dropped: Σ_channels |∂L/∂V · V|, mean over images.

    First order in V, the convolution's output, on the network as it is, in evaluation mode.

    Args:    names: of the convolutions in question.
    Returns: (height, width) of each.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            outputs[name] = output if output.requires_grad else output.requires_grad_()
            return output.clone()  # what follows may work in place

        return hook

    total: dict[str, Tensor] = {}
    images, device = 0, next(model.parameters()).device
    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        for x, labels in batches:
            with evaluation_mode(model), torch.enable_grad():
                loss = F.cross_entropy(model(x.to(device)), labels.to(device), reduction="sum")
                gradients = torch.autograd.grad(loss, list(outputs.values()))
            for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
                here = (gradient * output.detach()).abs().sum((0, 1))
                total[name] = total[name] + here if name in total else here
            images += len(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.float().cpu() / images for name, value in total.items()}
