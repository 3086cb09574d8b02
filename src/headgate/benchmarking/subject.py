"""From a request to networks: what is timed, on which images, and pruned to how many MACs."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from headgate.benchmarking.from_plan import has_gates, plan_macs, plan_network, plan_subject
from headgate.benchmarking.images import (
    NOISE_IMAGES,
    TRAINED_IMAGES,
    Shape,
    calibration_images,
    pink_noise,
    real_images,
    white_noise,
)
from headgate.benchmarking.libraries.library import Images
from headgate.benchmarking.network import Network, Planned, Subject
from headgate.benchmarking.plain import plain
from headgate.benchmarking.record import Gated, NetworkKind, titled
from headgate.benchmarking.request import Dtype, Mask, Request
from headgate.benchmarking.synthetic import Decisions, observe_decisions, settle_, smooth_kernels_
from headgate.benchmarking.thinner import narrowest, thinner
from headgate.convert import gate_
from headgate.engine import Engine
from headgate.errors import BenchmarkError, ModelError
from headgate.exporting import export
from headgate.exporting.static import grouped
from headgate.models import Architecture
from headgate.nn import GateConfig, gated_layers
from headgate.nn.config import Granularity
from headgate.train.finished import find_model

__all__ = ["gated_networks", "make_subject", "pruned_networks"]

DENSITY_TOLERANCE: Final = {"trained": 0.005, "synthetic": 0.03}
"""Between torch's and the engine's share of open decisions of a layer on the same images; a share, absolute. An
untrained gated network is chaotic: one decision that rounding flips flips others behind it, so that from some depth on
masks agree in density alone, and that up to their sampling noise."""
ROUNDED_DENSITY: Final = 0.03
"""More than that where sums are rounded to fewer bits than float32's."""
STATIC_GROUPS: Final = (2, 4, 8, 16, 32)
GRANULARITY: Final[dict[Mask, Granularity]] = {"iid": "activation", "clustered": "activation", "group": "group"}
NOISE: Final = {
    "iid": (white_noise, "white noise"),
    "clustered": (pink_noise, "pink noise (amplitude 1 / frequency), kernels that blur"),
    "group": (white_noise, "white noise"),
}


def make_subject(request: Request, folder: Path) -> Subject:
    """The dense network, and the images.

    Raises: HeadgateError: see `find_model`, `Architecture.build`, `real_images`, `export`, `Engine`.
    """
    if request.kind == "plan":
        return plan_subject(request, folder)
    if request.kind == "synthetic":
        torch.manual_seed(request.seed)
        architecture = Architecture(name=request.models[0])
        shape = request.image or architecture.input_shape()
        x = white_noise(max(*request.batches, NOISE_IMAGES), shape, request.seed)
        model = architecture.build()
        settle_(model, x)
        name = request.models[0]
    else:
        model, known = find_model(request.dense or request.models[0])
        x = real_images(model, request.data, known, max(TRAINED_IMAGES, *request.batches))
        model = plain(model, "open")
        name = request.dense or request.models[0]
    dense = _plain_network("dense", "dense", model, x, folder, request.precisions)
    return Subject(name=name, images=dense.images, dense=dense, folder=folder, precisions=request.precisions)


def gated_networks(request: Request, subject: Subject) -> Iterator[Network]:
    """The gated networks, each with the images that its gates decide on.

    Raises: BenchmarkError: the engine decides otherwise than torch. HeadgateError: as `make_subject`.
    """
    if subject.plan is not None:
        if has_gates(subject.plan):
            planned = Planned(dtype=subject.precisions[0], path=Path(request.models[0]), macs=0)
            yield _gated_network(request, subject.name, [planned], subject.images, _origin(request), {})
        return
    for position, (name, model, x, origin) in enumerate(_gated_models(request, subject)):
        plans = _plans(f"gated-{position}", model, x, subject.folder, subject.precisions)
        yield _gated_network(request, name, plans, x.numpy(), origin, observe_decisions(model, x))


