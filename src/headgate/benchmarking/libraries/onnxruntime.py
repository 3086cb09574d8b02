"""ONNX Runtime: all graph optimisations, a session of fixed shape."""

from __future__ import annotations

from headgate.benchmarking.libraries import onnx
from headgate.benchmarking.libraries.library import Images, Runner, Work


def build(work: Work) -> Runner:
    """A session of work's threads on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(onnx.write(work)), options, providers=["CPUExecutionProvider"])

    def run(images: Images) -> Images:
        output: Images = session.run(None, {onnx.INPUT: images})[0]
        return output

    return run
