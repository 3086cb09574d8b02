"""ncnn: converted by pnnx, float32 throughout, its own choice of algorithms. It takes one image at a time."""

from __future__ import annotations

import subprocess
import warnings
from typing import Any

import numpy as np
import torch

from headgate.benchmarking.libraries.library import Absent, Images, Runner, Work

CONVERSION_SECONDS = 300


def build(work: Work) -> Runner:
    """A network of work's threads; a batch is a loop, since ncnn has none."""
    import ncnn
    import pnnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and what pnnx reads
        traced: Any = torch.jit.trace(work.module, torch.from_numpy(work.images[:1]))  # type: ignore[no-untyped-call]
        traced.save(str(work.folder / "model.pt"))
    shape = ",".join(map(str, (1, *work.images.shape[1:])))
    # The executable, not pnnx.export: that runs Python code it generates, which fails on names like "0".
    done = subprocess.run(
        [
            pnnx.EXEC_PATH,
            "model.pt",
            f"inputshape=[{shape}]",
            "fp16=0",
            "ncnnparam=model.param",
            "ncnnbin=model.bin",
        ],
        cwd=work.folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=CONVERSION_SECONDS,
        check=False,
    )
    param, weights = work.folder / "model.param", work.folder / "model.bin"
    if done.returncode or not param.exists() or not weights.exists():
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise Absent(f"pnnx could not convert the network: exit code {done.returncode} {' '.join(last)}")
    return _runner(ncnn, str(param), str(weights), work.threads)


def _runner(ncnn: Any, param: str, weights: str, threads: int) -> Runner:
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(param) or net.load_model(weights):
        raise Absent("ncnn could not load what pnnx wrote")
    (source,), (sink,) = net.input_names(), net.output_names()

    def one(image: Images) -> Images:
        extractor = net.create_extractor()
        extractor.input(source, ncnn.Mat(image))
        status, output = extractor.extract(sink)
        if status:
            raise Absent(f"ncnn could not run the network: status {status}")
        return np.array(output)

    return lambda images: np.stack([one(image) for image in images])
