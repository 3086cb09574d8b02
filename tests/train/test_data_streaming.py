"""Streaming: images of any size, the same batches for any number of workers or processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from headgate.errors import ConfigError, DataError
from headgate.train.augment import IMAGENET_NORMALISE
from headgate.train.streaming import ImageSizes, StreamingLoader

SIZES = ImageSizes(size=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images of several sizes in three classes, one of them grey; two splits."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(9):
            target = tmp_path / split / "abc"[i % 3]
            target.mkdir(parents=True, exist_ok=True)
            shape = (20 + i, 30 - i) if i == 4 else (20 + i, 30 - i, 3)
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(target / f"{i}.png")
    return tmp_path


def training(folder: Path, **changes: object) -> StreamingLoader:
    options: dict[str, object] = {"train": True, "batch_size": 4, "sizes": SIZES, "seed": 3, **changes}
    return StreamingLoader(folder, "train", **options)  # type: ignore[arg-type]


def batches(source: StreamingLoader, epoch: int, start_step: int = 0) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    return dict(source.epoch(epoch, start_step))


def assert_same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_sizes_are_those_of_the_paper_scaled() -> None:
    paper = ImageSizes()
    assert (paper.shorter_side(256), paper.shorter_side(480)) == (256, 480)
    assert ImageSizes(size=64).shorter_side(256) == 73
    image = Image.new("RGB", (300, 400))
    assert paper.train_transform()(image).shape == (3, 224, 224)
    assert paper.test_transform()(image).shape == (3, 256, 256)
    assert ImageSizes(test_crop=224).test_transform()(image).shape == (3, 224, 224)
    with pytest.raises(ConfigError, match=r"test_crop in 1…256, got size=224, test_crop=257"):
        ImageSizes(test_crop=257)


def test_training_batches(folder: Path) -> None:
    source = training(folder)
    assert source.classes == ("a", "b", "c")
    assert len(source) == 2
    whole = batches(source, 0)
    assert list(whole) == [0, 1]
    x, y, index = whole[0]
    assert x.shape == (4, 3, 16, 16)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, index // 3)  # three images a class, in the order of the classes
    assert_same(whole[1], batches(source, 0, 1)[1])
    assert not torch.equal(x, batches(source, 1)[0][0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one processor
def test_batches_do_not_depend_on_workers_or_the_global_generator(folder: Path) -> None:
    alone = batches(training(folder), 2)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    shared = batches(training(folder, num_workers=2), 2)
    torch.set_rng_state(state)
    for step, batch in alone.items():
        assert_same(batch, shared[step])


def test_batches_do_not_depend_on_processes(folder: Path) -> None:
    alone = batches(training(folder), 1)
    ranks = [batches(training(folder, rank=r, world_size=2), 1) for r in range(2)]
    for step, batch in alone.items():
        assert_same(batch, tuple(torch.cat(parts) for parts in zip(ranks[0][step], ranks[1][step], strict=True)))


def test_the_global_generator_is_left_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    iterator = training(folder).epoch(0)
    next(iterator)
    assert torch.equal(torch.get_rng_state(), before)


def test_colour_shifts_whole_channels(folder: Path) -> None:
    plain, coloured = batches(training(folder, colour=None), 0)[0][0], batches(training(folder), 0)[0][0]
    shift = (coloured - plain) * torch.tensor(IMAGENET_NORMALISE.std).view(1, 3, 1, 1)
    torch.testing.assert_close(shift, shift.mean((2, 3), keepdim=True).expand_as(shift), atol=1e-5, rtol=0)
    assert 0 < float(shift.abs().max()) < 0.1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_serves_every_image_once(folder: Path, world_size: int) -> None:
    index: list[int] = []
    for rank in range(world_size):
        source = StreamingLoader(
            folder, "test", train=False, batch_size=4, sizes=SIZES, rank=rank, world_size=world_size
        )
        for _, (x, _, i) in source.epoch(0):
            assert x.shape[1:] == (3, 18, 18)
            index += i.tolist()
    assert sorted(index) == list(range(9))


def test_evaluation_in_another_order(folder: Path) -> None:
    """The same images, not augmented, whole, and always in the same order."""
    first, *others = [
        StreamingLoader(folder, "test", train=False, shuffle=shuffle, batch_size=4, sizes=SIZES)
        for shuffle in (False, True, True)
    ]
    plain = {int(i): x for _, (images, _, index) in first.epoch(0) for x, i in zip(images, index, strict=True)}
    orders = []
    for source in others:
        served = [(int(i), x) for _, (images, _, index) in source.epoch(0) for x, i in zip(images, index, strict=True)]
        assert all(torch.equal(x, plain[i]) for i, x in served)
        orders.append([i for i, _ in served])
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0]) == list(range(9))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_undecodable_image_is_named_also_from_a_worker(folder: Path, num_workers: int) -> None:
    (folder / "val" / "b" / "4.png").write_bytes(b"not an image")
    source = StreamingLoader(folder, "test", train=False, batch_size=9, sizes=SIZES, num_workers=num_workers)
    with pytest.raises(DataError, match=r"4\.png \(row 4\): expected an image, could not decode it"):
        batches(source, 0)


def test_options_are_checked(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected num_workers >= 0, got -1"):
        training(folder, num_workers=-1)
    with pytest.raises(ConfigError, match="world_size must divide batch_size"):
        training(folder, world_size=3)
