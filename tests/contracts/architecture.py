"""The architecture's rules, each a function from source text to a list of breaches, so that it can be shown to fail."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SOURCE = REPOSITORY / "src" / "headgate"

FACADE = "__init__"
NATIVE = "_native"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "workload": {"errors", "files"},
    "ops": {"errors", NATIVE},
    "nn": {"errors", "ops", "workload"},
    "models": {"errors", "nn"},
    "tracing": {"errors", "nn"},
    "graph": {"errors", "nn", "tracing"},
    "convert": {"errors", "nn", "graph", "workload"},
    "fusion": {"errors", "ops", "nn", "tracing", "graph", "workload"},
    "counting": {"errors", "files", "nn", "graph", "workload"},
    "baselines": {"errors", "nn", "models", "tracing", "graph", "counting"},
    "machine": set(),
    "tuning": {"errors", "files", "machine"},
    "engine": {"errors", "tuning", NATIVE},
    "exporting": {"errors", "files", "ops", "nn", "tracing", "graph"},
    "checkpoint": {"errors", "files", "models", "convert", "nn", "baselines"},
    "train": {"errors", "files", "nn", "models", "convert", "fusion", "counting", "checkpoint", "baselines"},
    "recipes": {"errors", "files", "nn", "models", "train"},
    "studies": {
        "errors",
        "files",
        "machine",
        "nn",
        "models",
        "convert",
        "counting",
        "checkpoint",
        "baselines",
        "engine",
        "exporting",
        "benchmarking",
        "train",
        "recipes",
        "plots",
        "report",
    },
    "plots": {"errors", "files", "workload", "counting"},
    "report": {"errors", "files", "workload", "plots", "counting", "checkpoint", "train"},
    "benchmarking": {
        "errors",
        "files",
        "machine",
        "ops",
        "nn",
        "models",
        "convert",
        "engine",
        "exporting",
        "train",
        "plots",
    },
}
"""Who may import whom, by the first name below headgate: a module or a whole package. See docs/design/0001."""

MAY_IMPORT[FACADE] = {*MAY_IMPORT, "cli"}
MAY_IMPORT["cli"] = {*MAY_IMPORT}
MAY_IMPORT["__main__"] = {"cli"}

ONLY_LAZILY: dict[str, set[str]] = {
    FACADE: {*MAY_IMPORT} - {FACADE},
    "cli": {*MAY_IMPORT} - {"errors", "cli"},
    "report": {"counting", "checkpoint", "train"},
}
"""What may be imported inside a function only, so that importing the importer stays cheap."""

THIRD_PARTY: dict[str, set[str]] = {
    "torch": {*MAY_IMPORT} - {"errors", "files", "workload", "machine", "tuning", "engine"},
    "torchvision": {"models", "train", "cli"},
    "triton": {"ops"},
    "matplotlib": {"plots", "report", "benchmarking", "studies"},
    "jinja2": {"report", "studies"},
    "datasets": {"train"},
    "accelerate": {"train"},
    "torchmetrics": {"train"},
    "tensorboard": {"train"},
    "tyro": {"cli", "recipes"},
    "timm": {"models"},
    "torch_pruning": {"baselines"},
    "ray": {"studies"},
}
"""Packages that only these modules may import."""

NOT_FROM_HERE = {"tests", "benchmarks", "examples"}


class Import(NamedTuple):
    """One imported name: `target` is absolute and dotted; `lazy`: it runs in a function, or for a type checker."""

    target: str
    line: int
    lazy: bool


def module_name(path: Path) -> str:
    """The dotted name below headgate of a file of src/headgate: "ops.gated_norm.reference", "__init__"."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def _nodes(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    for node in ast.iter_child_nodes(tree):
        yield node, lazy
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from _nodes(node, lazy or is_function or for_types)


