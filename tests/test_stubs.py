"""The committed type stubs of the extension module are what `make stubs` makes of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

STUBS = Path(__file__).parent.parent / "src" / "headgate" / "_native.pyi"


def described(source: str) -> str:
    """What stubs say, whatever their layout: `...` and `pass` are the same, and docstrings are indented alike."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            documentation = ast.get_docstring(node)
            body = node.body[1:] if documentation is not None else node.body
            node.body = [ast.Expr(ast.Constant((documentation or "").strip())), *filter(_says, body)]
    return ast.dump(tree, indent=1)


def _says(node: ast.stmt) -> bool:
    dots = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is Ellipsis
    return not dots and not isinstance(node, ast.Pass)


def test_the_stubs_are_current(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "--quiet", "--module", "headgate._native"]
    subprocess.run([*command, "--output-file", fresh], check=True, capture_output=True, text=True)
    assert described(STUBS.read_text("utf-8")) == described(fresh.read_text("utf-8")), "run `make stubs`"


def test_stale_stubs_are_found() -> None:
    stub = 'def f(x: int) -> str:\n    """Text."""\n'
    assert described(stub) == described('def f(\n  x: int\n) -> str:\n    """\n    Text.\n    """\n    ...\n')
    for other in (
        "def f(x: int) -> int: ...",
        "def f(x: int, y: int) -> str: ...",
        'def g(x: int) -> str:\n  """Text."""',
    ):
        assert described(stub) != described(other)
