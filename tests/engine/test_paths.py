"""The two ways to complete open outputs: the same results, a choice by time, remembered."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plan_interpreter import PlanInterpreter
from plan_networks import Gated, settle
from torch import nn

import headgate as hg
from headgate.errors import CheckpointError, ConfigError, ShapeError
from headgate.tuning import Circumstances, PathChoice, PlanFile, recall, remember

ROUNDED = 1e-5
"""Relative to the largest output: the two paths add in different orders."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "headgate" / "paths"


def plan(folder: Path, **options: Any) -> tuple[Path, np.ndarray[Any, Any]]:
    """A plan of a gated network, and images that leave no decision in doubt."""
    torch.manual_seed(12)
    x = torch.randn(3, 3, 13, 12)
    model = Gated(act=options.pop("act", nn.ReLU))
    hg.gate_(model, hg.GateConfig(**{"groups": 4} | options), example_input=x)
    path = folder / "model.hgplan"
    hg.export(settle(model, x), path, example_input=x)
    interpreter = PlanInterpreter(path)
    for _ in range(100):
        x = torch.randn(3, 3, 13, 12)
        if all(gate.margin.abs().min() > ROUNDED for gate in interpreter.run(x).gates.values()):
            return path, x.numpy()
    raise AssertionError("no images without doubtful decisions")


