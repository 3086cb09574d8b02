"""`norm_act` on the CPU by the extension module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headgate.ops import native
from headgate.ops.batch_norm import BatchNorm


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, norm: BatchNorm, relu: bool
    ) -> Tensor:
        extension = native.module()
        assert extension is not None
        x = native.channels_last(x)
        residual = None if residual is None else native.channels_last(residual)
        n, c, h, w = x.shape
        output = native.empty_map(x.shape, x.dtype)
        stats = torch.empty((2, c))
        shape = (x.dtype == torch.bfloat16, n * h * w, c, relu)
        extension.norm_act_forward(
            shape,
            native.view(x),
            native.view(residual),
            native.view(output),
            native.norm_arguments(norm, weight, bias, stats[0], stats[1]),
            torch.get_num_threads(),
        )
        if norm.training:
            native.touched(norm.running_mean, norm.running_var)
        ctx.shape = shape
        ctx.training = norm.training
        ctx.residual = residual is not None
        # Without a residual the sign of the ReLU's input is recomputed; with one it is the output's.
        ctx.save_for_backward(x, weight, bias, stats, output if relu and residual is not None else None)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        native.refuse_second_derivatives()
        extension = native.module()
        assert extension is not None
        x, weight, bias, stats, output = ctx.saved_tensors
        grad_output = native.channels_last(grad_output)
        grad_residual = None if output is None else native.empty_map(x.shape, x.dtype)
        grad_x = native.empty_map(x.shape, x.dtype) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
        extension.norm_act_backward(
            ctx.shape,
            native.view(x),
            native.view(output),
            native.view(grad_output),
            native.view(grad_residual),
            native.view(grad_x),
            (
                weight.data_ptr(),
                bias.data_ptr(),
                stats[0].data_ptr(),
                stats[1].data_ptr(),
                ctx.training,
                grad_weight.data_ptr(),
                grad_bias.data_ptr(),
            ),
            torch.get_num_threads(),
        )
        to_residual = grad_output if grad_residual is None and ctx.residual else grad_residual
        grads = (grad_x, grad_weight, grad_bias, to_residual)
        wanted = (g if needs else None for g, needs in zip(grads, ctx.needs_input_grad, strict=False))
        return (*wanted, None, None)


def norm_act(x: Tensor, norm: BatchNorm, residual: Tensor | None, *, relu: bool) -> Tensor:
    """See `headgate.ops.norm_act.norm_act`; only for what `headgate.ops.native.serves`."""
    result: Tensor = _NormAct.apply(x, norm.weight, norm.bias, residual, norm, relu)
    return result
