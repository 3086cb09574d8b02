"""From a request to networks: what is timed, on which images, and pruned to how many MACs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headgate.benchmarking.images import TRAINED_IMAGES, Shape, pink_noise, real_images, stored_images, white_noise
from headgate.benchmarking.libraries.library import Images
from headgate.benchmarking.plain import plain
from headgate.benchmarking.record import Gated
from headgate.benchmarking.request import Mask, Request
from headgate.benchmarking.synthetic import Decisions, observe_decisions, settle_, smooth_kernels_
from headgate.benchmarking.thinner import narrowest, thinner
from headgate.convert import gate_
from headgate.engine import Engine
from headgate.errors import BenchmarkError, ConfigError, ModelError
from headgate.exporting import ExportReport, export
from headgate.models import Architecture
from headgate.nn import GateConfig, gated_layers
from headgate.nn.config import Granularity
from headgate.train.finished import find_model

__all__ = ["Network", "Subject", "gated_networks", "make_subject", "pruned_networks"]

SYNTHETIC_IMAGES: Final = 8
"""At least so many, that thresholds are not fitted to one image."""
DENSITY_TOLERANCE: Final = {"trained": 0.005, "synthetic": 0.03}
"""Between torch's and the engine's share of open decisions of a layer on the same images; a share, absolute. An
untrained gated network is chaotic: one decision that rounding flips flips others behind it, so that from some depth on
masks agree in density alone, and that up to their sampling noise."""
STATIC_GROUPS: Final = (2, 4, 8, 16, 32)
GRANULARITY: Final[dict[Mask, Granularity]] = {"iid": "activation", "clustered": "activation", "group": "group"}
NOISE: Final = {
    "iid": (white_noise, "white noise"),
    "clustered": (pink_noise, "pink noise (amplitude 1 / frequency), kernels that blur"),
    "group": (white_noise, "white noise"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network that is timed.

    Attributes:
        name: for people.
        module: plain layers for libraries; None where only the engine runs it.
        plan: for the engine.
        macs: of one image; of a gated network the executed ones, on average.
        images: (n, c, h, w) that it runs on.
        about: of a gated network.
    """

    name: str
    module: nn.Module | None
    plan: Path
    macs: int
    images: Images
    about: Gated | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What is timed, before it is gated or pruned.

    Attributes:
        name: of the network.
        images: what networks without gates run on.
        dense: None where there is only a plan.
        folder: for plan files.
    """

    name: str
    images: Images
    dense: Network | None
    folder: Path


def make_subject(request: Request, folder: Path) -> Subject:
    """The dense network, and the images.

    Raises: HeadgateError: see `find_model`, `Architecture.build`, `real_images`, `export`, `Engine`.
    """
    count = max(*request.batches, SYNTHETIC_IMAGES)
    if request.kind == "plan":
        shape = Engine(request.models[0]).input_shape
        images = white_noise(count, shape, request.seed).numpy()
        if request.data is not None:
            images = _of_shape(stored_images(request.data, max(request.batches)), shape)
        return Subject(name=Path(request.models[0]).name, images=images, dense=None, folder=folder)
    if request.kind == "synthetic":
        torch.manual_seed(request.seed)
        architecture = Architecture(name=request.models[0])
        shape = request.image or architecture.input_shape()
        x = white_noise(count, shape, request.seed)
        model = architecture.build()
        settle_(model, x)
        name = request.models[0]
    else:
        model, known = find_model(request.dense or request.models[0])
        x = real_images(model, request.data, known, max(TRAINED_IMAGES, *request.batches))
        model = plain(model, "open")
        name = request.dense or request.models[0]
    dense = _plain_network("dense", model, x, folder)
    return Subject(name=name, images=dense.images, dense=dense, folder=folder)


def gated_networks(request: Request, subject: Subject) -> Iterator[Network]:
    """The gated networks, each with the images that its gates decide on.

    Raises: BenchmarkError: the engine decides otherwise than torch. HeadgateError: as `make_subject`.
    """
    if request.kind == "plan":
        yield _gated_network(request, subject.name, Path(request.models[0]), subject.images, _origin(request), {})
        return
    assert subject.dense is not None
    for position, (name, model, x, origin) in enumerate(_gated_models(request, subject)):
        plan = subject.folder / f"gated-{position}.hgplan"
        _export(model, plan, x)
        yield _gated_network(request, name, plan, x.numpy(), origin, observe_decisions(model, x))


def _gated_models(request: Request, subject: Subject) -> Iterator[tuple[str, nn.Module, Tensor, str]]:
    """Name, gated model, images, and what those are."""
    if request.kind == "trained":
        for name in request.models:
            model, _ = find_model(name)
            if gated_layers(model):
                yield name, model, torch.from_numpy(subject.images), _origin(request)
        return
    assert subject.dense is not None
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
    return request.data or ("white noise" if request.kind == "plan" else "test images that the run was trained for")


def _gated_network(
    request: Request, name: str, plan: Path, images: Images, origin: str, decisions: dict[str, Decisions]
) -> Network:
    """Run the engine once over all images, for densities and MACs; compare them with torch's decisions."""
    engine = Engine(plan, paths="sparse")
    engine(images)
    stats = [layer for layer in engine.stats() if layer.executed_macs]
    density = {layer.name: layer.density for layer in stats if layer.decisions}
    for layer, decided in decisions.items():
        found = density.get(layer)
        if found is not None and abs(found - decided.density) > DENSITY_TOLERANCE[request.kind]:
            raise BenchmarkError(
                f"{name}: the engine opens {found:.4f} of the decisions of {layer!r}, torch {decided.density:.4f}"
            )
    after = [decided.after_open for decided in decisions.values() if decided.after_open is not None]
    about = Gated(
        name=name,
        images=f"{len(images)} images: {origin}",
        dense_macs=sum(layer.dense_macs for layer in stats) // len(images),
        executed_macs=sum(layer.executed_macs for layer in stats) // len(images),
        density=density,
        after_open=sum(after) / len(after) if after else None,
        plan_bytes=plan.stat().st_size,
    )
    return Network(name=name, module=None, plan=plan, macs=about.executed_macs, images=images, about=about)


