"""Image sets that fit in memory: loading, caching and the loader that serves reproducible batches."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from headgate.errors import ConfigError, DataError
from headgate.files import cache_folder, write_atomic
from headgate.train.augment import Augment, Normalise
from headgate.train.seeding import generator
from headgate.train.sources import ImageRows, decode, open_rows

_LOG: Final = logging.getLogger(__name__)
_CACHE_VERSION: Final = 1
_ORDER, _AUGMENT = 0, 1  # what a generator is for; the second key, after the seed

Batch: TypeAlias = tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"], Int64[Tensor, " n"]]
"""Normalised images in channels_last, labels, and each image's index in the dataset."""


@dataclass(frozen=True, kw_only=True)
class ImageTensors:
    """A whole labelled image set as tensors, on one device.

    Raises: DataError: lengths differ, or a label is outside the classes.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise DataError(
                f"expected one label per image, got {len(self.images)} images and {len(self.labels)} labels; "
                "give both from one source"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise DataError(
                f"expected labels in 0…{len(self.classes) - 1}, got {int(self.labels.min())}…{int(self.labels.max())}; "
                "name every class or correct the labels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageTensors:
        """The same set on another device."""
        return ImageTensors(images=self.images.to(device), labels=self.labels.to(device), classes=self.classes)

    def subset(self, index: Int64[Tensor, " m"]) -> ImageTensors:
        """The images at `index`, in that order."""
        return ImageTensors(images=self.images[index], labels=self.labels[index], classes=self.classes)


def load_in_memory(source: str | Path, split: str, *, channels: int = 3, cache: bool = True) -> ImageTensors:
    """Decode one split of an image set whose images are all of one size.

    Args:
        source, split: see `sources.open_rows`; "digits" is scikit-learn's set, see `load_digits`.
        channels: 3 converts grey images to RGB, 1 converts colour to grey.
        cache: keep the decoded images of local files in `$XDG_CACHE_HOME/headgate` (default `~/.cache/headgate`),
            keyed by the files' names, sizes and modification times. A cache that cannot be written is done without.

    Raises: DataError: see `open_rows`; also an image that cannot be decoded, or is of another size than the first.
    """
    if channels not in (1, 3):
        raise ConfigError(f"expected channels 1 (grey) or 3 (RGB), got channels={channels}; choose one of these")
    if source == "digits":
        return load_digits(split)
    rows = open_rows(source, split)
    if not len(rows.labels):
        raise DataError(f"{source}: expected images in split '{split}', got none; check its files")
    cached = _cache_file(rows, channels) if cache else None
    if cached is not None and (data := _read_cache(cached)) is not None:
        return data
    data = ImageTensors(
        images=torch.from_numpy(_decode_all(rows, channels)),
        labels=torch.from_numpy(np.ascontiguousarray(rows.labels)),
        classes=rows.classes,
    )
    if cached is not None:
        _write_cache(cached, data)
    return data


def load_digits(split: str) -> ImageTensors:
    """scikit-learn's 1797 digits as 1×8×8 images, scaled from 0…16 to 0…255; always the same stratified split.

    Args:   split: "train" (1437 images) or "test", "validation", "val" (the other 360).
    Raises: DataError: another split was asked for.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    if split not in ("train", "test", "validation", "val"):
        raise DataError(f"expected split 'train' or 'test', got '{split}'; digits has only these")
    digits = sklearn_digits()
    train, test = train_test_split(np.arange(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target)
    index = np.sort(train if split == "train" else test)
    images = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)[:, None]
    return ImageTensors(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(digits.target[index].astype(np.int64)),
        classes=tuple(str(name) for name in digits.target_names),
    )


