"""Which path a gated convolution takes in the native engine, as measured on this CPU, and where that is remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, cast, get_args

from headgate.errors import CheckpointError, ConfigError
from headgate.files import cache_folder, write_atomic
from headgate.machine import cpu_identity

__all__ = ["Circumstances", "ConditionalPath", "PathChoice", "recall", "remember"]

ConditionalPath = Literal["sparse", "masked"]
"""How a gated convolution completes its open outputs: one by one; or by a dense convolution, of which they are kept."""
PATHS: Final = get_args(ConditionalPath)
VERSION: Final = 2
_LOG = logging.getLogger(__name__)


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
        self.require_unchanged()
        return digest

    def require_unchanged(self) -> None:
        """Raises OSError: it is gone, or another than it was."""
        if _stamp(self.path) != self.stamp:
            raise OSError(f"{self.path} changed since it was loaded")


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


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What measured times hold for, beside the plan's contents and this CPU.

    Attributes:
        kernels: which build of the native module ran.
        isa: the instruction set that it used.
        threads: of a call.
    """

    kernels: str
    isa: str
    threads: int

    def key(self, plan: PlanFile) -> str:
        """The start of a record's file name: all that can be told without reading the plan."""
        known = [VERSION, plan.stamp[2], cpu_identity(), *asdict(self).values()]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]


def remember(plan: PlanFile, circumstances: Circumstances, *, batch: int, choices: list[PathChoice]) -> Path:
    """Keep what was measured for a plan's contents on this CPU; it replaces what was measured before, of any batch.

    Returns: the file, below `$XDG_CACHE_HOME/headgate/paths` (default `~/.cache`).
    Raises: CheckpointError: it cannot be written, or the plan is no longer what was loaded.
    """
    try:
        folder = _folder()
        digest = plan.digest()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot remember what was measured: {error}") from error
    record = {"version": VERSION, "plan": digest, "cpu": cpu_identity()} | asdict(circumstances)
    record |= {"batch": batch, "layers": [asdict(choice) for choice in choices]}
    with contextlib.suppress(OSError):  # writing below it says what is wrong
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / _file_name(circumstances.key(plan), digest)
    write_atomic(file, json.dumps(record, indent=1) + "\n")
    return file


def recall(plan: PlanFile, circumstances: Circumstances) -> dict[str, ConditionalPath]:
    """The path of each layer as remembered for these circumstances; empty where nothing is.

    A file that cannot be read counts as none, and so does a user without a home.
    """
    file: Path | None = None
    try:
        folder, key = _folder(), circumstances.key(plan)
        if not any(folder.glob(f"{key}-*.json")):  # save reading the whole plan for its digest
            return {}
        digest = plan.digest()
        file = folder / _file_name(key, digest)
        record = json.loads(file.read_text("utf-8"))
        if (record["version"], record["plan"]) != (VERSION, digest):
            return {}
        return {str(layer["name"]): check_path(layer["name"], layer["path"]) for layer in record["layers"]}
    except FileNotFoundError:
        return {}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # deep nesting is a RuntimeError
        _LOG.info("%s: what was tuned is unusable (%s) and ignored", file or plan.path, error)
        return {}


def _folder() -> Path:
    return cache_folder() / "paths"


def _file_name(key: str, digest: str) -> str:
    return f"{key}-{digest[:16]}.json"
