"""What every test runs under: checked shapes, poisoned memory, one thread, a fixed seed, and nothing left behind.

Shapes and dtypes stated in a signature (jaxtyping) are enforced at run time in every module of headgate that states
any, under pytest only. Compiled and traced code is not checked: a checker in there would be compiled, or be handed
proxies. A test that passes a wrong type on purpose, to see headgate's own error, asks for `unchecked_types`.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in the processes that tests start
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # a GPU is deterministic only with it

import jaxtyping
import numpy as np
import pytest
import torch
import torch.export
import torch.fx

REPOSITORY = Path(__file__).resolve().parent.parent


def _modules_that_state_shapes() -> list[str]:
    source = REPOSITORY / "src"
    files = [path for path in sorted(source.rglob("*.py")) if "from jaxtyping import" in path.read_text("utf-8")]
    return [".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__") for path in files]


def _check_types(on: bool) -> None:
    jaxtyping.config.update("jaxtyping_disable", not on)


def _unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with type checks off while it runs."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        was_off = jaxtyping.config.jaxtyping_disable
        _check_types(False)
        try:
            return function(*args, **kwargs)
        finally:
            _check_types(not was_off)

    return run


def _unchecked_from_now_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with type checks off until the test ends: what it returns is compiled when first called."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        _check_types(False)
        return function(*args, **kwargs)

    return run


assert not any(name.split(".")[0] == "headgate" for name in sys.modules), "headgate was imported before its checks"
jaxtyping.install_import_hook(_modules_that_state_shapes(), "beartype.beartype")
torch.fx.Tracer.trace = _unchecked(torch.fx.Tracer.trace)
torch.export.export = _unchecked(torch.export.export)
torch.compile = _unchecked_from_now_on(torch.compile)

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True  # torch.empty is NaN, or the largest integer


@pytest.fixture
def unchecked_types() -> None:
    """Type checks off in this test; they come back on after it."""
    _check_types(False)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer has tuned must not decide what the tests run."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if (root / "headgate" / "paths").exists():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """Seed every generator before a test; afterwards fail it if it left torch in another state than it found."""
    seed = 20190901
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries may draw from the global generator)
    torch.manual_seed(seed)
    before = _torch_state()
    yield
    after = _torch_state()
    _check_types(True)
    torch.set_default_dtype(before["default dtype"])
    torch.set_num_threads(before["threads"])
    torch.use_deterministic_algorithms(before["deterministic"])
    torch.set_grad_enabled(before["gradients"])
    changed = [f"{name} is {after[name]}, was {before[name]}" for name in before if after[name] != before[name]]
    if changed:
        pytest.fail(f"the test left torch changed: {'; '.join(changed)}")


def _torch_state() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of the test's own, on the CPU."""
    return torch.Generator().manual_seed(20190901)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of datasets: $HEADGATE_DATA, or shared/data beside the repository. It need not exist."""
    configured = os.environ.get("HEADGATE_DATA")
    return Path(configured) if configured else REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def cifar10(data_root: Path) -> Path:
    """The folder with CIFAR-10's train-*.parquet and test-*.parquet; skips the test where it is not there."""
    folder = data_root / "cifar10"
    missing = [split for split in ("train", "test") if not list(folder.glob(f"{split}-*.parquet"))]
    if missing:
        pytest.skip(
            f"no {' and no '.join(missing)} split of CIFAR-10 as parquet under $HEADGATE_DATA/cifar10 "
            f"(HEADGATE_DATA={os.environ.get('HEADGATE_DATA', 'is not set')})"
        )
    return folder


ISAS = ("portable", "neon", "avx2", "avx512")


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native code, forced to each instruction set in turn; `pytest_generate_tests` parametrises."""
    from headgate.ops import native  # not at the top: the hook that checks shapes must come first

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
