"""A network as an ONNX file: in float32, or quantised to 8 bits by onnxruntime.quantization."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from headgate.benchmarking.libraries.library import Absent, Images, Work

INPUT: Final = "images"
"""The name of the network's input."""


def write(work: Work) -> Path:
    """The network of a fixed shape, in work's dtype.

    Raises: Absent: what quantises it is not installed.
    """
    path = work.folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without extra packages is the deprecated one
        torch.onnx.export(work.module, (torch.from_numpy(work.images),), str(path), dynamo=False, input_names=[INPUT])
    return _quantised(path, work) if work.dtype == "int8" else path


def _quantised(path: Path, work: Work) -> Path:
    """Static ranges, pairs of QuantizeLinear and DequantizeLinear, signed weights per channel, unsigned activations."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise Absent(f"{', '.join(missing)} not installed, which quantises; pip install {' '.join(missing)}")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantised = work.folder / "prepared.onnx", work.folder / "quantised.onnx"
    with _temporary_files_in(work.folder):
        quant_pre_process(str(path), str(prepared))
        quantize_static(
            str(prepared),
            str(quantised),
            _Reader(work.calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return quantised


class _Reader:
    """Images, as onnxruntime.quantization asks for them."""

    def __init__(self, batches: tuple[Images, ...]) -> None:
        self.left = iter(batches)

    def get_next(self) -> dict[str, Images] | None:
        """The next batch by the input's name; None after the last."""
        batch = next(self.left, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """The quantiser leaves its own behind when it is ended; here they go with the folder."""
    before: Any = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