def _gated_models(request: Request, subject: Subject) -> Iterator[tuple[str, nn.Module, Tensor, str]]:
    """Name, gated model, images, and what those are."""
    if request.kind == "trained":
        for name in request.models:
            model, _ = find_model(name)
            if gated_layers(model):
                yield name, model, torch.from_numpy(subject.images), _origin(request)
        return
    assert subject.dense.module is not None
    shape: Shape = subject.images.shape[1:]
    for mask in request.masks:
        noise, origin = NOISE[mask]
        x = noise(len(subject.images), shape, request.seed)
        for density in request.densities:
            model = copy.deepcopy(subject.dense.module)
            if mask == "clustered":
                smooth_kernels_(model, request.seed)
            gate_(model, GateConfig(groups=request.groups, granularity=GRANULARITY[mask]), example_input=x[:1])
            if not gated_layers(model):
                raise ModelError(f"{request.models[0]} has no convolution that can be gated")
            settle_(model, x, density=density)
            yield f"{mask}, {100 * density:g} %", model, x, origin


def _origin(request: Request) -> str:
    return request.data or (
        "white noise, so masks are those of noise; --data images.npy takes yours"
        if request.kind == "plan"
        else "test images that the run was trained for"
    )


def _gated_network(
    request: Request,
    name: str,
    plans: Sequence[Planned],
    images: Images,
    origin: str,
    decisions: dict[str, Decisions],
) -> Network:
    """Run the engine once over all images, for densities and MACs; compare them with torch's decisions."""
    after = [decided.after_open for decided in decisions.values() if decided.after_open is not None]
    counted = []
    for plan in plans:
        engine = Engine(plan.path, paths="sparse")
        engine(images)
        stats = [layer for layer in engine.stats() if layer.executed_macs]
        density = {layer.name: layer.density for layer in stats if layer.decisions}
        _check_decisions(request, titled(name, plan.dtype), plan.dtype, density, decisions)
        about = Gated(
            name=name,
            dtype=plan.dtype,
            images=f"{len(images)} images: {origin}",
            dense_macs=sum(layer.dense_macs for layer in stats) // len(images),
            executed_macs=sum(layer.executed_macs for layer in stats) // len(images),
            density=density,
            after_open=sum(after) / len(after) if after else None,
            plan_bytes=plan.path.stat().st_size,
        )
        counted.append(replace(plan, macs=about.executed_macs, about=about))
    return Network(name=name, kind="gated", module=None, images=images, plans=tuple(counted))


def _check_decisions(
    request: Request, title: str, dtype: Dtype, density: Mapping[str, float], decisions: Mapping[str, Decisions]
) -> None:
    """Of the engine: `density`, against torch's `decisions`, by layer; a plan file comes without the latter."""
    for layer, decided in decisions.items():
        found = density.get(layer)
        tolerance = DENSITY_TOLERANCE[request.kind] + (0.0 if dtype == "float32" else ROUNDED_DENSITY)
        if found is not None and abs(found - decided.density) > tolerance:
            raise BenchmarkError(
                f"{title}: the engine opens {found:.4f} of the decisions of {layer!r}, torch {decided.density:.4f}"
            )


# --------------------------------------------------------------------------------------------------- static pruning


def pruned_networks(
    request: Request, subject: Subject, targets: list[int], absent: dict[str, str]
) -> Iterator[Network]:
    """The dense network pruned statically to about so many MACs per image: grouped, and thinner; each once.

    Args:
        absent: takes the reasons of what is asked for and cannot be made.
    """
    for family, networks in (("grouped", _all_grouped), ("thinner", _all_thinner)):
        if request.wants(family) and not targets:
            absent[family] = "no gated network is timed, whose MACs it would have"
        elif request.wants(family):
            try:
                yield from networks(subject, targets)
            except ModelError as error:
                absent[family] = str(error)


def _all_grouped(subject: Subject, targets: list[int]) -> Iterator[Network]:
    plan, model, x = subject.plan, subject.dense.module, torch.from_numpy(subject.images)
    assert model is not None
    if plan is None:
        sizes = _grouped_macs(model, x, subject.folder)
    else:
        sizes = {groups: plan_macs(grouped(plan, groups)) for groups in STATIC_GROUPS}
    for groups in sorted({_nearest(sizes, target) for target in targets}):
        name = f"grouped, G = {groups}"
        if plan is None:
            yield _grouped(model, groups, name, x, subject)
        else:
            yield plan_network(
                grouped(plan, groups), name, "pruned", subject.precisions[0], subject.images, subject.folder
            )


