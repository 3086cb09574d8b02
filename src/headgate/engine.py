"""Run plan files in the native engine: no torch, no Python code of the model."""

from __future__ import annotations

import importlib
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headgate.errors import BackendError, CheckpointError, ConfigError, DtypeError, PlanError, ShapeError
from headgate.tuning import PATHS, Circumstances, ConditionalPath, PathChoice, PlanFile, check_path, recall, remember

__all__ = ["Engine", "LayerStats", "PathChoice"]

MAX_THREADS: Final = 256


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """What one operator of a plan has done since the engine was made or `reset_stats` called.

    Attributes:
        name: the module's name in the model.
        kind: the operator's kind, as in the plan.
        images: how many images ran.
        time_ms: wall time, summed over runs.
        dense_macs: what the dense layer would have cost.
        executed_macs: what was computed, as `headgate.count` counts; the same where nothing is gated.
        decisions, open_decisions: of a gated convolution's gates, over all images; 0 elsewhere.
        path: how a gated convolution completes its open outputs, "sparse" or "masked"; "" elsewhere. The masked path
            computes more than `executed_macs` counts.
    """

    name: str
    kind: str
    images: int
    time_ms: float
    dense_macs: int
    executed_macs: int
    decisions: int
    open_decisions: int
    path: str

    @property
    def density(self) -> float:
        """Share of decisions that were open; 1 for what is not gated."""
        return self.open_decisions / self.decisions if self.decisions else 1.0


