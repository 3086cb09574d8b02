"""Write a file whole or not at all; and where files that can be made again are kept."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from headgate.errors import CheckpointError

__all__ = ["atomic_write", "cache_folder", "write_atomic"]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; when the block ends it takes the place of `path`, in one step.

    A reader, and a crash, see the old file or the new one, never a part. If the block raises, the temporary file is
    removed and `path` is as it was.

    Raises: CheckpointError: the block, or putting the file in place, failed for want of space, rights or a folder; or
        `path` is there and no regular file.
    """
    target = Path(os.path.realpath(path))  # through a link: replace what it points to, not the link
    if target.exists() and not (target.is_file() or target.is_dir()):  # to rename over a folder fails by itself
        raise CheckpointError(f"cannot write {target}: not a regular file")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        mode = _mode_of_new(part)
        yield part
        part.chmod(mode)  # a library may have made it for its owner alone
        _sync(part)
        part.replace(target)
        with contextlib.suppress(OSError):  # some file systems cannot synchronise a folder
            _sync(target.parent)
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot write {target}: {cause}; what was there before is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()  # there only where something went wrong


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace the contents of `path` with `data` (a string: in UTF-8), whole or not at all.

    Raises: CheckpointError: it cannot be written; what was there before is unchanged.
    """
    content = data.encode() if isinstance(data, str) else data
    with atomic_write(path) as part:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)


def _mode_of_new(path: Path) -> int:
    """The permissions that a new file has there; it is gone again."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = path.stat().st_mode
    path.unlink()
    return mode


def cache_folder() -> Path:
    """Where headgate keeps what it can make again: `$XDG_CACHE_HOME/headgate`, by default `~/.cache/headgate`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headgate"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
