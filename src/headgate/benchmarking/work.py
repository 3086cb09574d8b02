"""What a child process does: build everything, check it, time it in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, get_args

import numpy as np
import torch

from headgate.benchmarking.images import calibration_images
from headgate.benchmarking.libraries.library import Absent, Images, Library, Runner, Work
from headgate.benchmarking.libraries.registry import LIBRARIES
from headgate.benchmarking.network import Network
from headgate.benchmarking.record import Call, Findings, Layer, LayerTable, Setting, Spread, Timed, titled
from headgate.benchmarking.request import Dtype, Request
from headgate.benchmarking.subject import gated_networks, make_subject, pruned_networks
from headgate.benchmarking.timing import interleaved, repeated
from headgate.engine import Engine, LayerStats
from headgate.errors import BenchmarkError
from headgate.exporting import export
from headgate.machine import computes_bf16
from headgate.ops import native

Report = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much is done."""

TOLERANCE: Final[Mapping[Dtype, float]] = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.25}
"""Of an output against torch's in float32, relative to the largest output: Winograd's in float32; 2⁻⁸ through a deep
network in the others. Another network is off by about 1."""
CALLS: Final = 1000
LOADS: Final = 7


class Candidate(NamedTuple):
    """Something to time: a runner and what it is."""

    name: str
    network: Network
    dtype: Dtype
    macs: int
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
        attempt: called with the name of what may take this process down, before it runs for the first time, and with
            None when it did not.
        absent: reasons of what is not to be tried, by such names.
    """

    def __init__(
        self,
        request: Request,
        threads: int,
        folder: Path,
        *,
        report: Report = lambda *_: None,
        attempt: Callable[[str | None], None] = lambda _: None,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        self.request, self.threads, self.folder, self.report, self.attempt = request, threads, folder, report, attempt
        self.absent = dict(absent or {})
        self.versions: dict[str, str] = {}

    def findings(self) -> Findings:
        """Do it.

        Raises: BenchmarkError: the engine computes another function. HeadgateError: see `make_subject`.
        """
        torch.set_num_threads(self.threads)
        extension = native.module()
        self.report("building networks", 0, 1)
        subject = make_subject(self.request, self.folder)
        gated = list(gated_networks(self.request, subject))
        targets = sorted({network.macs for network in gated})
        networks = [subject.dense, *pruned_networks(self.request, subject, targets, self.absent), *gated]
        settings = tuple(self._setting(batch, networks) for batch in self.request.batches)
        biggest = max((plan.path for network in (subject.dense, *gated) for plan in network.plans), key=_size)
        channels, height, width = subject.images.shape[1:]
        return Findings(
            network=subject.name,
            shape=(channels, height, width),
            isa=str(extension.active_isa()) if extension is not None else "",
            gated=tuple(plan.about for network in gated for plan in network.plans if plan.about is not None),
            settings=settings,
            absent=self.absent,
            versions={"torch": torch.__version__, "numpy": np.__version__} | self.versions,
            call=self._call(biggest),
        )

    def _setting(self, batch: int, networks: list[Network]) -> Setting:
        candidates = {str(i): candidate for i, candidate in enumerate(self._candidates(batch, networks))}
        meters = {name: Meter(c.run) for name, c in candidates.items() if isinstance(c.run, Engine)}
        title, repeats = f"timing batches of {batch}", self.request.repeats
        self.report(title, 0, repeats)
        seconds = interleaved(
            {name: _call(candidate, batch) for name, candidate in candidates.items()},
            repeats,
            after={name: meter.read for name, meter in meters.items()},
            report=lambda done: self.report(title, done, repeats),
        )
        timed = tuple(
            Timed(
                name=candidate.name,
                network=candidate.network.name,
                kind=candidate.network.kind,
                dtype=candidate.dtype,
                macs=candidate.macs,
                ms=Spread.of([1e3 * value / batch for value in seconds[name]]),
            )
            for name, candidate in candidates.items()
        )
        metered = [(candidates[name], meter) for name, meter in meters.items()]
        dense = {candidate.dtype: meter for candidate, meter in metered if candidate.network.kind == "dense"}
        tables = tuple(
            layer_table(candidate.network.name, candidate.dtype, meter, dense.get(candidate.dtype))
            for candidate, meter in metered
            if candidate.network.kind == "gated"
        )
        return Setting(threads=self.threads, batch=batch, repeats=repeats, timed=timed, layers=tables)

    # ------------------------------------------------------------------------------------------------------- runners

    def _candidates(self, batch: int, networks: list[Network]) -> Iterator[Candidate]:
        """Everything that runs, libraries first; all but the gated networks are checked against torch."""
        for network in networks:
            for library, dtype in self._libraries(network):
                yield from self._library(library, network, dtype, batch)
        for network in networks:
            for plan in network.plans:
                engine = Engine(plan.path, threads=self.threads, paths="sparse")
                if network.kind == "gated":  # at its best, as the libraries are
                    engine.tune(network.images[:batch], keep=False)
                if network.module is not None:
                    images = network.images[:batch]
                    title = titled(f"headgate: {network.name}", plan.dtype)
                    check_output(title, engine(images), reference(network, images), plan.dtype)
                yield Candidate("headgate", network, plan.dtype, plan.macs, engine)

    def _libraries(self, network: Network) -> list[tuple[Library, Dtype]]:
        """What is to run a network, and in which dtype."""
        request, ours = self.request, tuple(plan.dtype for plan in network.plans)
        if network.kind == "dense":
            asked = ((x, d) for d in get_args(Dtype) for x in LIBRARIES if d in x.dense)
            return [(x, d) for x, d in asked if request.wants_dense(x.name, d, engine=ours)]
        if network.kind == "pruned":
            return [(x, d) for d in ours for x in LIBRARIES if d in x.pruned and request.wants(x.name)]
        return []

    def _library(self, library: Library, network: Network, dtype: Dtype, batch: int) -> Iterator[Candidate]:
        obstacle = library.obstacle(self.request.held)
        if obstacle is not None:
            self.absent[library.title] = obstacle
            return
        obstacle = _obstacle(dtype, self.request.held)
        if obstacle is not None:
            self.absent[dtype] = obstacle
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
            calibration=_batches(calibration_images(network.images), batch) or (images,),
            threads=self.threads,
            dtype=dtype,
            folder=folder,
            held=self.request.held,
        )
        self.attempt(label)
        try:
            run = library.build(work)
            check_output(label, run(images), reference(network, images), dtype)
        except (Absent, BenchmarkError) as reason:
            self.absent[label] = str(reason)
            return
        except Exception as error:  # whatever a library raises, the others can still be timed
            self.absent[label] = _first_line(error)
            return
        finally:
            self.attempt(None)
        self.versions |= library.versions()
        yield Candidate(library.title, network, dtype, network.macs, run)

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


def layer_table(name: str, dtype: Dtype, gated: Meter, dense: Meter | None) -> LayerTable:
    """The layers of a gated plan that compute something, beside the dense plan's of the same names."""
    dense_ms = {} if dense is None else dense.ms()
    gated_ms = gated.ms()
    return LayerTable(
        network=name,
        dtype=dtype,
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
    pieces, run = _batches(candidate.network.images, batch), candidate.run
    return lambda repeat: run(pieces[repeat % len(pieces)])


def _batches(images: Images, batch: int) -> tuple[Images, ...]:
    """Whole ones, contiguous."""
    return tuple(np.ascontiguousarray(images[i : i + batch]) for i in range(0, len(images) - batch + 1, batch))


def _obstacle(dtype: Dtype, held: str | None) -> str | None:
    """Why nothing can be timed in a dtype; else None."""
    if dtype == "bfloat16" and held is not None:
        return f"not timed where instruction sets are held to {held}"
    if dtype == "bfloat16" and not computes_bf16():
        return "this CPU has no arithmetic in bfloat16"
    return None


def _size(path: Path) -> int:
    return path.stat().st_size


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
