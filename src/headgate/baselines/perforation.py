"""PerforatedCNN: convolutions that compute some output positions and copy their nearest ones to the others.

Source: Figurnov et al., "PerforatedCNNs: acceleration through elimination of redundant convolutions", NeurIPS 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from zlib import crc32

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from headgate.baselines.conversion import Conversion, ConvertedLayer, matches, require_patterns, swap_
from headgate.baselines.perforation_masks import (
    Batches,
    MaskKind,
    grid_mask,
    impact,
    nearest_computed,
    pooling_usage,
    ranked_mask,
    require_kind,
    require_rate,
)
from headgate.counting import LayerCounts, count
from headgate.errors import ConfigError, ModelError, ShapeError
from headgate.nn import gated_layers


class PerforatedConv2d(nn.Module):
    """A convolution that is computed at some output positions only; the others copy the nearest of those.

    In evaluation it gathers the patches of the computed positions and convolves these alone: `headgate.count` finds
    that convolution, `conv`, and counts what it executes. In training it convolves densely and then copies, which is
    the same function, and on a CPU several times faster with its gradient.

    Args:
        conv: the dense convolution, of zero padding; its weight and bias are taken over, not copied.
        in_size: (height, width) of the input maps; it takes no others.
        source: see the attribute; every position its own, so nothing skipped, by default.

    Attributes:
        source: (height, width) the place in the flattened output map that each position is copied from. Its own where
            it is computed. Part of the state.
        conv: the convolution of the patches, laid side by side; its stride is its kernel.
    Raises: ShapeError: `conv` does not pad with zeros, `in_size` or `source` does not fit it, or an input is of another
        size.
    """

    source: Tensor
    _sources: Tensor
    _taps: Tensor
    _copies: Tensor

    def __init__(self, conv: nn.Conv2d, in_size: tuple[int, int], source: Int64[Tensor, "h w"] | None = None) -> None:
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ShapeError(f"padding_mode must be 'zeros', got {conv.padding_mode!r}; leave this layer dense")
        self.in_size = in_size
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            cast(tuple[int, int], conv.kernel_size),
            stride=cast(tuple[int, int], conv.kernel_size),
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.conv.weight, self.conv.bias = conv.weight, conv.bias
        margins = [_margins(conv, axis) for axis in range(2)]
        self._margins = (*margins[1], *margins[0])
        reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        height, width = (
            (size + sum(margin) - extent) // step + 1
            for size, margin, extent, step in zip(in_size, margins, reach, conv.stride, strict=True)
        )
        if min(height, width) < 1:
            raise ShapeError(f"in_size must be at least the kernel's reach {tuple(reach)}, got {in_size}")
        self.out_size = (height, width)
        places = torch.arange(height * width, device=conv.weight.device)
        self.register_buffer("source", places.view(height, width))
        self.register_load_state_dict_post_hook(_reindex)  # type: ignore[no-untyped-call]
        for name in ("_sources", "_taps", "_copies"):  # buffers, so that a traced forward finds them
            self.register_buffer(name, places, persistent=False)
        if source is None:
            self._index()
        else:
            self.copy_from_(source)
        self.train(conv.training)

    @property
    def positions(self) -> int:
        """Output positions."""
        return self.out_size[0] * self.out_size[1]

    @property
    def computed(self) -> int:
        """Output positions that are computed."""
        return int(self._own().sum())

    def copy_from_(self, source: Int64[Tensor, "h w"]) -> None:
        """Change which positions are computed, and which of them the others copy.

        Raises: ShapeError: see `require_source`.
        """
        self.require_source(source)
        self.source.copy_(source)
        self._index()

    def require_source(self, source: Int64[Tensor, "h w"]) -> None:
        """Raises ShapeError: it is not of this output's size, or copies from a position that is not computed."""
        if source.shape != self.out_size:
            raise ShapeError(f"source must have the output's size {self.out_size}, got {tuple(source.shape)}")
        flat = source.flatten()
        inside = int(flat.min()) >= 0 and int(flat.max()) < self.positions
        if not (inside and torch.equal(flat[flat], flat)):
            raise ShapeError("source must name computed positions, which are their own source, got others")

    def _index(self) -> None:
        """What `source` implies: the taps to gather from the padded input, and which patch each output copies."""
        if self.source.is_meta:
            return  # positions come with the weights
        computed = self._own().nonzero().flatten()
        patch = torch.empty_like(self.source).flatten()
        patch[computed] = torch.arange(len(computed), device=computed.device)
        rows, columns = computed // self.out_size[1], computed % self.out_size[1]
        down, across = (torch.arange(k, device=computed.device) for k in self.conv.kernel_size)
        row = (rows * self.stride[0])[:, None, None] + (down * self.dilation[0])[:, None]
        column = (columns * self.stride[1])[:, None, None] + across * self.dilation[1]
        width = self.in_size[1] + self._margins[0] + self._margins[1]
        self._sources = self.source.flatten()
        self._taps, self._copies = (row * width + column).flatten(), patch[self._sources]

    def _own(self) -> Tensor:
        """Whether each position, flattened, is its own source."""
        return self.source.flatten() == torch.arange(self.positions, device=self.source.device)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """The dense output at computed positions, and copies of it elsewhere."""
        _require_size(x, self.in_size)
        conv = self.conv
        if self.training:
            dense = F.conv2d(x, conv.weight, conv.bias, self.stride, self.padding, self.dilation, conv.groups)
            return _pick(dense, self._sources, self.out_size)
        patches = _pick(F.pad(x, self._margins), self._taps, (-1, conv.kernel_size[1]))  # rows: computed · kh
        return _pick(conv(patches), self._copies, self.out_size)

    def extra_repr(self) -> str:
        return (
            f"in_size={self.in_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"computed={self.computed} of {self.positions}"
        )