class Engine:
    """A plan file, loaded and ready to run. May be called from several threads at once.

    Args:
        path: what `headgate.export` wrote.
        threads: of one call; None: as many as this process may use cores.
        paths: how gated convolutions complete their open outputs: "sparse", one by one, with work in proportion to
            their number; "masked", by a dense convolution of which what is open is kept; "tuned", as `tune` found for
            this plan, CPU, instruction set and number of threads, and sparse where it never ran. Or one of the first
            two for each layer named in a mapping, others as tuned.
    Raises:
        PlanError: the file cannot be read, is not a plan of this version, or needs more memory than this process may
            use.
        MemoryError: there was less memory than that.
        ConfigError: threads or paths is not accepted, or HEADGATE_ISA names nothing known.
        BackendError: this installation has no native module, or HEADGATE_ISA names what the build or CPU lacks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        paths: str | Mapping[str, ConditionalPath] = "tuned",
    ) -> None:
        native = _native()
        count = min(native.usable_cores(), MAX_THREADS) if threads is None else operator.index(threads)
        if not 1 <= count <= MAX_THREADS:
            raise ConfigError(f"threads must be in [1, {MAX_THREADS}], got {count}")
        try:
            self._engine = native.Engine(os.fsdecode(path), count)
        except native.PlanError as error:
            raise PlanError(str(error)) from None
        except native.BackendError as error:
            raise BackendError(str(error)) from None
        except ValueError as error:
            raise ConfigError(str(error)) from None
        except MemoryError:
            raise MemoryError(f"{os.fsdecode(path)}: not enough memory to load the plan") from None
        self._shape: tuple[int, int, int] = self._engine.input_shape
        self._file = PlanFile.of(os.fsdecode(path))
        self._circumstances = Circumstances(kernels=_build_of(native), isa=native.active_isa(), threads=self.threads)
        self._choose(paths)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self._shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one result, or (channels,) where it is a vector."""
        channels, height, width = self._engine.output_shape
        return (channels,) if height == width == 1 else (channels, height, width)

    @property
    def threads(self) -> int:
        """Threads of one call."""
        return int(self._engine.threads)

    def _choose(self, paths: str | Mapping[str, ConditionalPath]) -> None:
        if not isinstance(paths, (str, Mapping)):
            raise ConfigError(f"paths must be a name or a mapping, got {type(paths).__name__}")
        gated = [layer.name for layer in self.stats() if layer.path]
        if isinstance(paths, str) and paths in PATHS:
            chosen = dict.fromkeys(gated, check_path("all layers", paths))
        elif isinstance(paths, str) and paths != "tuned":
            raise ConfigError(f"paths must be one of tuned, {', '.join(PATHS)}, or a mapping, got {paths!r}")
        else:
            tuned = recall(self._file, self._circumstances)
            chosen = {name: path for name, path in tuned.items() if name in gated}
            for name, path in () if isinstance(paths, str) else paths.items():
                if name not in gated:
                    raise ConfigError(f"paths must name gated convolutions, got {name!r}")
                chosen[name] = check_path(name, path)
        for name, path in chosen.items():
            self._engine.set_path(name, path == "masked")

    def __call__(self, images: Any) -> NDArray[np.float32]:
        """Run a batch.

        Args:
            images: (n, channels, height, width), float32, contiguous, on the CPU: a numpy array, or anything that
                speaks DLPack; it is read in place.
        Returns: (n, …output_shape). An image's result is the same bit for bit whatever the batch and the threads.
        Raises:
            ShapeError, DtypeError: the images do not fit the plan, or are not contiguous.
            MemoryError: there is not enough for the results, or for the buffers of a run.
        """
        array = self._check(images)
        try:
            output: NDArray[np.float32] = self._engine.run(array)
        except MemoryError:
            raise MemoryError(
                f"not enough memory to run {len(array)} images; run fewer at a time, or from fewer threads at once"
            ) from None
        return output

    def _check(self, images: Any) -> NDArray[np.float32]:
        array = images if isinstance(images, np.ndarray) else _from_dlpack(images)
        if array.ndim != 4 or array.shape[1:] != self._shape:
            expected = ", ".join(map(str, self._shape))
            raise ShapeError(f"images must have shape (n, {expected}), got {tuple(array.shape)}")
        if array.dtype != np.float32:
            raise DtypeError(f"images must be float32, got {array.dtype}; convert them first")
        if not array.flags.c_contiguous:
            raise ShapeError(
                f"images must be contiguous in the order (n, channels, height, width), got strides {array.strides} "
                "bytes; call numpy.ascontiguousarray, or .contiguous() of a torch tensor"
            )
        return array

    def shift_thresholds(self, offset: float) -> None:
        """Shift every threshold by `offset` standard deviations from the next call on: the run-time dial.

        Positive offsets close gates and save more; shifts add up, and -offset undoes one.

        Raises: ConfigError: the offset, or the sum of all offsets, is not finite.
        """
        if isinstance(offset, bool) or not isinstance(offset, Real):
            raise ConfigError(f"offset must be a number, got {offset!r}")
        try:
            self._engine.shift_thresholds(float(offset))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def tune(self, images: Any, *, repeats: int = 9, keep: bool = True) -> list[PathChoice]:
        """Time both paths of every gated convolution on these images and take the faster ones from now on.

        Times depend on how many decisions are open: give images, and a dial, like those to come, in batches of the
        size to come. While it runs, calls from other threads disturb the times and may take either path.

        Args:
            images: as for a call, at least one.
            repeats: of each path; medians count.
            keep: remember the choice for later engines of the same plan, CPU, build, instruction set and number of
                threads, instead of what was remembered before: one choice serves batches of every size.
        Returns: a choice for each gated convolution, in order of execution.
        Raises:
            ShapeError, DtypeError: as for a call; or there are no images.
            ConfigError: repeats < 1.
            CheckpointError: the file is no longer what was loaded, so that nothing was timed; or the choice cannot be
                kept, but the engine has it.
            MemoryError: there is not enough for the weights of both paths.
        """
        array = self._check(images)
        if len(array) == 0:
            raise ShapeError("images must be at least one, got none")
        if repeats < 1:
            raise ConfigError(f"repeats must be ≥ 1, got {repeats}")
        try:
            self._file.require_unchanged()  # the weights of a path that was never taken are read from it
        except FileNotFoundError:
            pass  # one that is gone is still mapped, whole
        except OSError as error:
            raise CheckpointError(f"cannot time the paths: {error}") from None
        try:
            choices = [_choice(*values) for values in self._engine.tune(array, repeats)]
        except MemoryError:
            raise MemoryError("not enough memory to hold the weights of both paths; choose them by name") from None
        if keep and choices:
            remember(self._file, self._circumstances, batch=len(array), choices=choices)
        return choices

    def stats(self) -> list[LayerStats]:
        """What every operator has done, in order of execution."""
        fields = LayerStats.__dataclass_fields__
        return [LayerStats(**dict(zip(fields, values, strict=True))) for values in self._engine.stats()]

    def reset_stats(self) -> None:
        """Start counting anew."""
        self._engine.reset_stats()


def _choice(name: str, density: float, sparse_ms: float, masked_ms: float, path: str) -> PathChoice:
    return PathChoice(name=name, density=density, sparse_ms=sparse_ms, masked_ms=masked_ms, path=check_path(name, path))


def _native() -> Any:
    try:
        return importlib.import_module("headgate._native")
    except ModuleNotFoundError:
        raise BackendError(
            "this installation of headgate has no native module; install it with a C++20 compiler at hand"
        ) from None


def _build_of(native: Any) -> str:
    """Tells builds of the native module apart: measured times do not outlive the kernels."""
    status = Path(native.__file__).stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def _from_dlpack(images: Any) -> NDArray[Any]:
    if not hasattr(images, "__dlpack__"):
        raise DtypeError(f"images must be a numpy array or speak DLPack, got {type(images).__name__}")
    try:
        return np.from_dlpack(images)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DtypeError(f"images must be readable in place on the CPU: {error}") from None
