"""The native engine against dense inference libraries, on the shipped ResNet-20 and real images, in one process.

    python benchmarks/engine.py --data ../shared/data/cifar10 --threads 1

Rivals run the dense network: torch, and ONNX Runtime and OpenVINO where they are installed (pip install onnx onnxscript
onnxruntime openvino). The engine runs it too, and the gated ones. Repeats are interleaved; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import headgate as hg
from headgate.files import write_atomic
from headgate.train import DataConfig
from headgate.train.prepare import evaluation_batches

Images = NDArray[np.float32]
Runner = Callable[[Images], Images]

DENSE = "resnet20-cifar10-dense"
GATED = ("resnet20-cifar10-activation", "resnet20-cifar10-group")


def torch_runner(model: nn.Module, memory_format: torch.memory_format) -> Runner:
    model = model.to(memory_format=memory_format)

    def run(images: Images) -> Images:
        with torch.inference_mode():
            return model(torch.from_numpy(images).contiguous(memory_format=memory_format)).numpy()  # type: ignore[no-any-return]

    return run


def onnxruntime_runner(model: nn.Module, folder: Path, threads: int) -> Runner | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    path = str(folder / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(1, 3, 32, 32),), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"x": images})[0]


def openvino_runner(model: nn.Module, threads: int, batch: int) -> Runner | None:
    try:
        import openvino
    except ImportError:
        return None
    converted = openvino.convert_model(model, example_input=torch.zeros(1, 3, 32, 32), input=[batch, 3, 32, 32])
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(converted, "CPU", config).create_infer_request()
    return lambda images: request.infer([images])[0]


def runners(folder: Path, threads: int, batch: int) -> dict[str, Runner]:
    """Everything that runs, by name: rivals first."""
    dense = hg.pretrained(DENSE).eval()
    found: dict[str, Runner | None] = {
        "torch, contiguous": torch_runner(hg.pretrained(DENSE).eval(), torch.contiguous_format),
        "torch, channels last": torch_runner(hg.pretrained(DENSE).eval(), torch.channels_last),
        "ONNX Runtime": onnxruntime_runner(dense, folder, threads),
        "OpenVINO": openvino_runner(dense, threads, batch),
    }
    for name in (DENSE, *GATED):
        path = folder / f"{name}.hgplan"
        hg.export(hg.pretrained(name), path, example_input=torch.zeros(1, 3, 32, 32))
        found[f"engine, {name}"] = hg.Engine(path, threads=threads)
    return {name: runner for name, runner in found.items() if runner is not None}


def measure(options: argparse.Namespace, batch: int, folder: Path) -> dict[str, float]:
    """Median milliseconds for each image, by runner."""
    model = hg.pretrained(DENSE)
    batches = evaluation_batches(model, DataConfig(source=options.data), limit=512)
    images = torch.cat([images for images, *_ in batches]).numpy()
    pieces = [np.ascontiguousarray(images[i : i + batch]) for i in range(0, len(images) - batch + 1, batch)]
    everything = runners(folder, options.threads, batch)
    expected = everything["torch, contiguous"](pieces[0])
    for name, run in everything.items():
        if not any(gated in name for gated in GATED):
            np.testing.assert_allclose(run(pieces[0]), expected, rtol=1e-3, atol=1e-3, err_msg=name)
    times: dict[str, list[float]] = {name: [] for name in everything}
    for repeat in range(options.repeats + 1):
        for name, run in everything.items():
            piece = pieces[repeat % len(pieces)]
            start = time.perf_counter()
            run(piece)
            if repeat:  # the first one warms up
                times[name].append(1e3 * (time.perf_counter() - start) / batch)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, dict[str, float]] = {}
    for batch in options.batches:
        with tempfile.TemporaryDirectory() as folder:
            results[str(batch)] = measure(options, batch, Path(folder))
        rivals = {name: value for name, value in results[str(batch)].items() if not name.startswith("engine")}
        best = min(rivals.values())
        print(f"\nbatch {batch}, {options.threads} thread(s)\n| | ms for each image | of the best library |")
        print("| --- | --- | --- |")
        for name, value in results[str(batch)].items():
            print(f"| {name} | {value:.3f} | {best / value:.2f}× |")
    if options.json is not None:
        record = {
            "command": f"python benchmarks/engine.py --threads {options.threads}",
            "data": "CIFAR-10 (JPEG-75 copy), test images",
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.backends.cpu.get_cpu_capability()}",
            "torch": torch.__version__,
            "date": date.today().isoformat(),
            "ms_per_image": results,
        }
        write_atomic(options.json, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
