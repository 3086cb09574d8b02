"""What a child process does: build everything, check it, time it in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, get_args

import numpy as np
import torch

from headgate.benchmarking.libraries.library import Absent, Dtype, Images, Library, Runner, Work
from headgate.benchmarking.libraries.registry import LIBRARIES
from headgate.benchmarking.record import Call, Findings, Gated, Layer, LayerTable, NetworkKind, Setting, Spread, Timed
from headgate.benchmarking.request import Request
from headgate.benchmarking.subject import Network, Subject, gated_networks, make_subject, pruned_networks
from headgate.benchmarking.timing import interleaved, repeated
from headgate.engine import Engine, LayerStats
from headgate.errors import BenchmarkError
from headgate.exporting import export
from headgate.machine import computes_bf16
from headgate.ops import native

Report = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much is done."""

TOLERANCE: Final = {"float32": 1e-3, "bfloat16": 0.1}
"""Of an output against torch's in float32, relative to the largest output: Winograd's in float32; 2⁻⁸ through a deep
network in bfloat16. Another network is off by about 1."""
CALLS: Final = 1000
LOADS: Final = 7


class Candidate(NamedTuple):
    """Something to time: a runner and what it is."""

    name: str
    network: Network
    kind: NetworkKind
    dtype: Dtype
    run: Runner


class Meter:
    """Reads an engine's figures of each layer repeat by repeat, so that a disturbed one does not count for all."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.readings: list[list[LayerStats]] = []
        engine.reset_stats()

    def read(self) -> None:
        """What was done since the last time."""
        self.readings.append(self.engine.stats())
        self.engine.reset_stats()

    def layers(self) -> dict[str, list[LayerStats]]:
        """All readings of each layer, in order of execution."""
        return {layers[0].name: list(layers) for layers in zip(*self.readings, strict=True)}

    def ms(self) -> dict[str, float]:
        """Milliseconds of one image in each layer: the median of the readings."""
        return {
            name: statistics.median(layer.time_ms / layer.images for layer in readings)
            for name, readings in self.layers().items()
        }


class Bench:
    """One process's work: a number of threads, every batch size.

    Args:
        folder: for plans and other temporary files.
        report: see `Report`.
    """

    def __init__(self, request: Request, threads: int, folder: Path, report: Report) -> None:
        self.request, self.threads, self.folder, self.report = request, threads, folder, report
        self.absent: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def findings(self) -> Findings:
        """Do it.

        Raises: BenchmarkError: something computes another function. HeadgateError: see `make_subject`.
        """
        torch.set_num_threads(self.threads)
        extension = native.module()
        self.report("building networks", 0, 1)
        subject = make_subject(self.request, self.folder)
        gated = list(gated_networks(self.request, subject))
        targets = sorted({network.macs for network in gated})
        pruned = list(pruned_networks(self.request, subject, targets))
        settings = tuple(self._setting(batch, subject, gated, pruned) for batch in self.request.batches)
        biggest = max((n.plan for n in [*gated, *([subject.dense] if subject.dense else [])]), key=_size)
        channels, height, width = subject.images.shape[1:]
        return Findings(
            network=subject.name,
            shape=(channels, height, width),
            isa=str(extension.active_isa()) if extension is not None else "",
            gated=tuple(_about(network) for network in gated),
            settings=settings,
            absent=self.absent,
            versions={"torch": torch.__version__, "numpy": np.__version__} | self.versions,
            call=self._call(biggest),
        )

    def _setting(self, batch: int, subject: Subject, gated: list[Network], pruned: list[Network]) -> Setting:
        candidates = list(self._candidates(batch, subject, gated, pruned))
        calls = {str(i): _call(candidate, batch) for i, candidate in enumerate(candidates)}
        meters = {str(i): Meter(c.run) for i, c in enumerate(candidates) if isinstance(c.run, Engine)}
        title, repeats = f"timing batches of {batch}", self.request.repeats
        self.report(title, 0, repeats)
        seconds = interleaved(
            calls,
            repeats,
            after={name: meter.read for name, meter in meters.items()},
            report=lambda done: self.report(title, done, repeats),
        )
        timed = tuple(
            Timed(
                name=candidate.name,
                network=candidate.network.name,
                kind=candidate.kind,
                dtype=candidate.dtype,
                macs=candidate.network.macs,
                ms=Spread.of([1e3 * value / batch for value in seconds[str(i)]]),
            )
            for i, candidate in enumerate(candidates)
        )
        read: dict[str, list[tuple[str, Meter]]] = {kind: [] for kind in get_args(NetworkKind)}
        for name, meter in meters.items():
            read[candidates[int(name)].kind].append((candidates[int(name)].network.name, meter))
        dense = read["dense"][0][1] if read["dense"] else None
        tables = tuple(layer_table(name, meter, dense) for name, meter in read["gated"])
        return Setting(threads=self.threads, batch=batch, repeats=repeats, timed=timed, layers=tables)

    # ------------------------------------------------------------------------------------------------------- runners

    def _candidates(
        self, batch: int, subject: Subject, gated: list[Network], pruned: list[Network]
    ) -> Iterator[Candidate]:
        """Everything that runs, libraries first; all but the gated ones are checked against torch."""
        dense = subject.dense
        if dense is not None:
            for library in LIBRARIES:
                if self.request.wants(library.name):
                    yield from self._library(library, dense, "dense", "float32", batch)
            if self.request.wants("bf16"):
                yield from self._bf16(dense, batch)
        for network in pruned:
            for library in LIBRARIES:
                if "pruned" in library.runs and self.request.wants(library.name):
                    yield from self._library(library, network, "pruned", "float32", batch)
            yield self._engine(network, "pruned", batch)
        if dense is not None:
            yield self._engine(dense, "dense", batch)
        for network in gated:
            yield self._engine(network, "gated", batch)

    def _bf16(self, dense: Network, batch: int) -> Iterator[Candidate]:
        if self.request.held is not None:
            self.absent["bfloat16"] = f"not timed where instruction sets are held to {self.request.held}"
        elif not computes_bf16():
            self.absent["bfloat16"] = "this CPU has no arithmetic in bfloat16"
        else:
            for library in LIBRARIES:
                if "bf16" in library.runs:
                    yield from self._library(library, dense, "dense", "bfloat16", batch)

    def _library(
        self, library: Library, network: Network, kind: NetworkKind, dtype: Dtype, batch: int
    ) -> Iterator[Candidate]:
        obstacle = library.obstacle(self.request.held)
        if obstacle is not None:
            self.absent[library.title] = obstacle
            return
        label = f"{library.title}, {network.name}, {dtype}"
        if label in self.absent:
            return
        self.report(f"building {label}, batches of {batch}", 0, 1)
        images = network.images[:batch]
        folder = self.folder / f"library-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        assert network.module is not None
        work = Work(
            module=network.module,
            images=images,
            threads=self.threads,
            dtype=dtype,
            folder=folder,
            held=self.request.held,
        )
        try:
            run = library.build(work)
            output = run(images)
        except Absent as reason:
            self.absent[label] = str(reason)
            return
        except Exception as error:  # whatever a library raises, the others can still be timed
            self.absent[label] = _first_line(error)
            return
        self.versions |= library.versions()
        check_output(label, output, reference(network, images), dtype)
        yield Candidate(library.title, network, kind, dtype, run)

    def _engine(self, network: Network, kind: NetworkKind, batch: int) -> Candidate:
        engine = Engine(network.plan, threads=self.threads, paths="sparse")
        if network.module is not None:
            images = network.images[:batch]
            check_output(f"headgate, {network.name}", engine(images), reference(network, images), "float32")
        return Candidate("headgate", network, kind, "float32", engine)

    # ---------------------------------------------------------------------------------------------------------- calls

    def _call(self, plan: Path) -> Call:
        self.report("timing calls and loads", 0, 1)
        tiny = self.folder / "tiny.hgplan"
        export(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)).eval(), tiny, example_input=torch.zeros(1, 1, 1, 1))
        engine, image = Engine(tiny, threads=self.threads), np.zeros((1, 1, 1, 1), np.float32)
        overhead = repeated(lambda: engine(image), CALLS)
        loads = repeated(lambda: Engine(plan, threads=self.threads, paths="sparse"), LOADS)
        return Call(
            overhead_us=Spread.of([1e6 * value for value in overhead]),
            load_ms=Spread.of([1e3 * value for value in loads]),
            load_bytes=_size(plan),
        )


def layer_table(name: str, gated: Meter, dense: Meter | None) -> LayerTable:
    """The layers of a gated plan that compute something, beside the dense plan's of the same names."""
    dense_ms = {} if dense is None else dense.ms()
    gated_ms = gated.ms()
    return LayerTable(
        network=name,
        layers=tuple(
            Layer(
                name=layer,
                decisions=sum(x.decisions for x in stats),
                density=statistics.fmean(x.density for x in stats),
                dense_macs=statistics.fmean(x.dense_macs / x.images for x in stats),
                executed_macs=statistics.fmean(x.executed_macs / x.images for x in stats),
                dense_ms=dense_ms.get(layer),
                gated_ms=gated_ms[layer],
            )
            for layer, stats in gated.layers().items()
            if stats[0].executed_macs
        ),
    )


