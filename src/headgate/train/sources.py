"""Where labelled images come from: local parquet files, class folders, or the Hugging Face Hub.

A source is opened as `ImageRows`: encoded images by row, with labels and class names. Decoding is left to the reader.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from headgate.errors import DataError

IMAGE_COLUMNS: Final = ("img", "image")
LABEL_COLUMNS: Final = ("label", "labels", "fine_label")
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"})
SPLITS: Final[Mapping[str, tuple[str, ...]]] = {  # what a split may be called, in order of preference
    "train": ("train", "training"),
    "test": ("test", "validation", "val", "valid"),
    "validation": ("validation", "val", "valid", "test"),
    "val": ("val", "validation", "valid", "test"),
}


@runtime_checkable
class ImageRows(Protocol):
    """Encoded images with labels, by row."""

    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def key(self) -> str | None:
        """A digest of the files' names, sizes and times; None where there is no such thing."""
        ...

    def read(self, row: int) -> bytes:
        """The encoded image (JPEG, PNG, …)."""
        ...

    def origin(self, row: int) -> str:
        """Where the row comes from, for messages."""
        ...


class FolderRows:
    """Images in one subfolder per class; classes are the sorted names of the subfolders."""

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.files: list[Path] = []
        labels: list[int] = []
        found = _subfolders(folder)
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise DataError(
                f"{folder}: class folders {unknown} are not in the training split; remove or add them there"
            )
        for label, name in enumerate(classes):
            if name not in found:
                continue
            files = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
            self.files += files
            labels += [label] * len(files)
        if not self.files:
            raise DataError(
                f"{folder}: expected images in class folders, found none with a suffix of {sorted(IMAGE_SUFFIXES)}; "
                "give a folder such as train/<class>/<image>.jpg"
            )
        self.labels = np.asarray(labels, np.int64)
        self.key = _files_key(self.files)

    def read(self, row: int) -> bytes:
        try:
            return self.files[row].read_bytes()
        except OSError as error:
            raise DataError(f"{self.origin(row)}: cannot be read ({error}); check the file") from error

    def origin(self, row: int) -> str:
        return f"{self.files[row]} (row {row})"


class ParquetRows:
    """Local parquet files, read whole into memory, still encoded."""

    def __init__(self, files: Sequence[Path]) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        self.files = tuple(files)
        tables = []
        for file in files:
            try:
                tables.append(pq.read_table(file))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{file}: not a readable parquet file ({error}); fetch it again") from error
        schema = tables[0].schema
        where = ", ".join(map(str, files))
        image, label = _columns(schema.names, where)
        self.starts = np.cumsum([0] + [len(t) for t in tables])
        try:
            table = pa.concat_tables([t.select([image, label]) for t in tables])
        except (pa.ArrowException, KeyError) as error:
            raise DataError(f"{where}: the files' columns differ ({error}); give files of one dataset") from error
        kind = table.schema.field(image).type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise DataError(
                f"{where}: expected column '{image}' to be struct{{bytes, path}}, got {kind}; "
                "write it with datasets' Image feature"
            )
        self._bytes = pc.struct_field(table.column(image), "bytes").combine_chunks()
        self._paths = (
            pc.struct_field(table.column(image), "path").combine_chunks() if kind.get_field_index("path") >= 0 else None
        )
        self.labels = _label_array(table.column(label).to_numpy(), where)
        self.classes = _class_names((schema.metadata or {}).get(b"huggingface"), label, self.labels)
        check_labels(self)
        self.key = _files_key(files)

    def read(self, row: int) -> bytes:
        data: bytes | None = self._bytes[row].as_py()
        if data is not None:
            return data
        path = self._paths[row].as_py() if self._paths is not None else None
        file = self._file(row).parent / (path or "")
        if path is None or not file.is_file():
            raise DataError(f"{self.origin(row)}: no image bytes and no file '{path}'; embed the images in the parquet")
        return file.read_bytes()

    def _file(self, row: int) -> Path:
        return self.files[int(np.searchsorted(self.starts, row, "right")) - 1]

    def origin(self, row: int) -> str:
        file = self._file(row)
        return f"{file}, row {row - int(self.starts[self.files.index(file)])}"


class ArrowRows:
    """A `datasets.Dataset` (from the Hub, or memory-mapped from local parquet)."""

    def __init__(self, dataset: Any, name: str) -> None:
        import datasets

        self.name = name
        image, label = _columns(dataset.column_names, name)
        self.labels = _label_array(dataset.with_format("numpy")[label][:], name)
        names = getattr(dataset.features[label], "names", None)
        self.classes = tuple(names) if names else _numbered(self.labels)
        check_labels(self)
        self._images = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self._column = image
        self.key: str | None = None

    def read(self, row: int) -> bytes:
        cell = self._images[row][self._column]
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        return Path(cell["path"]).read_bytes()

    def origin(self, row: int) -> str:
        return f"{self.name}, row {row}"