class InMemoryLoader:
    """Batches from an `ImageTensors`, on its device, without any state between epochs.

    The order is a function of (seed, epoch) and the augmentation of (seed, epoch, step, place in the global batch), so
    that an epoch can be resumed at any step bit for bit, and no image's augmentation depends on the number of
    processes: process `rank` takes its share of every global batch.

    Args:
        batch_size: images in a *global* batch; each process gets batch_size / world_size of them.
        augment: None for evaluation.
        shuffle: False serves the images in their own order.
        drop_last: leave out the last, incomplete batch. Where it is kept, the last processes get fewer of its images
            or, for want of any, skip that step; every image is served exactly once.

    Raises:
        ConfigError: world_size does not divide batch_size, rank is outside world_size, shuffled batches for several
            processes keep an incomplete batch (its gradients would be weighted wrongly), or there is no whole batch.
    """

    def __init__(
        self,
        data: ImageTensors,
        *,
        batch_size: int,
        normalise: Normalise,
        augment: Augment | None = None,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        check_share(len(data), batch_size, rank, world_size, shuffle=shuffle, drop_last=drop_last)
        self.data = data
        self.batch_size = batch_size
        self.normalise = normalise
        self.augment = augment
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        """Steps in an epoch; the same for every process."""
        return step_count(len(self.data), self.batch_size, drop_last=self.drop_last)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) from `start_step` to the end of the epoch."""
        order = epoch_order(len(self.data), self.seed, epoch, shuffle=self.shuffle)
        for step in range(start_step, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            share = process_share(len(chosen), self.batch_size, self.rank, self.world_size)
            index = chosen[share].to(self.data.labels.device)
            if not len(index):
                continue
            images = self.data.images[index]
            if self.augment is not None:
                draws = self.augment.draw(len(chosen), generator(self.seed, _AUGMENT, epoch, step))
                images = self.augment.apply(images, draws[share])
            yield step, (self.normalise(images), self.data.labels[index], index)


def check_share(count: int, batch_size: int, rank: int, world_size: int, *, shuffle: bool, drop_last: bool) -> None:
    """Raise ConfigError unless `count` images can be served in global batches to `world_size` processes."""
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"expected 0 <= rank < world_size, got rank={rank}, world_size={world_size}; check the launcher"
        )
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"world_size must divide batch_size, got batch_size={batch_size}, world_size={world_size}; "
            f"the nearest batch_size is {max(1, round(batch_size / world_size)) * world_size}"
        )
    if shuffle and world_size > 1 and not drop_last:
        raise ConfigError(
            "several processes cannot train on an incomplete batch, its gradients would be weighted wrongly; "
            "got drop_last=False, pass drop_last=True"
        )
    if step_count(count, batch_size, drop_last=drop_last) == 0:
        raise ConfigError(
            f"expected at least one batch, got {count} images, batch_size={batch_size}, drop_last={drop_last}; "
            "lower batch_size or check the dataset"
        )


def step_count(count: int, batch_size: int, *, drop_last: bool) -> int:
    """Global batches in an epoch."""
    return count // batch_size if drop_last else -(-count // batch_size)


def epoch_order(count: int, seed: int, epoch: int, *, shuffle: bool) -> Int64[Tensor, " n"]:
    """The order in which an epoch serves the images: a function of (seed, epoch) alone."""
    return torch.randperm(count, generator=generator(seed, _ORDER, epoch)) if shuffle else torch.arange(count)


def process_share(count: int, batch_size: int, rank: int, world_size: int) -> slice:
    """The part of a global batch of `count` (at most `batch_size`) images that process `rank` takes."""
    share = batch_size // world_size if count == batch_size else -(-count // world_size)
    return slice(min(rank * share, count), min((rank + 1) * share, count))


def _decode_all(rows: ImageRows, channels: int) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]:
    count = len(rows.labels)
    if count == 0:
        raise DataError("expected images, got none; check the split's files")
    width, height = decode(rows.read(0), channels, rows.origin(0)).size
    images = np.empty((count, channels, height, width), np.uint8)

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + 256, count)):
            image = decode(rows.read(row), channels, rows.origin(row))
            if image.size != (width, height):
                raise DataError(
                    f"{rows.origin(row)}: expected {width}×{height} as the first image, got "
                    f"{image.size[0]}×{image.size[1]}; images of several sizes need the StreamingLoader"
                )
            images[row] = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_chunk, range(0, count, 256)):
            pass
    return images


def _cache_file(rows: ImageRows, channels: int) -> Path | None:
    if rows.key is None:
        return None
    return cache_folder() / f"{rows.key}-{channels}-v{_CACHE_VERSION}.safetensors"


def _read_cache(file: Path) -> ImageTensors | None:
    """The cached set, or None where there is none, or a damaged one."""
    try:
        with safetensors.safe_open(file, "pt") as f:
            classes = tuple(json.loads(f.metadata()["classes"]))
            return ImageTensors(images=f.get_tensor("images"), labels=f.get_tensor("labels"), classes=classes)
    except FileNotFoundError:
        return None
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        _LOG.info("cache %s is unusable (%s); decoding the images again", file, error)
        return None


def _write_cache(file: Path, data: ImageTensors) -> None:
    """Write atomically; a cache that cannot be written is only logged, for nothing depends on it."""
    tensors = {"images": data.images, "labels": data.labels}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, safetensors.torch.save(tensors, {"classes": json.dumps(data.classes)}))
    except OSError as error:
        _LOG.info("decoded images are not cached in %s (%s)", file.parent, error)
