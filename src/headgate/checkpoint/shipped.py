"""Trained models that come with headgate."""

from __future__ import annotations

import difflib
import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import Path

from torch import nn

from headgate.checkpoint.store import load
from headgate.errors import ModelError


def _shipped() -> Traversable:
    return importlib.resources.files("headgate").joinpath("pretrained")


def list_pretrained() -> tuple[str, ...]:
    """Names of the trained models that come with headgate; each has a model card, `<name>.md`, beside it."""
    folder = _shipped()
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return tuple(sorted(name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")))


def pretrained(name: str) -> nn.Module:
    """A trained model that comes with headgate, in evaluation mode; needs no network connection.

    `model.preprocess(images)` maps images in [0, 1] to its input.

    Raises:
        ModelError: no such model; near matches are listed.
        CheckpointError: its file is damaged.
    """
    names = list_pretrained()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ModelError(f"name must be one of {', '.join(names) or 'no models: none are shipped'}, got {name!r}{hint}")
    return _load_shipped(name, None)


def load_by_name(name: str, *, model: nn.Module | None = None) -> nn.Module:
    """A checkpoint file's model, or one that comes with headgate; a file of that name comes first.

    Args:   model: see `load`.
    Raises: CheckpointError: it is neither; or see `load`.
    """
    if name in list_pretrained() and not Path(name).exists():
        return _load_shipped(name, model)
    return load(name, model=model)


def _load_shipped(name: str, model: nn.Module | None) -> nn.Module:
    with importlib.resources.as_file(_shipped().joinpath(f"{name}.safetensors")) as path:
        return load(path, model=model)
