"""ONNX Runtime: all graph optimisations, a session of fixed shape."""

from __future__ import annotations

import warnings

import torch

from headgate.benchmarking.libraries.library import Images, Runner, Work


def build(work: Work) -> Runner:
    """A session of work's threads on the CPU."""
    import onnxruntime

    path = str(work.folder / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without extra packages is the deprecated one
        torch.onnx.export(work.module, (torch.from_numpy(work.images),), path, dynamo=False, input_names=["images"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Images) -> Images:
        output: Images = session.run(None, {"images": images})[0]
        return output

    return run
