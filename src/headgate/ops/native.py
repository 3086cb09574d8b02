"""The native operators' common ground: whether they can serve a call, and how tensors reach them."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headgate.errors import BackendError, ConfigError
from headgate.ops.batch_norm import BatchNorm

_DTYPES = (torch.float32, torch.bfloat16)


@functools.cache
def module() -> Any | None:
    """The extension module, or None where it was not built or HEADGATE_NATIVE=0.

    Raises: BackendError, ConfigError: HEADGATE_ISA names what this build or CPU lacks, or nothing known.
    """
    if os.environ.get("HEADGATE_NATIVE", "1") == "0":
        return None
    try:
        extension = importlib.import_module("headgate._native")
    except ModuleNotFoundError:
        return None
    try:
        extension.active_isa()
    except extension.BackendError as error:
        raise BackendError(str(error)) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return extension


def available() -> bool:
    """Whether the native operators serve CPU tensors; otherwise the reference does."""
    return module() is not None


def serves(
    maps: tuple[Tensor | None, ...],
    channels: int,
    norms: tuple[BatchNorm, ...],
    decision: tuple[Tensor | None, ...] = (),
) -> bool:
    """Whether the native operators compute this call exactly as specified.

    Args:
        maps: (n, _, h, w) tensors, the first of which sets the dtype; None for absent.
        channels: of the output, and of every norm.
        norms: each with an affine part, and not synchronised over processes.
        decision: vectors of one length, a value per decision.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    first = maps[0]
    if type(first) is not Tensor or first.dtype not in _DTYPES or first.dim() != 4 or first.numel() == 0:
        return False
    # Modes (fake tensors, make_fx, …) and functorch transforms want to see torch's own operators.
    if torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.maybe_current_level() is not None:
        return False
    for x in maps:
        if x is not None and not (type(x) is Tensor and x.is_cpu and x.dtype == first.dtype):
            return False
    for norm in norms:
        if norm.sync or norm.weight is None or norm.bias is None:
            return False
        if not all(_plain(x, channels) for x in norm[:4] if isinstance(x, Tensor)):
            return False
    lengths = {len(x) for x in decision if x is not None}
    return all(_plain(x, min(lengths)) for x in decision if x is not None) and available()


def _plain(x: Tensor, length: int) -> bool:
    return x.is_cpu and x.dtype == torch.float32 and x.shape == (length,) and x.is_contiguous()


def _pixel_stride(x: Tensor) -> int | None:
    """Distance between pixels if they lie evenly, row by row and image by image, with adjacent channels."""
    n, c, h, w = x.shape
    along_n, along_c, along_h, along_w = x.stride()
    stride = along_w if w > 1 else along_h if h > 1 else along_n if n > 1 else c
    even = (h == 1 or along_h == w * stride) and (n == 1 or along_n == h * w * stride)
    return stride if even and stride >= c and (along_c == 1 or c == 1) else None


def channels_last(x: Tensor) -> Tensor:
    """`x` itself where the native operators can walk it, as channel slices of channels-last tensors; else a copy."""
    return x if _pixel_stride(x) is not None else x.contiguous(memory_format=torch.channels_last)


def view(x: Tensor | None) -> tuple[int, int]:
    """Address and pixel stride of what `channels_last` returned; (0, 0) for None."""
    if x is None:
        return 0, 0
    stride = _pixel_stride(x)
    assert stride is not None
    return x.data_ptr(), stride


def empty_map(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, memory_format=torch.channels_last)


def touched(*tensors: Tensor | None) -> None:
    """Tell autograd that the extension wrote into these tensors."""
    torch.autograd.graph.increment_version([x for x in tensors if x is not None and not x.is_inference()])


def refuse_second_derivatives() -> None:
    """Call first in a backward: gradients with `create_graph` would silently lack this operator's part.

    Raises: BackendError: the backward pass is itself recorded.
    """
    if torch.is_grad_enabled():
        raise BackendError(
            "the native operators have no second derivative; call backward without create_graph, or set "
            "HEADGATE_NATIVE=0 to use the reference"
        )


NormArguments = tuple[int, int, int, int, bool, float, float, int, int]


def norm_arguments(norm: BatchNorm, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> NormArguments:
    """A norm as the extension takes it in the forward pass."""
    return (
        weight.data_ptr(),
        bias.data_ptr(),
        norm.running_mean.data_ptr(),
        norm.running_var.data_ptr(),
        norm.training,
        norm.momentum,
        norm.eps,
        mean.data_ptr(),
        rstd.data_ptr(),
    )
