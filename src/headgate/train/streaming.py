"""Image sets that do not fit in memory: decoded and augmented image by image, in worker processes.

Draws are a function of (seed, epoch, image), so that a run does not depend on the number of workers or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from headgate.errors import ConfigError
from headgate.train.augment import FANCY_PCA, IMAGENET_NORMALISE, FancyPCA, Normalise
from headgate.train.data import Batch, check_share, epoch_order, process_share, step_count
from headgate.train.seeding import derive_seed, generator
from headgate.train.sources import ImageRows, decode, open_rows

_IMAGE_DRAWS: Final = 2  # what a generator is for; the second key, after the seed (data.py has the other two)
_PAPER_SIZE: Final = 224

_Key: TypeAlias = tuple[int, int]  # epoch, row
_Sample: TypeAlias = tuple[UInt8[Tensor, "c h w"], Float[Tensor, " c"], int, int]


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """The sizes of the ImageNet recipe, scaled from its 224 pixels to `size`.

    Training: the shorter side is resized at random to [256, 480] · size/224, a crop of `size` taken and mirrored at
    random. Test: the shorter side is resized to 256 · size/224 and the centre taken, `test_crop` pixels wide.

    Args:
        test_crop: None takes the whole shorter side (256 at size 224: the network is fully convolutional).

    Source: method.md, "Training recipes", ImageNet.
    Raises: ConfigError: a size is not positive, or `test_crop` is larger than the resized image.
    """

    size: int = _PAPER_SIZE
    test_crop: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= (self.test_crop or 1) <= self.shorter_side(256):
            raise ConfigError(
                f"expected a positive size and test_crop in 1…{self.shorter_side(256)}, got size={self.size}, "
                f"test_crop={self.test_crop}; leave test_crop out for the recipe's"
            )

    def shorter_side(self, paper_pixels: int) -> int:
        """A shorter side of the recipe at this `size`."""
        return round(paper_pixels * self.size / _PAPER_SIZE)

    def train_transform(self) -> nn.Module:
        """PIL image → uint8 (c, size, size), at random (torch's global generator, as torchvision's transforms)."""
        sides = range(self.shorter_side(256), self.shorter_side(480) + 1)
        transform: nn.Module = v2.Compose(
            [
                v2.RandomShortestSize(list(sides), interpolation=InterpolationMode.BILINEAR),
                v2.RandomCrop(self.size),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
            ]
        )
        return transform

    def test_transform(self) -> nn.Module:
        """PIL image → uint8 (c, test_crop, test_crop), always the same."""
        side = self.shorter_side(256)
        transform: nn.Module = v2.Compose([v2.Resize(side), v2.CenterCrop(self.test_crop or side), v2.PILToTensor()])
        return transform


IMAGENET_SIZES: Final = ImageSizes()


class _Samples(Dataset[_Sample]):
    """Decoded and transformed samples, by (epoch, row)."""

    def __init__(
        self,
        rows: ImageRows,
        transform: Callable[[Image.Image], Tensor],
        colour: FancyPCA | None,
        channels: int,
        seed: int,
    ) -> None:
        self.rows = rows
        self.transform = transform
        self.colour = colour
        self.channels = channels
        self.seed = seed

    def __getitem__(self, key: _Key) -> _Sample:
        epoch, row = key
        image = decode(self.rows.read(row), self.channels, self.rows.origin(row))
        with torch.random.fork_rng(devices=[]):
            draws = torch.manual_seed(derive_seed(self.seed, _IMAGE_DRAWS, epoch, row))
            tensor = self.transform(image)
            shift = torch.zeros(self.channels) if self.colour is None else self.colour.draw(draws)
        return tensor, shift, int(self.rows.labels[row]), row


class StreamingLoader:
    """Batches like `InMemoryLoader`'s, of images of any size, decoded as they are needed.

    Args:
        source, split: see `sources.open_rows`. Grey images become RGB.
        train: shuffled, augmented at random and coloured, without the last incomplete batch; False: every image once,
            in order, not augmented.
        shuffle: an order drawn from the seed without `train`, too.
        batch_size: images in a *global* batch.
        sizes: the resolution.
        colour: colour augmentation in training; None for none.
        device: where the batches go; decoding stays on the CPU.
        num_workers: processes that decode; 0 decodes in this one. The batches do not depend on it.

    Raises:
        DataError: see `open_rows`; while iterating, an image that cannot be decoded.
        ConfigError: see `InMemoryLoader`; num_workers is negative.
    """

    def __init__(
        self,
        source: str | Path,
        split: str,
        *,
        train: bool,
        shuffle: bool = False,
        batch_size: int,
        sizes: ImageSizes = IMAGENET_SIZES,
        normalise: Normalise = IMAGENET_NORMALISE,
        colour: FancyPCA | None = FANCY_PCA,
        device: torch.device | str = "cpu",
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_workers < 0:
            raise ConfigError(f"expected num_workers >= 0, got {num_workers}; 0 decodes in this process")
        rows = open_rows(source, split, stream=True)
        self.shuffle = train or shuffle
        check_share(len(rows.labels), batch_size, rank, world_size, shuffle=self.shuffle, drop_last=train)
        self.classes = rows.classes
        self.train = train
        self.batch_size = batch_size
        self.normalise = normalise
        self.device = torch.device(device)
        self.seed = seed
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self._count = len(rows.labels)
        transform = sizes.train_transform() if train else sizes.test_transform()
        self._samples = _Samples(rows, transform, colour if train else None, len(normalise.mean), seed)

    def __len__(self) -> int:
        """Steps in an epoch; the same for every process."""
        return step_count(self._count, self.batch_size, drop_last=self.train)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) from `start_step` to the end of the epoch."""
        plan = self._plan(epoch, start_step)
        loader: DataLoader[_Sample] = DataLoader(
            self._samples,
            batch_sampler=[[(epoch, row) for row in rows] for _, rows in plan],
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=generator(self.seed, _IMAGE_DRAWS, epoch),  # otherwise it draws from the global one
        )
        for (step, _), batch in zip(plan, loader, strict=True):
            images, shift, labels, index = (part.to(self.device, non_blocking=True) for part in batch)
            yield step, (self.normalise(images, shift if self._samples.colour else None), labels, index)

    def _plan(self, epoch: int, start_step: int) -> list[tuple[int, Sequence[int]]]:
        """(step, this process's rows) for the steps in which it has any."""
        order: Int64[Tensor, " n"] = epoch_order(self._count, self.seed, epoch, shuffle=self.shuffle)
        plan: list[tuple[int, Sequence[int]]] = []
        for step in range(start_step, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            rows = chosen[process_share(len(chosen), self.batch_size, self.rank, self.world_size)].tolist()
            if rows:
                plan.append((step, rows))
        return plan