def open_rows(source: str | Path, split: str, *, stream: bool = False) -> ImageRows:
    """Open one split of a dataset.

    Args:
        source: a parquet file; a folder with `<split>-*.parquet`, `<split>/*.parquet` (also below `data/`) or
            `<split>/<class>/<image>`; or the name of a dataset on the Hugging Face Hub.
        split: "train", "test", "validation" or "val"; a set that only has a validation split gives it for "test" and
            the other way round.
        stream: leave local parquet on disk, memory-mapped by `datasets`, instead of reading it whole.

    Raises: DataError: the source is missing, has another layout, lacks a column, or holds labels outside its classes.
    """
    if split not in SPLITS:
        raise DataError(f"expected split to be one of {list(SPLITS)}, got '{split}'; choose one of these")
    path = Path(source).expanduser()
    if not path.exists():
        if _looks_local(source):
            raise DataError(f"expected a dataset at {path.absolute()}, found nothing; check the path")
        return _open_hub(str(source), split)
    files = _parquet_files(path, split)
    if files:
        return _stream_parquet(files) if stream else ParquetRows(files)
    folder = next((path / name for name in SPLITS[split] if _subfolders(path / name)), None)
    if folder is None:
        raise DataError(
            f"{path}: expected '{split}-*.parquet' or '{split}/<class>/<image>' (also named "
            f"{list(SPLITS[split][1:])}), found {_listing(path)}; arrange the files so or give another folder"
        )
    train = next((path / name for name in SPLITS["train"] if _subfolders(path / name)), folder)
    return FolderRows(folder, _subfolders(train))


def decode(data: bytes, channels: int, origin: str) -> Image.Image:
    """Decode to an RGB (`channels` = 3) or grey (1) image.

    Raises: DataError: the bytes are not an image, or a truncated one; names `origin`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError) as error:  # PIL raises any of these on corrupt files
        raise DataError(f"{origin}: expected an image, could not decode it ({error}); fetch or remove it") from error


def check_labels(rows: ImageRows) -> None:
    """Raise DataError naming the first row whose label is outside the classes."""
    bad = np.flatnonzero((rows.labels < 0) | (rows.labels >= len(rows.classes)))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{rows.origin(row)}: expected a label in 0…{len(rows.classes) - 1}, got {int(rows.labels[row])} "
            f"({len(bad)} such rows); is this split unlabelled? Use split='validation' or correct the labels"
        )


def _open_hub(name: str, split: str) -> ImageRows:
    import datasets

    try:
        available = datasets.get_dataset_split_names(name)
        chosen = next((s for s in SPLITS[split] if s in available), None)
        if chosen is None:
            raise DataError(f"Hub dataset '{name}': expected a split '{split}', found {available}; choose one of these")
        dataset = datasets.load_dataset(name, split=chosen)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"expected '{name}' to be a local path or a dataset on the Hugging Face Hub, "
            f"got {type(error).__name__}: {error}; check the name, the network and HF_TOKEN"
        ) from error
    return ArrowRows(dataset, f"{name}[{chosen}]")


def _stream_parquet(files: Sequence[Path]) -> ImageRows:
    import datasets

    where = ", ".join(map(str, files))
    try:
        dataset = datasets.load_dataset("parquet", data_files=[str(f) for f in files], split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{where}: not a readable parquet dataset ({error}); fetch it again") from error
    return ArrowRows(dataset, where)


def _parquet_files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    for name in SPLITS[split]:
        for base in (path, path / "data"):
            files = sorted(
                [*base.glob(f"{name}-*.parquet"), *base.glob(f"{name}.parquet"), *base.glob(f"{name}/*.parquet")]
            )
            if files:
                return files
    return []


def _looks_local(source: str | Path) -> bool:
    text = os.fspath(source)
    return isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir())) if folder.is_dir() else ()


def _listing(path: Path) -> list[str] | str:
    if path.is_file():
        return f"a file of type '{path.suffix}'"
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in path.iterdir())
    return names[:10] + (["…"] if len(names) > 10 else [])


def _columns(names: Sequence[str], where: str) -> tuple[str, str]:
    image = next((c for c in IMAGE_COLUMNS if c in names), None)
    label = next((c for c in LABEL_COLUMNS if c in names), None)
    if image is None or label is None:
        missing = f"image column {IMAGE_COLUMNS}" if image is None else f"label column {LABEL_COLUMNS}"
        raise DataError(f"{where}: expected an {missing}, got columns {list(names)}; rename the column")
    return image, label


def _label_array(values: Any, where: str) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise DataError(f"{where}: expected integer labels without gaps, got {array.dtype}; write labels as int64")
    return array.astype(np.int64)


def _numbered(labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))


def _class_names(metadata: bytes | None, label: str, labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    if metadata is not None:
        names = json.loads(metadata).get("info", {}).get("features", {}).get(label, {}).get("names")
        if names:
            return tuple(names)
    return _numbered(labels)


def _files_key(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
