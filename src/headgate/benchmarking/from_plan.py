"""From a plan file to networks: the dense one that it was gated from, rebuilt of what the file holds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from headgate.benchmarking.images import (
    NOISE_IMAGES,
    TRAINED_IMAGES,
    Shape,
    calibration_images,
    stored_images,
    white_noise,
)
from headgate.benchmarking.libraries.library import Images
from headgate.benchmarking.network import Network, Planned, Subject
from headgate.benchmarking.rebuild import layer_of, rebuild
from headgate.benchmarking.record import NetworkKind
from headgate.benchmarking.request import Dtype, Request
from headgate.engine import Engine
from headgate.errors import BenchmarkError, ConfigError
from headgate.exporting.int8 import Range
from headgate.exporting.plan import Conv, GatedConv, Plan, read, write
from headgate.exporting.precision import precision_of, with_bfloat16, with_int8
from headgate.exporting.report import macs_of
from headgate.exporting.static import opened

__all__ = ["has_gates", "plan_macs", "plan_network", "plan_subject"]


def plan_subject(request: Request, folder: Path) -> Subject:
    """The dense network of a plan file, and the images.

    Raises: PlanError: it cannot be loaded. DataError, ConfigError: nor can the images, or they do not fit it.
        ModelError: it has an operator that torch has not.
    """
    path = Path(request.models[0])
    shape = Engine(path).input_shape  # which checks the file
    plan = read(path)
    dtype, images = _dtype_of(plan), _images(request, shape)
    dense = plan_network(opened(plan), "dense", "dense", dtype, images, folder)
    if not has_gates(plan):  # then it is the engine's dense plan itself
        dense = replace(dense, plans=(replace(dense.plans[0], path=path),))
    return Subject(name=path.name, images=images, dense=dense, folder=folder, precisions=(dtype,), plan=plan)


def plan_network(plan: Plan, name: str, kind: NetworkKind, dtype: Dtype, images: Images, folder: Path) -> Network:
    """A network for libraries, and for the engine in `dtype`.

    Args:
        plan: without gates, in float32.
    Raises: ModelError: it has an operator that torch has not. BenchmarkError: it does not compute finite numbers.
    """
    module = rebuild(plan)
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name)}.hgplan"
    match dtype:
        case "int8":
            write(with_int8(plan, _ranges(plan, module, calibration_images(images))), path)
        case "bfloat16":
            write(with_bfloat16(plan), path)
        case "float32":
            write(plan, path)
    planned = Planned(dtype=dtype, path=path, macs=plan_macs(plan))
    return Network(name=name, kind=kind, module=module, images=images, plans=(planned,))


@torch.no_grad()
def _ranges(plan: Plan, module: nn.Module, images: Images) -> dict[str, Range]:
    """Of what each convolution reads, by its name."""
    ranges: dict[str, Range] = {}

    def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            low, high = (float(extreme) for extreme in inputs[0].aminmax())
            if not math.isfinite(low + high):
                raise BenchmarkError(f"{name!r} must read finite numbers, got nan or inf; give other images with data")
            ranges[name] = Range(low, high)

        return note

    handles = [
        layer_of(module, conv).register_forward_pre_hook(noting(conv.name))
        for conv in plan.operators
        if isinstance(conv, Conv)
    ]
    try:
        module(torch.from_numpy(images))
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def plan_macs(plan: Plan) -> int:
    """Of one image, with every gate open."""
    return sum(macs_of(operator, plan) for operator in plan.operators)


def has_gates(plan: Plan) -> bool:
    """Whether any convolution is gated."""
    return any(isinstance(operator, GatedConv) for operator in plan.operators)


def _dtype_of(plan: Plan) -> Dtype:
    """The narrowest of its convolutions' precisions."""
    found = {precision_of(operator) for operator in plan.operators if isinstance(operator, (Conv, GatedConv))}
    narrow: tuple[Dtype, ...] = ("int8", "bfloat16")
    return next((dtype for dtype in narrow if dtype in found), "float32")


def _images(request: Request, shape: Shape) -> Images:
    """Those of `request.data`, or noise."""
    if request.data is None:
        return white_noise(max(*request.batches, NOISE_IMAGES), shape, request.seed).numpy()
    least = max(request.batches)
    images = stored_images(request.data, max(TRAINED_IMAGES, least), least=least)
    if images.shape[1:] != shape:
        raise ConfigError(f"data must hold images of {shape}, as the plan, got {images.shape[1:]}")
    return np.ascontiguousarray(images)
