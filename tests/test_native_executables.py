"""Runs the native tests, which `make venv` builds beside the extension."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "build"
TESTS = ("safetensors_test", "plan_test", "conv_test", "depthwise_test", "conditional_test", "int8_test")
FUZZED = 5_000
"""Inputs for the plan loader here; `make sanitize` mutates 120,000 under sanitizers."""


def executable(name: str) -> str:
    """The latest build of a native test."""
    builds = [path for path in FOLDER.glob(f"cp*/native/tests/{name}") if path.is_file()]
    if not builds:
        pytest.fail(f"the native tests must run, but build/cp*/native/tests/{name} is not there: run `make venv`")
    return str(max(builds, key=lambda path: path.stat().st_mtime))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_native(name: str) -> None:
    assert "0 failures" in run(executable(name))


@pytest.mark.slow
def test_plan_loader_takes_any_bytes() -> None:
    run(executable("plan_fuzz"), str(FUZZED))