def imports(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """Every import of a module of headgate; `from a import b` counts as a.b, a module or not."""
    parts = [] if module == FACADE else module.split(".")
    package = ["headgate", *(parts if is_package or module == FACADE else parts[:-1])]
    found = []
    for node, lazy in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module or "")))
            found += [Import(f"{origin}.{alias.name}", node.lineno, lazy) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append(Import(name.value, node.lineno, lazy))
    return found


def layering(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Imports against `MAY_IMPORT`, `ONLY_LAZILY`, `THIRD_PARTY` and `NOT_FROM_HERE`."""
    layer = module.split(".")[0]
    if layer not in MAY_IMPORT:
        return [
            f"headgate.{module} is in no layer: add {layer!r} to MAY_IMPORT in tests/contracts/architecture.py, with "
            "what it may import, and to whoever may import it"
        ]
    breaches = []
    for target, line, lazy in imports(source, module, is_package=is_package):
        where, (root, *below) = f"headgate.{module}, line {line}: ", target.split(".")
        if root in NOT_FROM_HERE:
            breaches.append(f"{where}the package must not import {root}")
        if layer not in THIRD_PARTY.get(root, {layer}):
            allowed = ", ".join(sorted(THIRD_PARTY[root]))
            breaches.append(f"{where}only {allowed} may import {root}")
        if root != "headgate":
            continue
        imported = below[0] if below and below[0] in {*MAY_IMPORT, NATIVE} else FACADE
        if imported == layer and layer != FACADE:
            continue
        if imported not in MAY_IMPORT[layer]:
            breaches.append(f"{where}{layer} must not import {'the façade' if imported == FACADE else imported}")
        elif imported in ONLY_LAZILY.get(layer, ()) and not lazy:
            breaches.append(f"{where}{layer} may import {imported} inside a function only")
    return breaches


def unsafe_loading(source: str) -> list[str]:
    """Pickle in any guise: modules built on it, torch.load without weights_only=True, numpy's allow_pickle=True."""
    breaches = []
    for node, _ in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            roots = {name.split(".")[0] for name in names}
            for root in sorted(roots & {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}):
                breaches.append(f"line {node.lineno}: {root} runs what it loads; use safetensors, JSON or .npz")
        elif isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node.func) == "torch.load" and given.get("weights_only") != "True":
                breaches.append(f"line {node.lineno}: torch.load needs weights_only=True")
            if given.get("allow_pickle", "False") != "False":
                breaches.append(f"line {node.lineno}: allow_pickle must be False")
    return breaches


def swallowed_errors(source: str) -> list[str]:
    """`except:` without a class catches even an interrupt."""
    handlers = (node for node, _ in _nodes(ast.parse(source)) if isinstance(node, ast.ExceptHandler))
    return [f"line {node.lineno}: a bare except; name the errors" for node in handlers if node.type is None]


_HOST_HEADER = re.compile(
    r'^\s*#\s*include\s*[<"](Python\.h|(?:torch|ATen|c10|nanobind|pybind11|numpy)/[^>"]*)[>"]', re.M
)


def host_headers(source: str) -> list[str]:
    """Headers of Python, torch or numpy in C++."""
    return [f"includes {name}; only native/bindings may" for name in _HOST_HEADER.findall(source)]


_HOME = re.compile(r"(?<![\w.:/~$}-])/(?:home|root|work|Users)/[\w.-]*")


def home_paths(text: str) -> list[str]:
    """Absolute paths that exist on one developer's machine only."""
    lines = enumerate(text.splitlines(), 1)
    return [f"line {number}: {path}" for number, line in lines for path in _HOME.findall(line)]


_CODE = {".py", ".pyi", ".cc", ".cpp", ".cxx", ".h", ".hpp", ".inc", ".cu", ".cmake"}
_NOT_OURS = {"build", "dist", "runs", "__pycache__"}


def repository_files() -> list[Path]:
    """Every file that belongs to the repository: all but hidden folders, build products and runs."""
    files = []
    for folder, folders, names in os.walk(REPOSITORY):
        folders[:] = [name for name in folders if not (name in _NOT_OURS or name.endswith(".egg-info"))]
        folders[:] = [name for name in folders if name == ".ci" or not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.endswith((".so", ".part", ".pyc", ".coverage"))]
    return sorted(files)


def code_files() -> list[Path]:
    """The repository's files that hold code."""
    return [path for path in repository_files() if path.suffix in _CODE]


def text_of(path: Path) -> str | None:
    """A file's text, or None where it is not text."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return None
