"""All libraries, in the order in which they are shown."""

from __future__ import annotations

from typing import Final

from headgate.benchmarking.libraries import ncnn, onnxruntime, openvino, pytorch
from headgate.benchmarking.libraries.library import Library

LIBRARIES: Final = (
    Library(name="torch", title="PyTorch", packages=(), build=pytorch.eager_contiguous),
    Library(
        name="torch-channels-last",
        title="PyTorch, channels last",
        packages=(),
        build=pytorch.eager_channels_last,
        dense=("float32", "bfloat16"),
    ),
    Library(name="torch-compile", title="torch.compile", packages=(), build=pytorch.compiled),
    Library(
        name="onnxruntime",
        title="ONNX Runtime",
        packages=("onnxruntime", "onnx"),
        build=onnxruntime.build,
        unholdable="MLAS chooses kernels by CPUID, and nothing overrides it",
        dense=("float32", "int8"),
        pruned=("float32", "int8"),
    ),
    Library(
        name="openvino",
        title="OpenVINO",
        packages=("openvino",),
        build=openvino.build,
        dense=("float32", "bfloat16", "int8"),
        pruned=("float32", "bfloat16", "int8"),
    ),
    Library(
        name="ncnn",
        title="ncnn",
        packages=("ncnn", "pnnx"),
        build=ncnn.build,
        unholdable="it chooses kernels by CPUID, and nothing overrides it",
    ),
)