def _all_thinner(subject: Subject, targets: list[int]) -> Iterator[Network]:
    """Raises: ModelError: it cannot be made thinner."""
    dense, x = subject.dense, torch.from_numpy(subject.images)
    assert dense.module is not None
    known: dict[int, Network] = {}
    for target in targets:
        for channels in _widths_around(dense, target):
            if channels not in known:
                known[channels] = _thinner(dense.module, channels, x, subject)
    sizes = {channels: network.macs for channels, network in known.items()}
    chosen = {_nearest(sizes, target) for target in targets}
    yield from (known[channels] for channels in sorted(chosen))


def _nearest(sizes: dict[int, int], target: int) -> int:
    """The key whose MACs are nearest to the target, in proportion."""
    return min(sizes, key=lambda key: abs(math.log(sizes[key] / target)))


def _grouped_macs(model: nn.Module, x: Tensor, folder: Path) -> dict[int, int]:
    """MACs of one image where every convolution that could be gated has so many groups, by the number of groups."""
    sizes = {}
    for groups in STATIC_GROUPS:
        if groups > narrowest(model):
            break
        closed = _closed(model, groups, x)
        sizes[groups] = export(closed, folder / "size.hgplan", example_input=x[:1]).macs
    return sizes


def _closed(model: nn.Module, groups: int, x: Tensor) -> nn.Module:
    closed = copy.deepcopy(model)
    gate_(closed, GateConfig(groups=groups, shuffle=True), example_input=x[:1])
    for layer in gated_layers(closed).values():
        layer.gate.forced = "closed"
    return closed


def _grouped(model: nn.Module, groups: int, name: str, x: Tensor, subject: Subject) -> Network:
    """Gates held closed, for the engine; the same function in grouped convolutions and shuffles, for libraries."""
    closed = _closed(model, groups, x)
    settle_(closed, x)
    plans = _plans(name, closed, x, subject.folder, subject.precisions)
    return Network(name=name, kind="pruned", module=plain(closed, "closed"), images=x.numpy(), plans=plans)


def _widths_around(dense: Network, target: int) -> set[int]:
    """The two widths of the narrowest layer around the target, in steps of a sixteenth of it, at least one channel."""
    assert dense.module is not None
    width = narrowest(dense.module)
    step = max(1, width // 16)
    wanted = width * math.sqrt(target / dense.macs) / step
    return {min(max(round_(wanted), 1) * step, width) for round_ in (math.floor, math.ceil)}


def _thinner(model: nn.Module, channels: int, x: Tensor, subject: Subject) -> Network:
    width = narrowest(model)
    thin = thinner(model, channels / width, x[:2])
    settle_(thin, x)
    return _plain_network(f"thinner, {channels}/{width}", "pruned", thin, x, subject.folder, subject.precisions)


# ------------------------------------------------------------------------------------------------------------ plans


def _plain_network(
    name: str, kind: NetworkKind, model: nn.Module, x: Tensor, folder: Path, precisions: tuple[Dtype, ...]
) -> Network:
    return Network(
        name=name, kind=kind, module=model, images=x.numpy(), plans=_plans(name, model, x, folder, precisions)
    )


def _plans(name: str, model: nn.Module, x: Tensor, folder: Path, precisions: tuple[Dtype, ...]) -> tuple[Planned, ...]:
    plans = []
    for precision in precisions:
        path = folder / f"{re.sub('[^a-z0-9]+', '-', name)}-{precision}.hgplan"
        options: dict[str, Any] = {"precision": precision}
        if precision == "int8":
            options["calibration"] = torch.from_numpy(calibration_images(x.numpy()))
        report = export(model, path, example_input=x[:1], **options)
        plans.append(Planned(dtype=precision, path=path, macs=report.macs))
    return tuple(plans)
