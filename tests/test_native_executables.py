"""Runs the native tests, which `make venv` builds beside the extension."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
from native_build import built, run

from headgate.ops import native

TESTS = (
    "parallel_test",
    "safetensors_test",
    "plan_test",
    "rounding_test",
    "held_test",
    "layout_test",
    "shared_weights_test",
    "engine_test",
    "capi_test",
    "npy_test",
    "conv_test",
    "winograd_test",
    "winograd_rule_test",
    "depthwise_test",
    "conditional_test",
    "decide_test",
    "maps_test",
    "int8_test",
    "bfloat16_test",
    "training_test",
)
ON_NO_ISA = {
    "parallel_test",
    "safetensors_test",
    "plan_test",
    "rounding_test",
    "layout_test",
    "capi_test",
    "npy_test",
    "winograd_rule_test",
}
"""Tests that choose no instruction set; all others take each in turn."""
FUZZED = 5_000
"""Inputs for the plan loader and the engine here; `make sanitize` mutates 120,000 under sanitizers."""

NEEDS: dict[str, tuple[str, set[str]]] = {
    "portable": (platform.machine(), set()),
    "neon": ("aarch64", {"asimd"}),
    "avx2": ("x86_64", {"avx2", "fma"}),
    "avx512": ("x86_64", {"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    "vnni": ("x86_64", {"avx512_vnni"}),
    "bf16": ("x86_64", {"avx512_bf16"}),
}
"""Of every instruction set, and of AVX-512's products of bytes and of bfloat16: the machine, and what Linux must list
of its CPU."""
ISAS = [name for name in NEEDS if name not in ("vnni", "bf16")]


def missing(isa: str) -> str:
    """What keeps an instruction set from being tested here, as Linux sees the CPU and not the engine; or nothing."""
    machine, features = NEEDS[isa]
    if platform.machine() != machine:
        return f"{isa} is of {machine}, this machine is {platform.machine()}"
    cpu = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    lacking = sorted(features - set(cpu.group(1).split() if cpu else ()))
    return f"{isa} needs what this CPU lacks: {', '.join(lacking)}" if lacking else ""


def check_isas(output: str) -> None:
    """A native test names all instruction sets, and runs those that the CPU has."""
    found = re.findall(r"^instruction set (\w+): (tested|not tested)", output, re.MULTILINE)
    assert dict(found) == {isa: "not tested" if missing(isa) else "tested" for isa in ISAS}
    for feature in ("vnni", "bf16"):
        if f"as the CPU lacks it: {feature.upper()}" in output:
            assert missing(feature)


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_native(name: str) -> None:
    output = run(built(f"native/tests/{name}"))
    assert "0 failures" in output
    if name not in ON_NO_ISA:
        check_isas(output)


@pytest.mark.parametrize("instructions", NEEDS)
def test_what_native_tests_cover(instructions: str) -> None:
    """Where this is skipped, the native tests passed without these."""
    if instructions in ISAS:
        extension = native.module()
        assert extension is not None
        assert (instructions in extension.usable_isas()) == (not missing(instructions))
    if missing(instructions):
        pytest.skip(f"no native test ran it: {missing(instructions)}")


@pytest.mark.slow
def test_plan_loader_takes_any_bytes() -> None:
    check_isas(run(built("native/tests/plan_fuzz"), FUZZED))
