"""Where `make venv` builds the native code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "build"


def built(name: str) -> Path:
    """The latest build of a file, by its path in the build folder."""
    builds = [path for path in FOLDER.glob(f"cp*/{name}") if path.is_file()]
    if not builds:
        pytest.fail(f"the native code must be tested, but build/cp*/{name} is not there: run `make venv`")
    return max(builds, key=lambda path: path.stat().st_mtime)


def run(*command: object) -> str:
    """A command's output; it must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout
