"""Feature boosting and suppression: predict how salient each output channel will be, compute the top k, scale them.

Source: Gao et al., "Dynamic channel pruning: feature boosting and suppression", ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headgate.baselines.conversion import Conversion, ConvertedLayer, matches, require_patterns, swap_
from headgate.errors import ConfigError, ModelError
from headgate.graph import ConvSite, conv_sites, norm_activation
from headgate.nn import GateConfig, GatedConv2d, Observation
from headgate.nn.gates import Gate, Overhead

PREDICTOR_SCALE = 0.1
"""Of He's initial weights, which the paper takes whole: a converted checkpoint starts near its own function."""


class SaliencyPredictor(nn.Module):
    """g(x) = (φ · ss(x) + ρ)₊: the boost of each output channel, from the mean |x| of each input channel.

    ρ starts at 1 and φ small, so that every boost starts near 1.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out)
        with torch.no_grad():
            nn.init.kaiming_normal_(self.linear.weight).mul_(PREDICTOR_SCALE)
            self.linear.bias.fill_(1.0)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out"]:
        """Boosts, at least 0, in the predictor's own precision: rounded saliencies would tie."""
        pooled = x.abs().mean((2, 3), dtype=self.linear.weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            boost: Tensor = self.linear(pooled).relu()
        return boost


class TopChannelsGate(Gate):
    """Opens the k output channels of greatest saliency, image by image: k-winners-take-all.

    Saliency is what multiplies the normalised sum: |γ| · boost. Its threshold is not used.

    Attributes:
        active: k.
        scale: (c_out,) |γ| of the dense network's norm.
    """

    per_pixel = False
    statistic = "input"
    scale: Tensor

    def __init__(self, c_in: int, scale: Float[Tensor, " c_out"], config: GateConfig) -> None:
        super().__init__(len(scale), config)
        self.threshold.requires_grad_(False)
        self.active = len(scale)
        self.predictor = SaliencyPredictor(c_in, len(scale))
        self.register_buffer("scale", scale.detach().abs())

    def score(self, statistic: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d 1 1"]:
        """The saliencies."""
        return self.saliency(self.predictor(statistic))[:, :, None, None]

    def saliency(self, boost: Float[Tensor, "n c_out"]) -> Float[Tensor, "n c_out"]:
        """Of channels of these boosts."""
        return boost * self.scale

    def winners(self, saliency: Float[Tensor, "n c_out"]) -> Float[Tensor, "n c_out"]:
        """1 for the k greatest of each image, else 0."""
        chosen = saliency.detach().topk(self.active, dim=1).indices
        return torch.zeros_like(saliency).scatter_(1, chosen, 1.0)

    def forward(self, statistic: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """1 for the channels that are computed."""
        return self.winners(self.score(statistic).flatten(1))[:, :, None, None]

    def overhead(self, c_in: int, c_out: int, in_pixels: int, out_pixels: int) -> Overhead:
        """Means of the inputs, the predictor, and the boost of what is computed: it is no constant to be folded."""
        return Overhead(c_in * in_pixels, c_in * c_out + self.active * out_pixels)


class FBSConv2d(GatedConv2d):
    """A convolution and its norm, of which each image computes the k channels of greatest predicted saliency.

    output = act( π ⊙ (norm(conv(x)) + β) + residual ), π = wta_k(g(x)); norm has no scale that learns. Ours keeps the
    dense network's scale γ as a constant, π = |γ| · boost, so that boosts of 1 and k = all are the dense network
    whatever its γ; a new network has γ = 1, which is the paper's form to the letter.

    To the rest of headgate it is a gated convolution of the granularity "fc": it counts the open output channels times
    the input channels that are not zero. `force_gates(model, "open")` computes all channels with boosts of 1,
    "closed" none.

    Args:
        conv: the dense convolution; weight and bias are taken over.
        norm: the batch norm behind it, of which the scale is frozen; put `absorbed[0]` in its place.
        density: share of the channels that are computed; k = ⌈density · c_out⌉.
    Raises: ConfigError: a density outside (0, 1]. ShapeError: the convolution does not pad with zeros.
    """

    gate: TopChannelsGate

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | nn.SyncBatchNorm, density: float) -> None:
        config = GateConfig(granularity="fc", groups=1)
        super().__init__(conv, norm, config)
        assert self.final_norm is not None
        scale = self.final_norm.weight
        if scale is not None:
            scale.requires_grad_(False)
        ones = torch.ones(self.out_channels)
        self.gate = TopChannelsGate(self.in_channels, ones if scale is None else scale, config)
        self.gate.to(device=conv.weight.device, dtype=conv.weight.dtype).train(conv.training)
        self.absorbed = (nn.Identity().train(norm.training),)
        self.set_density_(density)

    def set_density_(self, density: float) -> None:
        """Compute another share of the channels from now on.

        Raises: ConfigError: it is outside (0, 1].
        """
        _require_density(density)
        self.gate.active = math.ceil(density * self.out_channels)

    def forward(
        self, x: Float[Tensor, "n c_in h w"], residual: Float[Tensor, "n c_out h2 w2"] | None = None, relu: bool = False
    ) -> Float[Tensor, "n c_out h2 w2"]:
        """Predict, convolve, normalise, boost and suppress; then add `residual` and apply ReLU as the caller asks."""
        normed = self._norm_and_finish(self.final_sum(x), self.final_norm, None, False)
        if self.gate.forced is not None:
            boost = decision = normed.new_full((len(x), self.out_channels), float(self.gate.forced == "open"))
        else:
            boost = self.gate.predictor(x)
            saliency = self.gate.saliency(boost)
            decision = self.gate.winners(saliency) * (saliency.detach() > 0)  # what is scaled by 0 is not computed
        output = normed * (boost * decision).to(normed.dtype)[:, :, None, None]
        output = self._finish(output, residual, relu)
        if self.observer is not None and not torch.compiler.is_compiling():
            maps = decision[:, :, None, None] if self.observer.decisions else None
            in_size, out_size = (x.shape[2], x.shape[3]), (output.shape[2], output.shape[3])
            observation = Observation(in_size, out_size, decision, maps, self._live_inputs(x))
            self.observer.notify(self, observation)
        return output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, k={self.gate.active}"


def _require_density(density: object) -> None:
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise ConfigError(f"density must be a share of channels in (0, 1], got {density!r}")


# ------------------------------------------------------------------------------------------------------ a whole network


def fbs_(
    model: nn.Module, density: float = 1.0, *, example_input: Any = None, exclude: tuple[str, ...] = ()
) -> Conversion:
    """Put feature boosting and suppression into a model, in place: every convolution that has a batch norm behind it.

    As with gates, the first convolution and depthwise ones stay dense, and so do those without an activation behind
    them. The authors train at density 1 first and lower it step by step (`set_density_`).

    Args:
        density: share of the channels that each layer computes.
        example_input: as for `gate_`.
        exclude: names or patterns of convolutions to leave dense.
    Raises:
        ConfigError: a density outside (0, 1], or a pattern that matches no convolution.
        ModelError: the model cannot be traced.
    """
    _require_density(density)
    sites = conv_sites(model, example_input)
    require_patterns("exclude", exclude, [site.name for site in sites])
    layers, replacements = [], dict[nn.Module, nn.Module]()
    for site in sites:
        obstacle = "excluded" if matches(site.name, exclude) else _obstacle(site)
        note = obstacle
        if not obstacle:
            assert isinstance(site.conv, nn.Conv2d)
            assert isinstance(site.norm, nn.BatchNorm2d | nn.SyncBatchNorm)
            new = FBSConv2d(site.conv, site.norm, density)
            replacements |= {site.conv: new, site.norm: new.absorbed[0]}
            note = f"computes {new.gate.active} of {new.out_channels} channels"
        layers.append(ConvertedLayer(name=site.name, converted=not obstacle, note=note))
    swap_(model, replacements)
    return Conversion(method="FBS", model=type(model).__name__, layers=tuple(layers))


def _obstacle(site: ConvSite) -> str:
    """Why a layer stays dense; empty where it need not."""
    if site.obstacle is not None:
        return site.obstacle
    if site.first:
        return "first convolution"
    if site.missing is not None:
        return site.missing
    if site.norm is None:
        return "no batch norm follows"
    if norm_activation(site.norm) is not None:
        return "its norm holds the activation"
    return ""


def fbs_layers(model: nn.Module) -> dict[str, FBSConv2d]:
    """The layers that `fbs_` made, by name.

    Raises: ModelError: there are none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FBSConv2d)}
    if not layers:
        raise ModelError(f"model must have FBS convolutions, got {type(model).__name__} with none; call fbs_ first")
    return layers


def set_density_(model: nn.Module, density: float) -> None:
    """Let every FBS convolution compute this share of its channels from now on.

    Raises: ConfigError: it is outside (0, 1]. ModelError: there are none.
    """
    for layer in fbs_layers(model).values():
        layer.set_density_(density)


@contextmanager
def observe_saliencies(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the saliencies, (n, c_out), of every FBS convolution that runs inside the block, for `saliency_loss`.

    Raises: ModelError: there are none.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, gate: TopChannelsGate) -> Any:
        def hook(_module: nn.Module, _inputs: Any, boost: Tensor) -> None:
            seen[name] = gate.saliency(boost)

        return hook

    layers = fbs_layers(model)
    handles = [layer.gate.predictor.register_forward_hook(keep(name, layer.gate)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def saliency_loss(saliencies: Mapping[str, Tensor], weight: float = 1e-8) -> Float[Tensor, ""]:
    """weight · Σ_layers ‖π‖₁, mean over images: pulls channels that do not pay toward no saliency.

    Args:
        saliencies: what `observe_saliencies` collected.
        weight: λ; the paper's by default.
    Raises: ModelError: nothing was collected.
    """
    if not saliencies:
        raise ModelError("saliencies must be of at least one layer, got none; run the model inside observe_saliencies")
    return weight * torch.stack([saliency.sum(1).mean() for saliency in saliencies.values()]).sum()
