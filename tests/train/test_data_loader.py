"""Batches: order and augmentation are pure functions, whoever computes them and wherever the epoch is taken up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headgate import models
from headgate.errors import ConfigError
from headgate.train.augment import DIGITS_NORMALISE, FANCY_PCA, Normalise, RandomCropFlip
from headgate.train.data import ImageTensors, InMemoryLoader, load_digits
from headgate.train.seeding import derive_seed, generator

GREY = Normalise(mean=(0.5,), std=(0.25,))


def numbered(count: int, size: int = 4) -> ImageTensors:
    """Images without two alike."""
    images = torch.arange(count * size * size, dtype=torch.int64).view(count, 1, size, size) % 251
    return ImageTensors(images=images.to(torch.uint8), labels=torch.arange(count) % 3, classes=("a", "b", "c"))


def loader(count: int = 23, **changes: object) -> InMemoryLoader:
    options: dict[str, object] = {"batch_size": 6, "normalise": GREY, "augment": RandomCropFlip(padding=1), "seed": 5}
    return InMemoryLoader(numbered(count), **{**options, "shuffle": True, "drop_last": True, **changes})  # type: ignore[arg-type]


def test_crop_and_mirror_do_what_the_draws_say() -> None:
    images = torch.randint(1, 256, (5, 3, 6, 7), dtype=torch.uint8)
    augment = RandomCropFlip(padding=2)
    draws = torch.tensor([[2, 2, 0], [0, 0, 0], [4, 4, 1], [1, 3, 1], [3, 0, 0]])
    out = augment.apply(images, draws)
    for image, (top, left, mirror), got in zip(images, draws.tolist(), out, strict=True):
        canvas = torch.zeros(3, 10, 11, dtype=torch.uint8)
        canvas[:, 2:8, 2:9] = image
        expected = canvas[:, top : top + 6, left : left + 7]
        assert torch.equal(got, expected.flip(2) if mirror else expected)
    assert torch.equal(out[0], images[0])


def test_every_offset_and_both_mirrors_are_drawn(generator: torch.Generator) -> None:
    draws = RandomCropFlip(padding=2).draw(4000, generator)
    for column, values in enumerate((5, 5, 2)):
        counts = torch.bincount(draws[:, column], minlength=values)
        assert len(counts) == values
        expected, deviation = 4000 / values, (4000 / values * (1 - 1 / values)) ** 0.5
        assert (counts - expected).abs().max() < 5 * deviation
    assert not RandomCropFlip(padding=2, mirror=False).draw(100, generator)[:, 2].any()


def test_augmentation_depends_on_its_generator_alone() -> None:
    images, augment = numbered(8).images, RandomCropFlip()
    first = augment(images, generator(1, 2, 3))
    torch.manual_seed(7)
    assert torch.equal(first, augment(images, generator(1, 2, 3)))
    assert not torch.equal(first, augment(images, generator(1, 2, 4)))
    with pytest.raises(ConfigError, match="got padding=-1"):
        RandomCropFlip(padding=-1)


def test_seeds_of_neighbours_differ() -> None:
    seeds = {derive_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
    assert derive_seed(1, 2) == derive_seed(1, 2)


def test_normalise() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    normalise = Normalise(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    shift = torch.tensor([[0.1, 0.0, -0.2], [0.0, 0.3, 0.0]])
    column = (1, 3, 1, 1)
    raw = images.double() / 255
    mean, std = torch.tensor(normalise.mean).double().view(column), torch.tensor(normalise.std).double().view(column)
    out = normalise(images)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.double(), (raw - mean) / std, atol=1e-6, rtol=1e-6)
    shifted = (raw + shift.double().view(2, 3, 1, 1) - mean) / std
    torch.testing.assert_close(normalise(images, shift).double(), shifted, atol=1e-6, rtol=1e-6)
    with pytest.raises(ConfigError, match="expected images of 3 channels as mean has, got 1"):
        normalise(images[:, :1])
    with pytest.raises(ConfigError, match="one mean and one positive std per channel"):
        Normalise(mean=(0.1,), std=(0.0,))


def test_fancy_pca_shifts_along_the_eigenvectors(generator: torch.Generator) -> None:
    vectors = torch.tensor(FANCY_PCA.eigenvectors)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=1e-3, rtol=0)
    alpha = torch.stack([FANCY_PCA.draw(generator) for _ in range(4000)]) @ vectors
    expected = 0.1 * torch.tensor(FANCY_PCA.eigenvalues)
    torch.testing.assert_close(alpha.std(0), expected, rtol=0.06, atol=1e-4)  # std of a std: 1/√(2·4000) ≈ 1.1 %


def batches(source: InMemoryLoader, epoch: int, start_step: int = 0) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    return dict(source.epoch(epoch, start_step))


def test_an_epoch_resumes_bit_for_bit() -> None:
    whole, rest = batches(loader(), 3), batches(loader(), 3, 2)
    assert list(whole) == [0, 1, 2]
    assert list(rest) == [2]
    for a, b in zip(whole[2], rest[2], strict=True):
        assert torch.equal(a, b)


def test_epochs_and_seeds_differ() -> None:
    orders = [torch.cat([index for _, _, index in batches(source, e).values()]) for source, e in (
        (loader(), 0), (loader(), 1), (loader(seed=6), 0))]  # fmt: skip
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert all(len(set(o.tolist())) == 18 for o in orders)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_processes_share_every_global_batch(world_size: int) -> None:
    alone = batches(loader(), 1)
    shared = [batches(loader(rank=rank, world_size=world_size), 1) for rank in range(world_size)]
    for step, batch in alone.items():
        for part in range(3):
            assert torch.equal(batch[part], torch.cat([mine[step][part] for mine in shared]))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("count", [1, 5, 12, 19, 23])
def test_evaluation_serves_every_image_once_in_order(count: int, world_size: int) -> None:
    ranks = [
        loader(count, shuffle=False, drop_last=False, augment=None, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    data = numbered(count)
    served = [(step, rank, batch) for rank, source in enumerate(ranks) for step, batch in source.epoch(0)]
    served.sort(key=lambda item: item[:2])
    index = torch.cat([batch[2] for _, _, batch in served])
    assert index.tolist() == list(range(count))
    assert torch.equal(torch.cat([batch[0] for _, _, batch in served]), GREY(data.images))
    assert torch.equal(torch.cat([batch[1] for _, _, batch in served]), data.labels)
    assert {len(source) for source in ranks} == {-(-count // 6)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2, "world_size": 2}, "expected 0 <= rank < world_size, got rank=2"),
        ({"world_size": 4}, "world_size must divide batch_size, got batch_size=6, world_size=4; .* is 8"),
        ({"batch_size": 0}, "got batch_size=0"),
        ({"world_size": 2, "drop_last": False}, "pass drop_last=True"),
        ({"batch_size": 24}, "expected at least one batch, got 23 images, batch_size=24"),
    ],
)
def test_what_cannot_be_served_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loader(**changes)


@pytest.mark.parametrize("name", ["digits-cnn", "digits-resnet"])
def test_digits_are_learned_in_seconds(name: str) -> None:
    model = models.create(name).to(memory_format=torch.channels_last)
    train, test = load_digits("train"), load_digits("test")
    source = InMemoryLoader(
        train, batch_size=64, normalise=DIGITS_NORMALISE, augment=RandomCropFlip(padding=1, mirror=False), shuffle=True,
        drop_last=True,
    )  # fmt: skip
    epochs = 6
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=epochs * len(source))
    for epoch in range(epochs):
        for _, (x, y, _) in source.epoch(epoch):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        correct = model.eval()(DIGITS_NORMALISE(test.images)).argmax(1) == test.labels
    assert correct.float().mean() > 0.97
