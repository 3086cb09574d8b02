"""OpenVINO: the latency setting, a model of fixed shape, in the asked precision; in 8 bits as ONNX Runtime's is."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from headgate.benchmarking.libraries import onnx
from headgate.benchmarking.libraries.library import Absent, Images, Runner, Work

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""Of what is not quantised."""


def build(work: Work) -> Runner:
    """A compiled model on the CPU; its convolutions are checked to be held where that was asked."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(onnx.write(work))) if work.dtype == "int8" else _converted(openvino, work)
    config: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": work.threads,
        "INFERENCE_PRECISION_HINT": _PRECISIONS[work.dtype],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if work.held is not None:
        _check_held(core.compile_model(model, "CPU", config | {"PERF_COUNT": True}), work)
    request = core.compile_model(model, "CPU", config).create_infer_request()

    def run(images: Images) -> Images:
        output: Images = request.infer([images], share_inputs=True, share_outputs=True)[0]  # no copies
        return output

    return run


def _converted(openvino: Any, work: Work) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it still traces with torch.jit
        return openvino.convert_model(
            work.module, example_input=torch.from_numpy(work.images), input=list(work.images.shape)
        )


def _check_held(compiled: Any, work: Work) -> None:
    request = compiled.create_infer_request()
    request.infer([work.images])
    kernels = [info.exec_type for info in request.get_profiling_info() if info.node_type == "Convolution"]
    free = sorted({kernel for kernel in kernels if "avx512" in kernel or "amx" in kernel})
    if free:
        raise Absent(f"cannot be held to {work.held}: its convolutions run {', '.join(free)}")
