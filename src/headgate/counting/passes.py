"""Run a model over batches as in deployment, and leave no trace of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headgate.errors import DataError

Batches = Iterable[Any] | Tensor
"""Batches of images: tensors, or sequences that start with one; or a single tensor."""


def bare(model: nn.Module) -> nn.Module:
    """The model inside wrappers that would split batches or wait for other processes."""
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


def named(model: nn.Module) -> nn.Module:
    """The model whose module names are the user's: inside torch.compile's wrapper too."""
    model = bare(model)
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = bare(inner)
    return model


@contextmanager
def as_deployed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, nothing compiled, no fused attention that hides its layers.

    Every module's mode and every random generator's state are afterwards what they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({t.device.index or 0 for t in _tensors(model) if t.device.type == "cuda"})
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and loading it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            torch.backends.mha.set_fastpath_enabled(fast_attention)
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def run_batches(
    model: nn.Module,
    loader: Batches,
    *,
    limit: int | None,
    progress: bool,
    around: Callable[[int], Any] | None = None,
) -> tuple[int, list[Tensor]]:
    """Call `model` on every batch's images, on the device of its parameters.

    Args:
        limit: stop after this many images.
        around: gives, for the number of images in a batch, the context to run the model in.
    Returns: how many images; and the batches' `index` tensors where they have them.
    Raises: DataError: a batch is no images, or has an index where others have none.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least one image, got {limit}")
    device = next((tensor.device for tensor in _tensors(model)), torch.device("cpu"))
    batches: Iterable[Any] = [loader] if isinstance(loader, Tensor) else loader
    if progress:
        from rich.progress import track

        batches = track(batches, description="counting", transient=True)
    images, indices, unindexed = 0, [], 0
    for batch in batches:
        x, index = images_of(batch)
        if limit is not None:
            x = x[: limit - images]
            index = None if index is None else index[: len(x)]
        if len(x) == 0:
            continue
        if index is None:
            unindexed += 1
        else:
            indices.append(index)
        if indices and unindexed:
            raise DataError(
                "every batch must have an index as its third element, or none; got some with and some without"
            )
        x = x.to(device, non_blocking=True)
        if around is None:
            model(x)
        else:
            with around(len(x)):
                model(x)
        images += len(x)
        if images == limit:
            break
    return images, indices


def images_of(batch: Any) -> tuple[Tensor, Tensor | None]:
    """The images of a batch x, (x, …) or (x, y, index, …), and its index: integers, one per image.

    Raises: DataError: it does not start with a tensor of images.
    """
    x = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(x, Tensor) or x.dim() < 2:
        got = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(batch).__name__
        raise DataError(f"a batch must be images, or start with them: (n, c, h, w), got {got}")
    if isinstance(batch, Tensor) or len(batch) < 3:
        return x, None
    index = batch[2]
    is_index = isinstance(index, Tensor) and index.shape == x.shape[:1] and index.dtype in (torch.int64, torch.int32)
    return x, index if is_index else None


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
