"""From a recipe's data section to loaders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from headgate.checkpoint import Preprocess
from headgate.errors import ConfigError, DataError, ModelError
from headgate.train.augment import (
    CIFAR10_NORMALISE,
    DIGITS_NORMALISE,
    FANCY_PCA,
    IMAGENET_NORMALISE,
    Augment,
    Normalise,
    RandomCropFlip,
)
from headgate.train.data import Batch, ImageTensors, InMemoryLoader, epoch_order, load_in_memory
from headgate.train.recipe import DataConfig, Recipe
from headgate.train.streaming import ImageSizes, StreamingLoader

EVALUATION_BATCH = 250  # images per process
CALIBRATION_IMAGES = 2000
"""Training images, without augmentation, that the budget is calibrated on after training."""


class Loader(Protocol):
    """What the loop needs of a loader: reproducible batches by epoch and step."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[int, Batch]]:
        """Yield (step, (images, labels, index))."""
        ...


@dataclass(frozen=True, kw_only=True)
class Loaders:
    """Everything a run reads.

    Attributes:
        train: augmented and shuffled.
        example_input: (1, c, h, w) zeros of the shape the network sees.
        preprocess: what maps images in [0, 1] to the network's input.
    """

    train: Loader
    example_input: Tensor
    preprocess: Preprocess
    _test: Loader
    _calibration: Loader
    _test_batches: int | None
    _calibration_batches: int

    def test(self, *, limited: bool = False) -> Iterator[Batch]:
        """The test split; `limited`: what the recipe's `eval_images` leaves of it, in whole batches."""
        return (batch for _, batch in islice(self._test.epoch(0), self._test_batches if limited else None))

    def calibration(self) -> Iterator[Batch]:
        """A fixed part of the training split, not augmented."""
        return (batch for _, batch in islice(self._calibration.epoch(0), self._calibration_batches))


def make_loaders(recipe: Recipe, rank: int, world_size: int, device: torch.device) -> Loaders:
    """Open a recipe's dataset for process `rank` of `world_size`.

    Raises: DataError: missing or unreadable data, or another number of classes than the network has.
    """
    config, evaluation_batch = recipe.data, EVALUATION_BATCH * world_size
    train: Loader
    test: Loader
    calibration: Loader
    if config.loading == "stream":
        normalise = IMAGENET_NORMALISE

        def stream(split: str, *, training: bool) -> StreamingLoader:
            return StreamingLoader(
                config.source,
                split,
                train=training,
                batch_size=recipe.batch_size if training else evaluation_batch,
                sizes=ImageSizes(size=config.size),
                normalise=normalise,
                colour=FANCY_PCA if config.augment == "imagenet" else None,
                device=device,
                seed=recipe.seed,
                num_workers=min(config.workers, len(os.sched_getaffinity(0))),
                rank=rank,
                world_size=world_size,
            )

        train, test = stream("train", training=True), stream(config.test_split, training=False)
        calibration, classes = stream("train", training=False), train.classes
        shape = (3, config.size, config.size)
    else:
        channels = recipe.architecture.in_channels
        images = load_in_memory(config.source, "train", channels=channels).to(device)
        test_images = load_in_memory(config.source, config.test_split, channels=channels).to(device)
        classes = images.classes
        shape = (images.images.shape[1], images.images.shape[2], images.images.shape[3])
        normalise = CIFAR10_NORMALISE if channels == 3 else DIGITS_NORMALISE
        train = InMemoryLoader(
            images,
            batch_size=recipe.batch_size,
            normalise=normalise,
            augment=_augment(config.augment, shape[1]),
            seed=recipe.seed,
            shuffle=True,
            drop_last=True,
            rank=rank,
            world_size=world_size,
        )

        def served(part: ImageTensors) -> InMemoryLoader:
            return InMemoryLoader(
                part, batch_size=evaluation_batch, normalise=normalise, rank=rank, world_size=world_size
            )

        test, calibration = served(test_images), served(images)
    wanted = recipe.architecture.in_channels
    if wanted and shape[0] != wanted:
        raise DataError(f"{config.source} has images of {shape[0]} channels, the network takes {wanted}")
    if len(classes) != recipe.architecture.num_classes:
        raise DataError(
            f"{config.source} has {len(classes)} classes, the network {recipe.architecture.num_classes}; "
            f"build the network with num_classes={len(classes)}"
        )
    return Loaders(
        train=train,
        example_input=torch.zeros(1, *shape),
        preprocess=Preprocess(normalise.mean, normalise.std, input_size=shape[1:], classes=classes),
        _test=test,
        _calibration=calibration,
        _calibration_batches=max(1, CALIBRATION_IMAGES // evaluation_batch),
        _test_batches=None if recipe.eval_images is None else -(-recipe.eval_images // evaluation_batch),
    )


def _augment(kind: str, side: int) -> Augment | None:
    if kind == "none":
        return None
    return RandomCropFlip(padding=max(1, side // 8), mirror=kind != "crop")  # 4 pixels at the paper's 32


def evaluation_batches(
    model: nn.Module, config: DataConfig, *, split: Literal["test", "train"] = "test", limit: int | None = None
) -> Iterator[Batch]:
    """A split of a dataset, prepared as the model was trained but not augmented.

    Args:
        model: loaded from a checkpoint, so that it knows its preprocessing.
        split: "test" comes in its own order; "train" in another, always the same, so that any part of it has all
            classes in it.
        limit: the first so many images only; of streamed ones, whole batches.
    Raises:
        ModelError: the model does not know its preprocessing.
        ConfigError: limit is below 1.
        DataError: see `load_in_memory`; the images' size or the classes are not those of training.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"images must be ≥ 1, got {limit}")
    preprocess = getattr(model, "preprocess", None)
    if not isinstance(preprocess, Preprocess):
        raise ModelError("model must know its preprocessing (mean and std), as loaded checkpoints do; set preprocess")
    normalise = Normalise(mean=tuple(preprocess.mean.flatten().tolist()), std=tuple(preprocess.std.flatten().tolist()))
    device = next(model.parameters()).device
    shuffle = split == "train"
    name = split if shuffle else config.test_split
    loader: Loader
    if config.loading == "stream":
        loader = StreamingLoader(
            config.source,
            name,
            train=False,
            shuffle=shuffle,
            batch_size=EVALUATION_BATCH,
            sizes=ImageSizes(size=config.size),
            normalise=normalise,
            device=device,
            num_workers=min(config.workers, len(os.sched_getaffinity(0))),
        )
        classes = loader.classes
    else:
        data = load_in_memory(config.source, name, channels=len(normalise.mean))
        classes, size = data.classes, (data.images.shape[2], data.images.shape[3])
        if preprocess.input_size not in (None, size):
            raise DataError(
                f"{config.source} has images of {size}, the model was trained on {preprocess.input_size}; resize them"
            )
        if limit is not None:
            data = data.subset(epoch_order(len(data), 0, 0, shuffle=shuffle)[:limit])
        loader = InMemoryLoader(data.to(device), batch_size=EVALUATION_BATCH, normalise=normalise)
    if preprocess.classes not in (None, classes):
        raise DataError(
            f"{config.source} must have the {len(preprocess.classes or ())} classes that the model was trained on, got "
            f"{len(classes)} classes or other names"
        )
    batches = None if limit is None else -(-limit // EVALUATION_BATCH)
    return (batch for _, batch in islice(loader.epoch(0), batches))
