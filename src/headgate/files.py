"""Write a file whole or not at all; and where files that can be made again are kept."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from headgate.errors import CheckpointError

__all__ = ["atomic_write", "cache_folder", "write_atomic"]

PIECE = 1 << 18
"""Bytes of one write. The page cache keeps them as they were written, and who maps the file later maps whole pieces."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to, in this process; when the block ends that file takes the place of `path`, in one step.

    A reader, and a crash, see the old file or the new one, never a part. If the block raises, or the process is killed,
    `path` is as it was and nothing else is left: the new file has no name until it is whole. Where the file system
    knows no files without a name it has a hidden one beside `path`, which a kill leaves behind.

    Raises: CheckpointError: the block, or putting the file in place, failed for want of space, rights or a folder; or
        `path` is there and no regular file.
    """
    target = Path(os.path.realpath(path))  # through a link: replace what it points to, not the link
    if target.exists() and not (target.is_file() or target.is_dir()):  # to rename over a folder fails by itself
        raise CheckpointError(f"cannot write {target}: not a regular file")
    try:
        with _unnamed(target) or _hidden(target) as part:
            yield part
        with contextlib.suppress(OSError):  # some file systems cannot synchronise a folder
            _sync(target.parent)
    except CheckpointError:
        raise
    except OSError as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot write {target}: {cause}; what was there before is unchanged") from error


def _unnamed(target: Path) -> AbstractContextManager[Path] | None:
    """A file without a name, to take the target's place when the block ends well; None where there is no such thing."""
    try:
        descriptor = os.open(target.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (OSError, AttributeError):  # an old kernel or another system; no folder and no rights are said by `_hidden`
        return None
    if Path(f"/proc/self/fd/{descriptor}").exists():
        return _unnamed_until_whole(descriptor, target)
    os.close(descriptor)
    return None


@contextmanager
def _unnamed_until_whole(descriptor: int, target: Path) -> Iterator[Path]:
    part = Path(f"/proc/self/fd/{descriptor}")
    try:
        yield part
        os.fsync(descriptor)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            _name(part, target.name, folder)
        finally:
            os.close(folder)
    finally:
        os.close(descriptor)


def _name(part: Path, name: str, folder: int) -> None:
    """Give an unnamed file its name. To replace another it needs a hidden one first, for the blink of an eye."""
    with contextlib.suppress(FileExistsError):
        os.link(part, name, dst_dir_fd=folder)  # that it is relative makes os.link follow the link in /proc
        return
    hidden = _hidden_name(name)
    os.link(part, hidden, dst_dir_fd=folder)
    try:
        os.replace(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(hidden, dir_fd=folder)
        raise


@contextmanager
def _hidden(target: Path) -> Iterator[Path]:
    part = target.with_name(_hidden_name(target.name))
    try:
        mode = _mode_of_new(part)
        yield part
        part.chmod(mode)  # a library may have made it for its owner alone
        _sync(part)
        part.replace(target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()  # there only where something went wrong


def _hidden_name(name: str) -> str:
    return f".{name}.{secrets.token_hex(4)}.part"


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace the contents of `path` with `data` (a string: in UTF-8), whole or not at all.

    Raises: CheckpointError: it cannot be written; what was there before is unchanged.
    """
    content = data.encode() if isinstance(data, str) else data
    with atomic_write(path) as part:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left[:PIECE]) :]
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
