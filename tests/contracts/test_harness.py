"""The conditions that tests run under (tests/conftest.py) hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from headgate.ops.step import step

TESTS = Path(__file__).resolve().parent.parent


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return step(x, 2.0)


def test_shapes_and_dtypes_are_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        step(torch.zeros(3, dtype=torch.int64), 2.0)


def test_a_test_may_ask_for_no_checks(unchecked_types: None) -> None:
    assert step(torch.ones(3, dtype=torch.int64), 2.0).tolist() == [1, 1, 1]


def test_checks_are_back_after_a_test_without() -> None:
    assert not jaxtyping.config.jaxtyping_disable


def test_checked_modules_can_be_compiled_and_exported() -> None:
    x = torch.randn(2, 3)
    compiled = torch.compile(Step(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), step(x, 2.0))
    exported = torch.export.export(Step(), (x,)).module()
    assert torch.equal(exported(x), step(x, 2.0))


def test_checked_modules_can_be_traced() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ReLU()

        def forward(self, x: jaxtyping.Float[Tensor, "n c"]) -> jaxtyping.Float[Tensor, "n c"]:
            return self.first(x)

    Chain.forward = jaxtyping.jaxtyped(Chain.forward, typechecker=_beartype())
    assert [node.op for node in torch.fx.symbolic_trace(Chain()).graph.nodes] == [
        "placeholder",
        "call_module",
        "output",
    ]
    assert not jaxtyping.config.jaxtyping_disable


def _beartype() -> object:
    from beartype import beartype

    return beartype


def test_uninitialised_memory_is_poisoned() -> None:
    assert torch.empty(1000).isnan().all()
    assert torch.empty_like(torch.zeros(7, 5)).isnan().all()


def test_one_thread_and_float32() -> None:
    assert torch.get_num_threads() == 1
    assert torch.get_default_dtype() == torch.float32


def test_every_test_starts_from_the_same_seed() -> None:
    drawn = torch.rand(3)
    torch.manual_seed(20190901)
    assert torch.equal(drawn, torch.rand(3))


def test_a_stray_default_dtype_fails_the_test_that_left_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text("utf-8"), "utf-8")
    (tmp_path / "test_stray.py").write_text(
        "import torch\n\n\ndef test_stray():\n    torch.set_default_dtype(torch.float64)\n\n\n"
        "def test_next():\n    assert torch.get_default_dtype() == torch.float32\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "the test left torch changed: default dtype is torch.float64, was torch.float32" in done.stdout
    assert "2 passed, 1 error" in done.stdout
