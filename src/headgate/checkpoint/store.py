"""One safetensors file that says by itself how to build the model that it holds.

How a network is pruned came later than format 1 and did not change its number: a file without that entry is one of a
network that is not pruned, and a headgate that does not know the entry finds other names or shapes in the weights than
in the dense network that it builds, and says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from headgate.baselines import (
    FBSConv2d,
    apply_pruned_structure_,
    perforated_layers,
    pruned_structure,
    without_layers,
)
from headgate.checkpoint.preprocess import Preprocess
from headgate.checkpoint.skeleton import blank, identify_dense, skeleton, unwrapped
from headgate.convert import apply_structure_, gated_structure
from headgate.errors import CheckpointError, ConfigError, HeadgateError
from headgate.files import write_atomic
from headgate.models import Architecture, identify
from headgate.nn import gated_layers

VERSION: Final = 1
_KEY: Final = "headgate"  # of the JSON text in the file's metadata


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint says about itself.

    Attributes:
        version: of the format.
        model: class name of the network.
        architecture: how to build it, as `headgate.models.Architecture.from_dict` takes it; None where headgate did
            not know.
        structure: how it is gated, see `headgate.convert.gated_structure`; None for one without gates.
        pruned: how it is pruned, see `headgate.baselines.pruned_structure`; None for one that is not, or where only
            weights are zero.
        preprocess: what its inputs go through, where known.
        metadata: whatever `save` was given.
        aliases: names of tensors that share another's storage, and that other's name.
    """

    version: int
    model: str
    architecture: Mapping[str, Any] | None
    structure: Mapping[str, Any] | None
    pruned: Mapping[str, Any] | None
    preprocess: Preprocess | None
    metadata: Mapping[str, Any]
    aliases: Mapping[str, str]


# ----------------------------------------------------------------------------------------------------------------- save


