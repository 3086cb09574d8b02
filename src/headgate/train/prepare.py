"""From a recipe's data section to loaders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headgate.checkpoint import Preprocess
from headgate.errors import DataError, ModelError
from headgate.train.augment import CIFAR10_NORMALISE, DIGITS_NORMALISE, Augment, Normalise, RandomCropFlip
from headgate.train.data import Batch, ImageTensors, InMemoryLoader, load_in_memory
from headgate.train.recipe import Recipe

EVALUATION_BATCH = 250  # images per process
CALIBRATION_IMAGES = 2000
"""Training images, without augmentation, that the budget is calibrated on after training."""


@dataclass(frozen=True, kw_only=True)
class Loaders:
    """Everything a run reads.

    Attributes:
        train, test, calibration: each yields (step, (images, labels, index)) from `epoch(number, start_step)`.
        example_input: (1, c, h, w) zeros of the shape the network sees.
        preprocess: what maps images in [0, 1] to the network's input.
    """

    train: InMemoryLoader
    test: InMemoryLoader
    calibration: InMemoryLoader
    example_input: Tensor
    preprocess: Preprocess


def make_loaders(recipe: Recipe, rank: int, world_size: int, device: torch.device) -> Loaders:
    """Open a recipe's dataset for process `rank` of `world_size`.

    Raises: DataError: missing or unreadable data, or more classes than the network has.
    """
    channels = recipe.architecture.in_channels
    train = load_in_memory(recipe.data.source, "train", channels=channels)
    test = load_in_memory(recipe.data.source, "test", channels=channels)
    if len(train.classes) != recipe.architecture.num_classes:
        raise DataError(
            f"{recipe.data.source} has {len(train.classes)} classes, the network {recipe.architecture.num_classes}; "
            "build it with num_classes of the dataset"
        )
    normalise = CIFAR10_NORMALISE if channels == 3 else DIGITS_NORMALISE

    def loader(
        data: ImageTensors, augment: Augment | None = None, *, shuffle: bool = False, batch_size: int
    ) -> InMemoryLoader:
        return InMemoryLoader(
            data.to(device),
            batch_size=batch_size,
            normalise=normalise,
            augment=augment,
            seed=recipe.seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            drop_last=shuffle,
        )

    augment: Augment | None = None
    if recipe.data.augment in ("crop-flip", "crop"):
        padding = max(1, train.images.shape[2] // 8)
        augment = RandomCropFlip(padding=padding, mirror=recipe.data.augment == "crop-flip")
    if recipe.eval_images is not None:
        test = test.subset(torch.arange(min(recipe.eval_images, len(test))))
    calibration = train.subset(torch.arange(min(CALIBRATION_IMAGES, len(train))))
    return Loaders(
        train=loader(train, augment, shuffle=True, batch_size=recipe.batch_size),
        test=loader(test, batch_size=EVALUATION_BATCH * world_size),
        calibration=loader(calibration, batch_size=EVALUATION_BATCH * world_size),
        example_input=torch.zeros(1, *train.images.shape[1:]),
        preprocess=Preprocess(normalise.mean, normalise.std),
    )


def test_batches(model: nn.Module, source: str, *, limit: int | None = None) -> Iterator[Batch]:
    """The test split of a dataset, prepared as the model was trained.

    Args:
        model: loaded from a checkpoint, so that it knows its preprocessing.
        source: see `DataConfig.source`.
        limit: the first so many images only.
    Raises: ModelError: the model does not know its preprocessing. DataError: see `load_in_memory`.
    """
    preprocess = getattr(model, "preprocess", None)
    if not isinstance(preprocess, Preprocess):
        raise ModelError("model must know its preprocessing (mean and std), as loaded checkpoints do; set preprocess")
    normalise = Normalise(mean=tuple(preprocess.mean.flatten().tolist()), std=tuple(preprocess.std.flatten().tolist()))
    data = load_in_memory(source, "test", channels=len(normalise.mean))
    if limit is not None:
        data = data.subset(torch.arange(min(limit, len(data))))
    device = next(model.parameters()).device
    loader = InMemoryLoader(data.to(device), batch_size=EVALUATION_BATCH, normalise=normalise)
    return (batch for _, batch in loader.epoch(0))
