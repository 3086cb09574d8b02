"""The architecture, over the syntax trees of the sources; every rule is also shown to fail."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import types
import typing
from pathlib import Path

import architecture
import pytest
from architecture import REPOSITORY, SOURCE, module_name

MODULES = sorted(SOURCE.rglob("*.py"))
LINES = 400
LONG_FILES: dict[str, str] = {}
"""Files above `LINES` lines, by their path in the repository, each with the reason why it is not split."""

NOT_AT_IMPORT = ("matplotlib", "triton", "headgate._native", "datasets", "accelerate", "tyro", "jinja2", "timm")


def layering(source: str, module: str, *, is_package: bool = False) -> str:
    return "\n".join(architecture.layering(source, module, is_package=is_package))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_layers(path: Path) -> None:
    assert not layering(path.read_text("utf-8"), module_name(path), is_package=path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source", "breach"),
    [
        ("ops.step", "from headgate.nn.gates import Gate", "ops must not import nn"),
        ("nn.gates", "import headgate.convert", "nn must not import convert"),
        ("nn.gates", "from headgate import convert", "nn must not import convert"),
        ("nn.gates", "from .. import convert", "nn must not import convert"),
        ("nn.gates", "from ..convert import gate_", "nn must not import convert"),
        ("nn.gates", "def f():\n    import headgate.train.loop", "nn must not import train"),
        ("nn.gates", "import importlib\nimportlib.import_module('headgate.train')", "nn must not import train"),
        ("nn.gates", "if TYPE_CHECKING:\n    from headgate.models import resnet", "nn must not import models"),
        ("nn.gates", "from headgate import gate_", "nn must not import the façade"),
        ("nn.gates", "import headgate", "nn must not import the façade"),
        ("nn.gates", "from headgate import _native", "nn must not import _native"),
        ("nn.gates", "import headgate._native", "nn must not import _native"),
        ("models.resnet", "from headgate.ops import step", "models must not import ops"),
        ("workload", "import torch", "may import torch"),
        ("workload", "def f():\n    from torch import Tensor", "may import torch"),
        ("errors", "from headgate.workload import LayerShape", "errors must not import workload"),
        ("train.loop", "import matplotlib.pyplot", "only benchmarking, plots, report, studies may import matplotlib"),
        ("nn.gates", "import timm", "only models may import timm"),
        ("cli", "from headgate.train import loop", "cli may import train inside a function only"),
        ("report.page", "from headgate.checkpoint import load", "report may import checkpoint inside a function only"),
        ("__init__", "from headgate.report import page", "may import report inside a function only"),
        ("__init__", "from .plots import frontier", "may import plots inside a function only"),
        ("__init__", "from headgate.nn import GateConfig", "may import nn inside a function only"),
        ("engine", "from torch import Tensor", "may import torch"),
        ("train.loop", "from tests.numerics import bound", "must not import tests"),
        ("train.loop", "def f():\n    import benchmarks.step", "must not import benchmarks"),
        ("sim.array", "import numpy", "add 'sim' to MAY_IMPORT in tests/contracts/architecture.py"),
        ("helpers", "", "headgate.helpers is in no layer"),
    ],
)
def test_a_breach_of_the_layers_is_found(module: str, source: str, breach: str) -> None:
    assert breach in layering(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ops.step", "import torch\nfrom headgate.errors import ShapeError\nfrom headgate import _native"),
        ("ops", "from . import step\nfrom .step import step"),
        ("nn.gates", "from headgate.workload import LayerShape\nfrom .config import GateConfig"),
        ("cli", "from headgate.errors import HeadgateError\ndef main():\n    from headgate.train import loop"),
        ("report.page", "from headgate import plots\ndef f():\n    from headgate import checkpoint"),
        ("__init__", "if TYPE_CHECKING:\n    from headgate.nn import GateConfig"),
    ],
)
def test_what_the_layers_allow_passes(module: str, source: str) -> None:
    assert not layering(source, module, is_package="." not in module)


def test_the_table_names_modules_that_exist_and_has_no_cycle() -> None:
    layers = {module_name(path).split(".")[0] for path in MODULES}
    assert not architecture.MAY_IMPORT.keys() - layers - {"__main__"}, "remove what is gone from MAY_IMPORT"
    done: set[str] = set()
    remaining = {
        name: {*targets} for name, targets in architecture.MAY_IMPORT.items() if name not in ("__init__", "cli")
    }
    while ready := {name for name in remaining if remaining[name] <= {*done, "cli", architecture.NATIVE}}:
        done |= ready
        remaining = {name: targets for name, targets in remaining.items() if name not in ready}
    assert not remaining, "these import one another in a circle"


def imported_by(statement: str) -> set[str]:
    """The modules that a statement loads in a fresh interpreter, beyond those that torch loads."""
    program = (
        f"import json, sys, torch; before = {{*sys.modules}}; {statement}; "
        "print(json.dumps(sorted({*sys.modules} - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def heavy(modules: set[str]) -> list[str]:
    return sorted(
        name
        for name in modules
        if name.startswith(tuple(f"{heavy}." for heavy in NOT_AT_IMPORT)) or name in NOT_AT_IMPORT
    )


def test_importing_headgate_loads_nothing_heavy() -> None:
    loaded = imported_by("import headgate")
    assert "headgate" in loaded
    assert not heavy(loaded)


def test_the_engine_runs_without_torch() -> None:
    program = "import sys, headgate; headgate.Engine; print(sorted({'torch', 'headgate.nn', 'numpy'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['numpy']"


def test_the_facade_imports_what_it_names() -> None:
    import headgate

    tree = ast.parse((SOURCE / "__init__.py").read_text("utf-8"))
    typed = [name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names]
    assert sorted({*typed} - {"annotations", "TYPE_CHECKING", "Any"}) == sorted(headgate.__all__)
    for name in headgate.__all__:
        assert getattr(headgate, name) is not None
    with pytest.raises(AttributeError, match="'headgate' has no attribute 'nothing'"):
        headgate.nothing  # noqa: B018
    assert {*headgate.__all__} <= {*dir(headgate)}
    program = "import headgate; headgate.nn.GateConfig; headgate.errors.HeadgateError"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_heavy_import_is_found() -> None:
    assert "matplotlib" in heavy(imported_by("import matplotlib"))
    assert heavy({"headgate", "headgate._native", "datasets.arrow"}) == ["datasets.arrow", "headgate._native"]


def too_long(path: str, text: str) -> bool:
    return len(text.splitlines()) > LINES and path not in LONG_FILES


def test_no_file_is_too_long() -> None:
    files = {path.relative_to(REPOSITORY).as_posix(): path.read_text("utf-8") for path in architecture.code_files()}
    assert not [path for path, text in files.items() if too_long(path, text)], "split it, or justify it in LONG_FILES"
    stale = [path for path in LONG_FILES if path not in files or len(files[path].splitlines()) <= LINES]
    assert not stale, "no longer too long: remove it from LONG_FILES"
    assert too_long("new.py", "pass\n" * (LINES + 1))
    assert not too_long("new.py", "pass\n" * LINES)


CODE = [path for path in architecture.code_files() if path.suffix == ".py" and "tests" not in path.parts]


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_code_loads_safely_and_swallows_nothing(path: Path) -> None:
    source = path.read_text("utf-8")
    assert not architecture.unsafe_loading(source)
    assert not architecture.swallowed_errors(source)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import joblib.memory",
        "state = torch.load(path)",
        "state = torch.load(path, weights_only=False)",
        "state = torch.load(path, weights_only=flag)",
        "array = np.load(path, allow_pickle=True)",
    ],
)
def test_unsafe_loading_is_found(source: str) -> None:
    assert architecture.unsafe_loading(source)


def test_safe_loading_passes() -> None:
    assert not architecture.unsafe_loading("torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)")


def test_a_bare_except_is_found() -> None:
    assert architecture.swallowed_errors("try:\n    f()\nexcept:\n    pass")
    assert not architecture.swallowed_errors("try:\n    f()\nexcept OSError:\n    pass")


def test_only_bindings_know_python_and_torch() -> None:
    native = REPOSITORY / "native"
    sources = [path for path in architecture.code_files() if path.is_relative_to(native)]
    plain = [path for path in sources if not path.is_relative_to(native / "bindings")]
    assert plain, "no C++ sources outside native/bindings: this test would check nothing"
    breaches = {path.name: architecture.host_headers(path.read_text("utf-8")) for path in plain}
    assert not {name: found for name, found in breaches.items() if found}


@pytest.mark.parametrize(
    "line", ["#include <Python.h>", '  # include "torch/extension.h"', "#include <nanobind/nanobind.h>"]
)
def test_a_host_header_is_found(line: str) -> None:
    assert architecture.host_headers(f"#include <vector>\n{line}\n")
    assert not architecture.host_headers('#include <vector>\n#include "headgate/gated_norm.h"\n// torch/extension.h\n')


def test_no_file_names_a_developers_machine() -> None:
    texts = {path: architecture.text_of(path) for path in architecture.repository_files()}
    found = {str(path.relative_to(REPOSITORY)): architecture.home_paths(text) for path, text in texts.items() if text}
    assert not {path: breaches for path, breaches in found.items() if breaches}


@pytest.mark.parametrize("folder", ["home", "root", "work", "Users"])
def test_a_developers_path_is_found(folder: str) -> None:
    path = f"/{folder}/ada/headgate"
    assert architecture.home_paths(f"first\nsee {path}")
    assert architecture.home_paths(f'"{path}/data"')
    assert not architecture.home_paths(f"https://example.org{path} src{path} ~{path} $HOME{path}")


def undocumented(facade: types.ModuleType) -> list[str]:
    """Public names without a docstring of their own, and public functions and methods without full annotations."""
    breaches = []
    for name in facade.__all__:
        thing = getattr(facade, name)
        if not callable(thing) and not isinstance(thing, types.ModuleType):
            continue  # a constant, or a type alias, has nowhere to put a docstring
        text = getattr(thing, "__doc__", None) or ""
        generated = isinstance(thing, type) and text.startswith(f"{thing.__name__}(")
        if typing.get_origin(thing) is None and (not text.strip() or generated):
            breaches.append(f"{name} has no docstring")
        for label, function in _public_functions(name, thing):
            signature = inspect.signature(function)
            bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
            bare = [parameter for parameter in bare if parameter not in ("self", "cls")]
            if bare or signature.return_annotation is signature.empty:
                breaches.append(f"{label} is not annotated: {', '.join(bare) or 'its result'}")
    return breaches


def _public_functions(name: str, thing: object) -> list[tuple[str, typing.Callable[..., object]]]:
    if inspect.isfunction(thing):
        return [(name, thing)]
    if not isinstance(thing, type) or not thing.__module__.startswith("headgate"):
        return []
    found = []
    for key, member in vars(thing).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        written = inspect.isfunction(function) and function.__code__.co_filename.startswith(str(SOURCE))
        if written and (key == "__init__" or not key.startswith("_")):
            found.append((f"{name}.{key}", function))
    return found


def test_the_public_api_is_documented_and_annotated() -> None:
    import headgate

    assert headgate.__all__
    assert len(set(headgate.__all__)) == len(headgate.__all__)
    assert not undocumented(headgate)


def test_an_undocumented_function_is_found() -> None:
    def no_docstring(x: int) -> int:
        return x

    def no_annotation(x, y: int = 0) -> int:  # type: ignore[no-untyped-def]
        """Return x."""
        return x

    def documented(x: int) -> int:
        """Return x."""
        return x

    facade = types.ModuleType("facade")
    for function in (no_docstring, no_annotation, documented):
        setattr(facade, function.__name__, function)
    facade.__all__ = ["documented"]
    assert not undocumented(facade)
    facade.__all__ = ["no_docstring", "no_annotation", "documented"]
    assert undocumented(facade) == ["no_docstring has no docstring", "no_annotation is not annotated: x"]
