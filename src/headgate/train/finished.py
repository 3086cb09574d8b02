"""Find a trained model by what a user calls it, and what it was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headgate.checkpoint import list_pretrained, load, pretrained
from headgate.errors import CheckpointError, ConfigError, DataError
from headgate.train.data import Batch
from headgate.train.loop import MODEL, RECIPE, SUMMARY
from headgate.train.prepare import evaluation_batches
from headgate.train.recipe import DataConfig, Recipe

__all__ = ["find_model", "test_batches", "trained_shape", "training_images"]


def find_model(name: str) -> tuple[nn.Module, DataConfig | None]:
    """A model in evaluation mode, and the data that it was trained on where that is known.

    Args:
        name: a run's folder, a checkpoint file, or a name that `headgate.list_pretrained` has.
    Raises: CheckpointError: it is none of these, or the run is not finished, or a file of it is damaged.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / MODEL).exists():
            raise CheckpointError(f"{path} holds no finished run: {MODEL} is missing; finish it with headgate train")
        try:
            config = Recipe.from_dict(json.loads((path / RECIPE).read_text())).data
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path / RECIPE} is missing or damaged ({error}); name {path / MODEL}") from error
        return load(path / MODEL), config
    if path.exists() or path.suffix == ".safetensors":
        return load(path), None
    if name in list_pretrained():
        return pretrained(name), None
    raise CheckpointError(
        f"model must be a run's folder, a checkpoint or one of {', '.join(list_pretrained()) or 'no pretrained models'}"
        f", got {name!r}, which does not exist"
    )


def test_batches(
    model: nn.Module, config: DataConfig | None, *, name: str, data: str | None, limit: int | None
) -> Iterator[Batch]:
    """The test images for a model that `find_model` found.

    Args:
        config: what it was trained on, where that is known.
        name: what the model was called, for the message.
        data: folder or Hub name of the images; None: those of `config`.
        limit: see `evaluation_batches`.
    Raises: ConfigError: it is not known where the images are. And see `evaluation_batches`.
    """
    return evaluation_batches(model, _data(config, name, data), limit=limit)


def training_images(
    model: nn.Module, config: DataConfig | None, *, name: str, data: str | None, count: int
) -> Float[Tensor, "n c h w"]:
    """So many training images, not augmented, of all classes and always the same; fewer where there are no more.

    Args: see `test_batches`.
    Raises: ConfigError: it is not known where the images are. DataError: there are none; see `evaluation_batches`.
    """
    known = _data(config, name, data)
    try:
        batches = evaluation_batches(model, known, split="train", limit=count)
        return torch.cat([images for images, *_ in batches])[:count].contiguous()
    except DataError as error:
        raise DataError(f"no training images: {error}") from error


def _data(config: DataConfig | None, name: str, data: str | None) -> DataConfig:
    if data is not None:
        return replace(config or DataConfig(source=data), source=data)
    if config is None:
        raise ConfigError(f"data must be given: {name} does not say what it was trained on")
    return config


def trained_shape(folder: Path) -> tuple[int, int, int]:
    """Channels, height and width of the images that a finished run was trained on.

    Raises: ConfigError: the folder does not say.
    """
    try:
        channels, height, width = json.loads((folder / SUMMARY).read_text())["input_shape"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"image must be given: {folder} does not say what it was trained on; for instance --image 3 32 32"
        ) from error
    return channels, height, width
