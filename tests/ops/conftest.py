"""What the operators' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from headgate.ops import native

ISAS = ("portable", "avx2", "avx512")


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native operators, forced to the instruction set that the test is parametrised with."""
    extension = native.module()
    if extension is None:
        pytest.fail("the native operators must be tested: install the package, and do not set HEADGATE_NATIVE=0")
    if request.param not in extension.usable_isas():
        pytest.skip(f"this CPU or this build lacks {request.param}")
    before = extension.active_isa()
    extension.set_isa(request.param)
    yield request.param
    extension.set_isa(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", ISAS, indirect=True)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch's number of threads, and so the operators', for one test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
