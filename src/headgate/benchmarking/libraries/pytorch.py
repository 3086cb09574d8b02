"""PyTorch: eager in either layout of memory, and compiled by inductor."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from headgate.benchmarking.libraries.library import Absent, Images, Runner, Work


def eager_contiguous(work: Work) -> Runner:
    """As modules are, with batch norms folded into convolutions."""
    return _eager(work, torch.contiguous_format)


def eager_channels_last(work: Work) -> Runner:
    """The same with channels last, in work's dtype."""
    return _eager(work, torch.channels_last)


def compiled(work: Work) -> Runner:
    """inductor with frozen weights, which folds norms and packs weights for oneDNN.

    The images come contiguous: with channels last and frozen weights, torch 2.15 corrupts its heap on a ResNet-18.
    """
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise Absent("torch.compile needs a C++ compiler; install g++")
    torch.compiler.reset()
    module = torch.compile(copy.deepcopy(work.module), dynamic=False, options={"freezing": True})
    run = _runner(module, _dtype(work), torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(work.images)  # compiles
    return run


def _eager(work: Work, layout: torch.memory_format) -> Runner:
    folded: nn.Module = fuse(work.module).eval()  # a copy
    return _runner(folded.to(dtype=_dtype(work), memory_format=layout), _dtype(work), layout)  # type: ignore[call-overload]


def _dtype(work: Work) -> torch.dtype:
    return torch.float32 if work.dtype == "float32" else torch.bfloat16


def _runner(compute: Callable[[Tensor], Tensor], dtype: torch.dtype, layout: torch.memory_format) -> Runner:
    def run(images: Images) -> Images:
        with torch.no_grad():
            output: Images = compute(torch.from_numpy(images).to(dtype=dtype, memory_format=layout)).float().numpy()
            return output

    return run