def narrow_plan(folder: Path, precision: str, granularity: str = "activation") -> tuple[Path, np.ndarray[Any, Any]]:
    """The plan of a gated network in any precision, and images."""
    torch.manual_seed(12)
    x = torch.randn(3, 3, 13, 12)
    model = Gated(act=nn.ReLU)
    hg.gate_(model, hg.GateConfig(groups=4, granularity=granularity), example_input=x)
    path = folder / "model.hgplan"
    calibration = {"calibration": x} if precision == "int8" else {}
    hg.export(settle(model, x), path, example_input=x, precision=precision, **calibration)
    return path, x.numpy()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "activation"},
        {"granularity": "group"},
        {"granularity": "channel"},
        {"channel_bound": 0.4},
        {"act": nn.SiLU},
        {"act": nn.Tanh, "grouped": False},
    ],
    ids=str,
)
def test_both_paths_agree(options: dict[str, Any], threads: int, isa: str, tmp_path: Path) -> None:
    path, x = plan(tmp_path, **options)
    sparse, masked = (hg.Engine(path, threads=threads, paths=name) for name in ("sparse", "masked"))
    expected, output = sparse(x), masked(x)
    assert np.abs(output - expected).max() <= ROUNDED * np.abs(expected).max()
    gated = [(a, b) for a, b in zip(sparse.stats(), masked.stats(), strict=True) if a.decisions]
    assert gated
    for a, b in gated:
        assert (a.path, b.path) == ("sparse", "masked")
        assert 0 < a.open_decisions < a.decisions
        assert (a.open_decisions, a.executed_macs) == (b.open_decisions, b.executed_macs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_masked_path_does_not_depend_on_batch_or_threads(precision: str, isa: str, tmp_path: Path) -> None:
    path, x = narrow_plan(tmp_path, precision)
    whole = hg.Engine(path, threads=2, paths="masked")(x)
    alone = hg.Engine(path, threads=1, paths="masked")
    for i in range(len(x)):
        assert np.array_equal(alone(x[i : i + 1])[0], whole[i])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("granularity", ["activation", "group"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_both_paths_agree_in_narrow_numbers(
    precision: str, granularity: str, threads: int, isa: str, tmp_path: Path
) -> None:
    path, x = narrow_plan(tmp_path, precision, granularity)
    sparse, masked = (hg.Engine(path, threads=threads, paths=name) for name in ("sparse", "masked"))
    expected, output = sparse(x), masked(x)
    if precision == "int8":  # integer sums are exact
        assert np.array_equal(output, expected)
    else:  # an order of sums apart, which may round a later input, or tip a decision, the other way
        assert np.abs(output - expected).max() <= 2e-2 * np.abs(expected).max()
    gated = [(a, b) for a, b in zip(sparse.stats(), masked.stats(), strict=True) if a.decisions]
    assert gated
    for a, b in gated:
        assert (a.path, b.path) == ("sparse", "masked")
        assert 0 < a.open_decisions < a.decisions
        if precision == "int8":
            assert (a.open_decisions, a.executed_macs) == (b.open_decisions, b.executed_macs)


def test_paths_by_layer(tmp_path: Path) -> None:
    path, _ = plan(tmp_path)
    first = next(layer.name for layer in hg.Engine(path).stats() if layer.path)
    engine = hg.Engine(path, paths={first: "masked"})
    assert {layer.path for layer in engine.stats() if layer.name == first} == {"masked"}
    assert {layer.path for layer in engine.stats() if layer.path and layer.name != first} == {"sparse"}
    assert {layer.path for layer in engine.stats() if layer.kind != "gated_conv"} <= {""}


def test_tuning_chooses_the_faster_path_and_remembers_it(cache: Path, tmp_path: Path) -> None:
    path, x = plan(tmp_path)
    engine = hg.Engine(path, threads=1)
    before = [(layer.images, layer.decisions) for layer in engine.stats()]
    choices = engine.tune(x, repeats=3)
    assert [(layer.images, layer.decisions) for layer in engine.stats()] == before
    gated = [layer for layer in engine.stats() if layer.path]
    assert [(layer.name, layer.path) for layer in gated] == [(choice.name, choice.path) for choice in choices]
    for choice in choices:
        assert choice.path == ("masked" if choice.masked_ms < 0.97 * choice.sparse_ms else "sparse")
        assert min(choice.sparse_ms, choice.masked_ms) > 0
    engine(x)
    densities = {layer.name: layer.density for layer in engine.stats()}
    assert {choice.name: choice.density for choice in choices} == pytest.approx(
        {c.name: densities[c.name] for c in choices}
    )

    (file,) = cache.iterdir()
    record = json.loads(file.read_text())
    assert record["batch"] == 3
    for layer in record["layers"]:  # what is remembered is what the next engine does
        layer["path"] = "masked" if layer["path"] == "sparse" else "sparse"
    file.write_text(json.dumps(record))
    again = {layer.name: layer.path for layer in hg.Engine(path, threads=1).stats() if layer.path}
    assert again == {layer["name"]: layer["path"] for layer in record["layers"]}
    assert {layer.path for layer in hg.Engine(path, threads=1, paths="sparse").stats()} <= {"sparse", ""}
    assert {layer.path for layer in hg.Engine(path, threads=2).stats()} <= {"sparse", ""}  # of other circumstances


def test_tuning_without_a_trace(cache: Path, tmp_path: Path) -> None:
    path, x = plan(tmp_path)
    hg.Engine(path).tune(x, repeats=1, keep=False)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', "\xff"])
def test_a_damaged_record_counts_as_none(content: str, cache: Path, tmp_path: Path) -> None:
    path, x = plan(tmp_path)
    hg.Engine(path, threads=1).tune(x, repeats=1)
    (file,) = cache.iterdir()
    file.write_text(content, encoding="latin-1")
    assert {layer.path for layer in hg.Engine(path, threads=1).stats()} <= {"sparse", ""}


def test_a_record_of_another_plan_is_not_used(cache: Path, tmp_path: Path) -> None:
    path, x = plan(tmp_path)
    hg.Engine(path, threads=1).tune(x, repeats=1)
    (file,) = cache.iterdir()
    record = json.loads(file.read_text())
    record["plan"] = "0" * 64
    record["layers"] = [layer | {"path": "masked"} for layer in record["layers"]]
    file.write_text(json.dumps(record))
    assert {layer.path for layer in hg.Engine(path, threads=1).stats()} <= {"sparse", ""}


def test_errors(cache: Path, tmp_path: Path) -> None:
    path, x = plan(tmp_path)
    engine = hg.Engine(path)
    with pytest.raises(ConfigError, match=r"paths must be one of tuned, sparse, masked, or a mapping, got 'fast'"):
        hg.Engine(path, paths="fast")
    with pytest.raises(ConfigError, match=r"paths must name gated convolutions, got 'nowhere'"):
        hg.Engine(path, paths={"nowhere": "sparse"})
    with pytest.raises(ConfigError, match=r"paths must be a name or a mapping, got list"):
        hg.Engine(path, paths=["sparse"])  # type: ignore[arg-type]
    name = next(layer.name for layer in engine.stats() if layer.path)
    with pytest.raises(ConfigError, match=rf"the path of {name} must be one of sparse, masked, got 'dense'"):
        hg.Engine(path, paths={name: "dense"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"repeats must be ≥ 1, got 0"):
        engine.tune(x, repeats=0)
    with pytest.raises(ShapeError, match=r"images must be at least one, got none"):
        engine.tune(x[:0])
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"cannot write"):
        engine.tune(x, repeats=1)
    cache.unlink()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot remember what was measured: .*No such file"):
        engine.tune(x, repeats=1)
    path.write_bytes(b"another file")
    with pytest.raises(CheckpointError, match=r"changed since it was loaded"):
        engine.tune(x, repeats=1)


def test_a_plan_that_was_cut_short_under_an_engine(tmp_path: Path) -> None:
    """To read what is mapped behind its end would end the process."""
    path, x = plan(tmp_path)
    engine = hg.Engine(path, paths="sparse")
    with path.open("r+b") as file:
        file.truncate(0)
    with pytest.raises(CheckpointError, match=r"cannot time the paths: .* changed since it was loaded"):
        engine.tune(x, repeats=1)
    engine(x)


@pytest.mark.parametrize("other", ["kernels", "isa", "threads"])
def test_what_was_measured_holds_for_its_circumstances_only(other: str, cache: Path, tmp_path: Path) -> None:
    path, _ = plan(tmp_path)
    file = PlanFile.of(str(path))
    known = Circumstances(kernels="1", isa="avx2", threads=1)
    choice = PathChoice(name="a", density=0.1, sparse_ms=2.0, masked_ms=1.0, path="masked")
    remember(file, known, batch=1, choices=[choice])
    assert recall(file, known) == {"a": "masked"}
    assert recall(file, replace(known, **{other: 2 if other == "threads" else "2"})) == {}
    (tmp_path / "again").write_bytes(path.read_bytes())
    assert recall(PlanFile.of(str(tmp_path / "again")), known) == {"a": "masked"}
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size, with another weight
    assert recall(PlanFile.of(str(path)), known) == {}


@pytest.mark.parametrize("home", [None, "/dev/null/no/home"])
def test_no_home_is_no_obstacle(home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = plan(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    if home is None:
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setenv("HOME", home)
    engine = hg.Engine(path)
    with pytest.raises(CheckpointError):
        engine.tune(x, repeats=1)
    engine(x)


def test_a_special_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="not a regular file"):
        hg.export(nn.Sequential(nn.Conv2d(3, 4, 3)), pipe, example_input=torch.zeros(1, 3, 8, 8))
    assert pipe.is_fifo()
