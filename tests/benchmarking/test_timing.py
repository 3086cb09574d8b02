"""Interleaving, spreads, the figures of layers and the record, on numbers that are known."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from headgate.benchmarking.picture import write_picture
from headgate.benchmarking.record import Call, Findings, Gated, Layer, LayerTable, Record, Setting, Spread, Timed
from headgate.benchmarking.timing import interleaved, repeated
from headgate.errors import CheckpointError


def test_calls_take_turns_from_a_place_that_moves_on() -> None:
    order: list[tuple[str, int]] = []
    now = [0.0]

    def call(name: str, seconds: float) -> Callable[[int], None]:
        def run(repeat: int) -> None:
            order.append((name, repeat))
            now[0] += seconds

        return run

    reads: list[int] = []
    reports: list[int] = []
    seconds = interleaved(
        {"a": call("a", 1.0), "b": call("b", 2.0)},
        3,
        after={"b": lambda: reads.append(len(order))},
        report=reports.append,
        clock=lambda: now[0],
    )
    assert seconds == {"a": [1.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0]}
    names = ["a", "b", "b", "a", "a", "b"]
    assert [name for name, _ in order[::2]] == names
    assert order[::2] == order[1::2]  # each timed call follows an untimed one with the same images
    assert [repeat for _, repeat in order[::4]] == [0, 1, 2]
    assert reads == [4, 6, 12]
    assert reports == [1, 2, 3]
    assert gc.isenabled()


def test_an_interrupt_leaves_garbage_collection_on() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repeated(interrupt, 2)
    assert gc.isenabled()


def test_spread() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0]) == Spread(median=2.5, q1=1.75, q3=3.25)
    assert Spread.of([7.0]) == Spread(median=7.0, q1=7.0, q3=7.0)


def layer(name: str, dense_ms: float | None, gated_ms: float, *, macs: float = 100.0, executed: float = 25.0) -> Layer:
    return Layer(
        name=name,
        decisions=10,
        density=0.1,
        dense_macs=macs,
        executed_macs=executed,
        dense_ms=dense_ms,
        gated_ms=gated_ms,
    )


def test_theory_measured_and_fraction() -> None:
    slow, fast = layer("a", 3.0, 1.5), layer("b", 1.0, 0.5, macs=300.0, executed=75.0)
    assert (slow.theory, slow.measured, slow.fraction) == (4.0, 2.0, 0.5)
    stem = replace(slow, decisions=0, executed_macs=100.0)
    total = LayerTable(network="x", dtype="float32", layers=(stem, slow, fast)).total
    assert total is not None
    assert (total.theory, total.measured, total.fraction) == (4.0, 2.0, 0.5)
    assert layer("c", None, 1.0).fraction is None
    partly = LayerTable(network="x", dtype="float32", layers=(slow, layer("c", None, 1.0))).total
    assert partly is not None
    assert partly.measured is None
    assert LayerTable(network="x", dtype="float32", layers=(stem,)).total is None


def timed(name: str, kind: str, ms: float, dtype: str = "float32") -> Timed:
    spread = Spread(median=ms, q1=0.9 * ms, q3=1.2 * ms)
    return Timed(name=name, network=kind, kind=kind, dtype=dtype, macs=250 if kind == "gated" else 1000, ms=spread)  # type: ignore[arg-type]


def record() -> Record:
    setting = Setting(
        threads=1,
        batch=4,
        repeats=3,
        timed=(
            timed("PyTorch", "dense", 9.0),
            timed("OpenVINO", "dense", 6.0),
            timed("OpenVINO", "dense", 4.0, "bfloat16"),
            timed("OpenVINO", "pruned", 3.0),
            timed("headgate", "pruned", 2.5),
            timed("headgate", "dense", 5.0),
            timed("headgate", "gated", 2.0),
        ),
        layers=(LayerTable(network="gated", dtype="float32", layers=(layer("a", 3.0, 1.5),)),),
    )
    spread = Spread(median=1.0, q1=1.0, q3=1.0)
    findings = Findings(
        network="net",
        shape=(3, 8, 8),
        isa="avx2",
        gated=(
            Gated(
                name="gated",
                dtype="float32",
                images="4 images: white noise",
                dense_macs=100,
                executed_macs=25,
                density={"a": 0.1},
                after_open=None,
                plan_bytes=10,
            ),
        ),
        settings=(setting, replace(setting, batch=8)),
        absent={"ncnn": "ncnn not installed; pip install ncnn"},
        versions={"torch": "2"},
        call=Call(overhead_us=spread, load_ms=spread, load_bytes=10),
    )
    machine = {"cpu": "a CPU", "usable_cores": 2, "load_average_at_start": 0.1}
    return Record(
        command="headgate bench net",
        request={"models": ["net"]},
        date="2026-01-01",
        machine=machine,
        findings=(findings,),
    )


def test_the_best_of_each_kind() -> None:
    setting = record().settings[0]
    assert setting.best("float32") == setting.timed[1]
    assert setting.best("bfloat16") == setting.best_of_any_dtype
    assert setting.best("int8") is None
    assert setting.best_of_any_dtype == setting.timed[2]
    assert setting.best_pruned == setting.timed[4]
    assert setting.speedup(setting.timed[-1]) == 3.0
    alone = replace(setting, timed=setting.timed[-1:])
    assert alone.best("float32") is None
    assert alone.speedup(alone.timed[0]) is None
    assert alone.whole(alone.layers[0]) is None


def test_findings_survive_json() -> None:
    findings = record().findings[0]
    assert Findings.from_dict(json.loads(json.dumps(findings.to_dict()))) == findings


def test_record_and_picture_are_written_whole(tmp_path: Path) -> None:
    made = record()
    made.write(tmp_path / "r.json")
    stored = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert stored["command"] == "headgate bench net"
    derived = stored["findings"][0]["settings"][1]["derived"]
    assert derived["best_of_any_dtype"] == "OpenVINO: dense, bfloat16"
    assert derived["speedup_over_best"]["headgate: gated"] == 3.0
    assert derived["gated_layers"] == {"gated": {"theory": 4.0, "measured": 2.0, "fraction_of_theory": 0.5}}
    assert derived["whole_network"] == {"gated": {"theory": 4.0, "measured": 3.0, "fraction_of_theory": 0.75}}
    write_picture(made, tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as picture:
        assert min(picture.size) > 300
    for write in (made.write, lambda path: write_picture(made, path)):
        with pytest.raises(CheckpointError, match="cannot write"):
            write(tmp_path / "missing" / "r")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.png"]


def test_a_picture_of_an_engine_alone(tmp_path: Path) -> None:
    made = record()
    setting = made.settings[0]
    alone = replace(
        setting,
        timed=setting.timed[-1:],
        layers=(LayerTable(network="x", dtype="float32", layers=(layer("a", None, 1.0),)),),
    )
    findings = replace(made.findings[0], settings=(alone,))
    write_picture(replace(made, findings=(findings,)), tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 1000
