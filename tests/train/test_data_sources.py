"""Loading image sets: layouts, splits, caching, and what is said about a set that does not fit."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from headgate import recipes
from headgate.errors import ConfigError, DataError
from headgate.train import DataConfig
from headgate.train import data as data_module
from headgate.train.augment import CIFAR10_NORMALISE, DIGITS_NORMALISE
from headgate.train.data import ImageTensors, load_digits, load_in_memory
from headgate.train.prepare import make_loaders
from headgate.train.sources import open_rows


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encode(pixels: np.ndarray, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def pictures(count: int, size: tuple[int, int] = (6, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def write_parquet(
    file: Path,
    images: list[bytes | None],
    labels: list[int],
    names: list[str] | None = None,
    columns: tuple[str, str] = ("img", "label"),
) -> Path:
    cells = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({columns[0]: pa.array(cells, kind), columns[1]: pa.array(labels, pa.int64())})
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


def write_folder(root: Path, split: str, pixels: np.ndarray, classes: list[str]) -> None:
    for i, picture in enumerate(pixels):
        folder = root / split / classes[i % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i:03}.png")


def test_parquet_shards_are_joined_in_order(tmp_path: Path) -> None:
    pixels = pictures(5)
    write_parquet(
        tmp_path / "train-00000-of-00002.parquet", [encode(p) for p in pixels[:3]], [0, 1, 2], ["a", "b", "c"]
    )
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [encode(p) for p in pixels[3:]], [2, 0], ["a", "b", "c"])
    data = load_in_memory(tmp_path, "train")
    assert data.classes == ("a", "b", "c")
    assert data.labels.tolist() == [0, 1, 2, 2, 0]
    np.testing.assert_array_equal(data.images.numpy(), pixels.transpose(0, 3, 1, 2))


def test_classes_are_numbered_where_the_file_does_not_name_them(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [encode(p) for p in pictures(2)], [0, 3], columns=("image", "labels"))
    assert load_in_memory(file, "train").classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("name", ["validation-00000-of-00001.parquet", "val.parquet", "data/test-0.parquet"])
@pytest.mark.parametrize("split", ["test", "validation", "val"])
def test_a_lone_held_out_split_serves_for_each_name_of_it(tmp_path: Path, name: str, split: str) -> None:
    write_parquet(tmp_path / name, [encode(p) for p in pictures(2)], [0, 1])
    assert len(load_in_memory(tmp_path, split)) == 2
    with pytest.raises(DataError, match=r"expected 'train-\*.parquet' or 'train/<class>/<image>'.*found \["):
        load_in_memory(tmp_path, "train")


def test_folders_are_classes_and_the_training_split_names_them(tmp_path: Path) -> None:
    pixels = pictures(6)
    write_folder(tmp_path, "train", pixels, ["cat", "ant", "bee"])
    write_folder(tmp_path, "val", pixels[:2], ["cat", "bee"])
    train, test = load_in_memory(tmp_path, "train"), load_in_memory(tmp_path, "test")
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [1, 2]
    np.testing.assert_array_equal(train.images[0].numpy(), pixels[1].transpose(2, 0, 1))


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "train", pictures(2), ["a", "b"])
    write_folder(tmp_path, "test", pictures(2), ["a", "z"])
    with pytest.raises(DataError, match=r"\['z'\] are not in the training split"):
        load_in_memory(tmp_path, "test")


@pytest.mark.parametrize(("channels", "depth"), [(3, 3), (1, 1)])
def test_grey_and_colour_are_converted(tmp_path: Path, channels: int, depth: int) -> None:
    pixels = pictures(2)
    file = write_parquet(tmp_path / "x.parquet", [encode(pixels[0]), encode(pixels[1, ..., 0])], [0, 1])
    data = load_in_memory(file, "train", channels=channels)
    assert data.images.shape == (2, depth, 6, 5)
    np.testing.assert_array_equal(data.images[1].numpy(), np.repeat(pixels[1, ..., 0][None], depth, 0))


def test_images_beside_the_parquet_are_found(tmp_path: Path) -> None:
    pixels = pictures(1)
    file = write_parquet(tmp_path / "x.parquet", [None], [0])
    with pytest.raises(DataError, match=r"x\.parquet, row 0: no image bytes and no file '0\.png'"):
        load_in_memory(file, "train")
    (tmp_path / "0.png").write_bytes(encode(pixels[0]))
    np.testing.assert_array_equal(load_in_memory(file, "train").images[0].numpy(), pixels[0].transpose(2, 0, 1))


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a dataset at .*absent, found nothing; check the path"):
        load_in_memory(tmp_path / "absent", "train")
    with pytest.raises(DataError, match="found nothing"):
        load_in_memory("./absent", "train")


def test_an_unknown_hub_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(name: str) -> list[str]:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(
        DataError, match=r"expected 'nobody/nothing' to be a local path or .*ConnectionError: no network"
    ):
        load_in_memory("nobody/nothing", "train")


def test_a_hub_dataset_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    pixels = pictures(3)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    cells = [{"bytes": encode(p), "path": None} for p in pixels]
    dataset = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 1]}, features=features)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train", "valid"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: dataset)
    data = load_in_memory("somebody/something", "test")
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(data.images.numpy(), pixels.transpose(0, 3, 1, 2))


def test_other_layouts_are_listed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"found \['notes.txt'\]; arrange the files so"):
        load_in_memory(tmp_path, "train")
    with pytest.raises(DataError, match=r"found a file of type '\.txt'"):
        load_in_memory(tmp_path / "notes.txt", "train")
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="expected images in class folders, found none"):
        load_in_memory(tmp_path, "train")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable parquet file"):
        load_in_memory(tmp_path / "broken.parquet", "train")


@pytest.mark.parametrize(("columns", "missing"), [(("picture", "label"), "image"), (("img", "target"), "label")])
def test_missing_column(tmp_path: Path, columns: tuple[str, str], missing: str) -> None:
    file = write_parquet(tmp_path / "x.parquet", [encode(pictures(1)[0])], [0], columns=columns)
    with pytest.raises(
        DataError, match=f"expected an? {missing} column .*got columns {list(columns)}".replace("[", r"\[")
    ):
        load_in_memory(file, "train")


@pytest.mark.parametrize("label", [-1, 2])
def test_label_outside_the_classes(tmp_path: Path, label: int) -> None:
    file = write_parquet(tmp_path / "x.parquet", [encode(p) for p in pictures(2)], [0, label], ["a", "b"])
    with pytest.raises(DataError, match=rf"x.parquet, row 1: expected a label in 0…1, got {label}"):
        load_in_memory(file, "train")


def test_the_split_that_evaluation_reads_can_be_named(tmp_path: Path) -> None:
    """As of ImageNet: "test" is there, and has no labels."""
    for split, labels in (("train", [0, 1]), ("validation", [1, 0]), ("test", [-1, -1])):
        write_parquet(tmp_path / f"{split}.parquet", [encode(p) for p in pictures(2)], labels, ["a", "b"])
    data = DataConfig(source=str(tmp_path), augment="none", test_split="validation")
    recipe = replace(recipes.get("digits-cnn"), data=data, batch_size=2)
    recipe = replace(recipe, architecture=replace(recipe.architecture, num_classes=2, in_channels=3))
    loaders = make_loaders(recipe, 0, 1, torch.device("cpu"))
    assert [batch[1].tolist() for batch in loaders.test()] == [[1, 0]]
    with pytest.raises(DataError, match=r"test\.parquet, row 0: expected a label in 0…1, got -1"):
        make_loaders(replace(recipe, data=replace(data, test_split="test")), 0, 1, torch.device("cpu"))


def test_an_empty_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [], [], ["a", "b"])
    with pytest.raises(DataError, match=r"expected images in split 'train', got none"):
        load_in_memory(tmp_path, "train")


def test_undecodable_image_names_file_and_row(tmp_path: Path) -> None:
    good = encode(pictures(1)[0])
    write_parquet(tmp_path / "train-0.parquet", [good, good], [0, 1])
    write_parquet(tmp_path / "train-1.parquet", [good, good[:-30]], [0, 1])
    with pytest.raises(DataError, match=r"train-1\.parquet, row 1: expected an image, could not decode it"):
        load_in_memory(tmp_path, "train")


def test_unequal_sizes_are_sent_to_the_streaming_loader(tmp_path: Path) -> None:
    images = [encode(pictures(1)[0]), encode(pictures(1, (5, 6))[0])]
    file = write_parquet(tmp_path / "x.parquet", images, [0, 0])
    with pytest.raises(DataError, match=r"row 1: expected 5×6 as the first image, got 6×5.*StreamingLoader"):
        load_in_memory(file, "train")


def test_unknown_split_and_channels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected split to be one of"):
        load_in_memory(tmp_path, "tset")
    with pytest.raises(ConfigError, match="got channels=2"):
        load_in_memory(tmp_path, "train", channels=2)


def test_cache_is_used_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = pictures(2)
    file = write_parquet(tmp_path / "x.parquet", [encode(pixels[0])], [0], ["a"])
    first = load_in_memory(file, "train")
    with monkeypatch.context() as patch:
        patch.setattr(data_module, "_decode_all", lambda *_: pytest.fail("decoded again"))
        second = load_in_memory(file, "train")
    assert torch.equal(first.images, second.images)
    assert first.classes == second.classes
    write_parquet(file, [encode(p) for p in pixels], [0, 0], ["a"])
    assert len(load_in_memory(file, "train")) == 2
    assert len(load_in_memory(file, "train", cache=False)) == 2


def test_damaged_and_unwritable_caches_are_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet(tmp_path / "x.parquet", [encode(pictures(1)[0])], [0])
    first = load_in_memory(file, "train")
    (cached,) = (tmp_path / "cache" / "headgate").iterdir()
    cached.write_bytes(cached.read_bytes()[:-10])
    assert torch.equal(load_in_memory(file, "train").images, first.images)
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # not a folder: nothing can be written below it
    assert torch.equal(load_in_memory(file, "train").images, first.images)
    assert not list((tmp_path / "cache" / "headgate").glob(".*.part"))


def test_image_tensors_check_themselves() -> None:
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"expected labels in 0…1, got 0…2"):
        ImageTensors(images=images, labels=torch.tensor([0, 2]), classes=("a", "b"))
    data = ImageTensors(images=images, labels=torch.tensor([0, 1]), classes=("a", "b"))
    assert data.to("cpu").subset(torch.tensor([1])).labels.tolist() == [1]


def test_different_lengths_are_refused(unchecked_types: None) -> None:
    with pytest.raises(DataError, match="got 1 images and 2 labels"):
        ImageTensors(images=torch.zeros(1, 1, 2, 2, dtype=torch.uint8), labels=torch.tensor([0, 0]), classes=("a",))


def test_digits_are_split_once_and_for_all() -> None:
    train, test = load_digits("train"), load_in_memory("digits", "test")
    assert (train.images.shape, test.images.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert train.classes == tuple("0123456789")
    assert torch.equal(train.images, load_digits("train").images)
    fractions = torch.bincount(test.labels) / (torch.bincount(train.labels) + torch.bincount(test.labels))
    torch.testing.assert_close(fractions, torch.full((10,), 0.2), atol=0.005, rtol=0)
    x = DIGITS_NORMALISE(train.images)
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3
    with pytest.raises(DataError, match="digits has only these"):
        load_digits("extra")


def test_streamed_parquet_holds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    file = write_parquet(tmp_path / "x.parquet", [encode(p) for p in pictures(3)], [0, 1, 0], ["a", "b"])
    memory, stream = open_rows(file, "train"), open_rows(file, "train", stream=True)
    assert memory.classes == stream.classes
    assert memory.labels.tolist() == stream.labels.tolist()
    assert [memory.read(i) for i in range(3)] == [stream.read(i) for i in range(3)]


def test_cifar10(cifar10: Path) -> None:
    data = load_in_memory(cifar10, "test")
    assert data.images.shape == (10_000, 3, 32, 32)
    assert data.classes[0] == "airplane"
    assert torch.bincount(data.labels).tolist() == [1000] * 10
    x = CIFAR10_NORMALISE(data.images)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=0.03, rtol=0)
