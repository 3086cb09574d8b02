"""Runs the native tests, which `make venv` builds beside the extension."""

from __future__ import annotations

import pytest
from native_build import built, run

TESTS = (
    "parallel_test",
    "safetensors_test",
    "plan_test",
    "rounding_test",
    "layout_test",
    "shared_weights_test",
    "engine_test",
    "capi_test",
    "npy_test",
    "conv_test",
    "winograd_test",
    "depthwise_test",
    "conditional_test",
    "int8_test",
    "bfloat16_test",
    "training_test",
)
FUZZED = 5_000
"""Inputs for the plan loader and the engine here; `make sanitize` mutates 120,000 under sanitizers."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_native(name: str) -> None:
    assert "0 failures" in run(built(f"native/tests/{name}"))


@pytest.mark.slow
def test_plan_loader_takes_any_bytes() -> None:
    run(built("native/tests/plan_fuzz"), FUZZED)