# --------------------------------------------------------------------------------------------------- static pruning


def pruned_networks(request: Request, subject: Subject, targets: list[int]) -> Iterator[Network]:
    """The dense network pruned statically to about so many MACs per image: grouped, and thinner; each once.

    Raises: ModelError: it cannot be made thinner.
    """
    dense = subject.dense
    if dense is None or dense.module is None:
        return
    x = torch.from_numpy(subject.images)
    if request.wants("grouped"):
        sizes = _grouped_macs(dense.module, x, subject.folder)
        for groups in sorted({_nearest(sizes, target) for target in targets}):
            yield _grouped(dense.module, groups, x, subject.folder)
    if request.wants("thinner"):
        known: dict[int, Network] = {}
        for target in targets:
            for channels in _widths_around(dense, target):
                if channels not in known:
                    known[channels] = _thinner(dense.module, channels, x, subject.folder)
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
        sizes[groups] = _export(closed, folder / "size.hgplan", x).macs
    return sizes


def _closed(model: nn.Module, groups: int, x: Tensor) -> nn.Module:
    closed = copy.deepcopy(model)
    gate_(closed, GateConfig(groups=groups, shuffle=True), example_input=x[:1])
    for layer in gated_layers(closed).values():
        layer.gate.forced = "closed"
    return closed


def _grouped(model: nn.Module, groups: int, x: Tensor, folder: Path) -> Network:
    """Gates held closed, for the engine; the same function in grouped convolutions and shuffles, for libraries."""
    closed = _closed(model, groups, x)
    settle_(closed, x)
    plan = folder / f"grouped-{groups}.hgplan"
    report = _export(closed, plan, x)
    return Network(
        name=f"grouped, G = {groups}", module=plain(closed, "closed"), plan=plan, macs=report.macs, images=x.numpy()
    )


def _widths_around(dense: Network, target: int) -> set[int]:
    """The two widths of the narrowest layer around the target, in steps of a sixteenth of it, at least one channel."""
    assert dense.module is not None
    width = narrowest(dense.module)
    step = max(1, width // 16)
    wanted = width * math.sqrt(target / dense.macs) / step
    return {min(max(round_(wanted), 1) * step, width) for round_ in (math.floor, math.ceil)}


def _thinner(model: nn.Module, channels: int, x: Tensor, folder: Path) -> Network:
    width = narrowest(model)
    thin = thinner(model, channels / width, x[:2])
    settle_(thin, x)
    return _plain_network(f"thinner, {channels}/{width}", thin, x, folder)


def _plain_network(name: str, model: nn.Module, x: Float[Tensor, "n c h w"], folder: Path) -> Network:
    plan = folder / f"{name.replace(' ', '').replace('/', '-')}.hgplan"
    report = _export(model, plan, x)
    return Network(name=name, module=model, plan=plan, macs=report.macs, images=x.numpy())


def _export(model: nn.Module, plan: Path, x: Float[Tensor, "n c h w"]) -> ExportReport:
    return export(model, plan, example_input=x[:1])


def _of_shape(images: Images, shape: Shape) -> Images:
    if images.shape[1:] != shape:
        raise ConfigError(f"data must hold images of {shape}, as the plan, got {images.shape[1:]}")
    return np.ascontiguousarray(images)
