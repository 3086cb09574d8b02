"""A gated convolution in float64 NumPy, written from docs/method.md alone: slow, and with no code of headgate's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headgate.nn import GatedConv2d

Array = NDArray[np.float64]

MEDIAN_ABS_NORMAL = 0.6745
MEAN_ABS_NORMAL = 0.7979
SCORE_EPS = 1e-5
BAND = 1e-9
"""Scores closer to their threshold than this, in standard deviations, may round to the other side in float64."""


def array(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy().copy()


def padding_of(layer: Any) -> list[tuple[int, int]]:
    """(before, after) of height and width; "same" puts the odd pixel after, as torch does."""
    if layer.padding == "valid":
        return [(0, 0), (0, 0)]
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in layer.padding]


def convolve(x: Array, weight: Array, bias: Array | None, layer: Any, groups: int) -> Array:
    """One output channel and one kernel tap at a time."""
    (top, bottom), (left, right) = padding_of(layer)
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, _, height, width = x.shape
    c_out, per_group, kh, kw = weight.shape
    (sh, sw), (dh, dw) = layer.stride, layer.dilation
    out_h, out_w = (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((n, c_out, out_h, out_w))
    for o in range(c_out):
        block = x[:, o // (c_out // groups) * per_group :][:, :per_group]
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (out_h - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (out_w - 1) * sw + 1, sw)
                y[:, o] += np.einsum("nchw,c->nhw", block[:, :, rows, columns], weight[o, :, i, j])
        if bias is not None:
            y[:, o] += bias[o]
    return y


def base_inputs(layer: GatedConv2d, output: int) -> list[int]:
    """The input channels, within the output's convolution group, that its base path sees."""
    inputs, outputs = layer.in_channels // layer.conv_groups, layer.out_channels // layer.conv_groups
    config = layer.config
    if not config.grouped:
        return list(range(inputs // config.groups))
    size = inputs // config.groups
    positions = range(output % outputs // (outputs // config.groups) * size, 10**9)[:size]
    if not config.shuffle:
        return list(positions)
    # A shuffle of G groups reads the (G × C/G) matrix of channels column by column.
    return [p % config.groups * size + p // config.groups for p in positions]


def norm_statistics(x: Array, norm: Any) -> tuple[Array, Array]:
    if norm.training:
        return x.mean((0, 2, 3)), x.var((0, 2, 3))
    return array(norm.running_mean), array(norm.running_var)


def standardise(x: Array, norm: Any, *, affine: bool) -> Array:
    mean, var = norm_statistics(x, norm)
    y = (x - mean[:, None, None]) / np.sqrt(var + norm.eps)[:, None, None]
    if affine and norm.weight is not None:
        y = y * array(norm.weight)[:, None, None] + array(norm.bias)[:, None, None]
    return y


class Oracle:
    """What a layer must compute for `x`. Reads the layer's parameters and statistics as they are now: make it before
    a training step.

    Attributes:
        final, partial: F and P.
        margin: score − threshold, one per decision.
        decision: θ(margin), after the channel-wise bound.
        output: with an optional residual and ReLU.
    """

    partial: Array
    margin: Array

    def __init__(
        self, layer: GatedConv2d, x: torch.Tensor, residual: torch.Tensor | None = None, *, relu: bool = False
    ) -> None:
        self.layer, self.x = layer, array(x)
        self.weight = array(layer.weight)
        self.bias = None if layer.bias is None else array(layer.bias)
        self.final = self._sum(self.x, self.weight)
        granularity = layer.config.granularity
        output = self._gated_by_input() if granularity in ("l1norm", "fc") else self._gated_by_partial_sum()
        if residual is not None:
            output = output + array(residual)
        self.output = np.maximum(output, 0) if relu else output

    def _sum(self, x: Array, weight: Array) -> Array:
        return convolve(x, weight, self.bias, self.layer, self.layer.conv_groups)

    def _threshold(self) -> Array:
        gate = self.layer.gate
        return (array(gate.threshold) + float(gate.offset))[None, :, None, None]

    def _norm(self, x: Array, norm: Any) -> Array:
        return x if norm is None else standardise(x, norm, affine=True)

    def _gated_by_partial_sum(self) -> Array:
        layer = self.layer
        weight = np.zeros_like(self.weight)
        for o in range(layer.out_channels):
            weight[o, base_inputs(layer, o)] = self.weight[o, base_inputs(layer, o)]
        self.partial = self._sum(self.x, weight)
        normalised = standardise(self.partial, layer.partial_norm, affine=False)
        score = self._score(normalised)
        self.margin = score - self._threshold()
        self.decision = (self.margin > 0).astype(float)
        bound = layer.config.channel_bound
        if bound and layer.gate.per_pixel:
            self.decision *= self.decision.mean((2, 3), keepdims=True) > bound
        repeat = layer.out_channels // self.decision.shape[1]
        s = self.decision.repeat(repeat, axis=1)
        if layer.config.norm == "separate" and layer.final_norm is not None:
            closed = standardise(self.partial, layer.partial_norm, affine=True)
            return s * self._norm(self.final, layer.final_norm) + (1 - s) * closed
        return self._norm(s * self.final + (1 - s) * self.partial, layer.final_norm)

    def _score(self, normalised: Array) -> Array:
        layer = self.layer
        centre = MEDIAN_ABS_NORMAL if layer.config.granularity == "activation" else MEAN_ABS_NORMAL
        per_output = centre - np.abs(normalised) if layer.two_sided else normalised
        n, c, h, w = per_output.shape
        if layer.config.granularity == "activation":
            return per_output
        if layer.config.granularity == "group":
            groups = layer.config.groups * layer.conv_groups
            score = per_output.reshape(n, groups, c // groups, h, w).mean(2)
        else:
            score = per_output.mean((2, 3), keepdims=True)
        scale = np.sqrt(array(layer.gate.score_var) + SCORE_EPS)  # type: ignore[arg-type]
        return score / scale[None, :, None, None]

    def _gated_by_input(self) -> Array:
        layer, gate = self.layer, self.layer.gate
        l1 = np.abs(self.x).mean((2, 3))
        if layer.config.granularity == "fc":
            l1 = l1 @ array(gate.fc.weight).T  # type: ignore[union-attr]
        mean, var = array(gate.score_mean), array(gate.score_var)  # type: ignore[arg-type]
        if gate.training:
            mean, var = l1.mean(0), l1.var(0)
        score = ((l1 - mean) / np.sqrt(var + SCORE_EPS))[:, :, None, None]
        self.margin = score - self._threshold()
        self.decision = (self.margin > 0).astype(float)
        if layer.config.granularity == "l1norm":
            return self._norm(self._sum(self.x * self.decision, self.weight), layer.final_norm)
        return self._norm(self.final, layer.final_norm) * self.decision


def sum_bound(layer: GatedConv2d, x: torch.Tensor) -> float:
    """Largest error of a sum of K products in x's precision, for any order of summation."""
    terms = layer.weight[0].numel() + 1
    unit = torch.finfo(x.dtype).eps
    return 4 * unit * (terms + 1) * terms * x.abs().max().item() * layer.weight.abs().max().item()
