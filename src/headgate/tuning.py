"""Which path a gated convolution takes in the native engine, as measured on this CPU, and where that is remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from headgate.errors import CheckpointError, ConfigError
from headgate.files import cache_folder, write_atomic
from headgate.machine import cpu_model

__all__ = ["ConditionalPath", "PathChoice", "recall", "remember"]

ConditionalPath = Literal["sparse", "masked"]
"""How a gated convolution completes its open outputs: one by one; or by a dense convolution, of the pixels with any."""
PATHS: Final = get_args(ConditionalPath)
VERSION: Final = 1
_LOG = logging.getLogger(__name__)
ADVANTAGE: Final = 0.97
"""The masked path must take less than so much of the sparse path's time: what lies closer is noise."""


@dataclass(frozen=True, kw_only=True)
class PathChoice:
    """What a gated convolution took by either path, and which one it takes from now on.

    Attributes:
        name: the module's name in the model.
        density: share of open decisions in the images it was timed on.
        sparse_ms, masked_ms: median times of a batch, base path included.
        path: the faster one.
    """

    name: str
    density: float
    sparse_ms: float
    masked_ms: float
    path: ConditionalPath

    @classmethod
    def of_times(cls, name: str, density: float, sparse_ms: float, masked_ms: float) -> PathChoice:
        """Choose by time."""
        path: ConditionalPath = "masked" if masked_ms < ADVANTAGE * sparse_ms else "sparse"
        return cls(name=name, density=density, sparse_ms=sparse_ms, masked_ms=masked_ms, path=path)


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A plan file as it was when an engine loaded it.

    Attributes:
        path: absolute.
        stamp: device, inode, size and time of change.
    """

    path: Path
    stamp: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: str) -> PlanFile:
        """The file that is there now."""
        absolute = Path(path).absolute()
        return cls(path=absolute, stamp=_stamp(absolute))

    def digest(self) -> str:
        """Of its contents.

        Raises: OSError: it cannot be read, or is another than it was.
        """
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _stamp(self.path) != self.stamp:
            raise OSError(f"{self.path} changed since it was loaded")
        return digest


def _stamp(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_path(layer: str, path: str) -> ConditionalPath:
    """`path`, if there is such a path.

    Raises: ConfigError
    """
    if path not in PATHS:
        raise ConfigError(f"the path of {layer} must be one of {', '.join(PATHS)}, got {path!r}")
    return cast(ConditionalPath, path)


def remember(plan: PlanFile, *, isa: str, threads: int, batch: int, choices: list[PathChoice]) -> Path:
    """Keep what was measured for a plan's contents, this CPU, instruction set and number of threads.

    Returns: the file, below `$XDG_CACHE_HOME/headgate/paths` (default `~/.cache`).
    Raises: CheckpointError: it cannot be written, or the plan is no longer what was loaded.
    """
    try:
        folder = _folder()
        circumstances = _circumstances(plan, isa, threads)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot remember what was measured: {error}") from error
    record = circumstances | {"batch": batch, "layers": [asdict(choice) for choice in choices]}
    with contextlib.suppress(OSError):  # writing below it says what is wrong
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / _file_name(record)
    write_atomic(file, json.dumps(record, indent=1) + "\n")
    return file


def recall(plan: PlanFile, *, isa: str, threads: int) -> dict[str, ConditionalPath]:
    """The path of each layer as remembered for these circumstances; empty where nothing is.

    A file that cannot be read counts as none, and so does a user without a home.
    """
    file: Path | None = None
    try:
        folder = _folder()
        if not folder.is_dir():  # nothing was ever remembered: save reading the plan for its digest
            return {}
        expected = _circumstances(plan, isa, threads)
        file = folder / _file_name(expected)
        record = json.loads(file.read_text("utf-8"))
        if any(record[key] != value for key, value in expected.items()):
            return {}
        return {str(layer["name"]): check_path(layer["name"], layer["path"]) for layer in record["layers"]}
    except FileNotFoundError:
        return {}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # deep nesting is a RuntimeError
        _LOG.info("%s: what was tuned is unusable (%s) and ignored", file or plan.path, error)
        return {}


def _folder() -> Path:
    return cache_folder() / "paths"


def _circumstances(plan: PlanFile, isa: str, threads: int) -> dict[str, Any]:
    return {"version": VERSION, "plan": plan.digest(), "cpu": cpu_model(), "isa": isa, "threads": threads}


def _file_name(circumstances: dict[str, Any]) -> str:
    key = hashlib.sha256(json.dumps([circumstances[k] for k in ("plan", "cpu", "isa", "threads")]).encode())
    return f"{key.hexdigest()[:32]}.json"