def save(model: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model to one safetensors file, whole or not at all.

    Beside the weights it holds the architecture (where the model is headgate's, torchvision's or timm's), where the
    gates are, how the baselines pruned it, `model.preprocess` where it is a `Preprocess`, and `metadata`. Wrappers
    (distribution, torch.compile) are left out.

    Args:
        metadata: anything JSON can hold: accuracy, the recipe, …
    Raises:
        CheckpointError: the file cannot be written (no space, no rights, no folder): an earlier file is unchanged; or
            the model's state is not all tensors that safetensors can hold.
        ConfigError: `metadata` is not plain JSON values.
    """
    model = unwrapped(model)
    tensors, aliases = _storable(model, path)
    architecture = identify(model) or identify_dense(model)
    preprocess = getattr(model, "preprocess", None)
    header = {
        "version": VERSION,
        "model": type(model).__name__,
        "architecture": architecture.to_dict() if architecture else None,
        "structure": _gates(model),
        "pruned": pruned_structure(model, blank(architecture) if architecture else None),
        "preprocess": preprocess.to_dict() if isinstance(preprocess, Preprocess) else None,
        "metadata": dict(metadata or {}),
        "aliases": aliases,
    }
    try:
        text = json.dumps(header, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metadata must be finite, plain JSON values: {error}") from error
    try:
        data = safetensors.torch.save(tensors, {_KEY: text, "format": "pt"})
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot write {path}: a tensor cannot be stored: {error}") from error
    write_atomic(path, data)


def _gates(model: nn.Module) -> dict[str, Any] | None:
    """How a model is gated, as JSON has it; FBS convolutions are gated ones of another make, and not meant."""
    gated = any(not isinstance(layer, FBSConv2d) for layer in gated_layers(model).values())
    return json.loads(json.dumps(gated_structure(model))) if gated else None


def _storable(model: nn.Module, path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state as separate contiguous tensors on the CPU, and the names that are another's tensor."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"cannot write {path}: expected a state of tensors, got {name!r}: {type(value).__name__}"
            )
        if value.is_meta or value.is_sparse or value.is_quantized:
            raise CheckpointError(f"cannot write {path}: {name!r} is a meta, sparse or quantized tensor")
        storage = value.untyped_storage().data_ptr()
        view = (storage, value.storage_offset(), value.shape, value.stride(), value.dtype, value.device)
        if storage and view in first:
            aliases[name] = first[view]
            continue
        first[view] = name
        stored = value.detach().cpu().contiguous()
        tensors[name] = stored.clone() if storage in storages else stored
        storages.add(storage)
    return tensors, aliases


# ----------------------------------------------------------------------------------------------------------------- load


def load(path: str | os.PathLike[str], *, model: nn.Module | None = None) -> nn.Module:
    """Read a model that `save` wrote.

    Args:
        model: load into this one, in place: dense, or gated and pruned as the checkpoint is; a dense one is made so
            first. Residual branches that the checkpoint's network has no more must be out of it already. It is left
            untouched where an error is raised. None: build what the checkpoint names.
    Returns:
        `model`, in the mode it was in; or a new model on the CPU, in evaluation mode. Its attribute `preprocess` is the
        checkpoint's, where it has one.
    Raises: CheckpointError: the file is missing, truncated, foreign or of a newer format; of an architecture that this
        headgate cannot build; or of another model than `model`.
    """
    about, tensors = _read(path)
    target = _build(about, path).eval() if model is None else unwrapped(model)
    planned = _plan(about, target, path)
    _check_names(planned.state_dict(), tensors, type(target).__name__, path)
    _check_positions(planned, tensors, path)
    if planned is not target:
        _convert_(target, about)
    if model is None:
        _take_dtypes_(target, tensors)
    target.load_state_dict(tensors)
    if about.preprocess is not None:
        target.preprocess = about.preprocess  # type: ignore[assignment]  # nn.Module's attributes are tensors to mypy
    return target if model is None else model


def info(path: str | os.PathLike[str]) -> CheckpointInfo:
    """What a checkpoint says about itself; its weights are not read.

    Raises: CheckpointError: missing, truncated, foreign, or of a newer format.
    """
    return _read(path, weights=False)[0]


def _read(path: str | os.PathLike[str], *, weights: bool = True) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    if os.path.isdir(path):  # noqa: PTH112  (a path may be a string)
        raise CheckpointError(f"{path} is a folder, not a checkpoint; name the file in it")
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise CheckpointError(
                    f"{path} was not written by headgate.save: a safetensors file without headgate's metadata; build "
                    "its model, load its weights with safetensors, and save that"
                )
            about = _parse(text, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if weights else {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"no such file: {path}") from error
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error
    if weights:
        tensors |= {name: tensors[other] for name, other in about.aliases.items() if other in tensors}
    return about, tensors


def _parse(text: str, path: str | os.PathLike[str]) -> CheckpointInfo:
    try:
        header = json.loads(text)
        version = int(header["version"])
        if version > VERSION:
            raise CheckpointError(f"{path} has format {version}, this headgate reads up to {VERSION}; update headgate")
        return CheckpointInfo(
            version=version,
            model=str(header["model"]),
            architecture=header["architecture"],
            structure=header["structure"],
            pruned=dict(header["pruned"]) if header.get("pruned") else None,
            preprocess=Preprocess.from_dict(header["preprocess"]) if header["preprocess"] else None,
            metadata=header["metadata"],
            aliases=dict(header["aliases"]),
        )
    except CheckpointError:
        raise
    except (HeadgateError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has damaged headgate metadata: {error!r}") from error


def _build(about: CheckpointInfo, path: str | os.PathLike[str]) -> nn.Module:
    if about.architecture is None:
        raise CheckpointError(
            f"{path} holds a {about.model}, which headgate cannot build by itself; pass model=, a {about.model} built "
            "as the one that was saved"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are overwritten: draw them from no one's generator
            architecture = Architecture.from_dict(about.architecture)
            model = architecture.build()
        dropped = (about.pruned or {}).get("dropped")
        if dropped:
            model = without_layers(model, dropped)
            model.architecture = architecture  # type: ignore[assignment]  # nn.Module's attributes are tensors to mypy
        return model
    except (HeadgateError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds the architecture {about.architecture}, which this headgate cannot build: "
            f"{error}; pass model="
        ) from error


def _plan(about: CheckpointInfo, target: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """The target as it will be, without weights; the target itself where it is so already."""
    if gated_layers(target) or perforated_layers(target):
        _require_alike(about, target, path)
        return target
    if about.structure is None and about.pruned is None:
        return target
    planned = skeleton(target)
    try:
        with torch.device("meta"):
            _convert_(planned, about)
    except HeadgateError as error:
        kind = " and ".join(["pruned"] * (about.pruned is not None) + ["gated"] * (about.structure is not None))
        raise CheckpointError(
            f"{path} holds a {kind} {about.model}, which {type(target).__name__} cannot become: {error}"
        ) from error
    return planned


def _convert_(model: nn.Module, about: CheckpointInfo) -> None:
    """Prune and gate a dense model as the checkpoint is, in place."""
    with torch.random.fork_rng(devices=[]):  # as in `_build`
        if about.pruned is not None:
            apply_pruned_structure_(model, about.pruned)
        if about.structure is not None:
            apply_structure_(model, about.structure)


def _require_alike(about: CheckpointInfo, model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError: a model that is gated, perforated or of FBS is not so as the checkpoint is."""
    gates, pruned = _gates(model), pruned_structure(model) or {}
    saved = {key: entry for key, entry in (about.pruned or {}).items() if key in ("perforated", "fbs")}
    wanted, given = _kind(about.structure, saved), _kind(gates, pruned)
    if wanted != given:
        raise CheckpointError(
            f"{path} holds a {wanted} {about.model}, got a {given} {type(model).__name__}; pass a dense one"
        )
    for word, theirs, own in (("gated", about.structure or {}, gates or {}), ("pruned", saved, pruned)):
        if theirs != own:
            raise CheckpointError(f"{path} is {word} {_difference(theirs, own)} in model; pass a dense one")


def _kind(structure: Mapping[str, Any] | None, pruned: Mapping[str, Any]) -> str:
    words = {"gated": structure, "perforated": "perforated" in pruned, "FBS": "fbs" in pruned}
    return " and ".join(word for word, applies in words.items() if applies) or "dense"


def _difference(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The first entry in which two structures differ."""
    for part in dict.fromkeys((*saved, *own)):
        ours, theirs = own.get(part, {}), saved.get(part, {})
        for key in dict.fromkeys((*theirs, *ours)):
            one, other = theirs.get(key), ours.get(key)
            if one != other:
                return (
                    f"with {key}={one!r}, got {other!r}" if part == "config" else f"with {one} in {key!r}, got {other}"
                )
    raise AssertionError("the structures are the same")


def _check_names(
    expected: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, path: str | os.PathLike[str]
) -> None:
    def few(names: Sequence[str]) -> str:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"{', '.join(names[:3])}{more}"

    missing = [key for key in expected if key not in tensors]
    unexpected = [key for key in tensors if key not in expected]
    reshaped = [
        f"{key}: {tuple(tensors[key].shape)} in the file, {tuple(value.shape)} in the model"
        for key, value in expected.items()
        if key in tensors and isinstance(value, Tensor) and value.shape != tensors[key].shape
    ]
    found = (("missing in the file", missing), ("not in the model", unexpected), ("of another shape", reshaped))
    problems = [f"{what}: {few(names)}" for what, names in found if names]
    if problems:
        raise CheckpointError(f"{path} holds another model than this {name}: {'; '.join(problems)}")


def _check_positions(planned: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError: a perforated convolution would copy positions that it does not compute."""
    for name, layer in perforated_layers(planned).items():
        try:
            layer.require_source(tensors[f"{name}.source"].long())
        except HeadgateError as error:
            raise CheckpointError(f"{path} is damaged in {name!r}: {error}") from error


def _take_dtypes_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in tensors and tensor.dtype != tensors[name].dtype:
            tensor.data = tensor.data.to(tensors[name].dtype)