def reference(network: Network, images: Images) -> Images:
    """What torch computes, module by module, in float32."""
    assert network.module is not None
    with torch.no_grad():
        output: Images = network.module(torch.from_numpy(images)).numpy()
        return output


def check_output(label: str, output: Images, expected: Images, dtype: Dtype) -> None:
    """Refuse to time what computes something else.

    Raises: BenchmarkError.
    """
    if output.shape != expected.shape:
        raise BenchmarkError(f"{label} must give an output of {expected.shape}, as torch does, got {output.shape}")
    scale = float(np.abs(expected).max())
    error = float(np.abs(output - expected).max())
    if not error <= TOLERANCE[dtype] * scale:  # also where it is not a number
        raise BenchmarkError(
            f"{label} must compute what torch does within {TOLERANCE[dtype]:g} of the largest output {scale:.4g}, "
            f"got a difference of {error:.4g}: its time would mean nothing"
        )


def _call(candidate: Candidate, batch: int) -> Callable[[int], object]:
    """A call with the repeat's own slice of the images."""
    images, run = candidate.network.images, candidate.run
    pieces = [np.ascontiguousarray(images[i : i + batch]) for i in range(0, len(images) - batch + 1, batch)]
    return lambda repeat: run(pieces[repeat % len(pieces)])


def _about(network: Network) -> Gated:
    assert network.about is not None
    return network.about


def _size(path: Path) -> int:
    return path.stat().st_size


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
