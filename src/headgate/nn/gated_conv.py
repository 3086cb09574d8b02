"""The gated convolution: base path, decision, conditional path, and the norm behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headgate.errors import ShapeError
from headgate.nn.binary import BinaryConv2d, binary_operands
from headgate.nn.config import GateConfig
from headgate.nn.gates import ActivationGate, GroupGate, make_gate
from headgate.nn.selection import base_blocks, base_mask, shuffle_channels
from headgate.nn.sum_norm import SumNorm
from headgate.ops.batch_norm import affine, normalise
from headgate.ops.decision import expand_groups
from headgate.ops.gated_norm import gated_norm
from headgate.ops.norm_act import norm_act
from headgate.workload import LayerShape

GROUPED_BASE_MIN_CHANNELS = 8
"""From this many input channels per group a grouped convolution computes the base path faster than doubling the
outputs of the full one (docs/design/0001-founding-decisions.md has the timings)."""


class Observation(NamedTuple):
    """What one forward pass of a gated convolution decided.

    Attributes:
        in_size, out_size: (height, width) of the input and output maps.
        open_counts: (n, decisions) open decisions of each image; in training differentiable through the surrogate.
        decision: (n, decisions, h or 1, w or 1) 0 or 1, where the observer asked for it.
        live_inputs: (n, conv_groups) input channels that are not all zero; for the "fc" granularity only, whose
            closed outputs are the next layer's dead inputs.
    """

    in_size: tuple[int, int]
    out_size: tuple[int, int]
    open_counts: Tensor
    decision: Tensor | None
    live_inputs: Tensor | None


class Observer(NamedTuple):
    """Called after every forward pass; `decisions` asks for the full maps, at the price of the unfused arithmetic."""

    notify: Callable[[GatedConv2d, Observation], None]
    decisions: bool = False


class GatedConv2d(nn.Module):
    """A convolution and its norm, with a gate that skips the conditional path where it would change little.

    output = act( s·BN_F(F) + (1 − s)·BN_P(P) + residual ),  s = gate(N(P)),  P = W_p * x_p,  F = P + W_r * x_r.

    Training, and evaluation in torch, compute both sums everywhere and select: masked dense arithmetic. What is
    saved is counted by `headgate.count`.

    Args:
        conv: the dense convolution; its weight and bias are taken over, not copied.
        norm: the batch norm behind it, or None. Its statistics and parameters are copied.
        config: how to gate; `config.groups` must divide the channels of each convolution group.
        two_sided: the activation behind saturates on both sides (tanh, sigmoid).

    Attributes:
        binary: it took a `BinaryConv2d`'s place: both sums are of signs.
        absorbed: what stands in the model where `norm` was, or empty; not a submodule of this one.
    Raises: ShapeError: groups do not fit the channels, or the norm has others; the convolution does not pad with zeros.
    Source: Hua et al., NeurIPS 2019; docs/method.md.
    """

    base_mask: Tensor

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d | nn.SyncBatchNorm | None,
        config: GateConfig,
        *,
        two_sided: bool = False,
    ) -> None:
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ShapeError(f"padding_mode must be 'zeros', got {conv.padding_mode!r}; leave this layer dense")
        if norm is not None and norm.num_features != conv.out_channels:
            raise ShapeError(f"norm must have the convolution's {conv.out_channels} channels, got {norm.num_features}")
        self.config = config
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation, self.conv_groups = conv.padding, conv.dilation, conv.groups
        self.two_sided = two_sided
        self.binary = isinstance(conv, BinaryConv2d)
        self.observer: Observer | None = None
        self.absorbed: tuple[nn.Module, ...] = ()
        self.weight, self.bias = conv.weight, conv.bias

        self.gate = make_gate(
            config,
            c_in=self.in_channels,
            c_out=self.out_channels,
            output_groups=self.conv_groups * config.groups,
            two_sided=two_sided,
        )
        momentum, eps = (0.1, 1e-5) if norm is None or norm.momentum is None else (norm.momentum, norm.eps)
        self.final_norm = (
            SumNorm(self.out_channels, affine=norm.weight is not None, momentum=momentum, eps=eps) if norm else None
        )
        self.partial_norm: SumNorm | None = None
        if self.gate.statistic == "partial_sum":
            mask = base_mask(
                self.out_channels,
                self.in_channels,
                config.groups,
                conv_groups=self.conv_groups,
                grouped=config.grouped,
                shuffle=config.shuffle,
            )
            self.register_buffer("base_mask", mask, persistent=False)
            self.partial_norm = SumNorm(
                self.out_channels, affine=self.separate and norm is not None, momentum=momentum, eps=eps
            )
        self.to(device=conv.weight.device, dtype=conv.weight.dtype)
        if norm is not None and self.final_norm is not None:
            self.final_norm.copy_from(norm)
            if self.partial_norm is not None:
                self.partial_norm.copy_from(norm, share=1 / config.groups)
        self.train(conv.training)

    @property
    def separate(self) -> bool:
        """Partial and final sums have a normalisation each."""
        return self.config.norm == "separate" and self.final_norm is not None

    # ------------------------------------------------------------------ sums

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def operands(
        self, x: Float[Tensor, "n c_in h w"]
    ) -> tuple[Float[Tensor, "n c_in h w"], Float[Tensor, "c_out c_in_per_conv_group kh kw"]]:
        """Input and weight that the sums are made of, binarised where the layer is binary.

        The base path takes its part of these, so both sums have the scaling factors of the whole filters, and P is a
        part of F here, too.
        """
        return binary_operands(x, self.weight) if self.binary else (x, self.weight)

    def final_sum(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """F: the dense convolution."""
        return self._final_sum(*self.operands(x))

    def partial_sum(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """P: the base path alone."""
        return self._partial_sum(*self.operands(x))

    def _final_sum(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._convolve(x, weight, self.bias, self.conv_groups)

    def _partial_sum(self, x: Tensor, weight: Tensor) -> Tensor:
        if self._base_is_grouped:
            groups = self.config.groups
            if self.config.shuffle:
                x = shuffle_channels(x, groups, self.conv_groups)
            blocks = base_blocks(weight, groups, conv_groups=self.conv_groups, shuffle=self.config.shuffle)
            return self._convolve(x, blocks, self.bias, self.conv_groups * groups)
        return self._convolve(x, weight * self.base_mask, self.bias, self.conv_groups)

    @property
    def _base_is_grouped(self) -> bool:
        per_group = self.in_channels // (self.conv_groups * self.config.groups)
        return self.config.grouped and per_group >= GROUPED_BASE_MIN_CHANNELS

    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """F and P; or, where one convolution with twice the outputs is faster, [F | P] and None."""
        x, weight = self.operands(x)
        if self._base_is_grouped or self.conv_groups > 1:
            return self._final_sum(x, weight), self._partial_sum(x, weight)
        bias = None if self.bias is None else torch.cat([self.bias, self.bias])
        return self._convolve(x, torch.cat([weight, weight * self.base_mask]), bias, 1), None

    # --------------------------------------------------------------- forward

    def forward(
        self, x: Float[Tensor, "n c_in h w"], residual: Float[Tensor, "n c_out h2 w2"] | None = None, relu: bool = False
    ) -> Float[Tensor, "n c_out h2 w2"]:
        """Convolve, decide, select, normalise; then add `residual` and apply ReLU where the caller fused them."""
        observer = None if torch.compiler.is_compiling() else self.observer
        decision: Tensor | None = None
        if self.gate.statistic == "input":
            output, decision = self._gate_by_input(x, residual, relu)
            open_counts = decision.sum((2, 3))
        elif self.gate.forced is not None:
            forced_open = self.gate.forced == "open"
            output = self._forced(x, residual, relu, forced_open=forced_open)
            per_decision = output.shape[2] * output.shape[3] if self.gate.per_pixel else 1
            count = float(per_decision) if forced_open else 0.0
            open_counts = torch.full((len(x), self.gate.decisions), count, device=x.device)
            if observer is not None and observer.decisions:
                maps = output.shape[2:] if self.gate.per_pixel else (1, 1)
                decision = torch.full((len(x), self.gate.decisions, *maps), float(forced_open), device=x.device)
        elif self._fusible and not (observer is not None and observer.decisions):
            output, open_counts = self._fused(x, residual, relu)
        else:
            output, decision = self._composed(x, residual, relu)
            open_counts = decision.sum((2, 3))
        if observer is not None:
            live = self._live_inputs(x) if self.config.granularity == "fc" else None
            in_size, out_size = (x.shape[2], x.shape[3]), (output.shape[2], output.shape[3])
            observer.notify(self, Observation(in_size, out_size, open_counts, decision, live))
        return output

    @property
    def _fusible(self) -> bool:
        one_sided = isinstance(self.gate, (ActivationGate, GroupGate)) and not self.two_sided
        return one_sided and self.separate and self.config.channel_bound == 0

    def _fused(self, x: Tensor, residual: Tensor | None, relu: bool) -> tuple[Tensor, Tensor]:
        assert self.final_norm is not None
        assert self.partial_norm is not None
        final_sum, partial_sum = self._sums(x)
        return gated_norm(
            final_sum,
            partial_sum,
            self.final_norm.state(),
            self.partial_norm.state(),
            self.gate.effective_threshold(),
            self.gate.score_var if isinstance(self.gate, GroupGate) else None,
            residual,
            slope=self.gate.slope,
            relu=relu,
        )

    def _composed(self, x: Tensor, residual: Tensor | None, relu: bool) -> tuple[Tensor, Tensor]:
        """The same step by step: any gate, either norm, no norm, the channel-wise bound; returns the decisions."""
        assert self.partial_norm is not None
        final_sum, partial_sum = self._sums(x)
        if partial_sum is None:
            final_sum, partial_sum = final_sum.chunk(2, dim=1)
        partial_norm = self.partial_norm.state()
        normalised_partial = normalise(partial_sum, partial_norm)
        own = self._bound(self.gate(normalised_partial))
        decision = expand_groups(own, self.out_channels) if isinstance(self.gate, GroupGate) else own
        if self.separate:
            assert self.final_norm is not None
            final_norm = self.final_norm.state()
            final = affine(normalise(final_sum, final_norm), final_norm)
            mix = decision * final + (1 - decision) * affine(normalised_partial, partial_norm)
            return self._finish(mix.to(final_sum.dtype), residual, relu), own
        mix = (decision * final_sum + (1 - decision) * partial_sum).to(final_sum.dtype)
        return self._norm_and_finish(mix, self.final_norm, residual, relu), own

    def _bound(self, decision: Tensor) -> Tensor:
        """Close a channel (or group) of an image that has at most a fraction τ of open decisions (response, Q1)."""
        if self.config.channel_bound == 0 or not self.gate.per_pixel:
            return decision
        return decision * (decision.detach().mean((2, 3), keepdim=True) > self.config.channel_bound)

    def _forced(self, x: Tensor, residual: Tensor | None, relu: bool, *, forced_open: bool) -> Tensor:
        """Only the sum that is asked for: with every gate open this is exactly the dense convolution and norm."""
        summed = self.final_sum(x) if forced_open else self.partial_sum(x)
        norm = self.partial_norm if self.separate and not forced_open else self.final_norm
        return self._norm_and_finish(summed, norm, residual, relu)

    def _gate_by_input(self, x: Tensor, residual: Tensor | None, relu: bool) -> tuple[Tensor, Tensor]:
        decision: Tensor = self.gate(x.float() if x.dtype == torch.bfloat16 else x)
        read, weight = self.operands(x)
        if self.config.granularity == "l1norm":  # closed once it is binarised: the sign of 0 is no 0
            summed = self._final_sum(read * decision.to(read.dtype), weight)
            return self._norm_and_finish(summed, self.final_norm, residual, relu), decision
        normed = self._norm_and_finish(self._final_sum(read, weight), self.final_norm, None, False)
        return self._finish(normed * decision.to(normed.dtype), residual, relu), decision

    @staticmethod
    def _norm_and_finish(x: Tensor, norm: SumNorm | None, residual: Tensor | None, relu: bool) -> Tensor:
        if norm is None:
            return GatedConv2d._finish(x, residual, relu)
        return norm_act(x, norm.state(), residual, relu=relu)

    @staticmethod
    def _finish(x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        if residual is not None:
            x = x + residual
        return x.relu() if relu else x

    # -------------------------------------------------------------- counting

    def _live_inputs(self, x: Tensor) -> Tensor:
        read, _ = self.operands(x.detach())  # binarised, 0 is +1: no input of a binary layer is dead
        live = (read != 0).any(3).any(2)
        return live.view(len(x), self.conv_groups, -1).sum(2)

    def layer_shape(self, name: str, in_size: tuple[int, int], out_size: tuple[int, int]) -> LayerShape:
        """This layer at a map size, as counting and simulation see it."""
        return LayerShape(
            name=name,
            c_in=self.in_channels,
            c_out=self.out_channels,
            kernel=(self.kernel_size[0], self.kernel_size[1]),
            stride=(self.stride[0], self.stride[1]),
            padding=padding_of(self),
            dilation=(self.dilation[0], self.dilation[1]),
            conv_groups=self.conv_groups,
            in_size=in_size,
            out_size=out_size,
            groups=self.config.groups,
            granularity=self.config.granularity,
            grouped=self.config.grouped,
            shuffle=self.config.shuffle,
            binary=self.binary,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"conv_groups={self.conv_groups}, G={self.config.groups}, granularity={self.config.granularity}, "
            f"norm={self.config.norm if self.final_norm is not None else 'none'}{', binary' if self.binary else ''}"
        )


def is_binary(module: nn.Module) -> bool:
    """Whether it is a binary convolution, gated or not."""
    return isinstance(module, BinaryConv2d) or (isinstance(module, GatedConv2d) and module.binary)


def padding_of(conv: nn.Conv2d | GatedConv2d) -> tuple[int, int]:
    """The padding in pixels (height, width); of "same", the larger side's where they differ."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return ((total[0] + 1) // 2, (total[1] + 1) // 2)
    return (int(conv.padding[0]), int(conv.padding[1]))
