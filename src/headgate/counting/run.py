"""The entry points: count what a model executes over a dataset, or trace its decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from headgate.counting.counts import Counts
from headgate.counting.layers import LayerCounts, Uncounted, joined
from headgate.counting.passes import Batches, as_deployed, bare, named, run_batches
from headgate.counting.recorder import Recorder
from headgate.errors import DataError, ModelError
from headgate.nn import GatedConv2d, Observation, observe
from headgate.workload import GateTrace, LayerShape


@dataclass(kw_only=True)
class _Share:
    """What one process counted; `failure` instead where it could not."""

    layers: list[LayerCounts]
    images: int
    index: NDArray[np.int64] | None
    uncounted: tuple[Uncounted, ...]
    uncalled: tuple[str, ...]
    failure: str | None = None


def count(
    model: nn.Module, loader: Batches, *, limit: int | None = None, progress: bool = False, gather: bool = True
) -> Counts:
    """Count the multiply-accumulates that a model executes, exactly, from the decisions of a real run.

    The model runs in evaluation mode without gradients; its mode and all random generators are restored. Where
    torch.distributed is initialised every process must call it, each with its share of the images, and each gets the
    counts of all images, in the order of ranks.

    Args:
        model: gated or not, on any device; wrapped for distribution or compiled or not.
        loader: batches of images, already normalised: x, or sequences (x, …); or a single tensor (n, c, h, w). If a
            batch is (x, y, index) with one integer per image, images are put in the order of their index, and one that
            comes twice (a DistributedSampler pads with copies) is counted once.
        limit: stop after this many images, of each process.
        progress: show a progress bar.
        gather: False: count this process's images only, whatever the others do.
    Raises:
        ModelError: no convolutions; layers that run for some images only; another process failed.
        DataError: no images, images of several sizes, or batches that do not start with images.
    """
    together = gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    try:
        share = _count_here(model, loader, limit, progress=progress and (not together or dist.get_rank() == 0))
    except Exception as error:
        if together:
            _gather(_Share(layers=[], images=0, index=None, uncounted=(), uncalled=(), failure=repr(error)))
        raise
    shares = _gather(share) if together else [share]
    for rank, other in enumerate(shares):
        if other.failure is not None:
            raise ModelError(
                f"every process must count its share of the images, but rank {rank} failed: {other.failure}"
            )
    return _merge(shares)


def _count_here(model: nn.Module, loader: Batches, limit: int | None, *, progress: bool) -> _Share:
    recorder = Recorder(named(model))
    with as_deployed(model), recorder.listening():
        images, indices = run_batches(bare(model), loader, limit=limit, progress=progress, around=recorder.batch)
    return _Share(
        layers=recorder.counts(),
        images=images,
        index=torch.cat(indices).cpu().numpy().astype(np.int64) if indices else None,
        uncounted=recorder.uncounted_operations(),
        uncalled=recorder.uncalled(),
    )


def _gather(share: _Share) -> list[_Share]:
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, share)
    return shares


def _merge(shares: list[_Share]) -> Counts:
    shares = [share for share in shares if share.images]
    if not shares:
        raise DataError("count needs at least one image, got an empty loader")
    names = [layer.name for layer in shares[0].layers]
    if any([layer.name for layer in share.layers] != names for share in shares):
        raise ModelError("every process must count the same model, got other layers on some of them")
    layers = [joined(list(parts)) for parts in zip(*(share.layers for share in shares), strict=True)]
    images = sum(share.images for share in shares)
    indices = [share.index for share in shares if share.index is not None]
    if indices:
        if len(indices) != len(shares):
            raise DataError("batches must have an index on every process or on none, got one on some")
        _, first = np.unique(np.concatenate(indices), return_index=True)
        layers, images = [layer.select(first) for layer in layers], len(first)
    return Counts(layers=tuple(layers), images=images, uncounted=shares[0].uncounted, uncalled=shares[0].uncalled)


def trace(
    model: nn.Module,
    loader: Batches,
    *,
    limit: int | None = None,
    decisions: bool = True,
    progress: bool = False,
) -> list[GateTrace]:
    """Record the decisions of every gated layer over this process's images, for the simulator and for plots.

    Args:
        model, loader, limit, progress: as for `count`; an index is not used.
        decisions: keep every decision, one bit each; False: only how many are open, per image and decision map.
    Returns: one trace for each time a gated layer runs, in the order of execution.
    Raises:
        ModelError: nothing is gated, or layers run for some images only.
        DataError: no images, images of several sizes, or batches that do not start with images.
    """
    parts: dict[str, list[GateTrace]] = {}
    calls: dict[str, int] = {}

    def keep(name: str, layer: GatedConv2d, observation: Observation) -> None:
        calls[name] = calls.get(name, 0) + 1
        key = name if calls[name] == 1 else f"{name}#{calls[name]}"
        shape = layer.layer_shape(key, observation.in_size, observation.out_size)
        if decisions:
            assert observation.decision is not None
            part = GateTrace.from_decisions(shape, observation.decision.to(torch.bool).cpu().numpy())
        else:
            part = GateTrace(shape=shape, open_counts=observation.open_counts.round().to(torch.int32).cpu().numpy())
        parts.setdefault(key, []).append(part)

    def next_batch(_images: int) -> Any:
        calls.clear()
        return torch.no_grad()

    with as_deployed(model), observe(named(model), keep, decisions=decisions):
        images, _ = run_batches(bare(model), loader, limit=limit, progress=progress, around=next_batch)
    if not images:
        raise DataError("trace needs at least one image, got an empty loader")
    return [_join_traces(layer, images) for layer in parts.values()]


def _join_traces(parts: list[GateTrace], images: int) -> GateTrace:
    shape: LayerShape = parts[0].shape
    for part in parts:
        if part.shape != shape:
            raise DataError(
                f"images of one trace must have one size, got input maps of {shape.in_size} and {part.shape.in_size} "
                f"in {shape.name!r}; trace each size by itself"
            )
    open_counts = np.concatenate([part.open_counts for part in parts])
    if len(open_counts) != images:
        raise ModelError(
            f"every image must run every gated layer once at a time, got {len(open_counts)} maps in {shape.name!r} for "
            f"{images} images"
        )
    packed = [part.packed for part in parts if part.packed is not None]
    return GateTrace(shape=shape, open_counts=open_counts, packed=np.concatenate(packed) if packed else None)