def _reindex(layer: PerforatedConv2d, _incompatible_keys: Any) -> None:
    layer._index()


def _margins(conv: nn.Conv2d, axis: int) -> tuple[int, int]:
    """Zeros before and behind the map along an axis, as torch pads."""
    if isinstance(conv.padding, str):
        total = conv.dilation[axis] * (conv.kernel_size[axis] - 1) if conv.padding == "same" else 0
        return (total // 2, total - total // 2)
    return (conv.padding[axis], conv.padding[axis])


def _pick(maps: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """These pixels of maps (n, c, h, w) as maps of another size; all channels of a pixel are moved together."""
    pixels = maps.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, places)
    return pixels.view(maps.shape[0], *size, maps.shape[1]).permute(0, 3, 1, 2)


@torch.fx.wrap
def _require_size(x: Tensor, size: tuple[int, int]) -> None:
    if tuple(x.shape[2:]) != tuple(size):
        raise ShapeError(f"input maps must be {size}, for which this layer was perforated, got {tuple(x.shape[2:])}")


# ------------------------------------------------------------------------------------------------------ a whole network


@dataclass(frozen=True, kw_only=True)
class Site:
    """A convolution that may be perforated, where it runs; `obstacle` says why it may not."""

    conv: nn.Conv2d
    layer: LayerCounts
    obstacle: str

    def perforated(self, source: Tensor | None = None) -> PerforatedConv2d:
        """Its replacement."""
        return PerforatedConv2d(self.conv, self.layer.shape.in_size, source)


def find_sites(model: nn.Module, images: Tensor, exclude: tuple[str, ...] = ()) -> dict[str, Site]:
    """Every convolution that runs on the images, by name, in the order of execution.

    Raises: ModelError: it has none, or is gated or perforated.
    """
    for kind, done in (("gated", gated_layers(model)), ("perforated", perforated_layers(model))):
        if done:
            raise ModelError(f"model must be dense, got {type(model).__name__} with {len(done)} {kind} layers")
    layers = count(model, images[:1]).layers
    modules = dict(model.named_modules())
    again = {layer.name.split("#")[0] for layer in layers if "#" in layer.name}
    sites = {}
    for layer in layers:
        conv = modules.get(layer.name)
        if not isinstance(conv, nn.Conv2d):
            continue
        obstacle = ""
        if matches(layer.name, exclude):
            obstacle = "excluded"
        elif type(conv) is not nn.Conv2d:
            obstacle = f"{type(conv).__name__} may compute something of its own"
        elif "weight" not in conv._parameters:
            obstacle = "its weight is parametrised or masked"
        elif conv.padding_mode != "zeros":
            obstacle = f"padding_mode is {conv.padding_mode!r}, not 'zeros'"
        elif layer.name in again or layer.calls > 1:
            obstacle = "runs several times for an image"
        elif layer.shape.out_size == (1, 1):
            obstacle = "its map is a single position"
        sites[layer.name] = Site(conv=conv, layer=layer, obstacle=obstacle)
    require_patterns("exclude", exclude, sites)
    return sites


class Perforator:
    """Makes the masks of one kind for the layers of one model.

    Masks of a layer depend on its name, its rate and the seed alone, whatever becomes of other layers.

    Args:
        model: dense; the impact is measured on it as it is.
        sites: the layers that masks are wanted of.
        batches: for the impact.
    Raises: ConfigError: no such kind, or no batches where the impact is to be measured.
    """

    def __init__(
        self, model: nn.Module, sites: Mapping[str, Site], kind: MaskKind, batches: Batches | None, seed: int
    ) -> None:
        require_kind(kind)
        self.kind = kind
        self.sizes = {name: site.layer.shape.out_size for name, site in sites.items()}
        self.seed = seed
        self.weights: dict[str, Tensor] = {}
        if kind == "pooling":
            self.weights = pooling_usage(model, self.sizes)
        elif kind == "impact":
            if not batches:
                raise ConfigError("the mask 'impact' needs batches of (images, labels), got none")
            self.weights = impact(model, batches, self.sizes)

    def source(self, name: str, rate: float) -> Tensor:
        """What `PerforatedConv2d.source` must be to skip this share of the layer's positions."""
        generator, size = torch.Generator().manual_seed(crc32(f"{self.seed} {name}".encode())), self.sizes[name]
        if self.kind == "grid":
            mask = grid_mask(size, rate, generator)
        else:
            mask = ranked_mask(self.weights.get(name, torch.zeros(size)), rate, generator)
        return nearest_computed(mask, generator)

    def note(self, name: str) -> str:
        """What is to be said of a layer's mask."""
        unknown = self.kind == "pooling" and name not in self.weights
        return "uniform, for no pooling layer follows" if unknown else self.kind


def perforate_(
    model: nn.Module,
    rates: float | Mapping[str, float],
    images: Tensor,
    *,
    mask: MaskKind = "grid",
    batches: Batches | None = None,
    seed: int = 0,
    exclude: tuple[str, ...] = (),
) -> Conversion:
    """Perforate a model's convolutions, in place; train it afterwards to win back accuracy.

    A perforated network is counted as what it is, a smaller dense one: divide the dense network's
    `Counts.network_dense_macs` by its `network_executed_macs` for its MAC reduction. The model is left untouched where
    an error is raised.

    Args:
        rates: share of output positions to skip, of every convolution or by name (`choose_rates` finds some); layers
            that are not named, or of rate 0, stay as they are.
        images: (n, c, height, width) as the model takes them: only their size matters, and it is then fixed.
        mask: "uniform": positions at random. "grid": crossings of evenly spread rows and columns. "pooling": those
            that most windows of the next pooling layer read. "impact": those that the loss depends on most.
        batches: (images, labels), for the impact.
        seed: of the random positions and of ties.
        exclude: names or patterns of convolutions to leave dense.
    Raises:
        ConfigError: a rate outside [0, 1), a name that is no convolution or cannot be perforated, another mask.
        ModelError: no convolution; gated or perforated already; "pooling" cannot trace it.
    """
    sites = find_sites(model, images, exclude)
    chosen = _rates_by_name(rates, sites)
    perforator = Perforator(model, {name: sites[name] for name in chosen}, mask, batches, seed)
    layers, replacements = [], dict[nn.Module, nn.Module]()
    for name, site in sites.items():
        if not chosen.get(name):
            note = site.obstacle or "of rate 0"
        else:
            new = site.perforated(perforator.source(name, chosen[name]))
            replacements[site.conv] = new
            note = f"computes {new.computed} of {new.positions} positions, {perforator.note(name)}"
        layers.append(ConvertedLayer(name=name, converted=site.conv in replacements, note=note))
    swap_(model, replacements)
    return Conversion(method="perforation", model=type(model).__name__, layers=tuple(layers))


def _rates_by_name(rates: float | Mapping[str, float], sites: Mapping[str, Site]) -> dict[str, float]:
    possible = [name for name, site in sites.items() if not site.obstacle]
    if not isinstance(rates, Mapping):
        require_rate("rates", rates)
        return dict.fromkeys(possible, float(rates))
    for name, rate in rates.items():
        require_rate(f"rates[{name!r}]", rate)
        if name not in sites:
            raise ConfigError(
                f"rates must name convolutions, got {name!r}; they are named like {', '.join(map(repr, possible[:3]))}"
            )
        if rate and sites[name].obstacle:
            raise ConfigError(f"rates must be of layers that can be perforated, got {name!r}: {sites[name].obstacle}")
    return {name: float(rates[name]) for name in possible if name in rates}


def perforated_layers(model: nn.Module) -> dict[str, PerforatedConv2d]:
    """Perforated convolutions by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PerforatedConv2d)}
