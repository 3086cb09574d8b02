"""Narrow plans of a ResNet-18 at CIFAR size against the libraries' networks of that precision, one thread, one process.

    taskset -c 0 python benchmarks/narrow.py --precision int8
    taskset -c 0 python benchmarks/narrow.py --precision bfloat16

Random weights, G = 8, 6 % of every layer's decisions open on white noise. The libraries run the dense network; 8 bits:
quantised by onnxruntime.quantization (static, QDQ, per channel, unsigned activations); bfloat16: by their own setting,
which ONNX Runtime lacks. pip install 'headgate[bench]' brings them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Literal, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import headgate as hg
from headgate import machine
from headgate.benchmarking.libraries import openvino as openvino_library
from headgate.benchmarking.libraries import pytorch
from headgate.benchmarking.libraries.library import Work
from headgate.benchmarking.synthetic import settle_
from headgate.benchmarking.timing import interleaved
from headgate.files import write_atomic
from headgate.models import create

RESULTS = Path(__file__).parent / "results"
CALIBRATION = 8

Images = NDArray[np.float32]
Runner = Callable[[Images], object]
Precision = Literal["int8", "bfloat16"]


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self.left = [{"images": images[i : i + 1]} for i in range(len(images))]

    def get_next(self) -> dict[str, Images] | None:
        return self.left.pop() if self.left else None


def int8_file(model: nn.Module, images: Images, folder: Path) -> Path:
    """The dense network in 8 bits, as ONNX with batches of any size."""
    plain, prepared, quantised = (folder / f"{name}.onnx" for name in ("plain", "prepared", "quantised"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.from_numpy(images[:1]),),
            str(plain),
            dynamo=False,
            input_names=["images"],
            dynamic_axes={"images": {0: "n"}},
        )
    quant_pre_process(str(plain), str(prepared))
    quantize_static(
        str(prepared),
        str(quantised),
        _Images(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return quantised


def int8_runners(file: Path, shape: tuple[int, ...]) -> dict[str, Runner]:
    """ONNX Runtime's and OpenVINO's best settings."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    network = openvino.Core().read_model(str(file))
    network.reshape(list(shape))
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()
    return {
        "ONNX Runtime, dense, int8": lambda images: session.run(None, {"images": images}),
        "OpenVINO, dense, int8": lambda images: request.infer([images], share_inputs=True, share_outputs=True),
    }


def bfloat16_runners(model: nn.Module, images: Images, folder: Path) -> dict[str, Runner]:
    """PyTorch and OpenVINO as `headgate bench` sets them."""
    work = Work(module=model, images=images, threads=1, dtype="bfloat16", folder=folder, held=None)
    return {
        "PyTorch, dense, bfloat16": pytorch.eager_channels_last(work),
        "OpenVINO, dense, bfloat16": openvino_library.build(work),
    }


def plans(dense: nn.Module, x: torch.Tensor, precision: Precision, density: float, folder: Path) -> dict[str, Path]:
    """headgate's plans by name: dense and gated, in the precision, and in float32 for comparison."""
    models = {"dense": dense}
    for granularity in ("activation", "group"):
        models[granularity] = copy.deepcopy(dense)
        hg.gate_(models[granularity], hg.GateConfig(groups=8, granularity=granularity), example_input=x[:1])
        settle_(models[granularity], x, density=density)
    found = {}
    for name, model in models.items():
        for of_plan in (precision, "float32"):
            path = found[f"headgate, {name}, {of_plan}"] = folder / f"{name}-{of_plan}.hgplan"
            calibration = x[:CALIBRATION] if of_plan == "int8" else None
            hg.export(model, path, example_input=x[:1], precision=of_plan, calibration=calibration)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=get_args(Precision), required=True)
    parser.add_argument("--density", type=float, default=0.06)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(max(*options.batches, CALIBRATION), 3, 32, 32)
    dense = create("resnet18-cifar", num_classes=10).eval()
    settle_(dense, x)
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = int8_file(dense, x[:CALIBRATION].numpy(), folder) if options.precision == "int8" else None
        engines: dict[str, Runner] = {
            name: hg.Engine(path, threads=1, paths="sparse")
            for name, path in plans(dense, x, options.precision, options.density, folder).items()
        }
        for batch in options.batches:
            images = x[:batch].numpy()
            libraries = bfloat16_runners(dense, images, folder) if file is None else int8_runners(file, images.shape)
            runners = libraries | engines
            seconds = interleaved(
                {name: lambda _, run=run, images=images: run(images) for name, run in runners.items()}, options.repeats
            )
            results[str(batch)] = {name: statistics.quantiles(times, n=4) for name, times in seconds.items()}
            best = min(results[str(batch)][name][1] for name in libraries)
            print(
                f"\nbatch {batch}\n| | ms for each image | quartiles | of the best library |\n| --- | --- | --- | --- |"
            )
            for name, (low, median, high) in results[str(batch)].items():
                low, middle, high = (1e3 * value / batch for value in (low, median, high))
                print(f"| {name} | {middle:.3f} | {low:.3f}–{high:.3f} | {best / median:.2f}× |")
    record = {
        "command": f"taskset -c 0 python benchmarks/narrow.py --precision {options.precision}",
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "versions": {m.__name__: m.__version__ for m in (torch, onnxruntime, openvino)},
        "density": options.density,
        "repeats": options.repeats,
        "seconds_a_batch_quartiles": results,
    }
    write_atomic(RESULTS / f"{options.precision}-resnet18-cifar.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
