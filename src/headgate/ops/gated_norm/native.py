"""`gated_norm` on the CPU by the extension module: four passes over memory, forward and backward together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headgate.ops import native
from headgate.ops.batch_norm import BatchNorm

# Rows of the saved statistics.
_MEAN_F, _RSTD_F, _MEAN_P, _RSTD_P = range(4)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        final_sum: Tensor,
        partial_sum: Tensor | None,
        final_weight: Tensor,
        final_bias: Tensor,
        partial_weight: Tensor,
        partial_bias: Tensor,
        threshold: Tensor,
        residual: Tensor | None,
        final: BatchNorm,
        partial: BatchNorm,
        score_var: Tensor | None,
        slope: float,
        relu: bool,
    ) -> tuple[Tensor, Tensor]:
        extension = native.module()
        assert extension is not None
        final_sum = native.channels_last(final_sum)
        partial_sum = None if partial_sum is None else native.channels_last(partial_sum)
        residual = None if residual is None else native.channels_last(residual)
        n, _, h, w = final_sum.shape
        channels, groups = len(final_weight), len(threshold)
        output = native.empty_map((n, channels, h, w), final_sum.dtype)
        counts = torch.empty((n, groups))
        stats = torch.empty((4, channels))
        scale = None if score_var is None else torch.empty(groups)
        bfloat16 = final_sum.dtype == torch.bfloat16
        shape = (bfloat16, n, h * w, channels, groups, score_var is not None, slope, relu)
        f, p = _views(final_sum, partial_sum, channels)
        extension.gated_norm_forward(
            shape,
            f,
            p,
            native.view(residual),
            native.view(output),
            native.norm_arguments(final, final_weight, final_bias, stats[_MEAN_F], stats[_RSTD_F]),
            native.norm_arguments(partial, partial_weight, partial_bias, stats[_MEAN_P], stats[_RSTD_P]),
            threshold.data_ptr(),
            0 if score_var is None else score_var.data_ptr(),
            0 if scale is None else scale.data_ptr(),
            counts.data_ptr(),
            torch.get_num_threads(),
        )
        if final.training:
            native.touched(final.running_mean, final.running_var)
        if partial.training:
            native.touched(partial.running_mean, partial.running_var, score_var)
        ctx.set_materialize_grads(False)
        ctx.shape = shape
        ctx.training = final.training, partial.training
        # Without a residual the sign of the ReLU's input is recomputed; with one it is the output's.
        kept = output if relu and residual is not None else None
        ctx.residual = residual is not None
        ctx.save_for_backward(
            final_sum,
            partial_sum,
            final_weight,
            final_bias,
            partial_weight,
            partial_bias,
            threshold,
            stats,
            scale,
            kept,
        )
        return output, counts

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_counts: Tensor | None) -> tuple[Tensor | None, ...]:
        native.refuse_second_derivatives()
        extension = native.module()
        assert extension is not None
        saved = ctx.saved_tensors
        final_sum, partial_sum, final_weight, final_bias, partial_weight, partial_bias, threshold = saved[:7]
        stats, scale, output = saved[7:]
        n, _, h, w = final_sum.shape
        channels, dtype = len(final_weight), final_sum.dtype
        if grad_output is None:
            grad_output = native.empty_map((n, channels, h, w), dtype).zero_()
        grad_output = native.channels_last(grad_output)
        grad_counts = None if grad_counts is None else grad_counts.contiguous()
        grad_residual = None if output is None else native.empty_map((n, channels, h, w), dtype)
        grad_final = grad_partial = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            grad_final = native.empty_map(final_sum.shape, dtype)
            grad_partial = None if partial_sum is None else native.empty_map((n, channels, h, w), dtype)
        to_weight_f, to_bias_f, to_weight_p, to_bias_p = (torch.empty(channels) for _ in range(4))
        to_threshold = torch.empty_like(threshold)
        f, p = _views(final_sum, partial_sum, channels)
        to_f, to_p = ((0, 0), (0, 0)) if grad_final is None else _views(grad_final, grad_partial, channels)
        extension.gated_norm_backward(
            ctx.shape,
            f,
            p,
            native.view(output),
            native.view(grad_output),
            0 if grad_counts is None else grad_counts.data_ptr(),
            native.view(grad_residual),
            to_f,
            to_p,
            (
                final_weight.data_ptr(),
                final_bias.data_ptr(),
                stats[_MEAN_F].data_ptr(),
                stats[_RSTD_F].data_ptr(),
                ctx.training[0],
                to_weight_f.data_ptr(),
                to_bias_f.data_ptr(),
            ),
            (
                partial_weight.data_ptr(),
                partial_bias.data_ptr(),
                stats[_MEAN_P].data_ptr(),
                stats[_RSTD_P].data_ptr(),
                ctx.training[1],
                to_weight_p.data_ptr(),
                to_bias_p.data_ptr(),
            ),
            threshold.data_ptr(),
            0 if scale is None else scale.data_ptr(),
            to_threshold.data_ptr(),
            torch.get_num_threads(),
        )
        to_residual = grad_output if grad_residual is None and ctx.residual else grad_residual
        grads = (grad_final, grad_partial, to_weight_f, to_bias_f, to_weight_p, to_bias_p, to_threshold, to_residual)
        wanted = (g if needs else None for g, needs in zip(grads, ctx.needs_input_grad, strict=False))
        return (*wanted, None, None, None, None, None)


def _views(final_sum: Tensor, partial_sum: Tensor | None, channels: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both sums' addresses and pixel strides, whether they are two tensors or the halves of one."""
    f = native.view(final_sum)
    if partial_sum is not None:
        return f, native.view(partial_sum)
    return f, (f[0] + channels * final_sum.element_size(), f[1])


def gated_norm(
    final_sum: Tensor,
    partial_sum: Tensor | None,
    final: BatchNorm,
    partial: BatchNorm,
    threshold: Tensor,
    score_var: Tensor | None,
    residual: Tensor | None,
    *,
    slope: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """See `headgate.ops.gated_norm.gated_norm`; only for what `headgate.ops.native.serves`."""
    result: tuple[Tensor, Tensor] = _GatedNorm.apply(
        final_sum,
        partial_sum,
        final.weight,
        final.bias,
        partial.weight,
        partial.bias,
        threshold,
        residual,
        final,
        partial,
        score_var,
        slope,
        relu,
    )
    return result
