"""One safetensors file that says by itself how to build the model that it holds."""

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

from headgate.checkpoint.preprocess import Preprocess
from headgate.checkpoint.skeleton import identify_dense, skeleton, unwrapped
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
        structure: how it is gated, see `headgate.convert.gated_structure`; None for a dense one.
        preprocess: what its inputs go through, where known.
        metadata: whatever `save` was given.
        aliases: names of tensors that share another's storage, and that other's name.
    """

    version: int
    model: str
    architecture: Mapping[str, Any] | None
    structure: Mapping[str, Any] | None
    preprocess: Preprocess | None
    metadata: Mapping[str, Any]
    aliases: Mapping[str, str]


# ----------------------------------------------------------------------------------------------------------------- save


def save(model: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model to one safetensors file, whole or not at all.

    Beside the weights it holds the architecture (where the model is headgate's, torchvision's or timm's), where the
    gates are, `model.preprocess` where it is a `Preprocess`, and `metadata`. Wrappers (distribution, torch.compile)
    are left out.

    Args:
        metadata: anything JSON can hold: accuracy, the recipe, …
    Raises:
        CheckpointError: the file cannot be written (no space, no rights, no folder): an earlier file is unchanged; or
            the model's state is not all tensors that safetensors can hold.
        ConfigError: `metadata` is not plain JSON values.
    """
    model = unwrapped(model)
    tensors, aliases = _storable(model, path)
    structure = gated_structure(model) if gated_layers(model) else None
    architecture = identify(model) or (identify_dense(model, structure) if structure else None)
    preprocess = getattr(model, "preprocess", None)
    header = {
        "version": VERSION,
        "model": type(model).__name__,
        "architecture": architecture.to_dict() if architecture else None,
        "structure": structure,
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
        model: load into this one, in place: dense, or gated as the checkpoint is; a dense one is gated first where the
            checkpoint is gated. It is left untouched where an error is raised. None: build what the checkpoint names.
    Returns:
        `model`, in the mode it was in; or a new model on the CPU, in evaluation mode. Its attribute `preprocess` is the
        checkpoint's, where it has one.
    Raises: CheckpointError: the file is missing, truncated, foreign or of a newer format; of an architecture that this
        headgate cannot build; or of another model than `model`.
    """
    about, tensors = _read(path)
    target = _build(about, path).eval() if model is None else unwrapped(model)
    gated = _plan_gates(about, target, path)
    _check_names(gated.state_dict(), tensors, type(target).__name__, path)
    if about.structure is not None and not gated_layers(target):
        apply_structure_(target, about.structure)
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
            return Architecture.from_dict(about.architecture).build()
    except (HeadgateError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds the architecture {about.architecture}, which this headgate cannot build: "
            f"{error}; pass model="
        ) from error


def _plan_gates(about: CheckpointInfo, target: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """The target as it will be, without weights: gated as the checkpoint is."""
    name = type(target).__name__
    if gated_layers(target):
        if about.structure is None:
            raise CheckpointError(
                f"{path} holds a dense {about.model}, got a gated {name}; pass a dense one and gate it then"
            )
        own = json.loads(json.dumps(gated_structure(target)))
        if own != about.structure:
            raise CheckpointError(f"{path} is gated {_difference(about.structure, own)} in model; pass a dense one")
        return target
    if about.structure is None:
        return target
    planned = skeleton(target)
    try:
        with torch.device("meta"):
            apply_structure_(planned, about.structure)
    except HeadgateError as error:
        raise CheckpointError(f"{path} holds a gated {about.model}, which {name} cannot become: {error}") from error
    return planned


def _difference(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    for key in saved["config"]:
        if saved["config"][key] != own["config"].get(key):
            return f"with {key}={saved['config'][key]!r}, got {own['config'].get(key)!r}"
    names = sorted(saved["layers"].keys() | own["layers"].keys())
    name = next((n for n in names if saved["layers"].get(n) != own["layers"].get(n)), "?")
    return f"with {saved['layers'].get(name)} in {name!r}, got {own['layers'].get(name)}"


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


def _take_dtypes_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in tensors and tensor.dtype != tensors[name].dtype:
            tensor.data = tensor.data.to(tensors[name].dtype)
